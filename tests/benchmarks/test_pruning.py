"""Metric against MACs without retraining: ours beside magnitude pruning of the same groups.

    pytest -m benchmark -s tests/benchmarks/test_pruning.py

Both are asked for the same share of MACs, from the same unlabelled samples; "plain" ranks by l2,
removes the same fraction of every group and repairs nothing. Latencies are medians of runs by turns
with the unpruned model, one thread, in CPU time of that thread.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType

import pytest

from onnxcomp import optimize
from onnxcomp.evaluation import interleaved
from onnxcomp.passes.prune_channels import PruneChannels
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.recipe import Recipe
from onnxcomp.runtime import open_file

MODELS = (
    *("cifar10_resnet56", "squeezenet11_fp32", "mobilenet_v1_075", "tiny_resnet8_cifar10"),
    *("minilm_l6_v2", "yolox_nano"),
)
HEAD = "| MACs | score | time | plain: score | time |\n|---|---|---|---|---|"
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)


@pytest.mark.benchmark
@pytest.mark.parametrize("name", MODELS)
def test_curve(kit: ModuleType, minilm: Path, tmp_path: Path, name: str) -> None:
    source = minilm if name == "minilm_l6_v2" else Path(kit.model_path(name))
    feeds = kit.calibration(name, 128)
    longest = max(feeds[:16], key=lambda feed: sum(value.size for value in feed.values()))
    before = float(kit.evaluate(str(source), name)["value"])
    print(f"\n{name}: {before:.2f}\n{HEAD}")
    scores = []
    for share in SHARES:
        cells = []
        for step in (
            PruneChannels(max_macs=share),
            PruneChannels(max_macs=share, scope="uniform", importance="l2", recovery=False),
        ):
            path = tmp_path / "pruned.onnx"
            recipe = Recipe(passes=(SimplifyGraph(), step))
            report = optimize(source, recipe, calibration=feeds, output=path, verify="off").report
            assert report.before.macs is not None
            assert report.after.macs is not None
            assert report.after.macs <= share * report.before.macs * 1.001
            sessions = [open_file(p, threads=1) for p in (source, path)]
            ratio = interleaved(sessions, longest, clock=time.thread_time).ratios[1]
            score = float(kit.evaluate(str(path), name)["value"])
            cells += [f"{score:.2f}", f"{ratio:.2f}"]
            scores.append(score)
        print(f"| {share:.0%} | {' | '.join(cells)} |", flush=True)
    ours, plain = scores[::2], scores[1::2]
    assert sum(ours) > sum(plain)
