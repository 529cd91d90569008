"""The pickle of a torch file, on a machine that cannot do what pickle can.

Pickle is a small stack machine that calls anything it can name. Everything that a checkpoint does not need has been
taken out of this one:

* opcodes: an allow-list, read one at a time; any other ends the reading before its argument is looked at;
* names: OrderedDict, the storage types and the tensor-rebuilding functions, which are functions of this module.
  argparse.Namespace, which DiT-style trainers save, becomes an `Ignored`. Any other name is refused, whatever it is;
* tensors: views of a storage, made after sizes, strides and offsets were checked against it;
* amounts: opcodes, length of strings, depth, and values counted as often as they are referred to, so that neither a
  small file nor one that refers to itself becomes a large value.
"""

import collections
import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vdt_jax.errors import UnsafeFileError

# VDT-L/2 with its average and its optimizer's state takes about 120,000 opcodes.
_MAX_OPCODES = 400_000
_MAX_TEXT = 1 << 16
_MAX_DEPTH = 32
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


class _Callable(NamedTuple):
    call: Callable[..., Any]


# What a pickle may call, by module and name. None is the function of that name: all are this module's own.
_CALLABLES = {
    ("collections", "OrderedDict"): _Callable(_ordered_dict),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(_rebuild_parameter),
    ("argparse", "Namespace"): _Callable(_namespace),
}


def _find(module: Any, name: Any) -> _Callable | np.dtype:
    if type(module) is not str or type(name) is not str:
        raise UnsafeFileError("it names something by what is no text")
    if module == "torch" and name in _STORAGE_DTYPES:
        return np.dtype(_STORAGE_DTYPES[name])
    if (module, name) in _CALLABLES:
        return _CALLABLES[module, name]
    raise UnsafeFileError(f"it names {module[:100]}.{name[:100]}, which no checkpoint needs")


class _Reader:
    """Takes an opcode's argument from the pickle."""

    def __init__(self, data: bytes):
        self._data, self._position = data, 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._position : self._position + count]
        if len(taken) != count:
            raise UnsafeFileError("its pickle does not end")
        self._position += count
        return taken

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, length: int) -> str:
        if length > _MAX_TEXT:
            raise UnsafeFileError(f"its pickle has a text of {length} bytes, more than {_MAX_TEXT}")
        return self.take(length).decode("utf-8")

    def line(self) -> str:
        end = self._data.find(b"\n", self._position, self._position + _MAX_TEXT)
        if end < 0:
            raise UnsafeFileError("its pickle has a line without an end")
        text = self.take(end - self._position).decode("utf-8")
        self.take(1)
        return text


class Machine:
    """Carries out a pickle's opcodes on a stack of plain values: dicts, lists, tuples, strings, numbers, arrays."""

    def __init__(self, storage: Callable[[str, np.dtype, int], np.ndarray]):
        self._storage = storage
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """The value that the pickle describes.

        Raises:
          UnsafeFileError: which says near which key of a dict it happened.
        """
        reader = _Reader(data)
        try:
            for _ in range(_MAX_OPCODES):
                code = reader.take(1)
                if code == b".":
                    return self._result()
                if code not in _OPCODES:
                    raise UnsafeFileError(f"its pickle has the opcode {code!r}, which no checkpoint needs")
                _OPCODES[code](self, reader)
            raise UnsafeFileError(f"its pickle has more than {_MAX_OPCODES} opcodes")
        except UnsafeFileError as error:
            raise UnsafeFileError(f"{error}{self._where()}") from None
        except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise UnsafeFileError(f"its pickle is damaged ({type(error).__name__}){self._where()}") from None

    def _where(self) -> str:
        """The innermost text on the stack is the key whose value was being made, unless it begins a storage's id."""
        texts = [item for item in self._stack if type(item) is str and item != "storage"]
        return f", at {texts[-1][:200]!r}" if texts else ""

    def _result(self) -> Any:
        """The value on the stack, after a walk that would not end early only for what is small."""
        result = self._stack.pop()
        if self._stack or self._marks:
            raise UnsafeFileError("its pickle ends in the middle")
        waiting, count = [(result, 0)], 0
        while waiting:
            item, depth = waiting.pop()
            children: list[Any] = []
            if isinstance(item, dict):
                children = list(item.values())
            elif isinstance(item, list | tuple):
                children = list(item)
            elif not isinstance(item, str | int | float | np.ndarray | Ignored | None):
                raise UnsafeFileError("its pickle holds a function or a storage in the place of a value")
            count += len(children)
            if count > _MAX_OPCODES or (depth >= _MAX_DEPTH and children):
                raise UnsafeFileError(f"more than {_MAX_OPCODES} values or {_MAX_DEPTH} levels")
            waiting += [(child, depth + 1) for child in children]
        return result

    def push(self, value: Any) -> None:
        """One value onto the stack."""
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def mark(self) -> None:
        """MARK."""
        self._marks.append(len(self._stack))

    def memo_put(self, index: int) -> None:
        """BINPUT and its relatives."""
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        """MEMOIZE."""
        self._memo[len(self._memo)] = self._stack[-1]

    def memo_get(self, index: int) -> None:
        """BINGET and its relatives."""
        self._stack.append(self._memo[index])

    def tuple_since_mark(self) -> None:
        """TUPLE."""
        self._stack.append(tuple(self._since_mark()))

    def last_as_tuple(self, count: int) -> None:
        """TUPLE1 to TUPLE3."""
        if len(self._stack) < count:
            raise UnsafeFileError("a tuple of more than there is")
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._stack.append(items)

    def append(self, items: list[Any]) -> None:
        """APPEND and APPENDS."""
        if type(self._stack[-1]) is not list:
            raise UnsafeFileError("it appends to something that is no list")
        self._stack[-1].extend(items)

    def append_one(self) -> None:
        """APPEND."""
        self.append([self._stack.pop()])

    def append_since_mark(self) -> None:
        """APPENDS."""
        self.append(self._since_mark())

    def set_one(self) -> None:
        """SETITEM."""
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def set_since_mark(self) -> None:
        """SETITEMS."""
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise UnsafeFileError("it fills something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys can be slow or impossible to hash, or equal to one another (1, 1.0, True).
            if type(key) is not str and not (type(key) is int and abs(key) < 2**31):
                raise UnsafeFileError(f"a dict with a key that is a {type(key).__name__}, not a name or a small number")
            if key in target:
                raise UnsafeFileError(f"a dict with the key {str(key)[:200]!r} twice")
            target[key] = value

    def name(self, module: Any, name: Any) -> None:
        """GLOBAL."""
        self._stack.append(_find(module, name))

    def name_from_stack(self) -> None:
        """STACK_GLOBAL."""
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_find(module, name))

    def call(self) -> None:
        """REDUCE and NEWOBJ."""
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Callable) or not isinstance(arguments, tuple):
            raise UnsafeFileError("it calls something that is not a function of torch's format")
        self._stack.append(function.call(*arguments))

    def drop_state(self) -> None:
        """BUILD: the state of an OrderedDict (`_metadata`), or of something ignored, is dropped."""
        self._stack.pop()
        if not isinstance(self._stack[-1], (collections.OrderedDict, Ignored)):
            raise UnsafeFileError("it sets the state of an object that is not of torch's format")

    def persistent_id(self) -> None:
        """BINPERSID: torch's storages."""
        pid = self._stack.pop()
        if not (isinstance(pid, tuple) and len(pid) == 5 and type(pid[0]) is str and pid[0] == "storage"):
            raise UnsafeFileError("a storage that torch does not write")
        _, dtype, key, _, numel = pid
        if not isinstance(dtype, np.dtype) or type(numel) is not int or type(key) is not str:
            raise UnsafeFileError("a storage that torch does not write")
        self._stack.append(_Storage(self._storage(key, dtype, numel)))


_Step = Callable[[Machine, _Reader], None]
_OPCODES: dict[bytes, _Step] = {
    b"\x80": lambda machine, reader: reader.number("B"),  # PROTO
    b"\x95": lambda machine, reader: reader.number("<Q"),  # FRAME
    b"N": lambda machine, reader: machine.push(None),
    b"\x88": lambda machine, reader: machine.push(True),
    b"\x89": lambda machine, reader: machine.push(False),
    b"}": lambda machine, reader: machine.push({}),
    b"]": lambda machine, reader: machine.push([]),
    b")": lambda machine, reader: machine.push(()),
    b"J": lambda machine, reader: machine.push(reader.number("<i")),
    b"K": lambda machine, reader: machine.push(reader.number("B")),
    b"M": lambda machine, reader: machine.push(reader.number("<H")),
    b"\x8a": lambda machine, reader: machine.push(
        int.from_bytes(reader.take(reader.number("B")), "little", signed=True)
    ),
    b"G": lambda machine, reader: machine.push(reader.number(">d")),
    b"X": lambda machine, reader: machine.push(reader.text(reader.number("<I"))),
    b"\x8c": lambda machine, reader: machine.push(reader.text(reader.number("B"))),
    b"(": lambda machine, reader: machine.mark(),
    b"q": lambda machine, reader: machine.memo_put(reader.number("B")),
    b"r": lambda machine, reader: machine.memo_put(reader.number("<I")),
    b"\x94": lambda machine, reader: machine.memoize(),
    b"h": lambda machine, reader: machine.memo_get(reader.number("B")),
    b"j": lambda machine, reader: machine.memo_get(reader.number("<I")),
    b"t": lambda machine, reader: machine.tuple_since_mark(),
    b"\x85": lambda machine, reader: machine.last_as_tuple(1),
    b"\x86": lambda machine, reader: machine.last_as_tuple(2),
    b"\x87": lambda machine, reader: machine.last_as_tuple(3),
    b"a": lambda machine, reader: machine.append_one(),
    b"e": lambda machine, reader: machine.append_since_mark(),
    b"s": lambda machine, reader: machine.set_one(),
    b"u": lambda machine, reader: machine.set_since_mark(),
    b"c": lambda machine, reader: machine.name(reader.line(), reader.line()),
    b"\x93": lambda machine, reader: machine.name_from_stack(),
    b"R": lambda machine, reader: machine.call(),
    b"\x81": lambda machine, reader: machine.call(),
    b"b": lambda machine, reader: machine.drop_state(),
    b"Q": lambda machine, reader: machine.persistent_id(),
}
