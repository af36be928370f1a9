"""Shared steps against integer arithmetic, and against rounding the sums in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.placement import Plan, plan_static
from onnxcomp.quantization import Affine, affine
from onnxcomp.ranges import errors_by_step, least_error_range
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.shared_steps import with_shared_steps
from onnxcomp.statistics import Histogram, HistogramResult, Range
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def histogram(values: Array) -> HistogramResult:
    statistic = Histogram()
    statistic.update(values)
    return statistic.result()


def opposed(a: Array) -> Array:
    """What makes a sum with ``a`` that is as large as both."""
    return np.asarray(np.sqrt(0.75) * normal(*a.shape, seed=7) - a / 2, np.float32)


def residual() -> gs.Graph:
    weights = normal(4, 3, 3, 3)
    graph = graph_of(
        """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, v)
            b = Conv <pads = [1, 1, 1, 1]> (x, w)
            s = Add (a, b)
            y = Conv <pads = [1, 1, 1, 1]> (s, u) }""",
        v=weights,
        w=opposed(weights),
        u=normal(4, 4, 3, 3, seed=2),
    )
    infer_shapes(graph)
    return graph


def plan() -> Plan:
    return plan_static(residual(), resolve_target("x86-vnni"), lambda node: None)


def step(found: Range) -> float:
    return float(found.high - found.low) / 255


def error_of_sum(a: Array, b: Array, ranges: dict[str, Range]) -> float:
    def coded(values: Array, parameters: Affine) -> Array:
        return parameters.dequantize(parameters.quantize(values))

    scales = {name: affine(found, np.uint8) for name, found in ranges.items()}
    got = coded(coded(a, scales["a"]) + coded(b, scales["b"]), scales["s"])
    return float(np.square(got - (a + b)).mean())


@pytest.mark.parametrize("codes", [16, 256])
def test_errors_by_step_are_those_of_the_best_zero_point(codes: int) -> None:
    seen = histogram(normal(5000) + np.float32(0.5))
    steps = np.geomspace(0.3, 12, 9) / codes
    found = errors_by_step(seen, steps, codes)
    centres = (seen.edges[:-1] + seen.edges[1:]) / 2
    share = seen.counts / seen.counts.sum()
    for at, width in enumerate(steps.tolist()):
        level = np.floor(np.clip(centres, seen.low, seen.high) / width + 0.5)
        costs = []
        for first in range(1 - codes, 1):
            kept = np.clip(level, first, first + codes - 1)
            error = np.square(kept * width - np.clip(centres, seen.low, seen.high)) * share
            costs.append((error[kept == level].sum(), 1.5 * error[kept != level].sum()))
        best = min(sum(pair) for pair in costs)
        assert found.rounding[at] + found.clipping[at] == pytest.approx(best, rel=1e-6)
        pair = costs[int(found.first[at]) + codes - 1]
        assert (found.rounding[at], found.clipping[at]) == pytest.approx(pair, rel=1e-6)


@pytest.mark.parametrize("times", [1.0, 0.9, 30.0])
def test_steps_are_shared_where_the_sum_gains(times: float) -> None:
    a = normal(1, 4, 80, 80)
    b = opposed(a) * np.float32(times)
    seen = {"a": histogram(a), "b": histogram(b), "s": histogram(a + b)}
    alone = {name: least_error_range(values) for name, values in seen.items()}
    found = with_shared_steps(plan(), alone, seen)
    if times > 10:
        assert step(found["a"]) == step(alone["a"])  # as b's would leave a next to nothing
        return
    assert step(found["a"]) == pytest.approx(step(found["s"]), rel=1e-12)
    assert step(found["b"]) == pytest.approx(step(found["s"]), rel=1e-12)
    assert error_of_sum(a, b, found) < 0.95 * error_of_sum(a, b, alone)


def test_what_was_not_seen_keeps_its_range() -> None:
    values = normal(1000)
    alone = dict.fromkeys("abs", least_error_range(histogram(values)))
    seen = {"a": histogram(values), "b": histogram(values)}
    assert with_shared_steps(plan(), alone, seen) == alone
    nothing = dict.fromkeys("abs", histogram(np.zeros(9, np.float32)))
    assert with_shared_steps(plan(), alone, nothing) == alone


def test_onnxruntime_adds_codes_of_one_step_exactly() -> None:
    graph = residual()
    feeds = [{"x": normal(1, 3, 8, 8, seed=100 + i)} for i in range(8)]
    context = PassContext(
        target=resolve_target("x86-vnni"), calibration=Calibration.from_source(feeds, graph)
    )
    QuantizeStatic(equalize=False).rewrite(graph, context, PassReport())
    tensors = graph.tensors()
    assert len({float(tensors[f"{name}.scale"].values) for name in "abs"}) == 1
    zero = {name: int(tensors[f"{name}.zero_point"].values) for name in "abs"}
    codes = [f"{name}.codes" for name in "abs"]
    session = open_session(graph, extra_outputs=codes, threads=1)
    for feed in feeds:
        a, b, s = (x.astype(np.int64) for x in session.run(feed, codes))
        assert np.array_equal(s, np.clip(a - zero["a"] + b - zero["b"] + zero["s"], 0, 255))
