"""Metric against MACs without retraining, beside magnitude pruning and onnxsim; INT8 after it.

    ONNXCOMP_ONNXSIM=/path/to/python pytest -m benchmark -s tests/benchmarks/test_pruning.py

All are asked for the same share of MACs, from the same unlabelled samples. "plain" ranks by l2,
removes the same fraction of every group, to single channels, and repairs nothing. onnxsim runs in
the Python that ONNXCOMP_ONNXSIM names, or in this one: structured Wanda pruning and its refit of
MatMul, the better of a uniform and a global sparsity at about as many MACs. Latencies are medians
of runs by turns with the unpruned model, one thread, in CPU time of that thread.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from kit_subject import Subject

MODELS = (
    *("cifar10_resnet56", "squeezenet11_fp32", "mobilenet_v1_075", "tiny_resnet8_cifar10"),
    *("minilm_l6_v2", "yolox_nano"),
)
HEAD = "| MACs | score | time | plain: score | time | onnxsim |\n|---|---|---|---|---|---|"
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
SAMPLES = 512
OURS = "prune_channels:max_macs={}"
PLAIN = ",scope=uniform,importance=l2,recovery=false,multiple=1"
SPARSITIES = [f"{percent / 100:.2f}" for percent in range(5, 75, 5)]  # of onnxsim
NEAR = 0.01  # how many more MACs onnxsim may have than asked
ONNXSIM_SAMPLES = 64  # of which it takes norms
CHANCE = 2.0  # standard errors of a score by which losses may exceed their sum


def python_of_onnxsim() -> str | None:
    """The interpreter that has onnxsim, if any."""
    here = sys.executable if importlib.util.find_spec("onnxsim") else None
    return os.environ.get("ONNXCOMP_ONNXSIM", here)


def by_onnxsim(subject: Subject, folder: Path) -> list[tuple[float, Path]] | str:
    """Shares of MACs and models, or why there are none."""
    python = python_of_onnxsim()
    if python is None:
        return "not installed"
    samples, output = folder / "samples", folder / "onnxsim"
    samples.mkdir()
    output.mkdir()
    for index, feed in enumerate(subject.feeds[:ONNXSIM_SAMPLES]):
        np.savez(samples / f"{index:03}.npz", **feed)
    script = Path(__file__).with_name("prune_with_onnxsim.py")
    command = [python, script, subject.source, samples, output, *SPARSITIES]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        return f"fails: {run.stderr.strip().splitlines()[-1]}"
    whole = subject.macs(subject.source)
    shares = [(subject.macs(path) / whole, path) for path in sorted(output.iterdir())]
    return [pair for pair in shares if pair[0] < 1] or "removes nothing"


def cell_of_onnxsim(subject: Subject, made: list[tuple[float, Path]] | str, share: float) -> str:
    """The best score of its models with the most MACs that are few enough."""
    if isinstance(made, str):
        return made
    found = []
    for scope in ("uniform", "global"):
        few = [pair for pair in made if scope in pair[1].name and pair[0] <= share + NEAR]
        if few:
            macs, path = max(few)
            found.append((subject.score(path), macs))
    if not found:
        return "not so few"
    score, macs = max(found)
    return f"{score:.2f} ({macs:.0%})"


@pytest.mark.benchmark
@pytest.mark.parametrize("name", MODELS)
def test_curve(kit: ModuleType, request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    subject = Subject.of(kit, name, request, SAMPLES)
    rivals = by_onnxsim(subject, tmp_path)
    print(f"\n{name}: {subject.score(subject.source):.2f}\n{HEAD}")
    path, scores = tmp_path / "pruned.onnx", []
    for share in SHARES:
        cells = []
        for options in ("", PLAIN):
            report = subject.optimized(path, OURS.format(share) + options)
            assert report.before.macs is not None
            assert report.after.macs is not None
            assert report.after.macs <= share * report.before.macs * 1.001
            scores.append(subject.score(path))
            cells += [f"{scores[-1]:.2f}", f"{subject.time_ratio(path):.2f}"]
        cells.append(cell_of_onnxsim(subject, rivals, share))
        print(f"| {share:.0%} | {' | '.join(cells)} |", flush=True)
    ours, plain = scores[::2], scores[1::2]
    assert sum(ours) > sum(plain)


@pytest.mark.benchmark
@pytest.mark.parametrize("name", MODELS)
def test_static_int8_after_it(
    kit: ModuleType, request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    subject = Subject.of(kit, name, request, SAMPLES)
    before, losses = subject.score(subject.source), []
    prune, quantize = OURS.format(0.8), "quantize_static"
    for steps in ((prune,), (quantize,), (prune, quantize)):
        path = tmp_path / "made.onnx"
        report = subject.optimized(path, *steps)
        assert [result.status for result in report.passes[1:]] == ["kept"] * len(steps)
        losses.append(before - subject.score(path))
    pruned, quantized, both = losses
    error = subject.error()
    print(f"\n{name}: pruned {pruned:.2f}, quantized {quantized:.2f}, both {both:.2f} lost", end="")
    print(f" of {before:.2f}, standard error {error:.2f}")
    assert both <= pruned + quantized + CHANCE * error
