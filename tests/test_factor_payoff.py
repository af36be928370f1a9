"""Layers stay thin where the whole model is faster with them, and not where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.calibration import Calibration
from onnxcomp.factor_payoff import Clock, Measured, at_once, model_clock, paying, slower
from onnxcomp.factor_trials import written
from onnxcomp.graph import label
from onnxcomp.importing import from_proto
from onnxcomp.layer_latency import Layer, LayerLatency
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.factorize_weights import FactorizeWeights
from onnxcomp.rank_planning import Option, Plan, factorable
from onnxcomp.targets import resolve_target
from onnxcomp.testing import model_of

RNG = np.random.default_rng(3)


def graph_of_two() -> Any:
    model = model_of(
        """two (float[64, 256] x) => (float[64, 256] y) {
            [one] a = MatMul (x, w1)  b = Tanh (a)  [two] y = MatMul (b, w2) }""",
        w1=RNG.standard_normal((256, 256)).astype(np.float32),
        w2=RNG.standard_normal((256, 256)).astype(np.float32),
    )
    return from_proto(model)


def plan_of(graph: Any, rank: int) -> Plan:
    found = {}
    for node in graph.nodes:
        if node.op == "MatMul":
            item = factorable(node, None, "svd", {}, 1)
            assert not isinstance(item, str)
            found[label(node)] = next(o for o in item.options if o.rank == rank)
    return found


def named(names: Sequence[str]) -> Plan:
    option = plan_of(graph_of_two(), 8)["one"]
    return dict.fromkeys(names, option)


def told(saved: Mapping[str, float], noise: float = 0.0) -> Clock:
    """A model of which each layer saves so much of the time."""

    def clock(plans: Sequence[Plan]) -> Measured:
        return Measured([1 - sum(saved[name] for name in plan) for plan in plans], noise)

    return clock


NAMES = [f"layer{at:02}" for at in range(17)]
OPTION: dict[str, Option] = named(NAMES)


@given(st.lists(st.sampled_from([-0.02, 0.0, 0.02]), min_size=17, max_size=17))
def test_single_layers_that_cost_time_are_found_among_others(saved: list[float]) -> None:
    """Groups of one layer: what is left is exactly what saves."""
    costs = dict(zip(NAMES, saved, strict=True))
    left, reasons = paying(OPTION, told(costs), faster=True, groups=17)
    assert list(left) == [name for name in NAMES if costs[name] > 0]
    assert reasons.keys() == set(NAMES) - left.keys()


@given(st.lists(st.sampled_from([-0.02, 0.0, 0.02]), min_size=17, max_size=17))
def test_no_group_that_is_left_saves_nothing(saved: list[float]) -> None:
    costs = dict(zip(NAMES, saved, strict=True))
    left, _ = paying(OPTION, told(costs), faster=True, groups=4)
    assert sum(costs[name] for name in left) >= max(0.0, sum(saved))
    if max(saved) <= 0:
        assert not left


def test_what_costs_no_time_stays_where_bytes_count() -> None:
    costs = dict.fromkeys(NAMES, 0.0) | {"layer03": -0.05}
    left, reasons = paying(OPTION, told(costs), faster=False)
    assert set(NAMES) - left.keys() == set(reasons) == {"layer03"}
    assert "save no time: -5.0%" in reasons["layer03"]


def test_what_noise_hides_is_left_to_the_whole() -> None:
    costs = dict.fromkeys(NAMES, -0.02)
    assert paying(OPTION, told(costs), faster=True, groups=17)[0] == {}
    assert paying(OPTION, told(costs, noise=0.03), faster=True, groups=17)[0] == OPTION


@pytest.mark.parametrize(
    ("saved", "noise", "threads", "faster", "said"),
    [
        (0.05, 0.01, 1.0, True, ""),
        (0.01, 0.0, 1.0, True, "no faster with thinner weights: 0.990"),
        (0.05, 0.06, 1.0, True, "no faster"),
        (0.0, 0.01, 1.0, False, ""),
        (-0.02, 0.01, 1.0, False, "no faster"),
        (0.05, 0.0, 1.01, True, "with all threads the whole model was measured to be slower"),
    ],
)
def test_a_plan_is_taken_if_it_saves_time_beyond_doubt(
    saved: float, noise: float, threads: float, faster: bool, said: str
) -> None:
    plan = {"layer00": OPTION["layer00"]}
    one, every = told({"layer00": saved}, noise), told({"layer00": 1 - threads})
    reason = slower(plan, one, every, faster=faster)
    assert (reason == "") == (said == "")
    assert said in reason


def test_one_lucky_measurement_is_not_enough() -> None:
    ratios = iter([0.9, 0.99])
    plan = {"layer00": OPTION["layer00"]}
    reason = slower(plan, lambda _: Measured([next(ratios)], 0.0), told({}), faster=True)
    assert "no faster with thinner weights: 0.990" in reason


def test_times_are_those_of_the_written_model() -> None:
    """Of a sixteenth of the products, and of nothing at all."""
    graph = graph_of_two()
    feed = {"x": RNG.standard_normal((64, 256)).astype(np.float32)}
    found = model_clock(graph, feed)([plan_of(graph, 8), {}])
    assert found.ratios[0] < found.ratios[1]
    assert at_once(graph) == 6


def test_a_copy_is_written_and_the_graph_is_not() -> None:
    graph = graph_of_two()
    plan = plan_of(graph, 8)
    trial = written(list(plan.values()), graph)
    assert [node.op for node in trial.nodes].count("MatMul") == 4
    assert [node.op for node in graph.nodes].count("MatMul") == 2


class AlwaysAMillisecond(LayerLatency):
    """A clock by which a form takes as long as its layer."""

    def measure(self, layers: Sequence[Layer]) -> list[float]:
        return [1 / len(layers)] * len(layers)


@pytest.mark.parametrize(
    ("options", "ratio", "kept", "said"),
    [
        ({}, 1.0, True, ""),
        ({}, 1.1, False, "in the whole model thinner weights save no time: -10.0%"),
        ({"min_speedup": 1.0}, 1.0, False, "thinner weights save no time: 1 ms at best"),
    ],
)
def test_where_payoff_is_a_gate_bytes_pay_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, options: Any, ratio: float, kept: bool, said: str
) -> None:
    clock = told({"one": 1 - ratio, "two": 1 - ratio})
    monkeypatch.setattr("onnxcomp.passes.factorize_weights.LayerLatency", AlwaysAMillisecond)
    monkeypatch.setattr("onnxcomp.factor_payoff.model_clock", lambda graph, feed, threads: clock)
    graph, report = graph_of_two(), PassReport()
    samples = Calibration.from_source(None, graph, limit=1)
    context = PassContext(target=resolve_target("arm64"), calibration=samples, must_pay=True)
    FactorizeWeights(energy=0.5, refine=False, **options).rewrite(graph, context, report)
    assert (set(report.changed) == {"one", "two"}) == kept
    assert bool(report.factorized) == kept
    for name in () if kept else ("one", "two"):
        assert said in report.skipped[name]
