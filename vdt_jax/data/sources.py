"""Data sources by name: those of this package, tensorflow-datasets, and classes of the user's own."""

import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vdt_jax.data.clips import Clip, Source
from vdt_jax.errors import UserError

SPLITS = ("train", "held_out")
# Every source is imported by its path when it is named; these paths have a short name.
_SHORT_NAMES = {
    "moving_digits": "vdt_jax.data.digits:MovingDigits",
    "moving_mnist": "vdt_jax.data.digits:MovingMnist",
    "moving_fashion_mnist": "vdt_jax.data.moving_fashion_mnist:MovingFashionMnist",
    "synthetic": "vdt_jax.data.synthetic:Synthetic",
    "video_folder": "vdt_jax.data.video_folder:VideoFolder",
    "tfds": "vdt_jax.data.tfds:Tfds",
    "vizdoom": "vdt_jax.data.doom:Vizdoom",
    "latents": "vdt_jax.latents.cache:Latents",
}
_PREFIXES = {"tfds": "dataset", "vizdoom": "scenario"}  # the option that follows the short name and a colon
_NOT_OPTIONS = {"shape", "split", "bad_files"}  # parameters of a constructor that the config does not set


def make_source(
    section: Mapping[str, Any],
    shape: tuple[int, int, int, int],
    split: str,
    bad_files: str | os.PathLike | None = None,
) -> Source:
    """The source that a config's `data` section names.

    Args:
      section: `name`: a short name, tfds:FOLDER, tfds:NAME, or package.module:Class. The other keys, and what is in
        the mapping `options`, are keyword arguments of the class; None and "" stand for its defaults.
      shape: (F, H, W, C) of a clip.
      split: `train`, or `held_out`: clips that training never sees.
      bad_files: a JSON-lines file in which a source lists files that it cannot read; for classes with that parameter.

    Raises:
      UserError: a name that cannot be imported, options that the class does not take, or what the class raises.
    """
    options = {key: value for key, value in section.items() if value not in (None, "")}
    name, free = options.pop("name"), options.pop("options", None)
    if not all(isinstance(key, str) for key in free or {}):
        raise UserError(f"data.options must give a value for each name, {{'name': value}}, got {dict(free)!r}")
    options |= free or {}
    cls, named = _find(name)
    signature, taken = inspect.signature(cls), keys_of(name)
    takes_all = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    if not takes_all and (unknown := ", ".join(sorted(options.keys() - taken))):
        raise UserError(f"data source {name} takes no {unknown}: it takes {sorted(taken) or 'nothing'}")
    options |= named
    if "bad_files" in signature.parameters:
        options["bad_files"] = bad_files
    try:
        signature.bind(shape, split, **options)
    except TypeError as error:
        raise UserError(
            f"data source {name}: {error}; its constructor takes {signature}, and is called with shape, split and "
            "the keys of config.data and config.data.options"
        ) from None
    source = cls(shape, split, **options)
    return source if getattr(cls, "__module__", "").startswith("vdt_jax.") else CheckedSource(source, name, shape)


def keys_of(name: str) -> set[str]:
    """The keys of a config's `data` section that a source takes, besides `name` and `options`."""
    return inspect.signature(_find(name)[0]).parameters.keys() - _NOT_OPTIONS


def is_built_in(name: str) -> bool:
    """Whether a name is that of a source of this package; of other names the module is imported, which runs it."""
    return name in _SHORT_NAMES or name.partition(":")[0] in _PREFIXES


def _find(name: str) -> tuple[Callable[..., Any], dict[str, str]]:
    """The class of a data source, and the option that follows the prefix in its name."""
    prefix, _, rest = name.partition(":")
    path = _SHORT_NAMES.get(prefix if prefix in _PREFIXES else name, name)
    module, colon, attribute = path.partition(":")
    if not colon:
        raise UserError(
            f"no data source '{name}': choose from {', '.join(_SHORT_NAMES)}, or name a class of your own as "
            "package.module:Class"
        )
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError) as error:  # ValueError: an empty name
        raise UserError(
            f"data source {name} cannot be imported ({error}): is the folder of its package in PYTHONPATH?"
        ) from None
    if not callable(found):
        raise UserError(f"data source {name}: the module {module} has no class {attribute or '(no name)'}")
    return found, {_PREFIXES[prefix]: rest} if prefix in _PREFIXES else {}


class CheckedSource:
    """A user's source with the defaults of the optional attributes; every clip is checked.

    Its clips must have the `shape` (F, H, W, C); `name` is that of its class, for messages.
    """

    def __init__(self, source: Any, name: str, shape: tuple[int, int, int, int]):
        for method, use in (("__len__", "__len__()"), ("clip", "clip(number, rng)")):
            if not callable(getattr(source, method, None)):
                raise UserError(f"data source {name} has no method {use}")
        self._source, self._name, self._shape = source, name, tuple(shape)
        self.num_classes: int = getattr(source, "num_classes", 1)
        self.generated: bool = getattr(source, "generated", False)
        self.crop: str = getattr(source, "crop", f"made by {name}")
        self.identity: str | None = getattr(source, "identity", None)
        if not isinstance(self.num_classes, int) or self.num_classes < 1:
            raise UserError(f"data source {name}: num_classes must be an integer >= 1, got {self.num_classes!r}")
        if len(source) < 1:
            raise UserError(f"data source {name} has no clips: its len() must be >= 1 in each split")

    def __len__(self) -> int:
        return len(self._source)

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """See `Source`; a UserError for a clip of a wrong type, shape, dtype or label range."""
        clip = self._source.clip(number, rng)
        if not isinstance(clip, Mapping) or "video" not in clip:
            raise self._wrong(number, _described(clip), "a dict with video and label")
        video, label = clip["video"], clip.get("label", 0)
        if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.shape != self._shape:
            raise self._wrong(number, f"video {_described(video)}", f"uint8 of shape {self._shape} (F, H, W, C)")
        if not isinstance(label, int | np.integer) or not 0 <= label < self.num_classes:
            expected = f"an integer from 0 to num_classes - 1 = {self.num_classes - 1}"
            raise self._wrong(number, f"label {label!r}", expected)
        return {"video": video, "label": int(label)}

    def _wrong(self, number: int, returned: str, expected: str) -> UserError:
        return UserError(f"data source {self._name}: clip {number} returned {returned}; expected {expected}")


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(str, value)) or 'nothing'}"
    return f"a value of type {type(value).__name__}"
