"""Sparse layers fitted in the order of the graph equal closed forms, and outputs come nearer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.graph import constants, label
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.sparsify_weights import SparsifyWeights
from onnxcomp.quantization import Array
from onnxcomp.recovery import recover
from onnxcomp.runtime import Feed, open_session
from onnxcomp.sparse_layers import Zeros
from onnxcomp.sparse_recovery import DAMPING, SparseFitter
from onnxcomp.sparsity import Pattern
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of
from onnxcomp.weight_sites import find_weights

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
chain (float[N, 24] x) => (float[N, 20] z) {
    a = Gemm <transB = 1> (x, W, c)
    b = Sigmoid (a)
    z = Gemm <transB = 1> (b, V, d)
}"""
CONVS = """<ir_version: 8, opset_import: ["" : 17]>
convs (float[N, 8, 6, 6] x) => (float[N, 12, 6, 6] z) {
    a = Conv <pads = [1, 1, 1, 1]> (x, W)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, V)
    d = Add (c, b)
    e = Relu (d)
    z = Conv (e, P)
}"""
SHARED = """<ir_version: 8, opset_import: ["" : 17]>
shared (float[N, 24] x) => (float[N, 24] z) {
    a = MatMul (x, W)
    b = Tanh (a)
    c = MatMul (b, W)
    d = Tanh (c)
    z = MatMul (d, V)
}"""
TRANSPOSED = """<ir_version: 8, opset_import: ["" : 17]>
transposed (float[N, 8, 6, 6] x) => (float[N, 8, 12, 12] z) {
    a = Conv <pads = [1, 1, 1, 1]> (x, W)
    b = Relu (a)
    c = ConvTranspose <strides = [2, 2]> (b, V)
    d = Relu (c)
    z = Conv (d, P)
}"""
SHARED_LATER = """<ir_version: 8, opset_import: ["" : 17]>
shared (float[N, 24] x) => (float[N, 24] z) {
    a = MatMul (x, W)
    b = Tanh (a)
    c = MatMul (b, V)
    d = Tanh (c)
    e = MatMul (d, V)
    f = Tanh (e)
    z = MatMul (f, P)
}"""
RECURRENT = """<ir_version: 8, opset_import: ["" : 17]>
recurrent (float[N, 24, 6] x) => (float[N, 6, 24] z) {
    t = Transpose <perm = [0, 2, 1]> (x)
    a = MatMul (t, W)
    b = Tanh (a)
    c, h = GRU <hidden_size = 16> (b, V, R)
    d = Squeeze (c, one)
    z = MatMul (d, P)
}"""


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def chain() -> gs.Graph:
    weights = {"W": normal(0, 32, 24) / 5, "V": normal(1, 20, 32) / 5}
    return graph_of(CHAIN, **weights, c=normal(2, 32), d=normal(3, 20))


def convs() -> gs.Graph:
    weights = {"W": normal(0, 12, 8, 3, 3), "V": normal(1, 12, 12, 3, 3)}
    return graph_of(CONVS, **weights, P=normal(2, 12, 12, 1, 1))


def shared() -> gs.Graph:
    return graph_of(SHARED, W=normal(0, 24, 24) / 5, V=normal(1, 24, 24) / 5)


def transposed() -> gs.Graph:
    weights = {"W": normal(0, 12, 8, 3, 3), "V": normal(1, 12, 12, 2, 2)}
    return graph_of(TRANSPOSED, **weights, P=normal(2, 8, 12, 1, 1))


def shared_later() -> gs.Graph:
    weights = {"W": normal(0, 24, 24) / 5, "V": normal(1, 24, 24) / 5}
    return graph_of(SHARED_LATER, **weights, P=normal(2, 24, 24) / 5)


def recurrent() -> gs.Graph:
    weights = {"W": normal(0, 24, 20) / 5, "V": normal(1, 1, 48, 20), "R": normal(2, 1, 48, 16)}
    return graph_of(RECURRENT, **weights, P=normal(3, 16, 24), one=np.array([1]))


def feeds(graph: gs.Graph, count: int = 16, rows: int = 8) -> list[Feed]:
    rng = np.random.default_rng(7)
    shape = graph.inputs[0].shape[1:]
    mix = rng.standard_normal((shape[0], shape[0])) / np.sqrt(shape[0])
    made = rng.standard_normal((count, rows, *shape))
    return [{"x": np.einsum("ij,nj...->ni...", mix, x).astype(np.float32)} for x in made]


def sparsify(graph: gs.Graph, given: list[Feed], **options: Any) -> PassReport:
    report = PassReport()
    context = PassContext(
        target=resolve_target("auto"), calibration=Calibration.from_source(given, graph)
    )
    SparsifyWeights(**{"smallest_weight": 64, **options}).rewrite(graph, context, report)
    return report


def answers(graph: gs.Graph, given: list[Feed], *names: str) -> list[Array]:
    session = open_session(graph, extra_outputs=names, threads=1)
    made = [session.run(feed, [*names, session.outputs[0]]) for feed in given]
    return [np.concatenate(values) for values in zip(*made, strict=True)]


def matrices(graph: gs.Graph) -> dict[str, Array]:
    """By the names that they had."""
    found = constants(graph).items()
    names = {name: name.removesuffix(".refitted").removesuffix(".sparse") for name, _ in found}
    return {names[name]: np.asarray(constant.values) for name, constant in found}


@pytest.mark.parametrize("method", ["sparsegpt", "alternate"])
def test_weights_that_stay_are_the_ridge_regression_on_what_they_read(method: str) -> None:
    original, graph = chain(), chain()
    given = feeds(graph)
    sparsify(graph, given, sparsity=0.5, method=method)
    made = matrices(graph)
    assert (made["V"] == 0).mean() == (made["W"] == 0).mean() == 0.5
    (y,) = answers(original, given)
    (x, _) = answers(graph, given, "b")  # what the second layer reads now
    centred, wanted = x - x.mean(0), y - y.mean(0)
    gram = centred.T.astype(np.float64) @ centred / len(x)
    cross = wanted.T.astype(np.float64) @ centred / len(x)
    prior = matrices(original)["V"]
    ridge = max(DAMPING, len(gram) / len(x))
    damped = gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    best = np.zeros_like(prior)
    for row, start in enumerate(prior):
        left = made["V"][row] != 0
        pull = cross[row] + (damped - gram) @ start
        best[row, left] = np.linalg.solve(damped[np.ix_(left, left)], pull[left])
    np.testing.assert_allclose(made["V"], best, atol=1e-3)
    np.testing.assert_allclose(made["d"], y.mean(0) - best @ x.mean(0), atol=1e-3)


@pytest.mark.parametrize("pattern", ["unstructured", "4x4"])
@pytest.mark.parametrize("build", [chain, convs])
def test_outputs_come_nearer_than_with_layers_fitted_alone(build: Any, pattern: str) -> None:
    given = feeds(build(), 24)
    others = feeds(build(), 48)[24:]
    (exact,) = answers(build(), others)
    lost = {}
    for refine in (False, True):
        graph = build()
        report = sparsify(graph, given, sparsity=0.5, pattern=pattern, refine=refine)
        np.testing.assert_allclose(report.numbers["sparsity"], 0.5, atol=0.01)
        (found,) = answers(graph, others)
        lost[refine] = float(np.square(found - exact).sum())
    assert lost[True] < 0.97 * lost[False]


def test_layers_without_zeros_are_fitted_too() -> None:
    graph = convs()
    report = sparsify(graph, feeds(graph), smallest_weight=200)
    assert report.numbers["refitted_layers"] == 1
    made = matrices(graph)
    assert not (made["P"] == 0).any()
    assert not np.array_equal(made["P"], matrices(convs())["P"])


def test_weights_of_several_layers_get_their_zeros_by_what_all_read() -> None:
    graph = shared()
    report = sparsify(graph, feeds(graph), sparsity=0.5)
    assert [(v == 0).mean() for v in matrices(graph).values()] == [0.5, 0.5]
    assert len(report.changed) == 3


@pytest.mark.parametrize("build", [transposed, shared_later, recurrent])
def test_layers_that_are_not_fitted_in_order_keep_their_zeros(build: Any) -> None:
    graph = build()
    weights = {w.constant.name: len(w.sites) for w in find_weights(graph)}
    report = sparsify(graph, feeds(graph), sparsity=0.5)
    made = matrices(graph)
    assert {name: (made[name] == 0).mean() for name in weights} == dict.fromkeys(weights, 0.5)
    assert report.numbers["sparse_weights"] == len(weights)
    assert len(report.changed) == sum(weights.values())
    assert report.numbers["refitted_layers"] == 0


def test_layers_that_samples_say_too_little_of_get_zeros_all_the_same() -> None:
    graph = chain()
    sparsify(graph, feeds(graph, 1, rows=3), sparsity=0.5)
    made = matrices(graph)
    assert (made["V"] == 0).mean() == (made["W"] == 0).mean() == 0.5


def test_a_relu_behind_the_sum_tells_what_need_not_be_met() -> None:
    """Behind a Relu the fit loses less than one that knows nothing of it."""
    given = feeds(convs(), 24)
    lost = {}
    for clip in ("e", "d"):  # with and without the Relu in between
        original = convs()
        if clip == "d":  # the same numbers, but what reads the sum sees all of it
            relu = next(n for n in original.nodes if n.outputs[0].name == "e")
            original.nodes.append(
                gs.Node(
                    "Identity", inputs=[relu.inputs[0]], outputs=[gs.Variable("seen", np.float32)]
                )
            )
        graph = original.copy()
        (weight,) = (w for w in find_weights(graph) if w.constant.name == "V")
        name = label(weight.sites[0].layer)
        fitter = SparseFitter(weight, Zeros(Pattern(), "alternate", 0.6))
        calibration = Calibration.from_source(given, graph)
        assert recover(original, graph, {}, calibration, fitters={name: fitter}).refitted[0] == name
        wanted, found = (answers(g, given, "e")[0] for g in (original, graph))
        assert (matrices(graph)["V"] == 0).mean() == pytest.approx(0.6, abs=0.01)
        lost[clip] = float(np.square(found - wanted).sum())
    assert lost["e"] < 0.99 * lost["d"]
