"""An extension of mkdocstrings: classes of options get a table of their fields, with help, limits and defaults."""

import dataclasses
import importlib
from typing import Any

import griffe


class OptionTables(griffe.Extension):
    """Adds an Attributes section to the docstring of each dataclass whose fields `vdt_jax.options.option` made."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        options = getattr(importlib.import_module(cls.module.path), cls.name, None)
        fields = dataclasses.fields(options) if isinstance(options, type) and dataclasses.is_dataclass(options) else ()
        lines = [f"  {field.name}: {_description(field)}" for field in fields if "help" in field.metadata]
        if lines and cls.docstring:
            cls.docstring.value = "\n".join([cls.docstring.value, "", "Attributes:", *lines])


def _description(field: dataclasses.Field) -> str:
    choices, limits = field.metadata.get("choices"), field.metadata.get("limits") or {}
    parts = [field.metadata["help"]]
    if choices:
        parts.append(f"One of {', '.join(f'`{choice}`' for choice in choices)}.")
    if limits:
        parts.append(f"Must be {' and '.join(f'{sign} {limit}' for sign, limit in limits.items())}.")
    if field.default is not dataclasses.MISSING and not dataclasses.is_dataclass(field.default):
        parts.append(f"Default: `{field.default!r}`.")
    return " ".join(parts)
