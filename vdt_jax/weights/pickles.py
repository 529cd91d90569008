"""Reads pickles without trusting them: into plain values and inert records, of which arrays are made afterwards.

A pickle calls whatever it names. Here every name that is allowed is a subclass of `Record`, which keeps the arguments
and does nothing, and every other name is refused: nothing is imported, and nothing of a file is ever called.

`pickle.Unpickler` itself can be made to allocate or to compute without end before it asks for a name. So the opcodes
are checked first, without carrying them out:

* the memo is allocated up to the largest index, and byte strings to the length that is claimed;
* every opcode may make an object, 64 times its own size;
* a dict hashes its keys: a tuple of shared tuples is hashed in exponential time, and tuples and large integers can be
  chosen to collide. Keys are texts and small integers alone, which takes the kind of every value on the stack.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from vdt_jax.errors import UnsafeFileError
from vdt_jax.weights.untrusted import shown

# VDT-L/2 with its average and its optimizer's state takes about 120,000 opcodes.
_MAX_OPCODES = 400_000
_MAX_DEPTH = 32
_KEYS = ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2")
_OPCODES = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE BININT BININT1 BININT2 LONG1
BINFLOAT BINUNICODE SHORT_BINUNICODE BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET TUPLE TUPLE1 TUPLE2 TUPLE3
APPEND APPENDS SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD
"""
OPCODES = frozenset(_OPCODES.split())
_MARK = pickletools.markobject
# Of each opcode: how many values it takes below the mark (None: no mark), how many without a mark, how many it makes.
_EFFECTS = {
    code.name: (before.index(_MARK) if _MARK in before else None, len(before), len(code.stack_after))
    for code in pickletools.opcodes
    for before in (code.stack_before,)
}
# What the functions below raise of a corrupt pickle.
_DAMAGE = (pickle.UnpicklingError, AttributeError, EOFError, LookupError, OverflowError, TypeError, ValueError)


class Record(dict):
    """An object of a pickle: its arguments, its state, and the items that were set. Nothing is done with them."""

    name: ClassVar[str]
    __slots__ = ("arguments", "state")

    def __new__(cls, *arguments: Any) -> "Record":
        record = super().__new__(cls)
        record.arguments, record.state = arguments, None
        return record

    def __init__(self, *_: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state


Names = Mapping[str, type[Record]]
STORAGE = "a persistent id"


def record_names(names: Iterable[str]) -> Names:
    """A kind of record for each "module.name" that a pickle may name."""
    return {name: type("Record", (Record,), {"name": name, "__slots__": ()}) for name in (*names, STORAGE)}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, names: Names):
        super().__init__(io.BytesIO(data))
        self._names = names

    def find_class(self, module: str, name: str) -> type[Record]:
        return _allowed(f"{module}.{name}", self._names)

    def persistent_load(self, pid: Any) -> Record:
        return self._names[STORAGE](pid)


def _allowed(name: str, names: Names) -> type[Record]:
    if name not in names or name == STORAGE:
        raise UnsafeFileError(f"it names {shown(name)}, which no file of weights needs")
    return names[name]


def load_pickle(
    data: bytes, names: Names, make: Callable[[Record], Any], more_opcodes: Collection[str] = (), *, values: tuple = ()
) -> Any:
    """What a pickle describes: nested dicts, lists and tuples of numbers, texts, arrays and `values`.

    `make` replaces each record; where that gives a dict, list, tuple or record again, its items are replaced too. An
    UnsafeFileError names the innermost key at which it happened.
    """
    _check_opcodes(data, OPCODES | set(more_opcodes), names)
    plain = (str, int, float, bytes, type(None), np.ndarray, *values)
    path: list[Any] = []
    count = 0

    def replaced(value: Any) -> Any:
        nonlocal count
        count += 1
        while isinstance(value, Record) and count <= _MAX_OPCODES:
            count += 1
            value = make(value)
        if count > _MAX_OPCODES or len(path) > _MAX_DEPTH:
            raise UnsafeFileError(f"more than {_MAX_OPCODES} values or {_MAX_DEPTH} levels")
        if isinstance(value, dict | list | tuple):
            items = {}
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                path.append(key)
                items[key] = replaced(item)
                path.pop()
            return type(value)(items if isinstance(value, dict) else items.values())
        if not isinstance(value, plain):
            raise UnsafeFileError("its pickle holds a function in the place of a value")
        return value

    try:
        return replaced(_Unpickler(data, names).load())
    except _DAMAGE as error:
        raise _refusal(error, path) from None


def _check_opcodes(data: bytes, allowed: Collection[str], names: Names) -> None:
    """Reads the opcodes, keeping (opcode, argument) of what makes each value on the stack; carries out none."""
    stack: list[tuple[str, Any]] = []
    marks: list[int] = []
    memo: dict[Any, tuple[str, Any]] = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            name = opcode.name
            if name not in allowed:
                raise UnsafeFileError(f"its pickle has the opcode {name}, which no file of weights needs")
            if count > _MAX_OPCODES:
                raise UnsafeFileError(f"its pickle has more than {_MAX_OPCODES} opcodes")
            if name == "MARK":
                marks.append(len(stack))
            elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                index = len(memo) if argument is None else argument
                if index > count:
                    raise UnsafeFileError(f"its pickle puts value {index} before it has as many")
                memo[index] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            else:
                below_mark, taken_count, made_count = _EFFECTS[name]
                start = len(stack) - taken_count if below_mark is None else marks.pop() - below_mark
                if start < 0:
                    raise UnsafeFileError(f"its pickle takes more values than there are ({name})")
                taken = stack[start:]
                del stack[start:]
                if name in ("SETITEM", "SETITEMS") and any(kind not in _KEYS for kind, _ in taken[1::2]):
                    raise UnsafeFileError("a dict with a key that is neither a name nor a small number")
                if name in ("GLOBAL", "STACK_GLOBAL"):
                    _allowed(".".join(argument.split(" ", 1) if argument else (str(text) for _, text in taken)), names)
                stack += [(name, argument)] * made_count
    except _DAMAGE as error:
        texts = [text for kind, text in stack if kind.endswith("UNICODE") and text != "storage"]
        raise _refusal(error, texts) from None


def _refusal(error: Exception, path: list[Any]) -> UnsafeFileError:
    """The error with the innermost key of the path."""
    message = str(error) if isinstance(error, UnsafeFileError) else f"its pickle is corrupt ({shown(error)})"
    names = [key for key in path if type(key) is str]
    return UnsafeFileError(f"{message}, at '{shown(names[-1])}'" if names else message)
