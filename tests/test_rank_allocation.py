"""Options are shared out under a budget so that least is lost and work is saved with it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxcomp.errors import RecipeError
from onnxcomp.importing import from_proto
from onnxcomp.rank_allocation import Pace, Use, within_budget
from onnxcomp.rank_planning import Factorable, Option, confirmed, exact_loss, factorable
from onnxcomp.testing import model_of

RNG = np.random.default_rng(7)
USED = Use(option=lambda o: float(o.parameters), now=lambda item: 100.0, unit="parameters")
PACE = Pace(
    macs=Use(option=lambda o: float(o.macs), now=lambda item: 100.0),
    work=Use(option=lambda o: o.milliseconds, now=lambda item: 100.0),
)


def item_of(text: str, method: str = "auto", **weights: Any) -> Factorable:
    found = factorable(from_proto(model_of(text, **weights)).nodes[0], None, method, {}, 1)
    assert not isinstance(found, str)
    return found


MATRIX = item_of(
    "one (float[9, 20] x) => (float[9, 20] y) { [layer] y = MatMul (x, w) }",
    w=RNG.standard_normal((20, 20)).astype(np.float32),
)


def layer(name: str, rows: Sequence[tuple[float, float, float]], weight: float = 1) -> Factorable:
    """Of 100 of everything, with options (used, work, lost)."""
    options = tuple(
        replace(MATRIX.options[0], parameters=used, macs=used, milliseconds=work, lost=lost)
        for used, work, lost in rows
    )
    return replace(MATRIX, name=name, options=options, weight=weight)


def test_least_is_lost_of_all_ways_to_keep_a_budget() -> None:
    """Against trying them all; what matters more to the outputs counts as much more."""
    items = []
    for name, steep in (("a", 1.5), ("b", 2.0), ("c", 3.0)):
        rows = [(used, float(used), (1 - used / 100) ** steep) for used in range(5, 100, 5)]
        items.append(layer(name, rows, weight=2.0 if name == "b" else 1.0))
    options = [[*item.options, None] for item in items]

    def used_by(chosen: Sequence[Option | None]) -> int:
        return sum(100 if option is None else option.parameters for option in chosen)

    def lost_by(chosen: Sequence[Option | None]) -> float:
        pairs = zip(items, chosen, strict=True)
        return sum(item.weight * option.lost for item, option in pairs if option is not None)

    for budget in (80, 125, 170, 215, 260):
        plan, note = within_budget(items, USED, 300, budget)
        chosen = [plan.get(item.name) for item in items]
        best = min(lost_by(c) for c in itertools.product(*options) if used_by(c) <= budget)
        assert used_by(chosen) <= budget
        assert lost_by(chosen) == pytest.approx(best, rel=0.02)
        assert note == ""


def test_work_is_saved_along_with_what_the_budget_counts() -> None:
    """The thinnest forms here are slower than the layer; a bit is lost for those that are not."""
    rows = [(50, 130.0, 0.10), (50, 55.0, 0.12), (60, 110.0, 0.05)]
    items = [layer("a", rows), layer("b", rows)]
    plain, _ = within_budget(items, USED, 200, 120)
    assert {option.milliseconds for option in plain.values()} == {110.0}
    plan, note = within_budget(items, USED, 200, 120, PACE)
    assert note == ""
    assert sum(plan[name].milliseconds if name in plan else 100 for name in "ab") <= 136


def test_a_budget_that_work_does_not_follow_is_kept_with_a_note() -> None:
    plan, note = within_budget([layer("a", [(50, 98.0, 0.1)])], USED, 100, 60, PACE)
    assert plan["a"].parameters == 50
    assert "little of the MACs saved will save time" in note
    with pytest.raises(RecipeError, match="cannot be met"):
        within_budget([layer("a", [(50, 98.0, 0.1)])], USED, 100, 40, PACE)


def test_work_counts_whole_blocks_and_what_is_moved() -> None:
    """20 outputs are 32 of 16 at once; 9 rows of 20 are read, of 20 written; one call."""
    form = MATRIX.form
    assert form.layer_work({}) == 9 * 20 * 20 + 11 * 9 * 40 + 25_000
    assert form.layer_work({"MatMul": 16}) == 9 * 20 * 32 + 11 * 9 * 40 + 25_000
    first, second = 9 * 20 * 16 + 11 * 9 * 24, 9 * 4 * 32 + 11 * 9 * 24
    assert form.work(4, {"MatMul": 16}) == first + second + 50_000


def test_estimates_follow_an_exact_loss() -> None:
    kernel = RNG.standard_normal((12, 10, 3, 3)).astype(np.float32)
    text = "one (float[1, 10, 8, 8] x) => (float[1, 12, 6, 6] y) { [layer] y = Conv (x, w) }"
    item = item_of(text, "tucker2", w=kernel)
    option, other = item.options[0], item.options[1]
    assert not option.exact
    found = confirmed(item, option)
    assert found.options[0].exact
    assert found.options[0].lost == pytest.approx(exact_loss(item, option))
    factor = found.options[0].lost / option.lost
    assert found.options[1].lost == pytest.approx(factor * other.lost)
    again = confirmed(found, found.options[1])
    assert again.options[0].lost == found.options[0].lost
    assert confirmed(again, again.options[0]) is again


def test_losses_of_single_values_need_no_confirming() -> None:
    assert all(option.exact for option in MATRIX.options)
    assert MATRIX.options[2].lost == pytest.approx(exact_loss(MATRIX, MATRIX.options[2]))
