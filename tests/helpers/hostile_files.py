"""Files that must not be loaded: every way of attack that we know of, and every way to break a good file.

`cases()` yields (name, bytes or a function that makes them, what the error must name). They are made here, small, and
never from anybody's file.
"""

import functools
import io
import json
import pickle
import struct
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from helpers.hostile_pickles import Case, names_of_code, opcodes, tensors
from helpers.torch_files import STORAGES, archived, pickled, storage, tensor


def saved(state_dict: dict[str, Any]) -> bytes:
    """A good file of arrays; equal arrays by identity share a storage."""
    entries, keys, nest = {}, {}, {}
    for name, array in state_dict.items():
        key = keys.setdefault(id(array), str(len(keys)))
        entries[f"m/data/{key}"] = array.tobytes()
        strides = tuple(step // array.itemsize for step in array.strides)
        nest[name] = tensor(array.shape, strides, stored=storage(key, STORAGES[array.dtype], array.size))
    return archived(pickled(nest), entries)


def patched(data: bytes, position: int, layout: str, *values: int) -> bytes:
    data = bytearray(data)
    struct.pack_into(layout, data, position, *values)
    return bytes(data)


def _end(count: int, size: int) -> bytes:
    """An end record of an archive that is all directory."""
    return struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), size, 0, 0)


def archives() -> Iterator[Case]:
    """Zip files that say two things, or what torch never says."""
    data = pickled({"w": tensor()})
    good = archived(data)
    end, last = good.rindex(b"PK\5\6"), good.rindex(b"PK\1\2")
    first = good.index(b"PK\1\2")
    local = struct.unpack_from("<I", good, last + 42)[0]
    contents = np.arange(6, dtype=np.float32).tobytes()
    entry = {"m/data/0": contents}
    for name, method in (("DEFLATE", 8), ("BZIP2", 12), ("LZMA", 14)):
        yield name, archived(data, compress=method), "compressed"
        yield f"{name} said at the end alone", patched(good, last + 10, "<H", method), "m/data/0"
        yield f"{name} said in front alone", patched(good, local + 8, "<H", method), "m/data/0"
    for name in ("m/../data/0", "/etc/passwd", "..", "m//data/0", "m\\data\\0", "m/data/\n0", "n/data.pkl", "data.pkl"):
        yield f"an entry {name!r}", archived(data, entry | {name: b"x"}), ""
    for flag in (1, 0x40, 0x2000, 0x20):
        yield f"flag {flag:#x}", patched(patched(good, last + 8, "<H", flag), local + 6, "<H", flag), "m/data/0"
        yield f"flag {flag:#x} in front alone", patched(good, local + 6, "<H", flag), "m/data/0"
    sizes = (0, 1, 23, 25, 10**6, 2**32 - 2, 2**32 - 1)
    for size in sizes:
        yield f"size {size} at the end", patched(good, last + 20, "<2I", size, size), "m/data/0"
        yield f"size {size} in front", patched(good, local + 18, "<2I", size, size), "m/data/0"
        yield f"unpacked size {size}", patched(good, last + 24, "<I", size), "m/data/0"
    for offset in (1, local - 1, local + 1, 0, end, len(good), 2**32 - 1):
        yield f"header at {offset}", patched(good, last + 42, "<I", offset), "m/data/0"
    yield "another name in front", good[: local + 30] + b"m/data/9" + good[local + 38 :], "m/data/0"
    yield "another name length", patched(good, local + 26, "<H", 7), "m/data/0"
    yield "an extra field in front", patched(good, local + 28, "<H", 60_000), "m/data/0"
    yield "damaged data", good[: local + 40] + b"\xff" + good[local + 41 :], "'0' is corrupt"
    yield "damaged pickle", good.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3"), "data.pkl is corrupt"
    yield "both checksums changed", patched(patched(good, last + 16, "<I", 1), local + 14, "<I", 1), "'0' is corrupt"
    yield (
        "two entries on the same bytes",
        patched(good, last + 42, "<I", struct.unpack_from("<I", good, first + 42)[0]),
        "",
    )
    yield "fewer entries said", patched(good, end + 8, "<2H", 2, 2), "directory"
    yield "more entries said", patched(good, end + 8, "<2H", 9, 9), ""
    yield "very many entries said", patched(good, end + 8, "<2H", 65535, 65535), ""
    yield "a part of several", patched(good, end + 4, "<2H", 1, 1), "parts"
    yield "the directory elsewhere", patched(good, end + 16, "<I", 7), "directory"
    yield "a comment", patched(good, end + 20, "<H", 3) + b"abc", ""
    yield "bytes after the end", good + b"\0", "no end-of-central-directory record"
    yield "another archive after the end", good + archived(b"\x80\x02}."), ""
    yield "bytes before the start", b"\x80\x02}." + good, "directory"
    yield "a pickle before the start", pickle.dumps({"a": 1}) + good, "directory"
    yield "no archive at all", b"", "empty"
    yield "only an end record", b"PK\5\6" + bytes(18), "data.pkl"
    yield "a pickle", data, "zip"
    yield "the legacy format", pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + data, "torch >= 1.6"
    yield "a 7z archive", b"7z\xbc\xaf\x27\x1c" + bytes(40), "zip"
    yield "a gzip file", zlib.compress(good), "zip"
    yield "no data.pkl", archived(data).replace(b"m/data.pkl", b"m/data.pkx"), "data.pkl"
    yield "big-endian", archived(data).replace(b"little", b"bigend"), ""
    yield "a web page", b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title></html>", "zip"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("pickle")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    yield "the tar format of old", stream.getvalue(), "torch >= 1.6"
    wide = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, end - first, first)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    for name, record, where in (
        ("with another count", patched(wide, 24, "<2Q", 2**40, 2**40), locator),
        ("with another size", patched(wide, 40, "<Q", 1), locator),
        ("with another offset", patched(wide, 48, "<Q", 0), locator),
        ("that is elsewhere", wide, patched(locator, 8, "<Q", 5)),
        ("of several parts", wide, patched(locator, 16, "<I", 2)),
        ("of another length", patched(wide, 4, "<Q", 2**60), locator),
    ):
        yield f"a zip64 end record {name}", good[:end] + record + where + good[end:], ""
    entries = b"PK\1\2" + bytes(42)
    yield "a directory of 400,000 entries", lambda: entries * 400_000 + _end(400_000, 46 * 400_000), "directory"
    for length in range(0, len(good), 23):
        yield f"cut after {length} bytes", good[:length], ""


def broken_weights(official: dict[str, np.ndarray]) -> Iterator[Case]:
    """The official tiny VDT with each of its tensors broken in each way; the error names that tensor."""
    for name, array in official.items():
        rest = {key: value for key, value in official.items() if key != name}
        nan, infinite = array.copy(), array.astype(np.float64)
        nan.flat[-1], infinite.flat[0] = np.nan, 1e300
        changes = {
            "missing": rest,
            "renamed": rest | {f"{name}x": array},
            "with an axis more": rest | {name: array[None]},
            "with a row less": rest | {name: array[..., :-1].copy()},
            "empty": rest | {name: array[:0].copy()},
            "of whole numbers": rest | {name: array.astype(np.int64)},
            "with a NaN": rest | {name: nan},
            "beyond float32": rest | {name: infinite},
            "with an infinite half": rest | {name: np.full(array.shape, np.inf, ml_dtypes.bfloat16)},
        }
        twins = [key for key, value in rest.items() if value.shape == array.shape]
        if twins:
            changes["on another's bytes"] = rest | {name: official[twins[0]]}
        for change, state_dict in changes.items():
            yield f"{name} {change}", functools.partial(saved, state_dict), name
        extra = official | {f"{name}.extra": array}
        yield f"an extra beside {name}", functools.partial(saved, extra), f"{name}.extra"


def safetensors(header: Any, body: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def safetensors_files() -> Iterator[Case]:
    """The same for the other format."""
    good = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    body = bytes(24)
    changes: dict[str, dict] = {
        "shape too large": {"shape": [2, 4]},
        "shape negative": {"shape": [-2, -3]},
        "shape huge": {"shape": [2**47, 2**47]},
        "shape of 999 dimensions": {"shape": [1] * 999},
        "shape of floats": {"shape": [2.0, 3]},
        "shape of bools": {"shape": [True, 6]},
        "shape a number": {"shape": 6},
        "unknown type": {"dtype": "F8_E9M9"},
        "type a list": {"dtype": ["F32"]},
        "type of half the size": {"dtype": "F16"},
        "offsets reversed": {"data_offsets": [24, 0]},
        "offsets past the end": {"data_offsets": [0, 48], "shape": [4, 3]},
        "offsets negative": {"data_offsets": [-24, 0]},
        "offsets of three": {"data_offsets": [0, 24, 24]},
        "offsets with a gap": {"data_offsets": [4, 24], "shape": [5]},
        "offsets that end early": {"data_offsets": [0, 20], "shape": [5]},
        "a key more": {"code": "import os"},
        "offsets huge": {"data_offsets": [0, 2**200]},
    }
    named = ("offsets reversed", "offsets with a gap", "a key more")
    for name, change in changes.items():
        must_name = "layer.w" if name in named else "header"
        yield f"safetensors: {name}", safetensors({"layer.w": good | change}, body), must_name
    yield "safetensors: a list", safetensors([good], body), "header"
    yield "safetensors: an entry that is a text", safetensors({"layer.w": "F32"}, body), "header"
    yield "safetensors: an overlap", safetensors({"a": good, "layer.w": good}, body), "offset for tensor"
    twice = b'{"w": %s, "w": %s}' % ((json.dumps(good).encode(),) * 2)
    yield "safetensors: a name twice", safetensors(twice, body), ""
    yield "safetensors: nested deeply", safetensors(b"[" * 100_000), "JSON"
    yield "safetensors: no JSON", safetensors(b"\x80\x04."), "UTF-8 in header"
    yield "safetensors: no UTF-8", safetensors(b'{"\xff": 1}'), "UTF-8 in header"
    yield "safetensors: a long number", safetensors(b'{"w": %s}' % (b"9" * 100_000)), ""
    yield "safetensors: many names", safetensors(b"{" + b'"":{},' * 400_000 + b'"a":{}}'), "at most 2097152"
    yield "safetensors: empty", b"", "empty"
    yield "safetensors: bytes after the end", safetensors({"w": good}, body + b"\0"), "not fully covered"
    others: dict[str, Any] = {
        "a shape that overflows, of nothing": {"w": good | {"shape": [2**40, 0, 2**40], "data_offsets": [0, 0]}},
        "999 dimensions of one": {"w": {"dtype": "U8", "shape": [1] * 999, "data_offsets": [0, 1]}},
        "metadata a list": {"__metadata__": [1], "w": good},
        "metadata of dicts": {"__metadata__": {"format": {"a": 1}}, "w": good},
        "control characters in a name": {"\x1b[31m\n": good},
        "control characters in a name that does not fit": {"\x1b[31m\n": good | {"data_offsets": [24, 0]}},
        "control characters in a type": {"w": good | {"dtype": "\x1b[31m\n"}},
    }
    for name, header in others.items():
        size = max((entry["data_offsets"][1] for entry in header.values() if "data_offsets" in entry), default=0)
        yield f"safetensors: {name}", safetensors(header, bytes(size)), ""
    eight = safetensors({"layer.w": {"dtype": "F8_E4M3", "shape": [6], "data_offsets": [0, 6]}}, bytes(6))
    yield "safetensors: a type that weights have not", eight, "'layer.w' is of the type F8_E4M3"
    for length in (2**64 - 1, 2**63, 2**32, 200, 3):
        yield f"safetensors: a header of {length}", patched(safetensors({"w": good}, body), 0, "<Q", length), ""
    whole = safetensors({"w": good}, body)
    for length in range(1, len(whole), 7):
        yield f"safetensors: cut after {length} bytes", whole[:length], ""


def cases(official: dict[str, np.ndarray]) -> Iterator[Case]:
    """All of them."""
    for group in (names_of_code, opcodes, tensors, archives, safetensors_files):
        yield from group()
    yield from broken_weights(official)
