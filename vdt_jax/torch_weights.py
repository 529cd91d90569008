"""Names and layouts of the official PyTorch VDT, and the way to and from our parameter tree.

Our paths are the torch names; the leaves differ (`weight` of a linear is a transposed `kernel`, of a norm a `scale`),
`blocks.7.attn.qkv.weight` is slice 7 of `blocks/attn/qkv/kernel`, and the patch convolution is a linear map. Nothing is
skipped in silence: every torch name is used, every parameter filled, and all that does not fit is said at once.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from vdt_jax.errors import UserError
from vdt_jax.models import VDT_VARIANTS

Tree = dict[str, Any]


class Layout(NamedTuple):
    """How one tensor is laid out, both ways; `patch` is the patch size."""

    to_jax: Callable[[np.ndarray, int], np.ndarray]
    to_torch: Callable[[np.ndarray, int], np.ndarray]


_SAME = Layout(lambda w, patch: w, lambda w, patch: w)
_LINEAR = Layout(lambda w, patch: w.T, lambda w, patch: w.T)
_PATCH = Layout(
    lambda w, patch: rearrange(w, "d c p q -> (p q c) d"),
    lambda w, patch: rearrange(w, "(p q c) d -> d c p q", p=patch, q=patch),
)


def _linear(torch_name: str, path: str) -> list[tuple[str, str, Layout]]:
    return [(f"{torch_name}.weight", f"{path}/kernel", _LINEAR), (f"{torch_name}.bias", f"{path}/bias", _SAME)]


# (torch name, our path, layout) of everything outside the blocks, and of one block.
_OUTSIDE = [
    ("pos_embed", "pos_embed", _SAME),
    ("time_embed", "time_embed", _SAME),
    ("x_embedder.proj.weight", "x_embedder/proj/kernel", _PATCH),
    ("x_embedder.proj.bias", "x_embedder/proj/bias", _SAME),
    *_linear("t_embedder.mlp.0", "t_embedder/mlp_0"),
    *_linear("t_embedder.mlp.2", "t_embedder/mlp_2"),
    ("y_embedder.embedding_table.weight", "y_embedder/embedding_table/embedding", _SAME),
    *_linear("final_layer.linear", "final_layer/linear"),
    *_linear("final_layer.adaLN_modulation.1", "final_layer/adaLN_modulation"),
]
_BLOCK = [
    *_linear("attn.qkv", "attn/qkv"),
    *_linear("attn.proj", "attn/proj"),
    *_linear("mlp.fc1", "mlp/fc1"),
    *_linear("mlp.fc2", "mlp/fc2"),
    *_linear("adaLN_modulation.1", "adaLN_modulation"),
    ("temporal_norm1.weight", "temporal_norm1/scale", _SAME),
    ("temporal_norm1.bias", "temporal_norm1/bias", _SAME),
    *_linear("temporal_attn.qkv", "temporal_attn/qkv"),
    *_linear("temporal_attn.proj", "temporal_attn/proj"),
    *_linear("temporal_fc", "temporal_fc"),
]


def read_sizes(state_dict: Mapping[str, np.ndarray], num_heads: int | None = None) -> dict[str, Any]:
    """The keyword arguments of `VDT` that these weights fit, read off their shapes (a square grid is assumed).

    Args:
      state_dict: torch names to arrays.
      num_heads: needed unless depth and width are those of a known variant; no shape tells it.

    Raises:
      UserError: weights of another model, or unknown heads.
    """
    needed = (
        "x_embedder.proj.weight",
        "pos_embed",
        "time_embed",
        "y_embedder.embedding_table.weight",
        "final_layer.linear.bias",
    )
    missing = [name for name in needed if name not in state_dict]
    if missing:
        raise UserError(f"these are not weights of a video VDT: no {', '.join(missing)} among {_some(state_dict)}")
    hidden_size, in_channels, patch_size, _ = state_dict["x_embedder.proj.weight"].shape
    depth = 1 + max((int(name.split(".")[1]) for name in state_dict if name.startswith("blocks.")), default=-1)
    side = round(state_dict["pos_embed"].shape[1] ** 0.5)
    if side**2 != state_dict["pos_embed"].shape[1]:
        raise UserError(f"pos_embed has {state_dict['pos_embed'].shape[1]} positions, which is no square grid")
    if num_heads is None:
        known = {(v["depth"], v["hidden_size"]): v["num_heads"] for v in VDT_VARIANTS.values()}
        if (depth, hidden_size) not in known:
            raise UserError(f"depth {depth} and width {hidden_size} are no known variant: say --num_heads")
        num_heads = known[depth, hidden_size]
    out_channels = state_dict["final_layer.linear.bias"].shape[0] // patch_size**2
    return dict(
        input_size=side * patch_size,
        num_frames=state_dict["time_embed"].shape[1],
        in_channels=in_channels,
        patch_size=patch_size,
        hidden_size=hidden_size,
        depth=depth,
        num_heads=num_heads,
        num_classes=state_dict["y_embedder.embedding_table.weight"].shape[0] - 1,
        learn_sigma=out_channels == 2 * in_channels,
    )


def from_torch(state_dict: Mapping[str, np.ndarray], sizes: Mapping[str, Any], expected: Tree) -> Tree:
    """Our parameter tree, float32, from torch names and arrays.

    Args:
      state_dict: torch names to arrays.
      sizes: as `read_sizes` gives them.
      expected: the tree of shapes to fill (jax.eval_shape of the model's init).

    Raises:
      UserError: every missing name, unknown name and wrong shape, in one message.
    """
    patch, depth = sizes["patch_size"], sizes["depth"]
    params: Tree = {}
    problems, used = [], set()

    def take(name: str, layout: Layout, shape: tuple[int, ...]) -> np.ndarray | None:
        if name not in state_dict:
            problems.append(f"missing {name}")
            return None
        used.add(name)
        try:
            array = layout.to_jax(np.asarray(state_dict[name]), patch)
        except Exception:  # einops has its own: the layout does not fit the number of axes
            array = np.asarray(state_dict[name])
        if array.shape != shape:
            problems.append(f"{name} has shape {tuple(state_dict[name].shape)}, ours would be {shape}")
            return None
        return array

    for name, path, layout in _OUTSIDE:
        array = take(name, layout, _get(expected, path).shape)
        if array is not None:
            _set(params, path, np.array(array, np.float32))
    for name, path, layout in _BLOCK:
        shape = _get(expected, f"blocks/{path}").shape
        stacked = np.empty(shape, np.float32)
        for layer in range(depth):
            array = take(f"blocks.{layer}.{name}", layout, shape[1:])
            if array is not None:
                stacked[layer] = array
        _set(params, f"blocks/{path}", stacked)
    problems += [f"unknown {name}" for name in state_dict if name not in used]
    if problems:
        raise UserError(f"these weights do not fit the model: {'; '.join(problems)}")
    return params


def to_torch(params: Tree, patch_size: int) -> dict[str, np.ndarray]:
    """Torch names and arrays from our parameter tree: the exact inverse of `from_torch`."""
    state_dict = {name: layout.to_torch(np.asarray(_get(params, path)), patch_size) for name, path, layout in _OUTSIDE}
    for name, path, layout in _BLOCK:
        for layer, array in enumerate(np.asarray(_get(params, f"blocks/{path}"))):
            state_dict[f"blocks.{layer}.{name}"] = layout.to_torch(array, patch_size)
    return state_dict


def _get(tree: Tree, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _set(tree: Tree, path: str, value: np.ndarray) -> None:
    *parents, leaf = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[leaf] = value


def _some(names: Mapping[str, Any]) -> str:
    shown = list(names)[:5]
    return ", ".join(map(str, shown)) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
