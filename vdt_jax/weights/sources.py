"""Which part of a file is the weights, and what the rest of it is."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdt_jax.errors import UserError
from vdt_jax.weights.safetensors_files import load_safetensors
from vdt_jax.weights.tables import StateDict, some
from vdt_jax.weights.torch_files import load_torch
from vdt_jax.weights.untrusted import shown

# The names of a file's dicts of weights, by what `weights` calls them.
_PARTS = {
    "ema": ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema"),
    "model": ("model", "model_state_dict", "state_dict", "module"),
}
WEIGHTS = tuple(_PARTS)
_AVERAGE = "ema_model."
_PREFIXES = ("module.", "_orig_mod.", "model.", _AVERAGE, "online_model.")  # of the trainers' wrappers
_REASONS = {
    **dict.fromkeys(("opt", "optimizer", "optimizer_state_dict", "optimizer_states"), "the optimizer's state"),
    "args": "the trainer's flags",
    "callbacks": "the trainer's callbacks",
    "pos_embed": "the trainer's copy of the model's pos_embed",
    **dict.fromkeys(("rng_state", "rng_states", "cuda_rng_state"), "the state of random generators"),
}
# Models that are no VDT, by a name of theirs.
_MODELS = (
    (r".*(lora_|\.lora\.)", "LoRA adapters, which must be merged into their model first"),
    (
        r"(model\.)?diffusion_model\.|cond_stage_model\.",
        "a model of Stable Diffusion, of which --vae takes the autoencoder",
    ),
    (
        r"(first_stage_model\.|vae\.)?((en|de)coder\.(down|up|mid)|(post_)?quant_conv\.)",
        "an autoencoder, which --vae takes",
    ),
    (r"(down|up|input|output)_blocks\.", "a U-Net, which has other layers"),
    (r"transformer_blocks\.|blocks\.\d+\.attn\.qkv\.", "a transformer"),
)


class Source(NamedTuple):
    """The weights of a file; `ignored` has a reason for each other part of it."""

    state_dict: StateDict
    ignored: dict[str, str]


def load_weights(path: str | os.PathLike) -> Any:
    """`load_safetensors` for names that end in .safetensors, else `load_torch`."""
    return load_safetensors(path) if Path(path).suffix == ".safetensors" else load_torch(path)


def read_source(path: str | os.PathLike, weights: str | None = None) -> Source:
    """Finds the weights in a file: a state_dict, or one of the dicts of a trainer's file, as `_PARTS` names them.

    Prefixes that all names share are removed; of a state_dict with `ema_model.` and other names, one half is taken.

    Args:
      path: of a torch or safetensors file.
      weights: "ema" or "model", where a file has both; None is the EMA.

    Raises:
      UserError: a file of a wrong shape, or without the weights asked for.
    """
    if weights not in (None, *WEIGHTS):
        raise UserError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    value = load_weights(path)
    if not isinstance(value, dict) or not value:
        raise UserError(f"{path} holds no dict of tensors but a {type(value).__name__}: save model.state_dict()")
    parts = _parts(value)
    if not parts:
        raise UserError(
            f"{path} holds {some(list(value))}: known are a state_dict of tensors, and a dict with one of "
            f"{', '.join(name for kind in WEIGHTS for name in _PARTS[kind])}"
        )
    if weights is not None and [*parts] == [""]:
        raise UserError(f"{path} is one state_dict: leave out weights={weights}")
    chosen = next((name for name, (kind, _) in parts.items() if weights in (None, kind)), None)
    if chosen is None:
        raise UserError(f"{path} has no {weights!r} weights, only {', '.join(parts)}: choose another value of weights")
    chosen_kind, state_dict = parts[chosen]
    ignored = {
        name: "not chosen" if kind == chosen_kind else f"not chosen: weights={kind} takes it"
        for name, (kind, _) in parts.items()
        if name != chosen
    }
    if not _is_state_dict(value):
        ignored |= _ignored(path, chosen, {name: part for name, part in value.items() if name not in parts})
    elif len(parts) == 2:
        left = value.keys() - parts["ema"][1].keys() - parts["model"][1].keys()
        ignored |= {shown(name): "neither the model nor its average" for name in sorted(left)}
    return Source(_stripped(state_dict), ignored)


def _parts(value: dict[Any, Any]) -> dict[str, tuple[str, StateDict]]:
    """The dicts of weights in a file, by name, each with the value of `weights` that takes it."""
    if not _is_state_dict(value):
        found = {name: kind for kind in WEIGHTS for name in _PARTS[kind] if _is_state_dict(value.get(name))}
        return {name: (kind, _half(value[name], kind)) for name, kind in found.items()}
    if len({name.startswith(_AVERAGE) for name in value}) == 2:
        return {kind: (kind, _half(value, kind)) for kind in WEIGHTS}
    return {"": ("model", value)}


def _half(state_dict: StateDict, kind: str) -> StateDict:
    """The average or the model of a state_dict with both, as ema_pytorch saves them; any other state_dict itself."""
    average = {name: array for name, array in state_dict.items() if name.startswith(_AVERAGE)}
    if not average or len(average) == len(state_dict):
        return state_dict
    rest = {name: array for name, array in state_dict.items() if name not in average}
    wrapped = {name: array for name, array in rest.items() if name.startswith(("model.", "online_model."))}
    return average if kind == "ema" else wrapped or rest


def _ignored(path: str | os.PathLike, chosen: str, others: dict[Any, Any]) -> dict[str, str]:
    """A reason for each part of a trainer's file that is not weights; one with tensors must be known."""
    unknown = [name for name, part in others.items() if name not in _REASONS and _has_tensor(part)]
    if unknown:
        parts = [f"{name} (a {type(others[name]).__name__})" for name in unknown]
        raise UserError(
            f"{path} has weights in {chosen!r}, and parts that are not known: {some(parts)}; save the weights alone"
        )
    return {shown(name): _REASONS.get(name, "no tensor") for name in others}


def model_of(state_dict: StateDict) -> str:
    """What model the names of a state_dict are of, for a message."""
    for pattern, model in _MODELS:
        if any(re.match(pattern, name) for name in state_dict):
            return f"the weights of {model}"
    return f"weights of an unknown model, {some(list(state_dict))}"


def _has_tensor(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, np.ndarray) or any(map(_has_tensor, items))


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(type(name) is str and isinstance(array, np.ndarray) for name, array in value.items())
    )


def _stripped(state_dict: StateDict) -> StateDict:
    """The same arrays without the prefixes that all names have, in any order and number."""
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state_dict)), None):
        state_dict = {name.removeprefix(prefix): array for name, array in state_dict.items()}
    return state_dict
