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
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

from vdt_jax.errors import UserError

Options = TypeVar("Options")
_SATISFIES = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_LARGEST = 2**31 - 1  # of an integer without any other limit: jax's integers are int32
_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", dict: "a mapping"}


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with the help text of its flag, and the limits that `validate` checks.

    Args:
      choices: the allowed values, or the allowed items of a tuple.
      minimum, maximum: inclusive limits of a number, or of the items of a tuple.
      above, below: exclusive limits.
    """
    limits = {">=": minimum, "<=": maximum, ">": above, "<": below}
    limits = {sign: limit for sign, limit in limits.items() if limit is not None}
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "limits": limits})


def validate(options: Any, prefix: str = "") -> None:
    """Checks type, range and finiteness of every field of a dataclass of options, and of those nested in it.

    An optional text that is empty becomes None, lists become tuples, integers become floats where a float is expected,
    mappings become nested dataclasses. `prefix` begins the names in messages, `model.` for the options nested in the
    field `model`.

    Raises:
      UserError: the first field that does not fit: its name, the limit, the value.
    """
    for field in dataclasses.fields(options):
        name, value = prefix + field.name, getattr(options, field.name)
        kind, is_tuple, optional = kind_of(options, field.name)
        if optional and (value is None or (kind is str and not is_tuple and value == "")):
            object.__setattr__(options, field.name, None)
            continue
        if dataclasses.is_dataclass(kind):
            value = _nested(name, kind, value)
        elif is_tuple:
            value = value.tolist() if isinstance(value, np.ndarray) else value
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise UserError(f"{name} must be a list, got {value!r}")
            value = tuple(_checked(name, field, kind, item) for item in value)
        else:
            value = _checked(name, field, kind, value)
        object.__setattr__(options, field.name, value)  # the dataclass is frozen for everybody else


def build(cls: type[Options], values: Mapping[str, Any], prefix: str = "") -> Options:
    """A dataclass of options from keyword arguments. UserError: an unknown name, or what `validate` finds."""
    known = [field.name for field in dataclasses.fields(typing.cast(Any, cls))]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"the options are {', '.join(known)}"
            raise UserError(f"unknown option '{prefix}{name}': {hint}")
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
    return typing.get_origin(annotation) or annotation, False, optional


def _nested(name: str, kind: Any, value: Any) -> Any:
    """The options nested in a field, checked."""
    if isinstance(value, Mapping):
        value = build(kind, value, f"{name}.")
    if not isinstance(value, kind):
        raise UserError(f"{name} must be a {kind.__name__}, got {value!r}")
    validate(value, f"{name}.")
    return value


def _checked(name: str, field: dataclasses.Field, kind: Any, value: Any) -> Any:
    """One value of a field as its type."""
    if kind is Any:
        return value
    accepted = {bool: bool, int: Integral, float: Real, str: str, dict: Mapping}[kind]
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{name} must be {_KINDS[kind]}, got {value!r}")
    try:
        value = kind(value)
    except OverflowError:
        raise UserError(f"{name} must be a finite number, got a larger one than a float can hold") from None
    choices, limits = field.metadata.get("choices"), field.metadata.get("limits") or {}
    if kind is int:
        limits = {"<=": _LARGEST, **limits}
    if choices is not None and value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {value}")
    for sign, limit in limits.items():
        if not _SATISFIES[sign](value, limit):
            raise UserError(f"{name} must be {sign} {limit}, got {value}")
    return value
