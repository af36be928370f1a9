"""Time against MACs of pruned models, by turns with the unpruned simplified one.

    pytest -m benchmark -s tests/benchmarks/test_pruning_pays.py

Latencies are medians of CPU time of one thread at batch 1, so that other work on the machine hardly
matters. "Proportion" is (1 - time) / (1 - MACs): 1 where all MACs saved are time saved. Networks of
plain convolutions have to reach 0.7 wherever whole blocks of channels can meet the budget; where
they cannot the report has a note, and no network may become slower.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType

import pytest

from onnxcomp import optimize
from onnxcomp.recipe import compose, parse_pass
from onnxcomp.runtime import open_file
from onnxcomp.timing import interleaved

RESIDUAL = ("cifar10_resnet56", "cifar10_resnet20", "tiny_resnet8_cifar10")
OTHERS = (
    *("CNV_1W1A_cifar10", "dtln_2", "mobilenet_v1_075", "mobilenet_v2_100_deq"),
    *("silero_vad_16k_op15", "squeezenet11_fp32", "yolox_nano"),
)
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
PROPORTION = 0.7
NOISE = 0.03  # of a ratio of medians on a busy machine
HEAD = "| budget | MACs | time | proportion | note |\n|---|---|---|---|---|"
SAMPLES = 64  # widths hardly depend on more


def pruned(kit: ModuleType, name: str, share: float, folder: Path) -> tuple[float, float, str]:
    """The MACs and the time left, and what the report notes about blocks."""
    feeds, simple, path = kit.calibration(name, SAMPLES), folder / "simple.onnx", folder / "p.onnx"
    steps = [parse_pass("simplify_graph"), parse_pass(f"prune_channels:max_macs={share}")]
    source = Path(kit.model_path(name))
    if not simple.exists():
        optimize(source, compose(steps[:1]), calibration=feeds, output=simple, verify="off")
    report = optimize(source, compose(steps), calibration=feeds, output=path, verify="off").report
    assert report.passes[1].status == "kept", report.passes[1].reason
    assert report.before.macs
    assert report.after.macs
    longest = max(feeds[:16], key=lambda feed: sum(value.size for value in feed.values()))
    sessions = [open_file(each, threads=1) for each in (simple, path)]
    timing = interleaved(sessions, longest, rounds=21, clock=time.thread_time)
    notes = [note for note in report.passes[1].notes if "whole blocks" in note]
    return report.after.macs / report.before.macs, timing.ratios[1], "; ".join(notes)


@pytest.mark.benchmark
@pytest.mark.parametrize("name", RESIDUAL)
def test_time_of_residual_networks_falls_with_their_macs(
    kit: ModuleType, tmp_path: Path, name: str
) -> None:
    print(f"\n{name}\n{HEAD}")
    missed = []
    for share in SHARES:
        macs, ratio, note = pruned(kit, name, share, tmp_path)
        proportion = (1 - ratio) / (1 - macs)
        print(f"| {share:.0%} | {macs:.3f} | {ratio:.3f} | {proportion:.2f} | {note} |", flush=True)
        if ratio > 1 - PROPORTION * (1 - macs) + NOISE and not note:
            missed.append(share)
        assert ratio < 1 + NOISE
    assert not missed


@pytest.mark.benchmark
@pytest.mark.parametrize("name", OTHERS)
def test_no_network_becomes_slower(kit: ModuleType, tmp_path: Path, name: str) -> None:
    macs, ratio, note = pruned(kit, name, 0.8, tmp_path)
    print(f"\n{name}: MACs {macs:.3f}, time {ratio:.3f} {note}", flush=True)
    assert ratio < 1 + NOISE
