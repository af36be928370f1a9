"""What outputs lose without some units, against the arithmetic of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.channels import find_channels
from onnxcomp.held_out import is_held
from onnxcomp.output_effects import FAR, LOSS, OutputEffects, share_at, weights_of
from onnxcomp.pruning import Part
from onnxcomp.removal_plan import Importance, ranked
from onnxcomp.shapes import infer_shapes
from onnxcomp.testing import graph_of
from onnxcomp.unit_parts import read_parts

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(11)
COUNT = 64
FEEDS = [{"x": RNG.standard_normal((3, 6)).astype(np.float32)} for _ in range(COUNT)]
WEIGHTS = {
    name: RNG.standard_normal(shape).astype(np.float32)
    for name, shape in {"a1": (6, 12), "b1": (6, 12), "a2": (12, 5), "bias": (5,)}.items()
}
WEIGHTS["b2"] = (WEIGHTS["a2"][:, ::-1] / 2).copy()


def two_branches(last: str = "y = Identity (z)") -> gs.Graph:
    """y = A relu(x) + B relu(x) + bias; what B makes has a quarter of the energy."""
    graph = graph_of(
        f"""two (float[N, 6] x) => (float[N, 5] y) {{
            [a] a0 = MatMul (x, a1) ah = Relu (a0) [ra] ay = Gemm (ah, a2, bias)
            [b] b0 = MatMul (x, b1) bh = Relu (b0) [rb] by = Gemm (bh, b2, zero)
            z = Add (ay, by) {last} }}""",
        **WEIGHTS,
        zero=np.zeros(5, np.float32),
    )
    infer_shapes(graph)
    return graph


def calibration(graph: gs.Graph) -> Calibration:
    return Calibration.from_source(FEEDS, graph)


def parts_of(graph: gs.Graph) -> dict[str, list[Part]]:
    channels = find_channels(graph)
    found = read_parts(graph, channels, calibration(graph), COUNT)
    return {group.name: parts for group, parts in found}


def test_a_loss_is_that_of_the_model_with_its_reader_refitted() -> None:
    graph, gone = two_branches(), np.array([1, 4, 7])
    parts = parts_of(graph)["a"]
    loss = OutputEffects(graph, calibration(graph), COUNT, 2).loss(parts, gone)
    held = [feed["x"] for k, feed in enumerate(FEEDS) if is_held(k)]
    a = np.maximum(np.stack(held) @ WEIGHTS["a1"], 0)
    b = np.maximum(np.stack(held) @ WEIGHTS["b1"], 0)
    (part,) = parts
    assert part.split is not None
    left = np.isin(np.arange(12), gone, invert=True)
    fitted, added = part.split.fitted(WEIGHTS["a2"].T, left)
    wanted = a @ WEIGHTS["a2"] + b @ WEIGHTS["b2"]
    lost = wanted - (a @ fitted.T + added + b @ WEIGHTS["b2"])
    assert not fitted[:, gone].any()
    spread = np.square(wanted - wanted.mean(axis=0)).sum()
    assert loss == pytest.approx(np.square(lost).sum() / spread, rel=1e-4)
    assert graph.nodes[2].inputs[1].name == "a2"  # the graph itself stays


@pytest.mark.parametrize("last", ["y = Softmax (z)", "s = Softmax (z) y = Identity (s)"])
def test_probabilities_are_compared_before_they_are_made(last: str) -> None:
    plain, softmax = two_branches(), two_branches(last)
    gone, samples = np.array([0, 1]), calibration(plain)
    wanted = OutputEffects(plain, samples, COUNT, 2).loss(parts_of(plain)["b"], gone)
    found = OutputEffects(softmax, samples, COUNT, 2).loss(parts_of(softmax)["b"], gone)
    assert found == pytest.approx(wanted, rel=1e-6)


def test_what_no_reader_can_be_refitted_for_is_not_measured() -> None:
    graph = two_branches()
    samples = calibration(graph)
    effects = OutputEffects(graph, samples, COUNT, 2)
    (part,) = parts_of(graph)["a"]
    unsplit = Part(weights=part.weights, units=part.units, gram=part.gram, constant="a2")
    assert effects.loss([unsplit], np.array([0])) is None
    few = OutputEffects(graph, samples, 12, 2)  # 3 are held back
    assert few.loss([part], np.array([0])) is None


def test_groups_weigh_what_the_outputs_lose() -> None:
    graph = two_branches()
    kinds: dict[str, Importance] = {"a": "reconstruction", "b": "reconstruction"}
    samples, channels = calibration(graph), find_channels(graph)
    plain = {
        r.group.name: r.readers * r.effect for r in ranked(graph, channels, kinds, samples, COUNT)
    }
    assert plain == {"a": 1.0, "b": 1.0}
    found = ranked(graph, channels, kinds, samples, COUNT, weigh=True)
    weights = {r.group.name: r.readers * r.effect for r in found}
    energy = {
        name: np.var(
            np.maximum(np.stack([f["x"] for f in FEEDS]) @ WEIGHTS[f"{name}1"], 0)
            @ WEIGHTS[f"{name}2"],
            axis=(0, 1),
        ).sum()
        for name in "ab"
    }
    assert weights["a"] / weights["b"] == pytest.approx(energy["a"] / energy["b"], rel=0.5)
    assert weights["a"] > 2 * weights["b"]


def test_about_so_much_is_tried_as_counts_for_all() -> None:
    assert share_at(np.array([0, 0, LOSS / 9, LOSS / 2, LOSS * 3, 1])) == 3
    assert share_at(np.array([0, LOSS * 9, 1])) == 1
    assert share_at(np.array([0, 0, 1])) == 0  # of all units nothing is told


def test_groups_not_measured_weigh_what_is_typical_and_none_far_from_it() -> None:
    assert weights_of([2.0, None, 3.0, 5.0]) == [2.0, 3.0, 3.0, 5.0]
    assert weights_of([1.0, 1.0, 1000.0, 0.0]) == [1.0, 1.0, FAR, 1 / FAR]
    assert weights_of([None, None]) == [1.0, 1.0]
