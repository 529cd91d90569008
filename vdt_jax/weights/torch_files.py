"""Reads what torch.save wrote, without torch and without trusting it: a zip archive of a pickle and its storages.

Tensors are views of the memory-mapped file, made after sizes, strides and offsets were checked against it.
"""

import collections
import io
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vdt_jax.errors import UnsafeFileError
from vdt_jax.weights.pickles import STORAGE, Record, load_pickle, record_names
from vdt_jax.weights.untrusted import NUMBER_TYPES, is_shape, mapped, shown

_MAX_PICKLE_BYTES = 8 << 20
_MAX_DIRECTORY_BYTES = 4 << 20  # some 45,000 entries
_DTYPES = {f"torch.{name}Storage": dtype for name, _, dtype in NUMBER_TYPES}
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_DICT = "collections.OrderedDict"
# What trainers save beside weights; nothing is made of it.
_DROPPED = (
    "argparse.Namespace",
    "collections.Counter",
    "torch.device",
    "torch.Size",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
_NAMES = record_names((_TENSOR, _PARAMETER, _DICT, *_DROPPED, *_DTYPES))

_END = struct.Struct("<4s4H2IH")  # APPNOTE 4.3.16
_HEADER = struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.7
_SIZES_FOLLOW, _UTF_8 = 0x08, 0x800  # the flags that torch sets
_WIDE = 0xFFFFFFFF  # stands where a number of more than 32 bits is in a field of its own


class Ignored:
    """Stands where a file holds an object that is not weights; whatever was in it is dropped unread."""


def load_torch(path: str | os.PathLike) -> Any:
    """What torch.save wrote: nested dicts, lists and tuples whose tensors are read-only NumPy arrays.

    Arrays are views of the memory-mapped file, bfloat16 as ml_dtypes.bfloat16. Objects that are not weights
    (argparse.Namespace) come back as `Ignored`.

    Raises:
      UserError: no such file.
      UnsafeFileError: the file is corrupt, is no torch checkpoint, or asks for anything else than arrays.
    """
    with mapped(path, "a checkpoint that torch.save wrote") as data:
        archive = _Archive(Path(path), data)
        return load_pickle(archive.pickle(), _NAMES, archive.make, ("BINPERSID",), values=(Ignored,))


class _Limited(io.FileIO):
    """Refuses a large directory: zipfile reads it whole and makes some ten times its size of it."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise UnsafeFileError(f"the directory of the archive takes more than {_MAX_DIRECTORY_BYTES} bytes")
        return super().read(size)


class _Archive:
    """The entries of a torch file: uncompressed, found by `zipfile`, and mapped.

    Readers of zip disagree about files that say one thing in the directory at the end and another in front of an
    entry, and what one scans another loads. So nothing is read unless both places agree.
    """

    def __init__(self, path: Path, data: np.ndarray):
        self._data = data
        self._entries = {info.filename: (info, self._start(info)) for info in self._directory(path)}
        pickles = [name for name in self._entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].count("/") != 1:
            raise UnsafeFileError("not one data.pkl in it: not a torch checkpoint")
        self._root = pickles[0].removesuffix("data.pkl")
        self._storages: dict[str, np.ndarray] = {}
        if f"{self._root}byteorder" in self._entries and self._read("byteorder", "byteorder").tobytes() != b"little":
            raise UnsafeFileError("written on a big-endian machine, which is not supported")

    def _directory(self, path: Path) -> list[zipfile.ZipInfo]:
        """The entries, after the directory was found to be where the end record says, with as many entries."""
        end = self._data[-_END.size :].tobytes()
        if len(end) != _END.size or end[:4] != b"PK\5\6":
            raise UnsafeFileError(
                "not a zip archive, the format of torch >= 1.6: no end-of-central-directory record at its end"
            )
        _, disk, first_disk, here, entries, _, offset, comment = _END.unpack(end)
        try:
            with _Limited(path) as file, zipfile.ZipFile(file) as archive:
                infos, self._stop = archive.infolist(), archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, OSError, OverflowError, ValueError, struct.error) as error:
            if isinstance(error, UnsafeFileError):
                raise
            raise UnsafeFileError(f"not a zip archive that can be read ({shown(error)})") from None
        if comment or disk or first_disk or here != entries or entries != min(len(infos), 0xFFFF):
            raise UnsafeFileError("an archive with a comment, in parts, or with a directory of wrong length")
        if offset not in (self._stop, _WIDE) or (infos and min(info.header_offset for info in infos)):
            raise UnsafeFileError("the directory or the first entry of the archive is not where the file says")
        if len({info.filename for info in infos}) != len(infos):
            raise UnsafeFileError("two entries of one name in the archive")
        return infos

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Where an entry's data start, which zipfile does not say, if its own header agrees with the directory."""
        name, size, flags = f"entry '{shown(info.filename)}'", info.file_size, info.flag_bits
        if {"", ".", ".."} & set(info.filename.split("/")):
            raise UnsafeFileError(f"{name}: a name that torch never writes")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != size or flags & ~(_SIZES_FOLLOW | _UTF_8):
            raise UnsafeFileError(f"{name} is compressed or encrypted, which torch never does")
        header = self._data[info.header_offset : info.header_offset + _HEADER.size].tobytes()
        if len(header) != _HEADER.size or header[:4] != b"PK\3\4":
            raise UnsafeFileError(f"{name} does not start where the archive says")
        _, _, own_flags, method, _, _, crc, packed, own_size, length, extra = _HEADER.unpack(header)
        start = info.header_offset + _HEADER.size + length
        encoding = "utf-8" if flags & _UTF_8 else "cp437"
        own_name = self._data[start - length : start].tobytes().decode(encoding, "replace")
        known = {(info.CRC, size, size) if size < _WIDE else (info.CRC, _WIDE, _WIDE)}
        if flags & _SIZES_FOLLOW:
            known.add((0, 0, 0))
        if (own_name, own_flags, method) != (info.filename, flags, 0) or (crc, packed, own_size) not in known:
            raise UnsafeFileError(f"{name} has a different name, size or checksum in its own header")
        if start + extra + size > self._stop:
            raise UnsafeFileError(f"{name} reaches past the end of the entries")
        return start + extra

    def _read(self, name: str, label: str) -> np.ndarray:
        info, start = self._entries[self._root + name]
        data = self._data[start : start + info.file_size]
        if info.CRC and zlib.crc32(data.data) != info.CRC:  # torch writes 0 for none, to save time
            raise UnsafeFileError(f"{label} is corrupt, its checksum differs: fetch the file again")
        return data

    def pickle(self) -> bytes:
        """The bytes of data.pkl."""
        size = self._entries[f"{self._root}data.pkl"][0].file_size
        if size > _MAX_PICKLE_BYTES:
            raise UnsafeFileError(f"a data.pkl of {size} bytes, more than {_MAX_PICKLE_BYTES}")
        return self._read("data.pkl", "data.pkl").tobytes()

    def make(self, record: Record) -> Any:
        """The value of a record (see `load_pickle`)."""
        if record.name == _TENSOR:
            return _strided(self._storage(record.arguments[0]), *record.arguments[1:4])
        if record.name == _PARAMETER:
            return record.arguments[0]
        if record.name in _DROPPED:
            return Ignored()
        if record.name == _DICT and not record.arguments:
            return collections.OrderedDict(record)
        raise UnsafeFileError("an OrderedDict filled by its constructor, or a storage or type in the place of a value")

    def _storage(self, record: Any) -> np.ndarray:
        """A storage (numel,) as a read-only view of the file."""
        pid = record.arguments[0] if isinstance(record, _NAMES[STORAGE]) else None
        if type(pid) is not tuple or len(pid) != 5 or type(pid[0]) is not str or pid[0] != "storage":
            raise UnsafeFileError("a storage that torch does not write")
        _, kind, key, _, numel = pid
        if not isinstance(kind, type) or type(key) is not str or type(numel) is not int or kind.name not in _DTYPES:
            raise UnsafeFileError("a storage that torch does not write")
        dtype, name = _DTYPES[kind.name], f"storage '{shown(key)}'"
        if f"{self._root}data/{key}" not in self._entries:
            raise UnsafeFileError(f"no entry for {name}")
        size = self._entries[f"{self._root}data/{key}"][0].file_size
        if numel < 0 or numel * dtype.itemsize != size:
            raise UnsafeFileError(f"{name} claims {numel} numbers of {dtype}, its entry has {size} bytes")
        if key not in self._storages:
            self._storages[key] = self._read(f"data/{key}", name).view(dtype)
        if self._storages[key].dtype != dtype:
            raise UnsafeFileError(f"{name} is both {self._storages[key].dtype} and {dtype}")
        return self._storages[key]


def _strided(flat: np.ndarray, offset: Any, size: Any, stride: Any) -> np.ndarray:
    """A strided view of a storage; refuses one that reaches outside."""
    if not (is_shape((offset,)) and is_shape(size) and is_shape(stride)):
        raise UnsafeFileError("a tensor's offset, size or stride is not what torch writes")
    if len(size) != len(stride):
        raise UnsafeFileError(f"a tensor of {len(size)} dimensions has strides of {len(stride)}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > 0 and last >= flat.size:
        raise UnsafeFileError(f"a tensor of size {size} reaches past its storage of {flat.size} numbers")
    if math.prod(size) > flat.size:
        raise UnsafeFileError(f"a tensor of size {size} claims more than its storage of {flat.size} numbers")
    if math.prod(size) == 0:
        return flat[:0].reshape(size)
    steps = [step * flat.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(flat[offset:], size, steps, writeable=False)
