"""Score against parameters, MACs and time of thinner layers, beside plain SVD and pruning.

    pytest -m benchmark -s tests/benchmarks/test_factorization.py
    ONNXCOMP_CHART=docs/factorization.svg pytest -m benchmark -s ... -k parameters

"plain" is what factorizing weights without looking at data does (truncated SVD, Tucker-2 or spatial
SVD of each layer, as tools for PyTorch do): the same pass under the same budget without samples.
"pruned" is `prune_channels` at the same share of MACs from the same samples. Times are medians of
runs by turns with the original, one thread, in CPU time of that thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from kit_subject import Subject
from rank_losses import curves, matrices

from onnxcomp.graph import is_constant
from onnxcomp.model import load_model

CNNS = ("tiny_resnet8_cifar10", "cifar10_resnet56", "squeezenet11_fp32")
SHARES = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)  # of MACs
OUTSIDE = (0.9, 0.8, 0.7, 0.6, 0.5)  # of the parameters that no lookup reads
SPEEDUPS = (1.0, 1.1, 1.2, 1.3, 1.5)
RECIPES = {
    "cifar10_resnet56": "max_macs=0.85",
    "minilm_l6_v2": "max_parameters=0.9056",
    "squeezenet11_fp32": "min_speedup=1",
}
SAMPLES = 128
MOST_LOST = {0.8: 1.0, 0.7: 2.5}  # of minilm's score, by share of parameters
ROUNDING = 1e-9  # of a layer's energy
NOISE = 0.03  # of a ratio of medians on a busy machine
CHANCE = 2.0  # standard errors of a score by which losses may exceed their sum
WIDTH, HEIGHT, LEFT, TOP = 480, 260, 50, 20  # of a chart's axes, pixels
COLORS = ("#1f5fbf", "#c2452d", "#5fa8e8")


def step(options: str) -> str:
    return f"factorize_weights:{options}"


def cells(subject: Subject, path: Path, *steps: str, unseen: bool = False) -> tuple[float, str]:
    """The score, and it with the time as two cells of a table."""
    report = subject.optimized(path, *steps, unseen=unseen)
    assert all(result.status != "failed" for result in report.passes)
    score = subject.score(path)
    return score, f"{score:.2f} | {subject.time_ratio(path):.2f}"


@pytest.mark.benchmark
def test_every_rank_of_every_layer(kit: ModuleType, request: pytest.FixtureRequest) -> None:
    """At no rank plain SVD loses less of what a layer makes of the samples."""
    subject = Subject.of(kit, "minilm_l6_v2", request, 2 * SAMPLES)
    graph = load_model(subject.source).graph
    shown = np.array([1 / 8, 1 / 4, 1 / 2, 3 / 4])
    rows, better = [], []
    for name, matrix, gram, other in matrices(graph, subject.feeds[::2], subject.feeds[1::2]):
        seen, plain = curves(matrix, gram, gram)
        assert (seen <= plain + ROUNDING).all(), name
        held = curves(matrix, gram, other)
        better.append(float(np.mean(held[0][1:-1] < held[1][1:-1])))
        at = (shown * (len(seen) - 1)).astype(int)
        rows.append([seen[at], plain[at], held[0][at], held[1][at]])
    print(f"\n{len(rows)} matrices, median share of the energy lost\n| ranks kept |", end="")
    print(" samples | plain | other samples | plain |\n|---|---|---|---|---|")
    for share, losses in zip(shown, np.median(rows, axis=0).T, strict=True):
        print(f"| {share:.0%} | {' | '.join(f'{each:.4f}' for each in losses)} |")
    print(f"other samples: better at {np.mean(better):.2%} of all ranks, {min(better):.2%} of one")


@pytest.mark.benchmark
def test_minilm_against_parameters(
    kit: ModuleType, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    subject = Subject.of(kit, "minilm_l6_v2", request, SAMPLES)
    tensors = load_model(subject.source).graph.tensors().values()
    constants = [tensor for tensor in tensors if is_constant(tensor)]
    whole = sum(tensor.values.size for tensor in constants)
    tables = sum(
        tensor.values.size for tensor in constants if any(n.op == "Gather" for n in tensor.outputs)
    )
    path, before = tmp_path / "thin.onnx", subject.score(subject.source)
    print(
        f"\nminilm_l6_v2: {before:.2f}\n| parameters | refined: score | time | score | time |",
        end="",
    )
    print(" plain: score | time |\n|---|---|---|---|---|---|---|")
    lines = [[before], [before], [before]]
    for share in OUTSIDE:
        options = step(f"max_parameters={(tables + share * (whole - tables)) / whole}")
        made = [
            cells(subject, path, options),
            cells(subject, path, f"{options},refine=false"),
            cells(subject, path, options, unseen=True),
        ]
        print(f"| {share:.0%} | {' | '.join(text for _, text in made)} |", flush=True)
        for line, (score, _) in zip(lines, made, strict=True):
            line.append(score)
        assert made[0][0] > made[2][0]
        assert made[1][0] > made[2][0]
        assert before - made[0][0] <= MOST_LOST.get(share, before)
    chart = os.environ.get("ONNXCOMP_CHART")
    if chart:
        names = ("samples, refined", "samples", "none: plain SVD")
        drawn = picture([1, *OUTSIDE], dict(zip(names, lines, strict=True)))
        Path(chart).write_text(drawn, encoding="utf-8")


@pytest.mark.benchmark
@pytest.mark.parametrize("name", CNNS)
def test_score_against_macs(
    kit: ModuleType, request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    subject = Subject.of(kit, name, request, SAMPLES)
    path, before = tmp_path / "thin.onnx", subject.score(subject.source)
    print(f"\n{name}: {before:.2f}\n| MACs | refined: score | time | score | time |", end="")
    print(" plain: score | time | pruned: score | time |\n|---|---|---|---|---|---|---|---|---|")
    scores = []
    for share in SHARES:
        options = step(f"max_macs={share}")
        made = [
            cells(subject, path, options),
            cells(subject, path, f"{options},refine=false"),
            cells(subject, path, options, unseen=True),
            cells(subject, path, f"prune_channels:max_macs={share}"),
        ]
        print(f"| {share:.0%} | {' | '.join(text for _, text in made)} |", flush=True)
        scores.append([score for score, _ in made])
    refined, as_found, plain, _ = np.mean(scores, axis=0)
    assert refined >= as_found > plain
    if name == "cifar10_resnet56":
        assert before - scores[SHARES.index(0.85)][0] < 1


@pytest.mark.benchmark
@pytest.mark.parametrize("name", CNNS)
def test_score_against_time(
    kit: ModuleType, request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    subject = Subject.of(kit, name, request, SAMPLES)
    path, before = tmp_path / "thin.onnx", subject.score(subject.source)
    print(f"\n{name}: {before:.2f}\n| min_speedup | score | time | MACs |", end="")
    print(" plain: score | time | MACs |\n|---|---|---|---|---|---|---|")
    for speedup in SPEEDUPS:
        made = []
        for unseen in (False, True):
            options = step(f"min_speedup={speedup}")
            report = subject.optimized(path, options, unseen=unseen)
            assert report.before.macs is not None
            assert report.after.macs is not None
            ratio = subject.time_ratio(path)
            assert ratio <= 1 + NOISE
            macs = report.after.macs / report.before.macs
            made.append(f"{subject.score(path):.2f} | {ratio:.2f} | {macs:.2f}")
        print(f"| {speedup} | {' | '.join(made)} |", flush=True)


@pytest.mark.benchmark
@pytest.mark.parametrize("name", list(RECIPES))
def test_static_int8_after_it(
    kit: ModuleType, request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    subject = Subject.of(kit, name, request, SAMPLES)
    before, error = subject.score(subject.source), subject.error()
    thin, path, losses = step(RECIPES[name]), tmp_path / "made.onnx", []
    print(f"\n{name}: {before:.2f}\n| | lost | time | bytes |\n|---|---|---|---|")
    for steps in ((thin,), ("quantize_static",), (thin, "quantize_static")):
        report = subject.optimized(path, *steps)
        assert [result.status for result in report.passes[1:]] == ["kept"] * len(steps)
        losses.append(before - subject.score(path))
        share = report.after.bytes / report.before.bytes
        ratio = subject.time_ratio(path)
        print(f"| {' + '.join(steps)} | {losses[-1]:.2f} | {ratio:.2f} | {share:.2f} |", flush=True)
    print(f"standard error of a score {error:.2f}")
    assert losses[2] <= losses[0] + losses[1] + CHANCE * error


def picture(shares: Sequence[float], lines: dict[str, Sequence[float]]) -> str:
    """An SVG of scores over shares of parameters, 100 % on the left."""
    low = int(np.floor(min(map(min, lines.values()))))
    high = int(np.ceil(max(map(max, lines.values()))))

    def x(share: float) -> float:
        return LEFT + WIDTH * (shares[0] - share) / (shares[0] - shares[-1])

    def y(score: float) -> float:
        return TOP + HEIGHT * (high - score) / (high - low)

    def text(at: float, down: float, words: str, anchor: str = "middle", fill: str = "#555") -> str:
        return (
            f'<text x="{at:.0f}" y="{down:.0f}" text-anchor="{anchor}" fill="{fill}">{words}</text>'
        )

    drawn = [text(x(share), TOP + HEIGHT + 18, f"{share:.0%}") for share in shares]
    drawn.append(text(LEFT + WIDTH / 2, TOP + HEIGHT + 38, "parameters outside the embedding"))
    for score in range(low, high + 1, max(1, (high - low) // 6)):
        drawn.append(text(LEFT - 8, y(score) + 4, str(score), "end"))
        drawn.append(
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(score):.1f}" y2="{y(score):.1f}" '
            'stroke="#ddd"/>'
        )
    for at, ((name, scores), color) in enumerate(zip(lines.items(), COLORS, strict=False)):
        points = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(shares, scores, strict=True)]
        drawn.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="2"/>'
        )
        drawn.append(text(LEFT + 12, TOP + HEIGHT - 50 + 18 * at, name, "start", color))
    size = f'width="{LEFT + WIDTH + 30}" height="{TOP + HEIGHT + 50}"'
    style = 'font-family="sans-serif" font-size="12"'
    rows = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{rows}\n</svg>\n'
    )
