"""Recipes and passes as plain data, for listings and help."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from onnxcomp.errors import RecipeError
from onnxcomp.passes import PASSES
from onnxcomp.passes.base import Pass
from onnxcomp.recipe import Recipe, options_of, recipe_names
from onnxcomp.report import plain
from onnxcomp.signature import did_you_mean

PASSES_SCHEMA = "onnxcomp.passes/1"
RECIPES_SCHEMA = "onnxcomp.recipes/1"


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a pass: its type and default as written in a recipe."""

    name: str
    type: str
    default: Any
    meaning: str


@dataclass(frozen=True, kw_only=True)
class PassListing:
    """What a pass is called, does and takes.

    Attributes:
        name: in recipes and on the command line.
        summary: one line.
        needs_calibration: whether it needs samples.
        options: in order.
    """

    name: str
    summary: str
    needs_calibration: bool
    options: tuple[Option, ...]


def list_passes(name: str | None = None) -> list[PassListing]:
    """All passes in order, or the one called ``name``.

    Raises:
        RecipeError: there is no such pass.
    """
    kinds = [kind for kind in PASSES if name is None or kind.name() == name]
    if not kinds:
        names = [kind.name() for kind in PASSES]
        hint = did_you_mean(str(name), names) or f"; known: {', '.join(names)}"
        raise RecipeError(f"unknown pass {name!r}{hint}")
    return [_listing(kind) for kind in kinds]


def passes_as_dict(listings: list[PassListing]) -> dict[str, Any]:
    """Plain data for JSON, the schema's name first; see docs/report.md."""
    return {"schema": PASSES_SCHEMA, "passes": plain(listings)}


def recipes_as_dict(names: list[str] | None = None) -> dict[str, Any]:
    """The built-in recipes as plain data for JSON; see docs/report.md."""
    recipes = [Recipe.load(name) for name in names or recipe_names()]
    return {
        "schema": RECIPES_SCHEMA,
        "recipes": [
            {
                "name": recipe.name,
                "description": recipe.description,
                "pack": recipe.pack,
                "gates": plain(recipe.gates),
                "passes": [{"name": step.name(), **_options(step)} for step in recipe.passes],
            }
            for recipe in recipes
        ],
    }


def _options(step: Pass) -> dict[str, Any]:
    values = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    return {name: plain(value) for name, value in values.items() if name != "overrides" or value}


def _listing(kind: type[Pass]) -> PassListing:
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        meanings |= attributes_section(base.__doc__ or "")
    preset = kind()
    return PassListing(
        name=kind.name(),
        summary=(kind.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " "),
        needs_calibration=kind.needs_calibration,
        options=tuple(
            Option(
                name=name,
                type=type_name,
                default=plain(getattr(preset, name)),
                meaning=meanings.get(name, ""),
            )
            for name, (type_name, _) in options_of(kind).items()
        ),
    )


def attributes_section(docstring: str) -> dict[str, str]:
    """Name -> meaning under ``Attributes:`` of a docstring, each on one line."""
    _, found, section = docstring.partition("Attributes:\n")
    if not found:
        return {}
    body = section.split("\n\n")[0]
    meanings: dict[str, str] = {}
    names: list[str] = []
    first = re.match(r" *", body)
    indent = len(first.group()) if first else 0
    for line in body.splitlines():
        entry = re.match(rf" {{{indent}}}(\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry.group(1).split(", ")
            meanings |= dict.fromkeys(names, entry.group(2).strip())
        elif line.strip():
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
    return meanings
