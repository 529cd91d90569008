"""The safetensors format: 8 bytes of length, a JSON header, then the tensors' bytes without gaps.

Format: https://github.com/huggingface/safetensors#format. Read with the rules that the format makes: offsets that
begin at 0, touch each other and end at the end of the file, no name twice, no key that is unknown.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vdt_jax.errors import UnsafeFileError, UserError
from vdt_jax.weights.safe_pickle.archive import map_file

_MAX_HEADER_BYTES = 2 << 20  # about 15,000 tensors
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def load_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Names and read-only views of the memory-mapped file; bfloat16 as ml_dtypes.bfloat16.

    Raises:
      UserError: no such file.
      UnsafeFileError: the file is damaged or is no safetensors file.
    """
    if not Path(path).is_file():
        raise UserError(f"no file {path}: give a .safetensors file that exists")
    try:
        return _read(map_file(Path(path)))
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{path} was not loaded: {error}") from None


def _read(data: np.ndarray) -> dict[str, np.ndarray]:
    length = struct.unpack("<Q", data[:8].tobytes())[0] if data.size >= 8 else data.size
    if length > min(data.size - 8, _MAX_HEADER_BYTES):
        raise UnsafeFileError(f"a header of {length} bytes, in a file of {data.size}: at most {_MAX_HEADER_BYTES}")
    try:
        header = json.loads(data[8 : 8 + length].tobytes().decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnsafeFileError):
            raise
        raise UnsafeFileError("its header is no JSON; safetensors writes one") from None
    if not isinstance(header, dict):
        raise UnsafeFileError("its header names no tensors")
    header.pop("__metadata__", None)
    body = data[8 + length :]
    tensors, ranges = {}, []
    for name, entry in header.items():
        dtype, shape, first, last = _entry(name, entry)
        if math.prod(shape) * dtype.itemsize != last - first or last > body.size:
            raise UnsafeFileError(f"{name[:200]!r} claims {shape} of {dtype}, in bytes {first} to {last}")
        tensors[name] = body[first:last].view(dtype).reshape(shape)
        ranges.append((first, last, name))
    reached = 0
    for first, last, name in sorted(ranges):
        if first != reached:
            raise UnsafeFileError(f"{name[:200]!r} does not begin where the tensor before it ends")
        reached = last
    if reached != body.size:
        raise UnsafeFileError(f"{body.size} bytes of tensors, but its header speaks of {reached}")
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UnsafeFileError(f"a name twice in its header, among {[name[:200] for name, _ in pairs[:5]]}")
    return found


def _entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    problem = UnsafeFileError(f"{name[:200]!r} is not described as safetensors does")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise problem
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise problem
    if kind not in _DTYPES:
        raise UnsafeFileError(f"{name[:200]!r} is of the type {kind[:20]!r}: known are {', '.join(_DTYPES)}")
    if len(shape) > 16 or not all(type(n) is int and 0 <= n < 2**48 for n in [*shape, *offsets]):
        raise problem
    return _DTYPES[kind], tuple(shape), offsets[0], offsets[1]


def save_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], done: Callable[[int], object] = lambda size: None
) -> None:
    """Writes arrays of any layout, one after the other so that one copy at most is in memory; whole or not at all.

    Args:
      done: called with the number of bytes after each tensor, for a progress bar.
    """
    header, offset = {}, 0
    for name, array in tensors.items():
        offsets = [offset, offset + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    unfinished = Path(f"{path}.partial")
    try:
        with unfinished.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for array in tensors.values():
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                done(array.nbytes)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
