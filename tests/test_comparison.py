"""Comparing models: figures against numpy, and differences that are refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcomp.comparison import benchmark, compare
from onnxcomp.errors import OnnxcompError, UnsupportedModel
from onnxcomp.memory import peak_memory
from onnxcomp.signature import Array
from onnxcomp.testing import model_of, small_convnet

DENSE = "m (float[N, 32] x) => (float[N, {}] y) {{ y = MatMul (x, w) }}"


def save(folder: Path, name: str, weights: Array) -> Path:
    path = folder / f"{name}.onnx"
    onnx.save(model_of(DENSE.format(weights.shape[1]), w=weights), path)
    return path


@pytest.fixture
def weights() -> Array:
    return np.random.default_rng(0).standard_normal((32, 10), np.float32)


def test_fidelity_is_what_numpy_computes(tmp_path: Path, weights: Array) -> None:
    noisy = (weights + np.random.default_rng(1).normal(0, 0.3, (32, 10))).astype(np.float32)
    x = np.random.default_rng(2).standard_normal((40, 32), np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    a, b = save(tmp_path, "a", weights), save(tmp_path, "b", noisy)
    found = compare(a, b, calibration=tmp_path / "x.npz", rounds=2)
    one, other = x.astype(np.float64) @ weights, x.astype(np.float64) @ noisy
    error = one - other
    (output,) = found.fidelity.outputs
    expected = 10 * math.log10((one**2).sum() / (error**2).sum())
    assert output.sqnr_db == pytest.approx(expected, abs=1e-3)
    cosine = (one * other).sum() / math.sqrt((one**2).sum() * (other**2).sum())
    assert output.cosine == pytest.approx(cosine, abs=1e-5)
    assert output.max_abs_difference == pytest.approx(np.abs(error).max(), rel=1e-4)
    agreement = 100 * (one.argmax(1) == other.argmax(1)).mean()
    assert 0 < agreement < 100
    assert output.top1_agreement == pytest.approx(agreement)
    assert found.fidelity.samples == 40
    assert not found.fidelity.synthetic


def test_a_model_equals_itself(tmp_path: Path) -> None:
    onnx.save(small_convnet(), tmp_path / "m.onnx")
    found = compare(tmp_path / "m.onnx", tmp_path / "m.onnx", rounds=2)
    assert found.fidelity.sqnr_db == math.inf
    assert found.fidelity.synthetic
    assert found.a.cost.bytes == found.b.cost.bytes == (tmp_path / "m.onnx").stat().st_size
    assert found.a.cost.macs == found.b.cost.macs == 8 * 8 * 8 * (27 + 9) + 40
    assert found.as_dict()["schema"] == "onnxcomp.comparison/1"
    assert found.as_dict()["fidelity"]["outputs"][0]["sqnr_db"] == "inf"


def test_an_evaluator_scores_both(tmp_path: Path, weights: Array) -> None:
    a, b = save(tmp_path, "a", weights), save(tmp_path, "b", 2 * weights)

    def norm(session: object) -> float:
        (y,) = session.run(None, {"x": np.ones((1, 32), np.float32)})  # type: ignore[attr-defined]
        return float(np.abs(y).sum())

    found = compare(a, b, evaluator=norm, rounds=2)
    expected = np.abs(weights.sum(0)).sum()
    assert found.a.score == pytest.approx(expected, rel=1e-4)
    assert found.b.score == pytest.approx(2 * expected, rel=1e-4)


def test_models_that_differ_in_inputs_or_outputs_are_refused(tmp_path: Path) -> None:
    texts = {
        "plain": "m (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }",
        "renamed": "m (float[N, 4] z) => (float[N, 4] y) { y = Relu (z) }",
        "typed": "m (double[N, 4] x) => (double[N, 4] y) { y = Relu (x) }",
        "sized": "m (float[N, 5] x) => (float[N, 5] y) { y = Relu (x) }",
        "fixed": "m (float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }",
        "more": "m (float[N, 4] x) => (float[N, 4] y, float[N, 4] u) { y = Relu (x) u = Abs (x) }",
    }
    for name, text in texts.items():
        onnx.save(model_of(text), tmp_path / f"{name}.onnx")
    for other, said in {
        "renamed": r"inputs are 'x' against 'z'",
        "typed": r"inputs 'x' float \[N, 4\] against 'x' double \[N, 4\]",
        "sized": r"inputs 'x' float \[N, 4\] against 'x' float \[N, 5\]",
        "more": r"outputs are 'y' against 'y', 'u'",
    }.items():
        with pytest.raises(UnsupportedModel, match=said):
            compare(tmp_path / "plain.onnx", tmp_path / f"{other}.onnx")
    fitting = compare(tmp_path / "plain.onnx", tmp_path / "fixed.onnx", rounds=1)
    assert fitting.fidelity.sqnr_db == math.inf  # a symbol fits any size


def test_a_benchmark_names_every_model_and_the_first_is_the_measure(tmp_path: Path) -> None:
    for name, size in {"small": 8, "large": 2048}.items():
        weights = np.ones((size, size), np.float32)
        text = """m (float[1, 8] x) => (float[1, {0}] y) {{
            big = Expand (x, s)\n flat = Reshape (big, t)\n y = MatMul (flat, w) }}"""
        shapes = {"s": np.array([size // 8, 8]), "t": np.array([1, size])}
        onnx.save(model_of(text.format(size), w=weights, **shapes), tmp_path / f"{name}.onnx")
    found = benchmark([tmp_path / "small.onnx", tmp_path / "large.onnx"], rounds=5)
    small, large = found.latencies
    assert small.ratio == 1
    assert large.ratio > 3  # 65,536 times the work
    assert large.latency_ms > small.latency_ms > 0
    assert found.shapes == {"x": [1, 8]}
    assert found.as_dict()["schema"] == "onnxcomp.benchmark/1"


def test_peak_memory_grows_by_the_weights(tmp_path: Path) -> None:
    sizes = {}
    for columns in (1 << 10, 1 << 20):
        path = save(tmp_path, f"m{columns}", np.zeros((32, columns), np.float32))
        sizes[columns] = peak_memory(path, {"x": np.ones((1, 32), np.float32)})
    small, large = sizes.values()
    if small is None or large is None:
        pytest.skip("this system does not tell the peak memory of a process")
    weights = 32 * 4 * ((1 << 20) - (1 << 10))
    assert 0.9 * weights < large - small < 4 * weights


def test_peak_memory_of_what_does_not_run_is_unknown(tmp_path: Path) -> None:
    assert peak_memory(tmp_path / "missing.onnx", {"x": np.ones(1, np.float32)}) is None


def test_an_evaluator_that_fails_says_so(tmp_path: Path, weights: Array) -> None:
    path = save(tmp_path, "a", weights)
    (tmp_path / "bad.py").write_text("def score(session):\n    raise KeyError('labels')\n")
    with pytest.raises(OnnxcompError, match="evaluator failed: 'labels'"):
        compare(path, path, evaluator=f"{tmp_path / 'bad.py'}:score", rounds=1)
