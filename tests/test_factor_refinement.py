"""Rows of thin layers are fitted as a whole: what comes out is least squares over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.factor_refinement import refit_factors
from onnxcomp.factored_forms import forms
from onnxcomp.factored_layers import FactoredLayer
from onnxcomp.gram import Array
from onnxcomp.graph import Names
from onnxcomp.linear_layers import LinearLayer
from onnxcomp.lowrank import spectrum
from onnxcomp.model import check_graph
from onnxcomp.recovery import recover
from onnxcomp.recovery_targets import Target, plain_target
from onnxcomp.refitting import Recovered
from onnxcomp.regression import Moments
from onnxcomp.runtime import Feed, open_session
from onnxcomp.shared_layers import Evidence
from onnxcomp.testing import graph_of
from onnxcomp.thin_layers import Rank


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def written(graph: gs.Graph, layers: dict[str, tuple[str, Rank]]) -> gs.Graph:
    """A copy whose layers are rows of the best factors of their weights alone."""
    twin = graph.copy()
    names = Names(twin)
    for name, (method, rank) in layers.items():
        node = next(node for node in twin.nodes if node.name == name)
        found = forms(node, None, method="auto" if "_" in method else method)
        assert not isinstance(found, str)
        next(form for form in found if form.method == method).write(twin, names, rank)
    return twin


def row_of(graph: gs.Graph, twin: gs.Graph, name: str, form: tuple[str, Rank]) -> FactoredLayer:
    last = LinearLayer.of(next(node for node in twin.nodes if node.name == name))
    old = next(node for node in graph.nodes if node.name == name)
    found = FactoredLayer.of(last, old, graph.tensors(), {name: form})
    assert found is not None
    return found


def lost(original: gs.Graph, thin: gs.Graph, feeds: Sequence[Feed]) -> float:
    pairs = [[open_session(g).run(feed)[0] for feed in feeds] for g in (original, thin)]
    wanted, got = (np.stack(side) for side in pairs)
    return float(np.sum((wanted - got) ** 2) / np.sum((wanted - wanted.mean(axis=0)) ** 2))


def conv() -> gs.Graph:
    return graph_of(
        """net (float[N, 6, 11, 10] x) => (float[N, 8, A, B] y) {
            [layer] y = Conv <kernel_shape = [3, 3], strides = [2, 1], pads = [1, 2, 0, 1],
                dilations = [1, 2]> (x, w, b) }""",
        w=normal(0, 8, 6, 3, 3),
        b=normal(1, 8),
    )


FORMS: list[tuple[str, Rank]] = [
    ("svd_input", 3), ("svd_output", 2), ("tucker2", (3, 2)), ("spatial", 4), ("cp", 3),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_row_is_the_product_of_its_weights(form: tuple[str, Rank]) -> None:
    """Rows of what the whole layer reads, times that product, are what the row makes."""
    graph = conv()
    twin = written(graph, {"layer": form})
    layer = row_of(graph, twin, "layer", form)
    x = normal(2, 5, 6, 11, 10)
    y = open_session(twin).run({"x": x})[0]
    rows, made = layer.inputs(x, 40, [0]), layer.outputs(y, 40, [0])
    expected = layer.weights @ rows + layer.last.bias[:, :, None]
    np.testing.assert_allclose(made, expected, atol=1e-4)
    expansion, head = layer.parts(layer.arrays)
    assert expansion.shape[1] == head.shape[2] < layer.weights.shape[2]


def test_full_rank_factors_under_any_metric_are_the_weights() -> None:
    graph = conv()
    for method, rank in (("svd_input", 8), ("svd_output", 6), ("tucker2", (8, 6)), ("spatial", 18)):
        layer = row_of(graph, written(graph, {"layer": (method, rank)}), "layer", (method, rank))
        wanted = normal(3, 8, 54).astype(np.float64)
        root = normal(4, 54, 54).astype(np.float64)
        expansion, head = layer.parts(layer.factorized(wanted, root @ root.T))
        np.testing.assert_allclose((head @ expansion)[0], wanted, atol=1e-6)


class _Given:
    """A walk that has seen just these moments."""

    def __init__(self, shown: Moments, held: Moments) -> None:
        self._evidence = Evidence((shown, held), None)

    def evidence(self, layer: LinearLayer | FactoredLayer, target: Target) -> Evidence | str:
        return self._evidence

    joint_evidence: Any = None
    parts_of: Any = None
    recurrent_evidence: Any = None


def matrix(transposed: bool, bias: bool) -> gs.Graph:
    w = normal(5, 12, 10)
    text = "y = Gemm <transB = 1> (x, w, b)" if transposed else "h = MatMul (x, w)  y = Tanh (h)"
    if bias and not transposed:
        text = "h = MatMul (x, w)  y = Add (h, b)"
    return graph_of(
        f"net (float[N, 12] x) => (float[N, 10] y) {{ [layer] {text} }}",
        w=w.T.copy() if transposed else w,
        b=normal(6, 10),
    )


@pytest.mark.parametrize(("transposed", "bias"), [(False, False), (False, True), (True, True)])
def test_no_other_factors_do_better(transposed: bool, bias: bool) -> None:
    """Each factor alone is what lstsq finds for it, given the other: both are optimal at once."""
    graph = matrix(transposed, bias)
    form: tuple[str, Rank] = ("svd", 3)
    twin = written(graph, {"layer": form})
    layer = row_of(graph, twin, "layer", form)
    rng = np.random.default_rng(7)
    x = rng.standard_normal((12, 4000)) * np.linspace(0.3, 2, 12)[:, None] + 0.5
    true = 0.2 * rng.standard_normal((10, 12)) + layer.whole.weights[0]
    y = true @ x + 0.01 * rng.standard_normal((10, 4000))
    parts = [Moments.of(x[None, :, at], y[None, :, at]) for at in (slice(3000), slice(3000, None))]
    recovered = Recovered()
    refit_factors(layer, plain_target(layer.last), _Given(*parts), Names(twin), recovered)
    assert len(recovered.refitted) == 1
    expansion, head = (values[0] for values in layer.parts(layer.arrays))
    last = LinearLayer.of(layer.last.node)
    if bias:
        x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    gram = x @ x.T
    best = spectrum(y @ x.T @ np.linalg.inv(gram), gram)
    error = np.sum((y - head @ expansion @ x) ** 2)
    floor = np.sum((y - best.factors(3)[0] @ best.factors(3)[1] @ x) ** 2)
    assert floor * (1 - 1e-6) <= error < 1.02 * floor
    # the first factor as vec(V): head V x = kron(xT, head) vec(V)
    some = slice(0, 4000, 20)
    system = np.kron(x[:, some].T, head)
    goal = y[:, some].T.reshape(-1)
    found = np.linalg.lstsq(system, goal, rcond=None)[0]
    rest = np.sum((goal - system @ found) ** 2)
    assert np.sum((goal - system @ expansion.T.reshape(-1)) ** 2) < 1.1 * rest
    if bias:
        assert last.bias.shape == (1, 10)


def mlp() -> gs.Graph:
    mixed = [normal(seed, 32, 32) * 0.85 ** np.arange(32) / 2 for seed in (10, 11, 12)]
    weights = {f"w{n}": np.ascontiguousarray(w, np.float32) for n, w in enumerate(mixed)}
    return graph_of(
        """net (float[N, 32] x) => (float[N, 32] y) {
            [one] a = MatMul (x, w0)  ab = Add (a, b)  r = Tanh (ab)
            [two] c = MatMul (r, w1)  cb = Add (c, b)  s = Relu (cb)
            [three] d = MatMul (s, w2)  y = Add (d, b) }""",
        **weights,
        b=normal(13, 32),
    )


def feeds_of(count: int, seed: int, width: int = 32) -> list[Feed]:
    turned = np.linalg.qr(normal(20, width, width))[0] * 0.8 ** np.arange(width)
    values = 3 * normal(seed, count, 24, width) @ turned.T
    return [{"x": v.astype(np.float32)} for v in values]


ROWS: dict[str, tuple[str, Rank]] = {"one": ("svd", 10), "two": ("svd", 4), "three": ("svd", 4)}


def refined(graph: gs.Graph, feeds: Sequence[Feed], whole: bool) -> tuple[gs.Graph, Recovered]:
    twin = written(graph, ROWS)
    samples = Calibration.from_source(list(feeds), graph)
    return twin, recover(graph, twin, {}, samples, written=ROWS if whole else None)


def test_fitting_all_factors_beats_the_last_ones_alone() -> None:
    graph = mlp()
    held = feeds_of(60, 31)
    start = lost(graph, written(graph, ROWS), held)
    last, _ = refined(graph, feeds_of(80, 30), whole=False)
    both, recovered = refined(graph, feeds_of(80, 30), whole=True)
    check_graph(both)
    assert recovered.refitted == ["one", "two", "three"]
    assert lost(graph, both, held) < 0.8 * lost(graph, last, held) < 0.8 * start
    made = [[t.name for node in thin.nodes for t in node.outputs] for thin in (last, both)]
    assert made[0] == made[1]


@pytest.mark.parametrize("count", [2, 4, 8, 24])
def test_few_samples_never_make_errors_larger(count: int) -> None:
    graph = mlp()
    thin, recovered = refined(graph, feeds_of(count, 40), whole=True)
    for before, after in recovered.errors.values():
        assert after <= before
    assert lost(graph, thin, feeds_of(60, 41)) <= 1.1 * lost(
        graph, written(graph, ROWS), feeds_of(60, 41)
    )


def test_a_planted_model_is_found_again() -> None:
    """Weights of low rank whose thin forms were damaged: refined, the outputs are exact."""
    left, right = normal(50, 32, 4), normal(51, 4, 32)
    graph = graph_of(
        """net (float[N, 32] x) => (float[N, 32] y) {
            [one] a = MatMul (x, w)  r = Tanh (a)  [two] y = MatMul (r, v) }""",
        w=(left @ right) / 12,
        v=(normal(52, 32, 3) @ normal(53, 3, 32)) / 12,
    )
    rows: dict[str, tuple[str, Rank]] = {"one": ("svd", 4), "two": ("svd", 3)}
    twin = written(graph, rows)
    for node in twin.nodes:
        if node.op == "MatMul" and node.name.endswith(".in"):
            weight = node.inputs[1]
            spoilt = weight.values + 0.3 * normal(54, *weight.shape) * weight.values.std()
            node.inputs[1] = gs.Constant(f"{weight.name}.spoilt", spoilt.astype(np.float32))
    feeds = feeds_of(64, 55)
    before = lost(graph, twin, feeds)
    recover(graph, twin, {}, Calibration.from_source(feeds, graph), written=rows)
    assert before > 0.02
    assert lost(graph, twin, feeds_of(30, 56)) < 1e-8


@pytest.mark.parametrize("form", FORMS[:4])
def test_kernels_are_fitted_behind_layers_that_changed(form: tuple[str, Rank]) -> None:
    graph = graph_of(
        """net (float[N, 6, 9, 9] x) => (float[N, 8, 9, 9] y) {
            [one] a = Conv <kernel_shape = [1, 1]> (x, w0)  r = Relu (a)
            [layer] y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r, w) }""",
        w0=normal(60, 12, 6, 1, 1),
        w=normal(61, 8, 12, 3, 3),
    )
    rows = {"one": ("svd", 4), "layer": form}
    mix = normal(62, 6, 6) * 0.6 ** np.arange(6)
    feeds = [
        {"x": np.einsum("ij,njhw->nihw", mix, normal(70 + n, 1, 6, 9, 9)).astype(np.float32)}
        for n in range(48)
    ]
    samples, held = Calibration.from_source(feeds[:32], graph), feeds[32:]
    errors = {}
    for whole in (False, True):
        twin = written(graph, rows)
        recover(graph, twin, {}, samples, written=rows if whole else None)
        check_graph(twin)
        errors[whole] = lost(graph, twin, held)
    assert errors[True] < 0.9 * errors[False]


def test_the_same_samples_give_the_same_bytes() -> None:
    found = [refined(mlp(), feeds_of(24, 80), whole=True)[0] for _ in range(2)]
    weights = [
        {node.inputs[1].name: node.inputs[1].values for node in thin.nodes if node.op == "MatMul"}
        for thin in found
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, values in weights[0].items():
        np.testing.assert_array_equal(values, weights[1][name])
