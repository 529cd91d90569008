"""What the readers of untrusted files share: the mapped bytes, and errors that are safe to print."""

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from vdt_jax.errors import UnsafeFileError, UserError

# Number types of weights: their name in torch, in safetensors, in NumPy.
NUMBER_TYPES = (
    ("Double", "F64", np.dtype(np.float64)),
    ("Float", "F32", np.dtype(np.float32)),
    ("Half", "F16", np.dtype(np.float16)),
    ("BFloat16", "BF16", np.dtype(ml_dtypes.bfloat16)),
    ("Long", "I64", np.dtype(np.int64)),
    ("Int", "I32", np.dtype(np.int32)),
    ("Short", "I16", np.dtype(np.int16)),
    ("Char", "I8", np.dtype(np.int8)),
    ("Byte", "U8", np.dtype(np.uint8)),
    ("Bool", "BOOL", np.dtype(np.bool_)),
)


@contextlib.contextmanager
def mapped(path: str | os.PathLike, kind: str) -> Iterator[np.ndarray]:
    """Maps a file read-only, (N,) uint8; an UnsafeFileError of the block then names the file.

    `kind` names the kind of file in the error where there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"file not found: {path} (give {kind})")
    try:
        if path.stat().st_size == 0:
            raise UnsafeFileError("the file is empty")
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        yield np.frombuffer(data, np.uint8)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{path} cannot be loaded: {error}") from None


def is_shape(value: object) -> bool:
    """Whether a value of a file is a tuple of a few whole numbers, as a shape or strides are."""
    return type(value) is tuple and len(value) <= 16 and all(type(n) is int and 0 <= n < 2**48 for n in value)


def shown(text: object) -> str:
    """A text from a file as it may stand in a message: at most 200 characters, control characters escaped."""
    return repr(str(text)[:200])[1:-1]
