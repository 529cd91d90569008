"""Reads torch's pickled arrays without torch and without trusting the file.

A `.pt` file (torch >= 1.6) is a zip archive: `data.pkl` describes a nest of dicts and tensors, and each tensor's bytes
stand uncompressed in an entry of their own. Pickle is a small stack machine that can call anything it can name, so the
machine here has had everything taken out that a checkpoint does not need:

* opcodes: pickletools takes them apart, and `_Machine` carries out an allow-list; any other ends the reading;
* names: OrderedDict, the storage types and the tensor-rebuilding functions, which are functions of this module.
  argparse.Namespace, which DiT-style trainers save, becomes an `Ignored`. Any other name is refused, whatever it is;
* tensors: views of the memory-mapped file, made after sizes, strides and offsets were checked against the entry.

There is no fallback: a file that needs more is refused with the name of what it needs.
"""

import collections
import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vdt_jax.errors import UserError

_MAX_ENTRIES = 200_000
_MAX_PICKLE_BYTES = 256 << 20

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


class UnsafeFileError(UserError):
    """The file asks for something that no checkpoint needs, or is not what it says it is."""


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
    if len(size) != len(stride) or len(size) > 32:
        raise UnsafeFileError(f"a tensor of size {size} has strides {stride}")
    flat = storage.array
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > 0 and last >= flat.size:
        raise UnsafeFileError(f"a tensor of size {size} reaches past its storage of {flat.size} numbers")
    if math.prod(size) > flat.size:
        raise UnsafeFileError(f"a tensor of size {size} claims more than its storage of {flat.size} numbers")
    if math.prod(size) == 0:
        return np.zeros(size, flat.dtype)
    steps = [step * flat.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(flat[offset:], size, steps, writeable=False)


def _rebuild_parameter(data: Any, *unused: Any) -> Any:
    return data


def _ordered_dict(*arguments: Any) -> collections.OrderedDict:
    if arguments:
        raise UnsafeFileError("an OrderedDict that is filled by its constructor")
    return collections.OrderedDict()


class _Callable(NamedTuple):
    call: Callable[..., Any]


# What a pickle may call, by module and name. None is the function of that name: all are this module's own.
_CALLABLES = {
    ("collections", "OrderedDict"): _Callable(_ordered_dict),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(_rebuild_parameter),
    ("argparse", "Namespace"): _Callable(Ignored),
}

_LITERALS = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), lambda number: number),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), lambda text: text),
}


def _find(module: Any, name: Any) -> _Callable | np.dtype:
    if module == "torch" and name in _STORAGE_DTYPES:
        return np.dtype(_STORAGE_DTYPES[name])
    if (module, name) in _CALLABLES:
        return _CALLABLES[module, name]
    raise UnsafeFileError(f"it names {module}.{name}, which no checkpoint needs")


class _Machine:
    """Carries out a pickle's opcodes on a stack of plain values: dicts, lists, tuples, strings, numbers, arrays."""

    def __init__(self, archive: "_Archive"):
        self._archive = archive
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """The value that the pickle describes."""
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _LITERALS:
                self._stack.append(_LITERALS[opcode.name](argument))
            elif opcode.name == "STOP":
                return self._stack.pop()
            elif opcode.name not in ("PROTO", "FRAME"):
                handler = getattr(self, f"_{opcode.name.lower()}", None)
                if handler is None:
                    raise UnsafeFileError(f"its pickle has the opcode {opcode.name}, which no checkpoint needs")
                handler(argument)
        raise UnsafeFileError("its pickle does not end")

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def _binput(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _binget(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _long_binput, _long_binget = _binput, _binget

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _tuple(self, _: None) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _last_as_tuple(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._stack.append(items)

    def _tuple1(self, _: None) -> None:
        self._last_as_tuple(1)

    def _tuple2(self, _: None) -> None:
        self._last_as_tuple(2)

    def _tuple3(self, _: None) -> None:
        self._last_as_tuple(3)

    def _append(self, _: None) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, _: None) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise UnsafeFileError("it appends to something that is no list")
        self._stack[-1].extend(items)

    def _setitem(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def _setitems(self, _: None) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict):
            raise UnsafeFileError("it fills something that is no dict")
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _global(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self._stack.append(_find(module, name))

    def _stack_global(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_find(module, name))

    def _reduce(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Callable) or not isinstance(arguments, tuple):
            raise UnsafeFileError("it calls something that is not a function of torch's format")
        self._stack.append(function.call(*arguments))

    _newobj = _reduce

    def _build(self, _: None) -> None:
        self._stack.pop()  # the state of an OrderedDict (`_metadata`), or of something ignored: dropped
        if not isinstance(self._stack[-1], (collections.OrderedDict, Ignored)):
            raise UnsafeFileError("it sets the state of an object that is not of torch's format")

    def _binpersid(self, _: None) -> None:
        pid = self._stack.pop()
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], np.dtype)):
            raise UnsafeFileError("a storage that torch does not write")
        _, dtype, key, _, numel = pid
        if type(numel) is not int or type(key) is not str:
            raise UnsafeFileError("a storage that torch does not write")
        self._stack.append(_Storage(self._archive.storage(key, dtype, numel)))


class _Archive:
    """The zip file of a torch checkpoint: entries checked, storages as memory-mapped slices."""

    def __init__(self, path: Path):
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
                self._check(infos)
                pickles = [info for info in infos if info.filename.endswith("/data.pkl")]
                if len(pickles) != 1:
                    raise UnsafeFileError("not one data.pkl in it: not a torch checkpoint")
                self.root = pickles[0].filename.removesuffix("data.pkl")
                self.pickle = archive.read(pickles[0])
                order = f"{self.root}byteorder"
                if order in archive.NameToInfo and archive.read(order) != b"little":
                    raise UnsafeFileError("written on a big-endian machine, which is not supported")
        except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error) as error:
            raise UnsafeFileError(f"not a zip archive that can be read ({error}); torch >= 1.6 writes one") from None
        self.entries = {info.filename: info for info in infos}
        self.bytes = np.memmap(path, np.uint8, "r")

    @staticmethod
    def _check(infos: list[zipfile.ZipInfo]) -> None:
        if len(infos) > _MAX_ENTRIES:
            raise UnsafeFileError(f"{len(infos)} entries, more than {_MAX_ENTRIES}")
        names = [info.filename for info in infos]
        if len(set(names)) != len(names):
            raise UnsafeFileError("two entries of one name")
        for info in infos:
            if ".." in info.filename.split("/") or info.filename.startswith("/"):
                raise UnsafeFileError(f"an entry named {info.filename!r}")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise UnsafeFileError(f"entry {info.filename!r} is compressed, which torch never does")
            if info.filename.endswith("/data.pkl") and info.file_size > _MAX_PICKLE_BYTES:
                raise UnsafeFileError(f"a data.pkl of {info.file_size} bytes, more than {_MAX_PICKLE_BYTES}")

    def storage(self, key: str, dtype: np.dtype, numel: int) -> np.ndarray:
        info = self.entries.get(f"{self.root}data/{key}")
        if info is None:
            raise UnsafeFileError(f"no entry for storage {key!r}")
        if numel < 0 or numel * dtype.itemsize != info.file_size:
            raise UnsafeFileError(
                f"storage {key!r} claims {numel} numbers of {dtype}, its entry has {info.file_size} bytes"
            )
        header = self.bytes[info.header_offset : info.header_offset + 30].tobytes()
        if header[:4] != b"PK\x03\x04":
            raise UnsafeFileError(f"entry {info.filename!r} does not start where the archive says")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name_length + extra_length
        if start + info.file_size > self.bytes.size:
            raise UnsafeFileError(f"storage {key!r} reaches past the end of the file")
        return np.frombuffer(self.bytes[start : start + info.file_size], dtype)


def load_torch(path: str | os.PathLike) -> Any:
    """What torch.save wrote: nested dicts, lists and tuples whose tensors are read-only NumPy arrays.

    Arrays are views of the memory-mapped file, bfloat16 as ml_dtypes.bfloat16. Objects that are not weights
    (argparse.Namespace) come back as `Ignored`.

    Raises:
      UserError: no such file.
      UnsafeFileError: the file is damaged, is no torch checkpoint, or asks for anything else than arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}: give a checkpoint that torch.save wrote")
    try:
        archive = _Archive(path)
        return _Machine(archive).run(archive.pickle)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{path} was not loaded: {error}") from None
    except (IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UnsafeFileError(f"{path} was not loaded: its pickle is damaged ({error})") from None
