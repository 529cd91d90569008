"""Which part of a file is the weights, and what the rest of it is."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdt_jax.errors import UserError
from vdt_jax.weights.safetensors_files import load_safetensors
from vdt_jax.weights.tables import StateDict, some
from vdt_jax.weights.torch_files import Ignored, load_torch
from vdt_jax.weights.untrusted import shown

WEIGHTS = ("ema", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel, and of torch.compile
_REASONS = {
    "opt": "the optimizer's state",
    "optimizer": "the optimizer's state",
    "args": "the trainer's flags",
    "pos_embed": "the trainer's copy of the model's pos_embed",
}


class Source(NamedTuple):
    """The weights of a file; `ignored` has a reason for each other part of it."""

    state_dict: StateDict
    ignored: dict[str, str]


def load_weights(path: str | os.PathLike) -> Any:
    """`load_safetensors` for names that end in .safetensors, else `load_torch`."""
    return load_safetensors(path) if Path(path).suffix == ".safetensors" else load_torch(path)


def read_source(path: str | os.PathLike, weights: str | None = None) -> Source:
    """Finds the weights in a file.

    Known shapes: a state_dict; {"model", "ema", ...}, as trainers in the style of DiT save; {"state_dict": ...}.

    Args:
      path: of a torch or safetensors file.
      weights: "ema" or "model", where a file has both; None is the EMA.

    Raises:
      UserError: a file of another shape, or without the weights asked for.
    """
    if weights not in (None, *WEIGHTS):
        raise UserError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    value = load_weights(path)
    if not isinstance(value, dict) or not value:
        raise UserError(f"{path} holds no dict of tensors but a {type(value).__name__}: save model.state_dict()")
    if _is_state_dict(value):
        if weights is not None:
            raise UserError(f"{path} is one state_dict: leave out weights={weights}")
        return Source(_strip(value, path), {})
    parts = [name for name in (*WEIGHTS, "state_dict") if _is_state_dict(value.get(name))]
    if not parts:
        raise UserError(
            f"{path} holds {some(list(value))}: known are a state_dict of tensors, {{'model', 'ema', ...}} and "
            f"{{'state_dict'}}"
        )
    chosen = weights or parts[0]
    if chosen not in parts:
        raise UserError(f"{path} has no {chosen!r} weights, only {', '.join(parts)}: choose another value of weights")
    ignored, unknown = {}, []
    for name, part in value.items():
        if name == chosen:
            continue
        if name in parts:
            ignored[name] = f"not chosen: weights={name} takes it" if name in WEIGHTS else "not chosen"
        elif name in _REASONS:
            ignored[name] = _REASONS[name]
        elif isinstance(part, int | float | str | Ignored | None):
            ignored[shown(name)] = "no tensor"
        else:
            unknown.append(f"{name} (a {type(part).__name__})")
    if unknown:
        raise UserError(f"{path} has weights in {chosen!r}, and parts that are not known: {some(unknown)}")
    return Source(_strip(value[chosen], path), ignored)


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(type(name) is str and isinstance(array, np.ndarray) for name, array in value.items())
    )


def _strip(state_dict: dict[str, np.ndarray], path: str | os.PathLike) -> StateDict:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state_dict):
            state_dict = {name.removeprefix(prefix): array for name, array in state_dict.items()}
    return state_dict
