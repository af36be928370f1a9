"""A recipe written as TOML is the same recipe when it is read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.passes import Pass
from onnxcomp.passes.quantize_dynamic import QuantizeDynamic
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.recipe import Gates, Recipe, recipe_names
from onnxcomp.recipe_file import recipe_as_toml

LABELS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)
OVERRIDES = st.dictionaries(
    LABELS,
    st.one_of(
        st.fixed_dictionaries({"skip": st.booleans()}),
        st.fixed_dictionaries({"percentile": st.floats(50, 100), "calibrator": st.just("minmax")}),
    ),
    max_size=4,
)


@given(OVERRIDES, LABELS, st.floats(50, 100), st.none() | st.floats(allow_nan=False))
def test_what_is_written_reads_back_the_same(
    overrides: dict[str, dict[str, Any]], description: str, percentile: float, gate: float | None
) -> None:
    recipe = Recipe(
        passes=(
            SimplifyGraph(),
            QuantizeStatic(percentile=percentile, operators=("Conv", "Gemm"), overrides=overrides),
            QuantizeDynamic(per_channel=False),
        ),
        gates=Gates(min_sqnr_db=gate, must_pay=True),
        description=description,
    )
    assert Recipe.parse(recipe_as_toml(recipe)) == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipes_survive(name: str) -> None:
    recipe = Recipe.load(name)
    assert Recipe.parse(recipe_as_toml(recipe), name) == recipe


def test_the_order_of_overrides_which_decides_is_kept() -> None:
    step: Pass = QuantizeStatic(overrides={"b*": {"skip": True}, "a": {"skip": False}})
    (read,) = Recipe.parse(recipe_as_toml(Recipe(passes=(step,)))).passes
    assert list(read.overrides) == ["b*", "a"]
    assert "percentile" not in recipe_as_toml(Recipe(passes=(step,))), "defaults are not repeated"
