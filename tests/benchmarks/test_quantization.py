"""INT8 with default options beside onnxruntime's own quantizer: loss, agreement and latency.

    pytest -m benchmark -s tests/benchmarks/test_quantization.py

Every model gets the same passes with their default options; no gate, nothing is undone.
onnxruntime quantizes as kit/baselines.py has it: statically with uint8 activations and int8 weights
per channel, once with MinMax and once with percentile ranges, or dynamically per channel; it wants
sympy for its shape inference. Scores are of all evaluation data of the kit; latencies are medians
of runs by turns in one process, one thread, as ratios to the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from onnxcomp import optimize
from onnxcomp.recipe import compose, parse_pass
from onnxcomp.runtime import open_file
from onnxcomp.timing import interleaved

SAMPLES = {"yolox_nano": 32, "cifar10_resnet20": 200, "cifar10_resnet56": 200}  # others: 100
STATIC = ("qdq_minmax", "qdq_percentile")


@dataclass(frozen=True)
class Case:
    """One row: a model, what is done to it, and what we want of it.

    Attributes:
        loss: points of the score that may be lost.
        alike: top-1 agreement with the original in %, or mean cosine of the outputs.
        ratio: latency / latency of the original.
        methods: of kit/baselines.py, to compare with.
    """

    name: str
    loss: float
    alike: float
    ratio: float
    step: str = "quantize_static"
    methods: tuple[str, ...] = STATIC


CASES = [
    Case("mobilenet_v1_075", 0.4, 94, 0.43),
    Case("mobilenet_v2_100_deq", 0.4, 97, 0.49),
    Case("squeezenet11_fp32", 0.4, 96.5, 0.41),
    Case("cifar10_resnet20", 0.1, 99.2, 0.47),
    Case("cifar10_resnet56", 0.1, 99, 0.41),
    Case("yolox_nano", 0.6, 0.97, 0.80),
    Case("minilm_l6_v2", 0.4, 0.985, 0.45, methods=("qdq_conv_matmul",)),
    Case("minilm_l6_v2", 0.1, 0.995, 0.45, "quantize_dynamic", ("dynamic_s8_channel",)),
]


@pytest.mark.benchmark
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.step}")
def test_beside_onnxruntime(
    kit: ModuleType,
    shared: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: Case,
) -> None:
    monkeypatch.syspath_prepend(str(shared / "kit"))
    import baselines

    name = case.name
    if name == "minilm_l6_v2":
        source = request.getfixturevalue("minilm")
    else:
        source = Path(kit.model_path(name))
    feeds = kit.calibration(name, SAMPLES.get(name, 100))
    paths = {"fp32": source, "onnxcomp": tmp_path / "ours.onnx"}
    recipe = compose([parse_pass(text) for text in ("simplify_graph", case.step)])
    optimize(source, recipe, calibration=feeds, output=paths["onnxcomp"], verify="off")
    for method in case.methods:
        paths[method] = tmp_path / f"{method}.onnx"
        baselines.make(method, name, str(source), str(paths[method]))

    sessions = [open_file(path, threads=1) for path in paths.values()]
    longest = max(feeds[:50], key=lambda feed: sum(value.size for value in feed.values()))
    ratios = interleaved(sessions, longest, rounds=21, round_ms=30, budget_s=60).ratios
    print(f"\n{name}, {case.step}: bytes, latency ratio, loss, alike")
    before, alike = kit.evaluate(str(source), name)["value"], {}
    for (method, path), ratio in zip(paths.items(), ratios, strict=True):
        alike[method] = kit.agreement(str(source), str(path), name)["value"]
        loss = before - kit.evaluate(str(path), name)["value"]
        size = path.stat().st_size
        print(f"  {method:18} {size:>10,} {ratio:6.3f} {loss:6.2f} {alike[method]:8.4f}", end="")
        if method == "onnxcomp":
            found = (loss <= case.loss, alike[method] >= case.alike, ratio <= case.ratio)
            wanted = ("loss", case.loss), ("alike", case.alike), ("ratio", case.ratio)
            missed = [
                f"{what} {value}" for (what, value), ok in zip(wanted, found, strict=True) if not ok
            ]
            print(f"   missed: {', '.join(missed)}" if missed else "   all reached", end="")
        print()
    assert alike["onnxcomp"] >= max(alike[method] for method in case.methods)
