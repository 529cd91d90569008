"""Reads and writes safetensors files: a JSON header, then the tensors' bytes without gaps.

Format: https://github.com/huggingface/safetensors#format. The library checks the header and says what is in it.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping

import numpy as np
from safetensors import SafetensorError, safe_open

from vdt_jax.errors import UnsafeFileError
from vdt_jax.files import atomic
from vdt_jax.weights.untrusted import NUMBER_TYPES, mapped, shown

_MAX_HEADER_BYTES = 2 << 20  # about 15,000 tensors; the library would make gigabytes of names of its 100 MB
_DTYPES = {name: dtype for _, name, dtype in NUMBER_TYPES}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def load_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Names and read-only views of the memory-mapped file; bfloat16 as ml_dtypes.bfloat16.

    Raises:
      UserError: no such file.
      UnsafeFileError: the file is corrupt or is no safetensors file.
    """
    with mapped(path, "a .safetensors file") as data:
        length = int.from_bytes(data[:8].tobytes(), "little")
        if length > min(data.size - 8, _MAX_HEADER_BYTES):
            raise UnsafeFileError(f"a header of {length} bytes, in a file of {data.size}: at most {_MAX_HEADER_BYTES}")
        try:
            return _views(path, data[8 + length :])
        except (SafetensorError, ValueError) as error:  # ValueError: of NumPy, a shape that it cannot have
            raise UnsafeFileError(shown(error)) from None


def _views(path: str | os.PathLike, body: np.ndarray) -> dict[str, np.ndarray]:
    """The library copies a tensor to give it, so here it only says which there are, one after the other."""
    tensors, start = {}, 0
    with safe_open(path, framework="numpy") as file:
        for name in file.offset_keys():
            tensor = file.get_slice(name)
            kind, shape = tensor.get_dtype(), tensor.get_shape()
            if kind not in _DTYPES:
                raise UnsafeFileError(f"'{shown(name)}' is of the type {kind}: known are {', '.join(_DTYPES)}")
            stop = start + math.prod(shape) * _DTYPES[kind].itemsize
            tensors[name] = body[start:stop].view(_DTYPES[kind]).reshape(shape)
            start = stop
    return tensors


def save_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], done: Callable[[int], object] = lambda size: None
) -> None:
    """Writes arrays of any layout atomically, with at most one copy of an array in memory.

    The library needs a contiguous copy of all of them at once.

    `done` is called with the number of bytes after each tensor.
    """
    header, offset = {}, 0
    for name, array in tensors.items():
        offsets = [offset, offset + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    with atomic(path) as unfinished, unfinished.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            done(array.nbytes)
