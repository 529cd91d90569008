"""Reads pickles of nested dicts of NumPy arrays without trusting them.

An array comes as three steps: `_reconstruct` makes an empty one, a dtype is made and given its byte order, and the
array's state (shape, dtype, order, bytes) fills it. Here an array is a read-only view of the pickle's own bytes.
"""

import math
import os
from typing import Any

import numpy as np

from vdt_jax.errors import UnsafeFileError
from vdt_jax.weights.pickles import Record, load_pickle, record_names
from vdt_jax.weights.untrusted import is_shape, mapped, shown

_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_NAMES = record_names(
    ("numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
)


def load_pickled_arrays(path: str | os.PathLike) -> dict[str, Any]:
    """Nested dicts of read-only NumPy arrays, from a plain pickle of them.

    Raises:
      UserError: no such file.
      UnsafeFileError: the file is corrupt, or asks for anything else than arrays.
    """
    with mapped(path, "a pickle of NumPy arrays") as data:
        nest = load_pickle(data.tobytes(), _NAMES, _array, ("BINBYTES", "SHORT_BINBYTES"))
        waiting = [nest]
        while waiting:
            item = waiting.pop()
            if isinstance(item, dict):
                waiting += item.values()
            elif not isinstance(item, np.ndarray):
                raise UnsafeFileError(f"it holds a {type(item).__name__} where weights have an array")
        return nest


def _array(record: Record) -> np.ndarray:
    """The array of a `_reconstruct` record."""
    if not record.name.endswith("_reconstruct") or record.arguments != (_NAMES["numpy.ndarray"], (0,), b"b"):
        raise UnsafeFileError("an array that is begun as NumPy does not begin one")
    state = record.state
    if type(state) is not tuple or len(state) != 5:
        raise UnsafeFileError("an array whose state is not what NumPy writes")
    _, shape, kind, fortran, data = state
    if type(data) is not bytes or type(fortran) is not bool:
        raise UnsafeFileError("an array whose state is not what NumPy writes")
    if not is_shape(shape):
        raise UnsafeFileError("an array whose shape is not a few whole numbers")
    dtype = _dtype(kind)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise UnsafeFileError(f"an array of shape {shape} claims other than the {len(data)} bytes that it has")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _dtype(record: Any) -> np.dtype:
    if not isinstance(record, _NAMES["numpy.dtype"]) or not record.arguments or type(record.arguments[0]) is not str:
        raise UnsafeFileError("an array whose number type is not what NumPy writes")
    name, state = record.arguments[0], record.state
    if name not in _DTYPES:
        raise UnsafeFileError(f"a number type '{shown(name)}': weights are one of {', '.join(_DTYPES)}")
    if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|"):
        raise UnsafeFileError("numbers that are not little-endian")
    return np.dtype(name)
