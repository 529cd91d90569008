"""Reads files of weights without trusting them: torch.save's zip format, pickled NumPy arrays, and safetensors.

* archive: the zip format, of which torch uses the part without compression;
* machine: the pickle inside, on a stack machine that can call nothing of the world outside;
* torch_format, numpy_format: what a pickle of either kind may name;
* safetensors: a JSON header and bytes, read and written.

Tensors are views of the memory-mapped file, made after every size was checked; there is no fallback anywhere.
"""

import os
from pathlib import Path
from typing import Any

from vdt_jax.errors import UnsafeFileError, UserError
from vdt_jax.weights.safe_pickle.archive import Archive
from vdt_jax.weights.safe_pickle.machine import Machine
from vdt_jax.weights.safe_pickle.numpy_format import NumpyFormat, unwrap
from vdt_jax.weights.safe_pickle.safetensors import load_safetensors, save_safetensors
from vdt_jax.weights.safe_pickle.torch_format import Ignored, TorchFormat

__all__ = [
    "Ignored",
    "UnsafeFileError",
    "load_pickled_arrays",
    "load_safetensors",
    "load_torch",
    "load_weights",
    "save_safetensors",
]


def load_torch(path: str | os.PathLike) -> Any:
    """What torch.save wrote: nested dicts, lists and tuples whose tensors are read-only NumPy arrays.

    Arrays are views of the memory-mapped file, bfloat16 as ml_dtypes.bfloat16. Objects that are not weights
    (argparse.Namespace) come back as `Ignored`.

    Raises:
      UserError: no such file.
      UnsafeFileError: the file is damaged, is no torch checkpoint, or asks for anything else than arrays.
    """
    if not Path(path).is_file():
        raise UserError(f"no file {path}: give a checkpoint that torch.save wrote")
    try:
        archive = Archive(Path(path))
        return Machine(TorchFormat(archive.storage)).run(archive.pickle())
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{path} was not loaded: {error}") from None


def load_pickled_arrays(path: str | os.PathLike) -> dict[str, Any]:
    """Nested dicts of read-only NumPy arrays, from a plain pickle of them.

    Raises:
      UserError: no such file.
      UnsafeFileError: the file is damaged, or asks for anything else than arrays.
    """
    if not Path(path).is_file():
        raise UserError(f"no file {path}: give a pickle of NumPy arrays")
    try:
        return unwrap(Machine(NumpyFormat()).run(Path(path).read_bytes()))
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{path} was not loaded: {error}") from None


def load_weights(path: str | os.PathLike) -> Any:
    """`load_safetensors` where the name ends so, else `load_torch`."""
    return load_safetensors(path) if Path(path).suffix == ".safetensors" else load_torch(path)
