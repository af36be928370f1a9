"""What layers read and make of samples, and how much of it is in memory at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from onnxcomp import optimize, weight_grams
from onnxcomp.calibration import Calibration
from onnxcomp.lowrank import Outputs
from onnxcomp.recipe import compose, parse_pass
from onnxcomp.testing import model_of
from onnxcomp.weight_grams import observed_grams, observed_moments
from onnxcomp.weight_sites import find_weights

RNG = np.random.default_rng(3)
DOWN, SQUARE, KERNEL = (RNG.standard_normal(s) for s in ((12, 5), (5, 5), (6, 4, 3, 3)))


def observed(
    text: str,
    x: np.ndarray[Any, Any],
    read: Any = observed_moments,
    **weights: np.ndarray[Any, Any],
) -> dict[str, Any]:
    floats = {name: values.astype(np.float32) for name, values in weights.items()}
    graph = gs.import_onnx(model_of(text, **floats))
    samples = Calibration.from_source([{"x": each.astype(np.float32)} for each in x], graph)
    found = read(graph, find_weights(graph), samples, 100, lambda done, of: None)
    return {weight.constant.name: gram for weight, gram in found}


def rows_of(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x.reshape(-1, x.shape[-1])


@pytest.mark.parametrize(
    ("node", "stored"),
    [
        ("MatMul (x, w)", DOWN),
        ("Gemm (x, w)", DOWN),
        ("Gemm <transB = 1, alpha = 3.0> (x, w)", DOWN.T),
    ],
)
def test_of_a_wide_matrix_its_products_are_observed(
    node: str, stored: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """W G WT and the mean of G's diagonal, as from G itself; a Gemm's alpha is not in it."""
    monkeypatch.setattr(weight_grams, "WIDEST", 11)
    x = RNG.standard_normal((6, 7, 12))
    text = f"net (float[7, 12] x) => (float[7, 5] y) {{ y = {node} }}"
    found = observed(text, x, w=stored)["w"]
    gram = rows_of(x).T @ rows_of(x) / 42
    assert isinstance(found, Outputs)
    np.testing.assert_allclose(found.matrix, DOWN.T @ gram @ DOWN, rtol=1e-5, atol=1e-5)
    assert found.mean_square == pytest.approx(np.trace(gram) / 12)
    assert found.damping == 0
    assert observed(text, x, observed_grams, w=stored) == {"w": None}


def test_a_product_on_the_left_and_shared_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_grams, "WIDEST", 11)
    x = RNG.standard_normal((5, 12, 3))
    found = observed(
        "net (float[12, 3] x) => (float[5, 3] y, float[5, 3] z) {"
        " y = MatMul (w, x) t = Tanh (x) z = MatMul (w, t) }",
        x,
        w=DOWN.T,
    )["w"]
    both = [rows_of(np.moveaxis(each, 1, 2)) @ DOWN for each in (x, np.tanh(x))]
    made = sum(each.T @ each / len(each) for each in both) / 2
    np.testing.assert_allclose(found.matrix, made, rtol=1e-5, atol=1e-5)


def test_of_a_wide_kernel_the_channels_are_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_grams, "WIDEST", 11)
    x = RNG.standard_normal((5, 2, 4, 6, 6))
    text = "net (float[2, 4, 6, 6] x) => (float[2, 6, 4, 4] y) { y = Conv (x, k) }"
    rows = rows_of(np.moveaxis(x, 2, -1))
    found = observed(text, x, k=KERNEL)["k"]
    np.testing.assert_allclose(found, rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(weight_grams, "WIDEST", 36)
    assert observed(text, x, k=KERNEL)["k"].shape == (36, 36)


def test_what_is_too_large_either_way_is_not_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_grams, "WIDEST", 4)
    x = RNG.standard_normal((3, 7, 5))
    text = "net (float[7, 5] x) => (float[7, 12] y) { y = MatMul (x, w) }"
    assert observed(text, x, w=DOWN.T) == {"w": None}  # it makes more than it reads
    text = "net (float[7, 5] x) => (float[7, 5] y) { y = MatMul (x, w) }"
    assert observed(text, x, w=SQUARE)["w"].matrix.shape == (5, 5)
    monkeypatch.setattr(weight_grams, "WIDEST_OUTPUT", 4)
    assert observed(text, x, w=SQUARE) == {"w": None}


@pytest.fixture
def goes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Which tensors each go over the samples looks at."""
    found: list[list[str]] = []
    observe = Calibration.observe

    def recorded(self: Calibration, graph: Any, statistics: Any, **rest: Any) -> None:
        found.append(sorted(name for name, several in statistics.items() for _ in several))
        observe(self, graph, statistics, **rest)

    monkeypatch.setattr(Calibration, "observe", recorded)
    return found


def test_at_most_so_many_bytes_are_gathered_at_once(
    goes: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several goes over the samples, each as large as fits, and with the same results."""
    text = """net (float[7, 5] x) => (float[7, 5] y) {
        a = MatMul (x, w1) b = MatMul (a, w2) c = MatMul (b, w3) y = MatMul (c, w4) }"""
    weights = {f"w{i}": SQUARE * 0.3 + i for i in range(1, 5)}
    x = RNG.standard_normal((3, 7, 5))
    whole = observed(text, x, **weights)
    for most, expected in (
        (2 * 8 * 25, [["a", "x"], ["b", "c"]]),
        (2 * 8 * 25 - 1, [["x"], ["a"], ["b"], ["c"]]),
        (1, [["x"], ["a"], ["b"], ["c"]]),
        (8 * 100, [["a", "b", "c", "x"]]),
    ):
        monkeypatch.setattr(weight_grams, "AT_ONCE", most)
        goes.clear()
        parts = observed(text, x, **weights)
        assert goes == expected
        for name, gram in parts.items():
            np.testing.assert_allclose(gram, whole[name], rtol=1e-12)


def test_what_is_read_twice_is_gathered_once(
    goes: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_grams, "AT_ONCE", 8 * 25)
    text = """net (float[7, 5] x) => (float[7, 5] y, float[7, 5] z) {
        y = MatMul (x, w1) z = MatMul (x, w2) }"""
    x = RNG.standard_normal((3, 7, 5))
    found = observed(text, x, w1=SQUARE, w2=SQUARE + 1)
    assert goes == [["x"]]
    np.testing.assert_array_equal(found["w1"], found["w2"])
    np.testing.assert_allclose(found["w1"], rows_of(x).T @ rows_of(x) / 21, rtol=1e-4, atol=1e-6)


def test_factors_of_a_wide_matrix_know_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through its outputs they become what they become through its inputs."""
    turned = np.linalg.qr(RNG.standard_normal((48, 48)))[0] * 0.8 ** np.arange(48)
    feeds = [{"x": (RNG.standard_normal((20, 48)) @ turned.T).astype(np.float32)} for _ in range(8)]
    model = model_of(
        "net (float[N, 48] x) => (float[N, 40] y) { y = MatMul (x, w) }",
        w=RNG.standard_normal((48, 40)).astype(np.float32),
    )
    onnx.save(model, tmp_path / "net.onnx")
    recipe = compose([parse_pass("factorize_weights:energy=0.97,refine=false")])
    made = {}
    for widest in (48, 47):
        monkeypatch.setattr(weight_grams, "WIDEST", widest)
        result = optimize(tmp_path / "net.onnx", recipe, calibration=feeds, verify="off")
        (entry,) = result.report.passes[0].factorized
        factors = [t.values for t in result.graph.tensors().values() if isinstance(t, gs.Constant)]
        made[widest] = entry, np.matmul(*sorted(factors, key=lambda f: -len(f)))
    (entry, product), (other, same) = made.values()
    assert entry["seen"]
    assert other["seen"]
    assert entry["rank"] == other["rank"] < 20
    assert other["lost_energy"] == pytest.approx(entry["lost_energy"], rel=1e-4)
    np.testing.assert_allclose(same, product, atol=1e-3 * np.abs(product).max())
