"""Options of the scripts and of the Python API: dataclasses whose fields carry their help text and their limits.

    @dataclasses.dataclass(frozen=True)
    class SampleOptions:
        steps: int = option(50, "Network calls.", minimum=1)

        def __post_init__(self) -> None:
            validate(self)

`vdt_jax.cli` makes a flag of each field, so a script and the Python API share names, defaults, checks and messages.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

from vdt_jax.errors import UserError

Options = TypeVar("Options")
_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A dataclass field with the help text of its flag, and the limits that `validate` checks.

    Args:
      default: None where the option has no value by default; its type must then allow None.
      help: one sentence.
      choices: the allowed values, or the allowed items of a tuple.
      minimum, maximum: inclusive limits of a number, or of the items of a tuple.
    """
    metadata = {"help": help, "choices": choices, "minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata=metadata)


def validate(options: Any) -> None:
    """Checks type, range and finiteness of every field of a dataclass of options.

    Lists become tuples, integers become floats where a float is expected.

    Raises:
      UserError: the first field that does not fit: its name, the limit, the value.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        kind, is_tuple, optional = kind_of(options, field.name)
        if value is None and optional:
            continue
        if is_tuple:
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise UserError(f"{field.name} must be a list, got {value!r}")
            value = tuple(_checked(field, kind, item) for item in value)
        else:
            value = _checked(field, kind, value)
        object.__setattr__(options, field.name, value)  # the dataclass is frozen for everybody else


def build(cls: type[Options], values: Mapping[str, Any]) -> Options:
    """A dataclass of options from keyword arguments.

    Raises:
      UserError: an unknown name, with the nearest known one, or what `validate` finds.
    """
    known = [field.name for field in dataclasses.fields(typing.cast(Any, cls))]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"the options are {', '.join(known)}"
            raise UserError(f"unknown option '{name}': {hint}")
    return cls(**values)


def kind_of(options: Any, name: str) -> tuple[Any, bool, bool]:
    """The type of a field or of its items, whether it is a tuple, and whether None is allowed.

    A field of type Any (a path from a script, an array from Python) is checked where it is used.
    """
    annotation = typing.get_type_hints(options if isinstance(options, type) else type(options))[name]
    optional = False
    if isinstance(annotation, types.UnionType):
        (annotation,) = (kind for kind in typing.get_args(annotation) if kind is not types.NoneType)
        optional = True
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True, optional
    return annotation, False, optional


def _checked(field: dataclasses.Field, kind: Any, value: Any) -> Any:
    """One value of a field as its type."""
    if kind is Any:
        return value
    accepted = {bool: bool, int: Integral, float: Real, str: str}[kind]
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{field.name} must be {_KINDS[kind]}, got {value!r}")
    value = kind(value)
    choices, minimum, maximum = (field.metadata.get(name) for name in ("choices", "minimum", "maximum"))
    if choices is not None and value not in choices:
        raise UserError(f"{field.name} must be one of {', '.join(choices)}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{field.name} must be a finite number, got {value}")
    if minimum is not None and value < minimum:
        raise UserError(f"{field.name} must be >= {minimum:g}, got {value}")
    if maximum is not None and value > maximum:
        raise UserError(f"{field.name} must be <= {maximum:g}, got {value}")
    return value
