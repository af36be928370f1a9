"""Sparsity shared out over weights: against every split there is, and what a run multiplies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcomp.graph import constants
from onnxcomp.output_noise import OutputNoise
from onnxcomp.sparse_allocation import (
    LEFT,
    MEASURED,
    PARTS,
    effects,
    multiplications,
    shared_sparsity,
)
from onnxcomp.sparse_layers import SparseLayer, Zeros
from onnxcomp.sparsity import Pattern
from onnxcomp.testing import graph_of
from onnxcomp.weight_sites import find_weights

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
chain (float[N, 8, 6, 6] x) => (float[N, 12] z) {
    a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, W)
    b = Relu (a)
    p = GlobalAveragePool (b)
    f = Flatten (p)
    z = MatMul (f, V)
}"""
PART = np.linspace(0, 1, PARTS + 1)


def chain() -> tuple[object, list[SparseLayer], list[dict[str, np.ndarray]]]:
    rng = np.random.default_rng(3)
    w = rng.standard_normal((16, 8, 3, 3)).astype(np.float32)
    v = rng.standard_normal((16, 12)).astype(np.float32)
    graph = graph_of(CHAIN, W=w, V=v)
    weights = find_weights(graph)
    layers = [SparseLayer.of(weight, None, Pattern.named("unstructured")) for weight in weights]
    return graph, layers, [{"x": rng.standard_normal((2, 8, 6, 6)).astype(np.float32)}]


def test_work_is_what_a_run_multiplies() -> None:
    graph, layers, feeds = chain()
    work = multiplications(graph, [layer.weight for layer in layers], feeds[0])
    assert work == {"W": 2 * 3 * 3 * 16 * 8 * 9, "V": 2 * 16 * 12}


def test_no_other_split_of_so_much_work_loses_less() -> None:
    curves = {"a": PART**2, "b": 4 * PART**2, "c": np.expm1(3 * PART)}
    work = {"a": 10.0, "b": 30.0, "c": 20.0}
    found = shared_sparsity(curves, work, 0.5, 0.9)
    saved = sum(work[name] * part for name, part in found.items()) / 60

    def lost(parts: dict[str, float]) -> float:
        return float(sum(np.interp(part, PART, curves[name]) for name, part in parts.items()))

    assert 0.5 - 1e-6 <= saved < 0.51
    for a, b in itertools.product(np.arange(0, 0.91, 0.05), repeat=2):
        c = (60 * 0.5 - 10 * a - 30 * b) / 20
        if 0 <= c <= 0.9:
            assert lost(found) <= lost({"a": a, "b": b, "c": c}) + 0.03
    # Lagrange: 20 a / 10 = 80 b / 30 wherever neither is at a bound
    assert found["b"] < 0.9 * found["a"] or found["a"] == pytest.approx(0.9)


def test_more_than_may_go_is_all_that_may() -> None:
    assert shared_sparsity({"a": PART}, {"a": 3.0}, 0.99, 0.9) == {"a": pytest.approx(0.9)}


def test_curves_go_through_what_the_outputs_lose() -> None:
    graph, layers, feeds = chain()
    noise = OutputNoise(graph, list(constants(graph)), feeds)
    alone = effects(layers, noise, ())
    for layer in layers:
        curve = alone[layer.name]
        assert curve[0] == 0
        assert (np.diff(curve) >= 0).all()
        for sparsity in MEASURED:
            sparse = layer.sparse(Zeros(layer.pattern, "sparsegpt", sparsity))
            lost = float(noise.shares({layer.name: sparse}).mean())
            np.testing.assert_allclose(curve[round(sparsity * PARTS)], lost, rtol=1e-6)
    in_order = effects(layers, noise, {"W", "V"})
    np.testing.assert_allclose(in_order["W"], LEFT * alone["W"])
    assert LEFT < in_order["V"][-1] / alone["V"][-1] < 1


def test_without_samples_a_layer_loses_its_blocks() -> None:
    _, layers, _ = chain()
    squares = np.sort(np.square(layers[1].matrices.ravel()))
    curve = effects(layers, None, ())["V"]
    np.testing.assert_allclose(curve[[0, 25, 50, 100]], [0, *np.cumsum(squares)[[47, 95, 191]]])
