"""Recipes: what is written is what is done, and what is not understood is refused."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.errors import RecipeError
from onnxcomp.passes import PASSES, Pass, PassContext, PassReport
from onnxcomp.recipe import (
    Gates,
    Recipe,
    compose,
    options_of,
    parse_pass,
    recipe_names,
    recipe_text,
)


@dataclass(frozen=True, kw_only=True)
class TryOptions(Pass):
    """A pass with an option of every type.

    Attributes:
        flag: yes or no.
        count: at least 1.
        share: a number.
        text: words.
        mode: one of two.
        bits: one of two numbers.
        ops: several words.
        sizes: several numbers.
        limit: a number or none.
    """

    flag: bool = False
    count: int = 1
    share: float = 0.5
    text: str = "a"
    mode: Literal["fast", "small"] = "fast"
    bits: Literal[4, 8] = 8
    ops: tuple[str, ...] = ("Conv",)
    sizes: tuple[int, ...] = ()
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, not {self.count}")

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Does nothing."""

    def candidates(self, graph: gs.Graph) -> list[str]:
        """No nodes."""
        return []


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """TryOptions is among the passes."""
    monkeypatch.setattr("onnxcomp.recipe.PASSES", (*PASSES, TryOptions))


def only_pass(options: str) -> TryOptions:
    (found,) = Recipe.parse(f"[[passes]]\nname = 'try_options'\n{options}").passes
    assert isinstance(found, TryOptions)
    return found


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text, "r.toml")
    message = str(caught.value)
    assert message.startswith("recipe r.toml: ")
    assert "\n" not in message
    return message


# --- TOML -------------------------------------------------------------------------------------

TOML = """
flag = true
count = 3
share = 2
text = "b"
mode = "small"
bits = 4
ops = ["Gemm", "MatMul"]
sizes = [1, 2]
limit = 0.25
"""


def test_options_of_every_type_are_read() -> None:
    assert only_pass(TOML) == TryOptions(
        flag=True,
        count=3,
        share=2.0,
        text="b",
        mode="small",
        bits=4,
        ops=("Gemm", "MatMul"),
        sizes=(1, 2),
        limit=0.25,
    )
    assert only_pass("") == TryOptions()
    assert isinstance(only_pass("share = 2").share, float)


def test_gates_and_order_are_read() -> None:
    recipe = Recipe.parse(
        """
        description = "two"
        [gates]
        min_sqnr_db = 15
        must_pay = true
        [[passes]]
        name = "try_options"
        [[passes]]
        name = "simplify_graph"
        """
    )
    assert recipe.description == "two"
    assert recipe.gates == Gates(min_sqnr_db=15.0, must_pay=True)
    assert [step.name() for step in recipe.passes] == ["try_options", "simplify_graph"]
    assert Recipe.parse("") == Recipe(passes=(), name="custom")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("passes = ", "not valid TOML"),
        ("descripton = 'x'", "unknown option 'descripton'; did you mean 'description'?"),
        ("[gates]\nmin_sqnr = 3", "gates: unknown option 'min_sqnr'; did you mean 'min_sqnr_db'?"),
        ("[gates]\nmust_pay = 'yes'", "must_pay: 'yes' is not of type bool"),
        ("[gates]\nmin_sqnr_db = nan", "min_sqnr_db: nan is not a number"),
        ("gates = 3", "gates must be a table"),
        ("passes = 3", "passes must be [[passes]] tables"),
        ("passes = [3]", "passes must be [[passes]] tables"),
        ("[passes]\nname = 'x'", "passes must be [[passes]] tables"),
        ("[[passes]]", "unknown pass 'None'"),
        ("[[passes]]\nname = ['a']", "unknown pass"),
        ("[[passes]]\nname = 'quantise_static'", "did you mean 'quantize_static'?"),
        ("[[passes]]\nname = 'zzz'", "known: simplify_graph"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, said: str) -> None:
    assert said in refusal(text)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("cuont = 3", "try_options: unknown option 'cuont'; did you mean 'count'?"),
        ("count = 'many'", "count: 'many' is not of type int"),
        ("count = 1.5", "count: 1.5 is not of type int"),
        ("count = true", "count: True is not of type int"),
        ("count = 0", "count must be at least 1, not 0"),
        ("flag = 1", "flag: 1 is not of type bool"),
        ("share = 'x'", "share: 'x' is not of type float"),
        ("share = true", "share: True is not of type float"),
        ("text = 3", "text: 3 is not of type str"),
        ("mode = 'fsat'", "unknown value 'fsat'; did you mean 'fast'?"),
        ("bits = 5", "unknown value '5'; known: 4, 8"),
        ("bits = true", "unknown value 'True'"),
        ("bits = 4.0", "unknown value '4.0'"),
        ("ops = 'Conv'", "ops: 'Conv' is not of type"),
        ("ops = [1]", "ops: 1 is not of type str"),
        ("sizes = [1, 'x']", "sizes: 'x' is not of type int"),
        ("limit = 'x'", "limit: 'x' is not of type float"),
        ("overrides = 3", "overrides of try_options must be a table of globs"),
        ("overrides.'a*' = 3", "overrides 'a*' of try_options must be a table of options"),
        ("overrides.'a*'.cuont = 3", "overrides 'a*' of try_options: unknown option 'cuont'"),
        ("overrides.'a*'.count = 'x'", "overrides 'a*' of try_options: count: 'x'"),
        ("overrides.'a*'.count = 0", "count must be at least 1, not 0"),
        ("overrides.'a*'.skip = 'x'", "skip: 'x' is not of type bool"),
    ],
)
def test_options_that_do_not_fit_are_refused(option: str, said: str) -> None:
    assert said in refusal(f"[[passes]]\nname = 'try_options'\n{option}")


# --- overrides --------------------------------------------------------------------------------


def test_the_last_matching_glob_wins_option_by_option() -> None:
    step = only_pass(
        """
        count = 2
        overrides."head/*" = { count = 5, mode = "small" }
        overrides."*/last" = { count = 7 }
        overrides."skip[12]" = { skip = true }
        """
    )
    found = {
        name: step.options_for(name) for name in ("conv", "head/a", "head/last", "skip1", "skip3")
    }
    assert found["skip1"] is None
    kept = {name: (o.count, o.mode) for name, o in found.items() if o is not None}
    assert kept == {
        "conv": (2, "fast"),
        "head/a": (5, "small"),
        "head/last": (7, "small"),
        "skip3": (2, "fast"),
    }
    node = gs.Node("Conv", "head/a")
    assert step.options_for(node) == found["head/a"]
    unnamed = gs.Node("Conv", outputs=[gs.Variable("y")])
    assert only_pass("overrides.'Conv:y' = { skip = true }").options_for(unnamed) is None


# --- the command line -------------------------------------------------------------------------


def test_passes_of_the_command_line_read_like_those_of_a_file() -> None:
    options = "flag=true,count=3,share=2,text=b,mode=small,bits=4,ops=Gemm+MatMul,sizes=1+2"
    assert parse_pass(f"try_options:{options},limit=0.25") == only_pass(TOML)
    assert parse_pass("try_options") == TryOptions()
    assert parse_pass(" try_options : limit = none , flag = no ") == TryOptions()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("try_option", "unknown pass 'try_option'; did you mean 'try_options'?"),
        ("", "unknown pass ''"),
        ("try_options:count", "write option=value, not 'count'"),
        ("try_options:cuont=3", "did you mean 'count'?"),
        ("try_options:count=x", "count: 'x' is not of type int"),
        ("try_options:flag=maybe", "flag: 'maybe' is not of type bool"),
        ("try_options:bits=5", "bits: unknown value '5'"),
        ("try_options:share=nan", "share: nan is not a number"),
        ("try_options:overrides=x", "overrides"),
    ],
)
def test_passes_of_the_command_line_that_do_not_fit_are_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_pass(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"--pass {text}: ")


@given(
    st.builds(
        TryOptions,
        flag=st.booleans(),
        count=st.integers(1, 10**6),
        share=st.floats(allow_nan=False),
        mode=st.sampled_from(["fast", "small"]),
        bits=st.sampled_from([4, 8]),
        ops=st.lists(st.sampled_from(["Conv", "Gemm"])).map(tuple),
        sizes=st.lists(st.integers()).map(tuple),
        limit=st.none() | st.floats(allow_nan=False),
    )
)
def test_options_written_on_the_command_line_come_back(step: TryOptions) -> None:
    def written(value: Any) -> str:
        if isinstance(value, tuple):
            return "+".join(map(str, value))
        return "none" if value is None else str(value)

    names = [field.name for field in dataclasses.fields(step) if field.name != "overrides"]
    text = ",".join(f"{name}={written(getattr(step, name))}" for name in names)
    assert parse_pass(f"try_options:{text}") == step


def test_composed_recipes_have_no_gates() -> None:
    recipe = compose([TryOptions()])
    assert recipe.gates == Gates()
    assert recipe.name == "custom"


def test_gates_are_added_to_any_recipe() -> None:
    recipe = compose([]).with_gates(min_sqnr_db=12.0, max_drop=None, must_pay=None)
    assert recipe.gates == Gates(min_sqnr_db=12.0)
    assert recipe.with_gates(must_pay=False, min_sqnr_db=None).gates == Gates(min_sqnr_db=12.0)
    assert recipe.with_gates(must_pay=True).gates.must_pay


# --- files and built-in recipes ---------------------------------------------------------------


def test_every_built_in_recipe_parses_and_is_gated() -> None:
    assert set(recipe_names()) >= {"default", "data_free", "simplify"}
    for name in recipe_names():
        recipe = Recipe.load(name)
        assert recipe.name == name
        assert recipe.passes
        assert recipe.description
        assert recipe.gates.must_pay
        assert recipe.gates.min_sqnr_db is not None
        assert recipe == Recipe.parse(recipe_text(name), name)


def test_recipes_are_loaded_from_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text("simplify"), encoding="utf-8")
    assert Recipe.load(path).passes == Recipe.load("simplify").passes
    assert Recipe.load(path).name == str(path)
    plain = tmp_path / "without_ending"
    plain.write_text(recipe_text("simplify"), encoding="utf-8")
    assert Recipe.load(plain).passes


def test_recipes_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name, said in {
        "simplfy": "did you mean 'simplify'?",
        str(tmp_path / "missing.toml"): "cannot be read",
        str(tmp_path / "binary.toml"): "cannot be read",
        str(tmp_path): "unknown recipe",
    }.items():
        with pytest.raises(RecipeError, match=said.replace("?", r"\?")) as caught:
            Recipe.load(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="did you mean 'simplify'"):
        recipe_text("simplfy")


def test_listings_show_types_and_defaults() -> None:
    shown = options_of(TryOptions)
    assert "overrides" not in shown
    assert shown["flag"] == ("bool", False)
    assert shown["mode"] == ("fast|small", "fast")
    assert shown["limit"] == ("float | None", None)
    assert shown["ops"][1] == ("Conv",)
