"""Reads model folders that somebody else made: what a file says is checked before it is followed.

* Only regular files below the folder are opened: a symbolic link, a FIFO or a device is refused (`check_files`).
* JSON is limited in size, and read as a mapping (`read_json`).
* Parameters are read array by array, with the names and shapes that the model has (`read_params`). Orbax's metadata are
  compared with these names and not followed, and tensorstore refuses names of files with `..` in them.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from etils import epath

from vdt_jax.distributed.mesh import path_name
from vdt_jax.errors import UserError
from vdt_jax.files import in_bucket

_MAX_FILES = 100_000
_MAX_DEPTH = 8
_MAX_JSON_BYTES = 32 << 20
_MAX_INDEX_BYTES = 32 << 20  # of manifest.ocdbt, which tensorstore reads whole
_MAX_RATIO = 1000  # bytes of parameters to bytes of files, which are compressed
_FAILURES = (ValueError, IndexError, NotImplementedError, MemoryError, OSError)  # of tensorstore
_INDEX, _NAMES = "manifest.ocdbt", "_METADATA"


def check_files(folder: epath.Path) -> int:
    """The bytes of all files below a folder of this machine; a bucket holds regular files only, and is not checked.

    Raises:
      UserError: something there is neither a regular file nor a folder, or there is too much of it.
    """
    if in_bucket(folder):
        return sum(path.stat().length for path in folder.rglob("*") if path.is_file())
    waiting, total, count = [(Path(folder), _MAX_DEPTH)], 0, 0
    while waiting:
        path, depth = waiting.pop()
        try:
            if not path.is_dir() or path.is_symlink():
                check_regular(path)
                total += path.lstat().st_size
                continue
            children = sorted(path.iterdir())
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions and its disk") from None
        count += len(children)
        if depth == 0 or count > _MAX_FILES:
            raise UserError(
                f"{path} has more than {_MAX_DEPTH} levels of folders or {_MAX_FILES} files, unlike any model: "
                "give the path of the model's own folder"
            )
        waiting += [(child, depth - 1) for child in children]
    return total


def check_regular(path: str | os.PathLike) -> None:
    """Raises UserError unless a path on this machine is a regular file, and no link to one."""
    mode = os.lstat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFDIR: "folder"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise UserError(
            f"{path} is a {kind}, and only regular files are read from a model's folder: copy the file there"
        )


def read_json(file: epath.Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
      UserError: no regular file, too large, not UTF-8, no JSON or no mapping.
    """
    if not in_bucket(file):
        check_regular(file)
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_JSON_BYTES + 1)
        if len(data) > _MAX_JSON_BYTES:
            raise ValueError(f"more than {_MAX_JSON_BYTES} bytes")
        value = json.loads(data.decode())
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__} in place of a mapping")
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file} cannot be read ({error}): it is damaged, or was not written by this package") from None
    return value


def read_params(folder: epath.Path, shapes: Any) -> Any:
    """The parameters of a folder that Orbax wrote, on the first device.

    Args:
      folder: with `manifest.ocdbt`, an index of arrays by name.
      shapes: a tree of jax.ShapeDtypeStruct; floats on disk may have a different width.

    Raises:
      UserError: corrupt files, or other parameters than those of `shapes`.
    """
    size = check_files(folder)
    expected = {path_name(path).replace("/", "."): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    wanted = sum(leaf.size * leaf.dtype.itemsize for leaf in expected.values())
    if wanted > _MAX_RATIO * size + (1 << 20):
        raise UserError(f"the parameters in {folder} do not fit its config.json: {size} bytes, expected {wanted}")
    index = folder / _INDEX
    if not index.is_file() or index.stat().length > _MAX_INDEX_BYTES:
        raise UserError(f"{folder} has no {_INDEX} of less than {_MAX_INDEX_BYTES} bytes: fetch the folder again")
    _check_names(folder, set(expected))
    arrays, device = _arrays(folder, expected), jax.local_devices()[0]
    on_device = [jax.device_put(arrays.pop(name).astype(leaf.dtype), device) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), on_device)


def _check_names(folder: epath.Path, expected: set[str]) -> None:
    """Compares the names of the parameters with those that Orbax lists."""
    try:
        leaves = read_json(folder / _NAMES)["tree_metadata"].values()
        found = {".".join(part["key"] for part in leaf["key_metadata"]) for leaf in leaves}
    except (KeyError, TypeError, AttributeError, FileNotFoundError):
        raise UserError(f"{folder / _NAMES} is damaged or missing: fetch the folder again") from None
    problems = [f"{name} is missing" for name in sorted(expected - found)]
    problems += [f"{name} is unexpected" for name in sorted(found - expected)]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"the parameters in {folder} do not fit its config.json: {', '.join(problems[:3])}{more}")


def _arrays(folder: epath.Path, expected: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of these names and shapes."""
    base = {"driver": "file", "path": f"{folder}/"}
    if in_bucket(folder):
        bucket, _, path = str(folder).removeprefix("gs://").partition("/")
        base = {"driver": "gcs", "bucket": bucket, "path": f"{path}/"}
    context = ts.Context()
    stores, reads = {}, {}
    for name in expected:
        store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        spec = {"driver": "zarr", "kvstore": store, "fill_missing_data_reads": False}
        stores[name] = ts.open(spec, read=True, open=True, context=context)
    name = ""
    try:
        for name, leaf in expected.items():
            store = stores[name].result()
            if store.shape != leaf.shape:
                raise UserError(
                    f"the parameters in {folder} do not fit its config.json: {name} has shape {store.shape}, "
                    f"expected {leaf.shape}"
                )
            chunk = store.chunk_layout.read_chunk.shape
            if store.dtype.name not in ("float32", "bfloat16", "float16") or any(
                many > max(1, size) for many, size in zip(chunk, leaf.shape, strict=True)
            ):
                raise ValueError(f"chunks {chunk} of {store.dtype.name}")
            reads[name] = store.read()
        for name in expected:
            reads[name] = np.asarray(reads[name].result())
    except UserError:
        raise
    except _FAILURES as error:
        raise UserError(f"{folder} is damaged, {name} cannot be read ({error}): fetch the folder again") from None
    return reads
