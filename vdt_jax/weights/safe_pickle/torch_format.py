"""What torch's pickles name: OrderedDict, storage types, and the functions that make tensors of storages.

All of them are functions of this module. argparse.Namespace, which DiT-style trainers save, becomes an `Ignored`.
Tensors are views of a storage, made after sizes, strides and offsets were checked against it.
"""

import collections
import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vdt_jax.errors import UnsafeFileError
from vdt_jax.weights.safe_pickle.machine import Function, Machine, Step

_MAX_DIMENSIONS = 16

_STORAGE_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Ignored:
    """Stands where a file holds an object that is not weights; whatever was in it is dropped unread."""


class _Storage:
    """One entry of the archive as a flat, read-only array."""

    def __init__(self, array: np.ndarray):
        self.array = array


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *unused: Any) -> np.ndarray:
    """A strided view of a storage; refuses one that reaches outside."""
    numbers = [offset, *size, *stride] if isinstance(size, tuple) and isinstance(stride, tuple) else [None]
    if not isinstance(storage, _Storage) or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise UnsafeFileError("a tensor's storage, offset, size or stride is not what torch writes")
    if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
        raise UnsafeFileError(f"a tensor of {len(size)} dimensions has strides of {len(stride)}")
    flat = storage.array
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > 0 and last >= flat.size:
        raise UnsafeFileError(f"a tensor of size {size} reaches past its storage of {flat.size} numbers")
    if math.prod(size) > flat.size:
        raise UnsafeFileError(f"a tensor of size {size} claims more than its storage of {flat.size} numbers")
    if math.prod(size) == 0:
        return flat[:0].reshape(size)
    steps = [step * flat.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(flat[offset:], size, steps, writeable=False)


def _rebuild_parameter(data: Any, *unused: Any) -> Any:
    return data


def _ordered_dict(*arguments: Any) -> collections.OrderedDict:
    if arguments:
        raise UnsafeFileError("an OrderedDict that is filled by its constructor")
    return collections.OrderedDict()


def _namespace(*arguments: Any) -> Ignored:
    return Ignored()


class TorchFormat:
    """The names of a torch file (see `Format`); `storage` gives the numbers of a storage as (numel,)."""

    values = (Ignored,)

    def __init__(self, storage: Callable[[str, np.dtype, int], np.ndarray]):
        self._storage = storage
        self.opcodes: Mapping[bytes, Step] = {b"Q": lambda machine, reader: self._push_storage(machine)}  # BINPERSID
        self.names = {
            ("collections", "OrderedDict"): Function(_ordered_dict),
            ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor),
            ("torch._utils", "_rebuild_parameter"): Function(_rebuild_parameter),
            ("argparse", "Namespace"): Function(_namespace),
        } | {("torch", name): np.dtype(dtype) for name, dtype in _STORAGE_DTYPES.items()}

    def set_state(self, target: Any, state: Any) -> None:
        """The state of an OrderedDict (`_metadata`), or of something ignored, is dropped."""
        if not isinstance(target, (collections.OrderedDict, Ignored)):
            raise UnsafeFileError("it sets the state of an object that is not of torch's format")

    def _push_storage(self, machine: Machine) -> None:
        pid = machine.pop()
        if not (isinstance(pid, tuple) and len(pid) == 5 and type(pid[0]) is str and pid[0] == "storage"):
            raise UnsafeFileError("a storage that torch does not write")
        _, dtype, key, _, numel = pid
        if not isinstance(dtype, np.dtype) or type(numel) is not int or type(key) is not str:
            raise UnsafeFileError("a storage that torch does not write")
        machine.push(_Storage(self._storage(key, dtype, numel)))
