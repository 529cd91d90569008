"""Rows of (their name, our path, layout), and the two ways along them."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vdt_jax.errors import UserError
from vdt_jax.weights.untrusted import shown

Tree = dict[str, Any]
StateDict = Mapping[str, np.ndarray]

_FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)
_SHOWN_PROBLEMS = 8


class Layout(NamedTuple):
    """How one tensor is laid out, both ways."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda w: w, lambda w: w)
LINEAR = Layout(lambda w: w.T, lambda w: w.T)


class Row(NamedTuple):
    """One tensor of theirs: the leaf `path` of our tree, or its slice `layer` where blocks are stacked."""

    name: str
    path: str
    layout: Layout
    layer: int | None = None


class Copied(NamedTuple):
    """What a report says of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    mean: float


def layer_rows(name: str, path: str, layout: Layout = LINEAR) -> list[Row]:
    """The rows of a linear layer, or of a convolution of the given layout."""
    return [Row(f"{name}.weight", f"{path}/kernel", layout), Row(f"{name}.bias", f"{path}/bias", SAME)]


def norm_rows(name: str, path: str) -> list[Row]:
    """The rows of a norm."""
    return [Row(f"{name}.weight", f"{path}/scale", SAME), Row(f"{name}.bias", f"{path}/bias", SAME)]


def read_table(
    state_dict: StateDict, table: Sequence[Row], expected: Tree, done: Callable[[int], object] = lambda size: None
) -> tuple[Tree, dict[str, Copied]]:
    """Our float32 tree from their names and arrays.

    Stacked leaves are filled slice by slice, so that little more than the tree itself is in memory.

    Args:
      state_dict: their names and arrays.
      table: a row for each of them.
      expected: the tree of shapes to fill.
      done: called with the number of values after each tensor.

    Returns:
      The tree, and what was copied under each name.

    Raises:
      UserError: every missing or unknown name, wrong shape or type, and value that is not finite, in one message.
    """
    problems = [f"missing {row.name}" for row in table if row.name not in state_dict]
    known = {row.name for row in table}
    problems += [f"unknown {shown(name)}" for name in state_dict if name not in known]
    problems += _shared_bytes(state_dict)
    misfits = (_misfit(row, state_dict[row.name], expected) for row in table if row.name in state_dict)
    problems += filter(None, misfits)
    _raise(problems)

    params: Tree = {}
    copied = {}
    for path in dict.fromkeys(row.path for row in table):
        put(params, path, _aligned(get(expected, path).shape))
    for row in table:
        array, leaf = state_dict[row.name], get(params, row.path)
        target = leaf if row.layer is None else leaf[row.layer]
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is found below
            target[...] = row.layout.to_jax(array)
        mean = float(np.mean(target, dtype=np.float64)) if target.size else 0.0
        if not np.isfinite(mean):  # one value that is not finite makes the mean so
            problems.append(f"{row.name} holds values that are not finite (NaN or infinite)")
        copied[row.name] = Copied(array.shape, str(array.dtype), mean)
        done(target.size)
    _raise(problems)
    return params, copied


def write_table(params: Tree, table: Sequence[Row]) -> dict[str, np.ndarray]:
    """Their names and arrays from our tree: the inverse of `read_table`, as views of the tree where layouts allow."""
    state_dict = {}
    for row in table:
        leaf = np.asarray(get(params, row.path))
        state_dict[row.name] = row.layout.to_torch(leaf if row.layer is None else leaf[row.layer])
    return state_dict


def get(tree: Tree, path: str) -> Any:
    """The leaf at a path like "blocks/attn/qkv/kernel"."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def put(tree: Tree, path: str, value: np.ndarray) -> None:
    """Sets the leaf at a path, with the dicts on the way."""
    *parents, leaf = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[leaf] = value


def some(names: Sequence[Any], count: int = 5) -> str:
    """A list of names for an error: the first few, and how many more."""
    text = ", ".join(shown(name) for name in names[:count])
    return text + (f" and {len(names) - count} more" if len(names) > count else "")


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty float32 array that begins where jax takes it over without a copy: at a multiple of 64 bytes."""
    size = math.prod(shape)
    memory = np.empty(size + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + size].reshape(shape)


def _misfit(row: Row, array: np.ndarray, expected: Tree) -> str | None:
    shape = get(expected, row.path).shape[0 if row.layer is None else 1 :]
    if array.dtype not in _FLOATS:
        return f"{row.name} has the type {array.dtype}: weights are float"
    try:
        found = row.layout.to_jax(array).shape
    except Exception:  # einops has its own: the layout does not fit the number of axes
        found = None
    if found != shape:
        return f"{row.name} has shape {tuple(array.shape)}, expected {shape}"
    return None


def _shared_bytes(state_dict: StateDict) -> Iterator[str]:
    """Two names on the same bytes: no VDT ties weights, and a small file could become a large model."""
    ranges = sorted((*np.lib.array_utils.byte_bounds(array), name) for name, array in state_dict.items() if array.size)
    for (_, end, name), (start, _, other) in itertools.pairwise(ranges):
        if start < end:
            yield f"{shown(other)} shares its bytes with {shown(name)}"


def _raise(problems: list[str]) -> None:
    if problems:
        shown = "; ".join(problems[:_SHOWN_PROBLEMS])
        more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise UserError(f"these weights do not fit the model: {shown}{more}")
