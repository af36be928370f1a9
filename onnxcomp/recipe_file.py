"""A recipe as the TOML that reads back as the same recipe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from onnxcomp.passes.base import Pass
from onnxcomp.recipe import Recipe


def recipe_as_toml(recipe: Recipe) -> str:
    """TOML of a recipe: what differs from the defaults, and all overrides.

    `Recipe.parse` gives the same passes, options and gates back.
    """
    return "\n".join(_lines(recipe)) + "\n"


def _lines(recipe: Recipe) -> Iterator[str]:
    yield f"description = {_value(recipe.description)}"
    if recipe.pack:
        yield "pack = true"
    gates = {
        key: value for key, value in dataclasses.asdict(recipe.gates).items() if value is not None
    }
    if gates:
        yield ""
        yield "[gates]"
        yield from (f"{key} = {_value(value)}" for key, value in gates.items())
    for step in recipe.passes:
        yield ""
        yield "[[passes]]"
        yield f"name = {_value(step.name())}"
        yield from _options(step)


def _options(step: Pass) -> Iterator[str]:
    preset = type(step)()
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if field.name == "overrides":
            for glob, options in value.items():
                yield f"overrides.{_value(glob)} = {_value(options)}"
        elif value is None and getattr(preset, field.name) is not None:
            continue  # TOML has no null; no option has None for anything but its default
        elif value != getattr(preset, field.name):
            yield f"{field.name} = {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_value(item)}' for key, item in value.items())} }}"
    return repr(value)
