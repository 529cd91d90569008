"""A pickle's opcodes, on a machine that cannot do what pickle can.

Pickle is a small stack machine that calls anything it can name. Everything that weights do not need has been taken out
of this one:

* opcodes: an allow-list, read one at a time; any other ends the reading before its argument is looked at;
* names: those of a `Format`, which says what each stands for: functions of this package. Any other is refused;
* amounts: opcodes, length of strings, depth, and values counted as often as they are referred to, so that neither a
  small file nor one that refers to itself becomes a large value.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from vdt_jax.errors import UnsafeFileError

# VDT-L/2 with its average and its optimizer's state takes about 120,000 opcodes.
_MAX_OPCODES = 400_000
_MAX_TEXT = 1 << 16
_MAX_DEPTH = 32


class Function(NamedTuple):
    """What a name stands for that a pickle may call."""

    call: Callable[..., Any]


class Format(Protocol):
    """What a pickle of one kind of file may name, beyond plain values.

    Attributes:
      names: what each (module, name) stands for: a `Function`, or a value that functions take.
      opcodes: those that this kind of file needs and the others do not.
      values: types of this format's own objects that may stand in the result.
    """

    @property
    def names(self) -> Mapping[tuple[str, str], Any]: ...

    @property
    def opcodes(self) -> "Mapping[bytes, Step]": ...

    @property
    def values(self) -> tuple[type, ...]: ...

    def set_state(self, target: Any, state: Any) -> None:
        """BUILD: gives an object of this format its state, or raises UnsafeFileError."""
        ...


class Reader:
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

    def __init__(self, format: Format):
        self._format = format
        self._opcodes = {**OPCODES, **format.opcodes}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """The value that the pickle describes.

        Raises:
          UnsafeFileError: which says near which key of a dict it happened.
        """
        reader = Reader(data)
        try:
            for _ in range(_MAX_OPCODES):
                code = reader.take(1)
                if code == b".":
                    return self._result()
                if code not in self._opcodes:
                    raise UnsafeFileError(f"its pickle has the opcode {code!r}, which no checkpoint needs")
                self._opcodes[code](self, reader)
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
            elif not isinstance(item, (str, int, float, np.ndarray, type(None), *self._format.values)):
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
        if type(module) is not str or type(name) is not str:
            raise UnsafeFileError("it names something by what is no text")
        if (module, name) not in self._format.names:
            raise UnsafeFileError(f"it names {module[:100]}.{name[:100]}, which no checkpoint needs")
        self._stack.append(self._format.names[module, name])

    def name_from_stack(self) -> None:
        """STACK_GLOBAL."""
        name, module = self._stack.pop(), self._stack.pop()
        self.name(module, name)

    def call(self) -> None:
        """REDUCE and NEWOBJ."""
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise UnsafeFileError("it calls something that is not a function of its format")
        self._stack.append(function.call(*arguments))

    def set_state(self) -> None:
        """BUILD."""
        state = self._stack.pop()
        self._format.set_state(self._stack[-1], state)

    def pop(self) -> Any:
        """The last value, taken from the stack."""
        return self._stack.pop()


Step = Callable[[Machine, Reader], None]
OPCODES: dict[bytes, Step] = {
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
    b"b": lambda machine, reader: machine.set_state(),
}
