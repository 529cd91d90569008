"""The zip format as torch.save writes it: entries that stand uncompressed, one after the other.

Readers of zip disagree about files that say one thing in the directory at the end and another in front of an entry, and
what one scans another loads. So nothing is read from this file unless both places agree: one end record at the very
end, the directory right before it, each entry's own header with the same name and size, no two entries on the same
bytes. Layout: PKWARE APPNOTE 6.3, sections 4.3.7 (header), 4.3.12 (directory), 4.3.14 to 4.3.16 (end records).
"""

import itertools
import mmap
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vdt_jax.errors import UnsafeFileError

_MAX_ENTRIES = 50_000
_MAX_PICKLE_BYTES = 8 << 20

_HEADER = struct.Struct("<4s5H3I2H")
_DIRECTORY = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_SIZES_FOLLOW = 0x08
_UTF_8 = 0x800
_WIDE = 0xFFFFFFFF  # stands where a number of more than 32 bits is in a field of its own


class _Entry(NamedTuple):
    start: int
    size: int
    crc: int


def map_file(path: Path) -> np.ndarray:
    """The bytes of a file, mapped read-only; none are read until they are used."""
    with path.open("rb") as file:
        try:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except ValueError:  # nothing to map
            raise UnsafeFileError("the file is empty") from None


class Archive:
    """The entries of a torch file, all checked when it is opened."""

    def __init__(self, path: Path):
        self._bytes = map_file(path)
        self._entries = self._read_directory()
        pickles = [name for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1]
        others = sum(name.rpartition("/")[2] == "data.pkl" for name in self._entries) - len(pickles)
        if len(pickles) != 1 or others:
            raise UnsafeFileError("not one data.pkl in it: not a torch checkpoint")
        self._root = pickles[0].removesuffix("data.pkl")
        self._storages: dict[str, np.ndarray] = {}
        order = self._entries.get(f"{self._root}byteorder")
        if order is not None and self._read(order).tobytes() != b"little":
            raise UnsafeFileError("written on a big-endian machine, which is not supported")

    def pickle(self) -> bytes:
        """data.pkl."""
        entry = self._entries[f"{self._root}data.pkl"]
        if entry.size > _MAX_PICKLE_BYTES:
            raise UnsafeFileError(f"a data.pkl of {entry.size} bytes, more than {_MAX_PICKLE_BYTES}")
        data = self._read(entry)
        if _is_damaged(data, entry):
            raise UnsafeFileError("data.pkl is damaged: its checksum is another")
        return data.tobytes()

    def storage(self, key: str, dtype: np.dtype, numel: int) -> np.ndarray:
        """A storage (numel,) as a read-only view of the file.

        Raises:
          UnsafeFileError: no such entry, another size or checksum, or the same bytes asked for as two types.
        """
        entry = self._entries.get(f"{self._root}data/{key}")
        if entry is None:
            raise UnsafeFileError(f"no entry for storage {key[:200]!r}")
        if numel < 0 or numel * dtype.itemsize != entry.size:
            raise UnsafeFileError(
                f"storage {key!r} claims {numel} numbers of {dtype}, its entry has {entry.size} bytes"
            )
        if key not in self._storages:
            data = self._read(entry)
            if _is_damaged(data, entry):
                raise UnsafeFileError(f"storage {key!r} is damaged: its checksum is another; fetch the file again")
            self._storages[key] = data.view(dtype)
        if self._storages[key].dtype != dtype:
            raise UnsafeFileError(f"storage {key!r} is both {self._storages[key].dtype} and {dtype}")
        return self._storages[key]

    def _read(self, entry: _Entry) -> np.ndarray:
        return self._bytes[entry.start : entry.start + entry.size]

    def _unpack(self, layout: struct.Struct, offset: int, signature: bytes, what: str) -> tuple:
        data = self._bytes[offset : offset + layout.size].tobytes() if offset >= 0 else b""
        if len(data) != layout.size or data[:4] != signature:
            raise UnsafeFileError(f"not a zip archive that can be read (no {what}); torch >= 1.6 writes one")
        return layout.unpack(data)

    def _find_directory(self) -> tuple[int, int, int]:
        """(number of entries, first byte, first byte after it) of the directory."""
        end = self._bytes.size - _END.size
        _, disk, first_disk, here, entries, size, offset, comment = self._unpack(_END, end, b"PK\5\6", "end record")
        if comment or disk or first_disk or here != entries:
            raise UnsafeFileError("a zip archive with a comment or in parts, which torch never writes")
        locator = end - _LOCATOR_64.size
        if locator >= 0 and self._bytes[locator : locator + 4].tobytes() == b"PK\6\7":
            _, disk, where, disks = self._unpack(_LOCATOR_64, locator, b"PK\6\7", "locator")
            end = locator - _END_64.size
            _, length, _, _, part, first, here, entries_64, size_64, offset_64 = self._unpack(
                _END_64, end, b"PK\6\6", "zip64 end record"
            )
            if where != end or length != _END_64.size - 12 or disk or disks != 1 or part or first or here != entries_64:
                raise UnsafeFileError("a zip64 end record that is not where the file says")
            if entries != min(entries_64, 0xFFFF) or (size, offset) != (min(size_64, _WIDE), min(offset_64, _WIDE)):
                raise UnsafeFileError("two end records that disagree")
            entries, size, offset = entries_64, size_64, offset_64
        if offset + size != end:
            raise UnsafeFileError("the directory of the archive is not where the file says")
        if entries > _MAX_ENTRIES:
            raise UnsafeFileError(f"{entries} entries, more than {_MAX_ENTRIES}")
        return entries, offset, end

    def _read_directory(self) -> dict[str, _Entry]:
        count, offset, end = self._find_directory()
        directory = offset
        entries: dict[str, _Entry] = {}
        taken: list[tuple[int, int, str]] = []
        for _ in range(count):
            _, _, _, flags, method, _, _, crc, packed, size, n, m, k, disk, _, _, start = self._unpack(
                _DIRECTORY, offset, b"PK\1\2", "directory entry"
            )
            variable = self._bytes[offset + _DIRECTORY.size : offset + _DIRECTORY.size + n + m + k].tobytes()
            offset += _DIRECTORY.size + n + m + k
            if offset > end:
                raise UnsafeFileError("the directory of the archive reaches past its end")
            name = _decode(variable[:n])
            packed, size, start = _wide(packed, size, start, variable[n : n + m], name)
            if method or packed != size or flags & ~(_SIZES_FOLLOW | _UTF_8):
                raise UnsafeFileError(f"entry {name!r} is compressed or encrypted, which torch never does")
            if name in entries:
                raise UnsafeFileError(f"two entries of one name, {name!r}")
            if disk or k or name.startswith("/") or {"", ".", ".."} & set(name.split("/")) or "\\" in name:
                raise UnsafeFileError(f"an entry named {name!r} that torch never writes")
            data = self._check_header(name, start, size, flags, crc)
            if data + size > directory:
                raise UnsafeFileError(f"entry {name!r} reaches past the end of the entries")
            entries[name] = _Entry(data, size, crc)
            taken.append((start, data + size, name))
        if offset != end:
            raise UnsafeFileError("the directory of the archive is longer than its entries")
        taken.sort()
        for (_, stop, name), (start, _, other) in itertools.pairwise(taken):
            if start < stop:
                raise UnsafeFileError(f"entries {name!r} and {other!r} share bytes")
        return entries

    def _check_header(self, name: str, start: int, size: int, flags: int, crc: int) -> int:
        """Where an entry's data start, after its own header was found to agree with the directory."""
        try:
            _, _, own_flags, method, _, _, own_crc, packed, own_size, n, m = self._unpack(
                _HEADER, start, b"PK\3\4", "header"
            )
        except UnsafeFileError:
            raise UnsafeFileError(f"entry {name!r} does not start where the archive says") from None
        own_name = self._bytes[start + _HEADER.size : start + _HEADER.size + n].tobytes()
        extra = self._bytes[start + _HEADER.size + n : start + _HEADER.size + n + m].tobytes()
        if _decode(own_name) != name or method or own_flags != flags:
            raise UnsafeFileError(f"entry {name!r} is another in its own header")
        packed, own_size, _ = _wide(packed, own_size, 0, extra, name)
        same = (own_crc, packed, own_size) == (crc, size, size)
        if not same and not (flags & _SIZES_FOLLOW and (own_crc, packed, own_size) == (0, 0, 0)):
            raise UnsafeFileError(f"entry {name!r} has another size or checksum in its own header")
        return start + _HEADER.size + n + m


def _is_damaged(data: np.ndarray, entry: _Entry) -> bool:
    """Whether the bytes are not those of the checksum; torch writes 0 for "none" where it was told to save time."""
    return entry.crc != 0 and zlib.crc32(data.data) != entry.crc


def _decode(name: bytes) -> str:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise UnsafeFileError("an entry's name is no UTF-8") from None
    if not text.isprintable():
        raise UnsafeFileError(f"an entry named {text!r} that torch never writes")
    return text


def _wide(packed: int, size: int, start: int, extra: bytes, name: str) -> tuple[int, int, int]:
    """Sizes and offset, from the zip64 field (APPNOTE 4.5.3) where they did not fit into 32 bits."""
    wide = None
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if length > len(extra) - 4:
            break
        if kind == 1 and wide is not None:
            raise UnsafeFileError(f"entry {name!r} has two zip64 fields")
        if kind == 1:
            wide = extra[4 : 4 + length]
        extra = extra[4 + length :]
    numbers = [size, packed, start]  # the order of the field, which holds those that are missing alone
    for index, number in enumerate(numbers):
        if number == _WIDE and wide is not None:
            if len(wide) < 8:
                raise UnsafeFileError(f"entry {name!r} has a zip64 field that is too short")
            numbers[index] = struct.unpack_from("<Q", wide)[0]
            wide = wide[8:]
    size, packed, start = numbers
    return packed, size, start
