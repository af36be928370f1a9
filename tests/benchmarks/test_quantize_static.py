"""Static INT8 beside onnxruntime's own quantizer at its best: latency by turns, and how alike.

    pytest -m benchmark -s tests/benchmarks/test_quantize_static.py

onnxruntime quantizes with uint8 activations and int8 weights per channel, once with MinMax and once
with percentile ranges, as kit/baselines.py does; it wants sympy for its shape inference.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from onnxcomp import optimize
from onnxcomp.evaluation import interleaved
from onnxcomp.recipe import compose, parse_pass
from onnxcomp.runtime import open_file

SAMPLES = {"cifar10_resnet20": 200, "cifar10_resnet56": 200}  # others: 100
NAMES = ["mobilenet_v1_075", "squeezenet11_fp32", "cifar10_resnet20", "cifar10_resnet56"]
RECIPE = ("simplify_graph", "quantize_static")


@pytest.mark.benchmark
@pytest.mark.parametrize("name", NAMES)
def test_beside_onnxruntime(
    kit: ModuleType, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.syspath_prepend(str(shared / "kit"))
    import baselines

    source, ours = Path(kit.model_path(name)), tmp_path / "ours.onnx"
    feeds = kit.calibration(name, SAMPLES.get(name, 100))
    recipe = compose([parse_pass(text) for text in RECIPE])
    optimize(source, recipe, calibration=feeds, output=ours, verify="off")
    paths = {"fp32": source, "onnxcomp": ours}
    for method in ("qdq_minmax", "qdq_percentile"):
        paths[method] = tmp_path / f"{method}.onnx"
        baselines.make(method, name, str(source), str(paths[method]))

    sessions = [open_file(path, threads=1) for path in paths.values()]
    ratios = interleaved(sessions, feeds[0], rounds=21, round_ms=30, budget_s=60).ratios
    print(f"\n{name}: bytes, latency to fp32, score, alike")
    alike = {}
    for (method, path), ratio in zip(paths.items(), ratios, strict=True):
        alike[method] = kit.agreement(str(source), str(path), name)["value"]
        score = kit.evaluate(str(path), name)["value"]
        size = path.stat().st_size
        print(f"  {method:15} {size:>10,} {ratio:6.3f} {score:6.2f} {alike[method]:7.3f}")
    theirs = [method for method in paths if method.startswith("qdq")]
    fastest = min(ratios[list(paths).index(method)] for method in theirs)
    print(f"  latency onnxcomp / onnxruntime's fastest: {ratios[1] / fastest:.3f}")
    assert alike["onnxcomp"] >= max(alike[method] for method in theirs)
