"""Reads an optimised HLO program: its kernels with the bytes they move and their FLOPs, its collectives and its loops.

The counts are lower bounds of the program as it was compiled: every kernel reads its operands from memory and writes
its results once; an operand of which a fusion only slices a part counts as that part, and an update of a part likewise.
Kernels in a loop count as often as the loop runs.
"""

import re
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"(ROOT )?%?([\w.\-]+) = (\(.*?\)(?= [\w\-]+\()|\S+) ([\w\-]+)\((.*)")
_NO_KERNEL = {"after-all", "bitcast", "constant", "get-tuple-element", "iota", "opt-barrier", "parameter"}
_NO_KERNEL |= {"partition-id", "tuple"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
COLLECTIVES += ("collective-broadcast",)


class Instruction(NamedTuple):
    """One line of a computation; `shape` is that of the result, as text."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str
    root: bool


class Collective(NamedTuple):
    """A collective, the bytes of its result by dtype, and how often a run of the program executes it."""

    kind: str
    bytes: dict[str, int]
    times: int


class Kernel(NamedTuple):
    """A kernel and how often a run of the program executes it; bytes and FLOPs are of one time."""

    name: str
    kind: str
    source: str  # the path of the operation in the Python program
    bytes: int
    flops: float
    times: int


Computation = dict[str, Instruction]


def sizes(shape: str) -> list[tuple[str, list[int]]]:
    """The dtype and the sizes of each array of a shape."""
    return [(dtype, [int(size) for size in text.split(",") if size]) for dtype, text in _ARRAY.findall(shape)]


def bytes_of(shape: str) -> int:
    """Bytes of a shape, of all arrays of a tuple."""
    return sum(_BYTES[dtype] * prod(axes) for dtype, axes in sizes(shape))


class Program:
    """An optimised HLO program, read from its text."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry, current = "", {}
        for line in text.splitlines():
            if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
                current = self.computations.setdefault(head.group(2), {})
                self.entry = head.group(2) if head.group(1) else self.entry
            elif match := _INSTRUCTION.match(line.strip()):
                root, name, shape, opcode, rest = match.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", rest[: _closing(rest)]))
                current[name] = Instruction(name, shape, opcode, operands, rest, bool(root))

    def executed(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Each instruction that the program executes, its computation, and how often."""
        yield from self._executed(self.entry, 1)

    def _executed(self, name: str, times: int) -> Iterator[tuple[Computation, Instruction, int]]:
        for one in self.computations[name].values():
            yield self.computations[name], one, times
            if one.opcode == "while":
                yield from self._executed(_called(one, "body"), times * (trip_count(one) or 1))
            elif one.opcode in ("call", "async-start") and (inner := _called(one, "to_apply|calls")):
                yield from self._executed(inner, times)

    def endless(self) -> list[str]:
        """The loops without a known number of iterations, by their source."""
        return [source(one) for _, one, _ in self.executed() if one.opcode == "while" and trip_count(one) is None]

    def collectives(self) -> list[Collective]:
        """The collectives. An asynchronous start and its end count once."""
        found = []
        for _, one, times in self.executed():
            if (kind := one.opcode.removesuffix("-start")) in COLLECTIVES:
                arrays = sizes(one.shape)
                if one.opcode.endswith("-start") and kind != "all-reduce":  # (operands, results)
                    arrays = arrays[len(arrays) // 2 :]
                totals = Counter()
                for dtype, axes in arrays:
                    totals[dtype] += _BYTES[dtype] * prod(axes)
                found.append(Collective(kind, dict(totals), times))
        return found

    def kernels(self) -> list[Kernel]:
        """The kernels, collectives excepted."""
        found = []
        for computation, one, times in self.executed():
            opcode = one.opcode.removesuffix("-start")
            control = opcode in (*COLLECTIVES, "while", "call", "async", "conditional")
            if control or opcode in _NO_KERNEL or opcode.endswith("-done"):
                continue
            shape = "" if one.opcode == "fusion-start" else one.shape
            if opcode == "fusion":
                moved = self._fusion_bytes(one)
            else:
                moved = bytes_of(shape) + sum(bytes_of(computation[name].shape) for name in one.operands)
            kind = re.search(r'"kind":"([^"]*)"|custom_call_target="([^"]*)"|kind=(k\w+)', one.text)
            kind = next(filter(None, kind.groups())) if kind else one.opcode
            found.append(Kernel(one.name, kind, source(one), moved, self._flops(computation, one), times))
        return found

    def _fusion_bytes(self, fusion: Instruction) -> int:
        body = self.computations[_called(fusion, "calls")]
        (root,) = (one for one in body.values() if one.root)
        written = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
        total = sum(_read(body, one.name) for one in body.values() if one.opcode == "parameter")
        for one in written:
            while one.opcode == "bitcast":
                one = body[one.operands[0]]
            part = body[one.operands[1]] if one.opcode == "dynamic-update-slice" else one
            total += bytes_of(part.shape)
        return total

    def _flops(self, computation: Computation, one: Instruction) -> float:
        if one.opcode in ("fusion", "fusion-start"):
            body = self.computations[_called(one, "calls")]
            return sum(self._flops(body, inner) for inner in body.values())
        if one.opcode == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.text)
            axes = [int(axis) for axis in contracted.group(1).split(",") if axis] if contracted else []
            (_, left), *_ = sizes(computation[one.operands[0]].shape)
            return 2.0 * _elements(one.shape) * prod(left[axis] for axis in axes)
        if one.opcode == "convolution" or "$conv" in one.text:
            kernel = _elements(computation[one.operands[1]].shape)
            # Every output channel uses its share of the kernel: the channels are the last axis of a result.
            return 2.0 * _elements(one.shape) * kernel / sizes(one.shape)[0][1][-1]
        if "fmha" in one.text:
            (_, (batch, *axes)), *_ = sizes(computation[one.operands[0]].shape)
            length, width = max(axes), min(axes)
            heads = prod(axes) // (length * width)
            products = 10 if "Backward" in one.text else 4
            return float(products * batch * heads * length**2 * width)
        return 0.0


def trip_count(loop: Instruction) -> int | None:
    """How often a `while` runs; None if the compiler does not know."""
    count = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text)
    return int(count.group(1)) if count else None


def source(one: Instruction) -> str:
    """The path of the operation in the Python program."""
    name = re.search(r'op_name="([^"]*)"', one.text)
    return name.group(1) if name else ""


def _elements(shape: str) -> int:
    return prod(sizes(shape)[0][1])


def _closing(text: str) -> int:
    """Where the parenthesis closes that is open before `text`."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return i
    return len(text)


def _called(one: Instruction, attribute: str) -> str:
    name = re.search(rf"\b(?:{attribute})=%?([\w.\-]+)", one.text)
    return name.group(1) if name else ""


def _read(body: Computation, name: str) -> int:
    """The bytes that a fusion reads of its operand: of slices of it only these."""
    whole, total = bytes_of(body[name].shape), 0
    for one in body.values():
        if name not in one.operands:
            continue
        if one.opcode in ("slice", "dynamic-slice"):
            total += bytes_of(one.shape)
        elif one.opcode == "bitcast":
            total += _read(body, one.name)
        elif one.opcode != "dynamic-update-slice" or one.operands[0] != name:
            return whole
    return min(whole, total)


def operand_dtypes(stablehlo: str) -> Counter[tuple[str, str]]:
    """The dtypes of the operands of each matrix product of a lowered program, counted."""
    pattern = r"stablehlo\.dot_general .*? : \(tensor<(?:\d+x)*(\w+)>, tensor<(?:\d+x)*(\w+)>\)"
    return Counter((left, right) for left, right in re.findall(pattern, stablehlo))


def callbacks(text: str) -> list[str]:
    """The calls of a lowered or optimised program that go back to Python."""
    return re.findall(r'(?:custom_call_target="|custom_call @)(\w*callback\w*)', text)
