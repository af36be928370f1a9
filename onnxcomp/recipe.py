"""What to do, in which order, with which options, and what must hold afterwards.

A recipe is a TOML file that a person can read, change, keep in git and run again to the same bytes:

    description = "INT8 for cameras"

    [gates]
    min_sqnr_db = 15.0
    must_pay = true

    [[passes]]
    name = "quantize_static"
    calibrator = "percentile"
    overrides."*/head/*" = { skip = true }
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from onnxcomp.errors import RecipeError
from onnxcomp.passes import PASSES
from onnxcomp.passes.base import Pass

T = TypeVar("T")
BUILT_IN = resources.files("onnxcomp") / "recipes"


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What must hold after every pass, or the pass is undone.

    Attributes:
        min_sqnr_db: signal to quantization noise of every output against the original, in dB.
        min_state_sqnr_db: the same for models that carry state from run to run, whose errors add
            up over runs that single samples do not show.
        max_drop: points that the evaluator may lose against the original.
        max_scored_drop: the same of recipes that would rather go by a score: in force where there
            is an evaluator, and then nothing on SQNR is.
        aim_sqnr_db: no gate: how good a pass leaves the worst output, before a final Softmax, that
            can choose. What somebody asks for takes the place of both.
        must_pay: a pass may make the model neither slower nor larger than it was before, and
            the result is never slower or larger than the original.
    """

    min_sqnr_db: float | None = None
    min_state_sqnr_db: float | None = None
    max_drop: float | None = None
    max_scored_drop: float | None = None
    aim_sqnr_db: float | None = None
    must_pay: bool = False

    def for_score(self, scored: bool) -> Gates:
        """These gates with or without an evaluator."""
        most = self.max_scored_drop
        if most is None or not scored:
            return dataclasses.replace(self, max_scored_drop=None)
        return Gates(max_drop=most, must_pay=self.must_pay)

    def in_force(self, carries_state: bool) -> Gates:
        """These gates for a model that carries state or does not."""
        strict = self.min_state_sqnr_db
        if strict is None or not carries_state:
            return self
        return dataclasses.replace(self, min_sqnr_db=max(strict, self.min_sqnr_db or strict))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Passes with their options, in order, and the gates they must pass.

    Attributes:
        passes: in order.
        gates: that each of them must pass.
        name: in messages and in the report.
        description: one line.
        pack: whether the result is a container (.oxc) unless another name is given.
    """

    passes: tuple[Pass, ...]
    gates: Gates = Gates()
    name: str = "custom"
    description: str = ""
    pack: bool = False

    @classmethod
    def load(cls, name_or_path: str | Path) -> Recipe:
        """A built-in recipe by name, or one from a .toml file.

        Raises:
            RecipeError: no such recipe, or one with unknown keys or wrong types.
        """
        path = Path(name_or_path)
        if path.suffix == ".toml" or path.is_file():
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise RecipeError(f"recipe {path}: cannot be read ({error})") from error
            return cls.parse(text, str(path))
        if str(name_or_path) not in recipe_names():
            raise RecipeError(_unknown("recipe", str(name_or_path), recipe_names()))
        text = (BUILT_IN / f"{name_or_path}.toml").read_text(encoding="utf-8")
        return cls.parse(text, str(name_or_path))

    @classmethod
    def parse(cls, text: str, name: str = "custom") -> Recipe:
        """A recipe from TOML; ``name`` stands in messages and in the report.

        Raises:
            RecipeError: not TOML, unknown keys, or values of the wrong type.
        """
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"recipe {name}: not valid TOML: {error}") from error
        where = f"recipe {name}"
        _refuse_unknown(where, data, ["description", "gates", "pack", "passes"])
        entries = data.get("passes", [])
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise RecipeError(f"{where}: passes must be [[passes]] tables")
        return cls(
            passes=tuple(_make_pass(dict(entry), where) for entry in entries),
            gates=_make(Gates, data.get("gates", {}), f"{where}: gates"),
            name=name,
            description=str(data.get("description", "")),
            pack=_coerced(data.get("pack", False), bool, f"{where}: pack"),
        )

    def with_gates(self, **changes: Any) -> Recipe:
        """The same passes with some gates replaced; None leaves a gate as it is.

        A fidelity that somebody asks for holds for models that carry state as well.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        if "min_sqnr_db" in given:
            given["min_state_sqnr_db"] = None
        if "max_drop" in given and self.gates.max_scored_drop is not None:
            given = {"min_sqnr_db": None, "min_state_sqnr_db": None} | given
        if given.keys() & {"min_sqnr_db", "max_drop"}:
            given |= {"max_scored_drop": None, "aim_sqnr_db": None}
        return dataclasses.replace(self, gates=dataclasses.replace(self.gates, **given))


def recipe_names() -> list[str]:
    """The built-in recipes."""
    return sorted(f.name.removesuffix(".toml") for f in BUILT_IN.iterdir() if f.name[0] != ".")


def recipe_text(name: str) -> str:
    """The TOML of a built-in recipe.

    Raises:
        RecipeError: no such recipe.
    """
    if name not in recipe_names():
        raise RecipeError(_unknown("recipe", name, recipe_names()))
    return (BUILT_IN / f"{name}.toml").read_text(encoding="utf-8")


def parse_pass(text: str) -> Pass:
    """A pass from ``name[:option=value,...]``; several values of one option are joined by ``+``.

    Raises:
        RecipeError: an unknown pass or option, or a value of the wrong type.
    """
    name, _, rest = text.partition(":")
    entry: dict[str, Any] = {"name": name.strip()}
    for item in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = item.partition("=")
        if not equals:
            raise RecipeError(f"--pass {text}: write option=value, not {item!r}")
        entry[key.strip()] = _Text(value.strip())
    return _make_pass(entry, f"--pass {text}")


def compose(passes: Iterable[Pass]) -> Recipe:
    """A recipe of passes that somebody asked for one by one: it does what was asked, ungated."""
    return Recipe(passes=tuple(passes), description="composed on the command line")


def options_of(kind: type[Pass]) -> dict[str, tuple[str, Any]]:
    """Option -> (type as written, default) of a pass, for listings."""
    hints = typing.get_type_hints(kind)
    return {
        f.name: (_type_name(hints[f.name]), f.default)
        for f in dataclasses.fields(kind)
        if f.name != "overrides"
    }


class _Text(str):
    """A value from the command line, whose type the option decides."""


def _make_pass(entry: dict[str, Any], where: str) -> Pass:
    name = entry.pop("name", None)
    kinds = {kind.name(): kind for kind in PASSES}
    if not isinstance(name, str) or name not in kinds:
        raise RecipeError(f"{where}: {_unknown('pass', str(name), kinds)}")
    overrides = entry.pop("overrides", {})
    if not isinstance(overrides, Mapping):
        raise RecipeError(f"{where}: overrides of {name} must be a table of globs")
    checked = {}
    for glob, options in overrides.items():
        place = f"{where}: overrides {glob!r} of {name}"
        if not isinstance(options, Mapping):
            raise RecipeError(f"{place} must be a table of options")
        rest = {key: value for key, value in options.items() if key != "skip"}
        checked[glob] = _checked(kinds[name], rest, place)
        if "skip" in options:
            checked[glob]["skip"] = _coerced(options["skip"], bool, f"{place}: skip")
    values = _checked(kinds[name], entry, f"{where}: {name}")
    for glob, options in checked.items():  # refused here rather than at the node
        merged = {key: value for key, value in (values | options).items() if key != "skip"}
        _construct(kinds[name], merged, f"{where}: overrides {glob!r} of {name}")
    return _construct(kinds[name], {**values, "overrides": checked}, f"{where}: {name}")


def _make(kind: type[T], data: Any, where: str) -> T:
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where} must be a table")
    return _construct(kind, _checked(kind, data, where), where)


def _construct(kind: type[T], values: dict[str, Any], where: str) -> T:
    try:
        return kind(**values)
    except ValueError as error:  # a pass refuses values out of range in __post_init__
        raise RecipeError(f"{where}: {error}") from error


def _checked(kind: type[Any], data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Option values of the right type; unknown names refused with the nearest right one."""
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind) if f.name != "overrides"]
    _refuse_unknown(where, data, names)
    return {key: _coerced(value, hints[key], f"{where}: {key}") for key, value in data.items()}


def _refuse_unknown(where: str, data: Mapping[str, Any], names: Iterable[str]) -> None:
    for key in data:
        if key not in set(names):
            raise RecipeError(f"{where}: {_unknown('option', key, names)}")


def _unknown(kind: str, name: str, names: Iterable[str]) -> str:
    known = list(names)
    nearest = difflib.get_close_matches(name, known, 1, 0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    return f"unknown {kind} {name!r}; {hint}"


def _coerced(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the type of an option: bool, int, float, str, Literal, tuple of, or None."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        if value is None or (isinstance(value, _Text) and value == "none"):
            return None
        return _coerced(value, inner[0], where)
    if origin is Literal:
        for argument in arguments:
            if type(value) is type(argument) and value == argument:
                return argument
            if isinstance(value, _Text) and value == str(argument):
                return argument
        raise RecipeError(f"{where}: {_unknown('value', str(value), map(str, arguments))}")
    if origin is tuple:
        items = list(filter(None, value.split("+"))) if isinstance(value, _Text) else value
        if isinstance(items, (list, tuple)):
            kind = _Text if isinstance(value, _Text) else lambda x: x
            return tuple(_coerced(kind(item), arguments[0], where) for item in items)
    elif isinstance(value, _Text):
        return _from_text(value, hint, where)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(float(value), where)
    elif type(value) is hint:
        return value
    raise RecipeError(f"{where}: {value!r} is not of type {_type_name(hint)}")


def _from_text(text: str, hint: Any, where: str) -> Any:
    words = {"true": True, "yes": True, "false": False, "no": False}
    try:
        value = words[text.lower()] if hint is bool else hint(str(text))
        return _number(value, where) if hint is float else value
    except (KeyError, ValueError):
        raise RecipeError(f"{where}: {str(text)!r} is not of type {_type_name(hint)}") from None


def _number(value: float, where: str) -> float:
    if math.isnan(value):  # every comparison with it is false, so a gate of it would mean nothing
        raise RecipeError(f"{where}: nan is not a number")
    return value


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(str(argument) for argument in typing.get_args(hint))
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
