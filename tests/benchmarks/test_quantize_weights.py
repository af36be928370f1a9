"""The table of docs/passes/quantize_weights.md: bits and methods on minilm.

    pytest -m benchmark -s tests/benchmarks/test_quantize_weights.py

Scores are Spearman x 100 on all 1500 pairs of the kit, "alike" the mean cosine of 150 pairs;
latencies are medians of runs by turns of both models, one thread, on the longest of 16 sentences.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from onnxcomp import optimize
from onnxcomp.passes.quantize_weights import QuantizeWeights
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.recipe import Recipe
from onnxcomp.runtime import open_file
from onnxcomp.timing import interleaved

MINILM = "minilm_l6_v2"
HEAD = (
    "| options | bits a weight | bytes | ratio | latency | score | alike |\n"
    "|---|---|---|---|---|---|---|"
)
TABLE = (
    QuantizeWeights(bits=8, method="rtn"),
    QuantizeWeights(bits=8, method="gptq"),
    QuantizeWeights(method="rtn"),
    QuantizeWeights(method="hqq"),
    QuantizeWeights(method="awq"),
    QuantizeWeights(method="gptq"),
    QuantizeWeights(method="gptq", form="expand"),
    QuantizeWeights(codebook=True),
    QuantizeWeights(bits=2, method="rtn"),
    QuantizeWeights(bits=2, method="hqq"),
    QuantizeWeights(bits=2, method="awq"),
    QuantizeWeights(bits=2, method="gptq"),
)
FOUR_BITS = TABLE[5]


@pytest.mark.benchmark
def test_table(kit: ModuleType, minilm: Path, tmp_path: Path) -> None:
    feeds = kit.calibration(MINILM, 64)
    longest = max(feeds[:16], key=lambda feed: sum(value.size for value in feed.values()))
    before, scores = float(kit.evaluate(str(minilm), MINILM)["value"]), {}
    print(f"\nfp32: {before:.2f}\n{HEAD}")
    for step in TABLE:
        path = tmp_path / "small.onnx"
        recipe = Recipe(passes=(SimplifyGraph(), step))
        report = optimize(minilm, recipe, calibration=feeds, output=path).report
        sessions = [open_file(p, threads=1) for p in (minilm, path)]
        ratio = interleaved(sessions, longest, rounds=21, round_ms=30, budget_s=60).ratios[1]
        scores[step] = float(kit.evaluate(str(path), MINILM)["value"])
        alike = kit.agreement(str(minilm), str(path), MINILM, 150)["value"]
        options = f"{step.bits} bits, {step.method}{', codebook' * step.codebook}, {step.form}"
        cells = [options, str(report.passes[-1].numbers["bits_per_weight"])]
        cells += [f"{report.after.bytes:,}", f"{report.after.bytes / report.before.bytes:.3f}"]
        cells += [f"{ratio:.2f}", f"{scores[step]:.2f}", f"{alike:.4f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    assert scores[FOUR_BITS] > before - 0.5
