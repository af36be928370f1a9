"""Statistics that are remembered: the same values, without running anything again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationError
from onnxcomp.graph import Graph
from onnxcomp.importing import from_proto
from onnxcomp.observed import Fingerprints, ObservedCalibration
from onnxcomp.statistics import Gram, Histogram, MinMax, Moments, Statistic
from onnxcomp.testing import graph_of, small_convnet, small_mlp

ROWS = np.random.default_rng(1).standard_normal((6, 1, 16), np.float32)


class Source:
    """Feeds that count how often they are read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in ROWS:
            self.read += 1
            yield {"x": row}


@pytest.fixture
def graph() -> Graph:
    return from_proto(small_mlp())


def fresh() -> dict[str, list[Statistic[Any]]]:
    return {
        "active": [MinMax(), Histogram(), Gram()],
        "hidden": [Moments(-1), Histogram(64)],
        "x": [MinMax(-1)],
    }


def results(taps: dict[str, list[Statistic[Any]]]) -> str:
    return repr([[vars(s.result()) for s in given] for given in taps.values()])


def scaled(graph: Graph, name: str) -> Graph:
    twin = graph.copy()
    node = next(n for n in twin.nodes if any(t.name == name for t in n.inputs))
    index = [t.name for t in node.inputs].index(name)
    node.inputs[index] = gs.Constant(f"{name}.twice", node.inputs[index].values * np.float32(2))
    return twin


def test_what_was_observed_is_given_again_without_a_run(graph: Graph) -> None:
    source = Source()
    known = ObservedCalibration(Calibration.from_source(source, graph))
    plain, first, second = fresh(), fresh(), fresh()
    Calibration.from_source(Source(), graph).observe(graph, plain)
    known.observe(graph, first)
    read = source.read
    known.observe(graph.copy(), second)
    assert source.read == read
    assert results(first) == results(second) == results(plain)
    second["active"][0].update(np.full((1, 26), 1e6, np.float32))
    third = fresh()
    known.observe(graph, third)
    assert results(third) == results(first), "what is remembered is nobody's to change"


def test_only_what_a_change_can_reach_is_measured_again(graph: Graph) -> None:
    known = ObservedCalibration(Calibration.from_source(Source(), graph))
    first = fresh()
    known.observe(graph, first)
    source = Source()
    known._samples = Calibration.from_source(source, graph)._samples
    source.read = 0
    behind, again = scaled(graph, "w2"), fresh()
    known.observe(behind, again)
    assert source.read == 0
    assert results(again) == results(first)
    before, wanted, changed = scaled(graph, "w1"), fresh(), fresh()
    Calibration.from_source(Source(), graph).observe(before, wanted)
    known.observe(before, changed)
    assert source.read >= len(ROWS)
    assert results(changed) == results(wanted) != results(first)


def test_statistics_of_other_options_samples_or_contents_are_others(graph: Graph) -> None:
    known = ObservedCalibration(Calibration.from_source(Source(), graph))
    known.observe(graph, {"hidden": MinMax()})
    per_channel, begun, few = MinMax(-1), MinMax(), MinMax()
    begun.update(np.array([[-99.0]], np.float32))
    known.observe(graph, {"hidden": [per_channel, begun]})
    known.observe(graph, {"hidden": few}, limit=1)
    whole = MinMax()
    known.observe(graph, {"hidden": whole})
    assert per_channel.result().low.shape == (26,)
    assert float(begun.result().low) == -99.0
    assert float(few.result().low) > float(whole.result().low)


def test_names_that_are_wrong_are_refused_as_ever(graph: Graph) -> None:
    known = ObservedCalibration(Calibration.from_source(Source(), graph))
    with pytest.raises(CalibrationError, match="no such tensor"):
        known.observe(graph, {"hiden": MinMax()})


def test_fingerprints_tell_attributes_weights_operators_and_inputs_apart() -> None:
    def of(text: str, **constants: Any) -> bytes:
        return Fingerprints().of(graph_of(text, **constants))["y"]

    head = "g (float[N, 4] x, float[N, 4] z) => (float y)"
    one, other = np.ones(4, np.float32), np.full(4, 2, np.float32)
    found = [
        of(f"{head} {{ y = LeakyRelu <alpha = 0.1> (x) }}"),
        of(f"{head} {{ y = LeakyRelu <alpha = 0.2> (x) }}"),
        of(f"{head} {{ y = Relu (x) }}"),
        of(f"{head} {{ y = Relu (z) }}"),
        of(f"{head} {{ y = Mul (x, w) }}", w=one),
        of(f"{head} {{ y = Mul (x, w) }}", w=other),
        of(f"{head} {{ y = Mul (w, x) }}", w=one),
        of(f"{head} {{ y = Mul (x, w) }}", w=one.astype(np.float64)),
    ]
    assert len(set(found)) == len(found)
    assert found[4] == of(f"{head} {{ y = Mul (x, v) }}", v=one), "names of weights do not matter"


def test_what_hangs_on_a_body_is_not_remembered() -> None:
    graph = graph_of(
        """g (float[4] x, bool c) => (float[4] y) {
            before = Relu (x)
            [branch] h = If (c) <
                then_branch = t () => (float[4] a) { a = Identity (x) },
                else_branch = e () => (float[4] b) { b = Neg (x) }
            >
            y = Relu (h)
        }"""
    )
    found = Fingerprints().of(graph)
    assert "before" in found
    assert not {"h", "y"} & found.keys()


def test_arrays_are_hashed_once_while_they_live() -> None:
    graph = from_proto(small_convnet())
    prints = Fingerprints()
    first = prints.of(graph)
    hashed = len(prints._arrays)
    assert prints.of(graph.copy()) == first
    assert len(prints._arrays) == hashed
