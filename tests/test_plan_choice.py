"""Of several plans the one is taken whose repaired model is nearest to the original."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.channels import find_channels
from onnxcomp.group_choices import Choices, plan_of, removed
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.prune_channels import PruneChannels
from onnxcomp.plan_choice import Weighed, fast_enough, nearest, told, weighings
from onnxcomp.pruning_budgets import Budget
from onnxcomp.removal_plan import ranked
from onnxcomp.resources import Resource
from onnxcomp.shapes import infer_shapes
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

RNG = np.random.default_rng(5)
COUNT = 96
FEEDS = [{"x": RNG.standard_normal((4, 6)).astype(np.float32)} for _ in range(COUNT)]
WEIGHTS = {
    name: RNG.standard_normal(shape).astype(np.float32)
    for name, shape in {"a1": (6, 16), "b1": (6, 16), "a2": (16, 5), "b2": (16, 5)}.items()
}


def branches(share: float) -> gs.Graph:
    """y = A relu(x) + share * B relu(x)."""
    graph = graph_of(
        """two (float[N, 6] x) => (float[N, 5] y) {
            [a] a0 = MatMul (x, a1) ah = Relu (a0) [ra] ay = MatMul (ah, a2)
            [b] b0 = MatMul (x, b1) bh = Relu (b0) [rb] by = MatMul (bh, b2)
            y = Add (ay, by) }""",
        **WEIGHTS | {"b2": share * WEIGHTS["b2"]},
    )
    infer_shapes(graph)
    return graph


def choices_of(graph: gs.Graph, effects: dict[str, float]) -> Choices:
    samples, channels = Calibration.from_source(FEEDS, graph), find_channels(graph)
    kinds: dict[str, Any] = dict.fromkeys(effects, "reconstruction")
    found = ranked(graph, channels, kinds, samples, COUNT)
    items = [replace(item, effect=effects[item.group.name]) for item in found]
    return {item.group.name: (item, item.choice(1, 0.9)) for item in items}


def test_costs_are_weighed_by_powers_of_the_effects() -> None:
    choices = choices_of(branches(1.0), {"a": 4.0, "b": 1.0})
    whole, root, none = (each["a"][1].cost for each in weighings(choices).values())
    np.testing.assert_allclose(whole, 2 * root)
    np.testing.assert_allclose(whole, 4 * none)
    plain = [each["b"][1].cost for each in weighings(choices).values()]
    np.testing.assert_array_equal(plain[0], plain[2])
    assert list(weighings(choices_of(branches(1.0), {"a": 1.0, "b": 1.0}))) == [1.0]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_the_plan_that_cuts_what_hardly_matters_is_taken(order: tuple[str, str]) -> None:
    graph = branches(0.01)
    choices = choices_of(graph, {"a": 2.0, "b": 1.0})
    plans = [
        Weighed(plan_of(choices, {"a": 16, "b": 16} | {name: 6}), exponent)
        for name, exponent in zip(order, (1.0, 0.5), strict=True)
    ]
    twin = plans[0]
    samples = Calibration.from_source(FEEDS, graph)
    best, errors = nearest(
        [*plans, replace(twin, exponent=0.0)],
        graph,
        find_channels(graph),
        samples,
        limit=COUNT,
        seed=0,
    )
    assert list(removed(best.plan)) == ["b"]
    assert sorted(errors) == [0.5, 1.0]  # the third equals the first
    small, large = sorted(errors.values())
    assert small < 1e-3 < large
    assert told(best, errors).startswith("error of the outputs on samples held back")
    assert best.notes == ()


def test_one_plan_is_taken_untried() -> None:
    graph = branches(1.0)
    plan = Weighed(plan_of(choices_of(graph, {"a": 1.0, "b": 1.0}), {"a": 8, "b": 16}), 1.0)
    samples = Calibration.from_source(FEEDS, graph)
    assert nearest([plan, plan], graph, find_channels(graph), samples, limit=COUNT, seed=0) == (
        plan,
        {},
    )


def test_the_pass_takes_the_plan_that_was_measured_to_be_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Effects that are wrong by construction lead to a plan that the trial refuses."""

    def wrong(item: Any, *rest: Any) -> float:
        return 1e4 if item.group.name == "b" else 1.0

    graph = branches(0.02)
    samples = Calibration.from_source(FEEDS, graph)
    monkeypatch.setattr("onnxcomp.removal_plan._ratio", wrong)
    context = PassContext(calibration=samples, target=resolve_target("auto"))
    report = PassReport()
    PruneChannels(max_parameters=0.8, multiple=1, whole_blocks=False).rewrite(
        graph, context, report
    )
    lost = {entry["group"]: entry["removed_units"] for entry in report.removed}
    assert lost.get("b", 0) > lost.get("a", 0)
    assert any("taken: what their readers lose" in note for note in report.notes)


def test_a_budget_of_time_is_lowered_until_there_is_nothing_to_cut() -> None:
    graph = branches(1.0)
    asked: list[float] = []

    def none_below(budget: Budget) -> Any:
        asked.append(budget.amount)
        counts = {"a": 8, "b": 8} if len(asked) == 1 else {"a": 16, "b": 16}
        return plan_of(choices, counts)

    choices = choices_of(graph, {"a": 1.0, "b": 1.0})
    budget = Budget(Resource(terms=(), unit="ms"), 1.0)
    plan = fast_enough(
        none_below, budget, graph, graph, find_channels(graph), FEEDS[0], min_speedup=1e9
    )
    assert plan == []
    assert len(asked) == 2
    assert asked[1] < asked[0]
