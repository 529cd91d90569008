"""What pickles of NumPy arrays name: the array type, the function that makes an empty one, and plain number types.

An array comes as three steps: `_reconstruct` makes an empty one, a dtype is made and given its byte order, and the
array's state (shape, dtype, order, bytes) fills it. Here each step is a function of this module, and an array is a
read-only view of the pickle's own bytes, made after its size was checked against them.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vdt_jax.errors import UnsafeFileError
from vdt_jax.weights.safe_pickle.machine import Function, Step

_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_MAX_DIMENSIONS = 16
_NDARRAY = object()


class Array:
    """An array that is being made; `value` is None until its state has come."""

    value: np.ndarray | None = None


class _Dtype:
    """A number type, before its byte order is known."""

    def __init__(self, name: str):
        self.dtype = np.dtype(name)


def _reconstruct(kind: Any, shape: Any, code: Any) -> Array:
    if kind is not _NDARRAY or shape != (0,) or code != b"b":
        raise UnsafeFileError("an array that is begun as NumPy does not begin one")
    return Array()


def _make_dtype(name: Any, *flags: Any) -> _Dtype:
    if type(name) is not str or name not in _DTYPES or not all(type(flag) in (bool, int) for flag in flags):
        raise UnsafeFileError(f"a number type {str(name)[:40]!r}: weights are one of {', '.join(_DTYPES)}")
    return _Dtype(name)


class NumpyFormat:
    """The names of a pickle of nested dicts of NumPy arrays (see `Format`)."""

    values = (Array,)
    names: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): Function(_make_dtype),
        ("numpy.core.multiarray", "_reconstruct"): Function(_reconstruct),
        ("numpy._core.multiarray", "_reconstruct"): Function(_reconstruct),
    }
    opcodes: Mapping[bytes, Step] = {
        b"B": lambda machine, reader: machine.push(reader.take(reader.number("<I"))),  # BINBYTES
        b"C": lambda machine, reader: machine.push(reader.take(reader.number("B"))),  # SHORT_BINBYTES
    }

    def set_state(self, target: Any, state: Any) -> None:
        """Fills an array, or sees that a dtype is of little-endian numbers."""
        if isinstance(target, _Dtype):
            if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|"):
                raise UnsafeFileError("numbers that are not little-endian")
        elif isinstance(target, Array):
            target.value = _filled(state)
        else:
            raise UnsafeFileError("it sets the state of an object that is no array")


def _filled(state: Any) -> np.ndarray:
    if type(state) is not tuple or len(state) != 5:
        raise UnsafeFileError("an array whose state is not what NumPy writes")
    _, shape, dtype, fortran, data = state
    if not isinstance(dtype, _Dtype) or type(data) is not bytes or type(fortran) is not bool:
        raise UnsafeFileError("an array whose state is not what NumPy writes")
    if type(shape) is not tuple or len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise UnsafeFileError("an array whose shape is not a few whole numbers")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise UnsafeFileError(f"an array of shape {shape} claims other than the {len(data)} bytes that it has")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def unwrap(value: Any) -> Any:
    """A machine's result with arrays in the place of `Array`: nested dicts alone.

    Raises:
      UnsafeFileError: anything else is in it.
    """
    if isinstance(value, dict):
        return {key: unwrap(item) for key, item in value.items()}
    if isinstance(value, Array) and value.value is not None:
        return value.value
    raise UnsafeFileError(f"it holds a {type(value).__name__} where weights have an array")
