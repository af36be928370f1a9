"""Quantized models with zeros, lowered to sparse operators, by turns with the dense ones.

    pytest -m benchmark -s tests/benchmarks/test_lower_sparse.py

Zeros by magnitude, as only time matters here. One thread: medians of processor time, so that other
work on the machine hardly matters; two threads need a quiet machine. No model may become slower,
and the notes count the layers that `lower_sparse` took although they are faster dense, because the
whole model is faster with them.
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

MODELS = ("cifar10_resnet56", "mobilenet_v1_075", "squeezenet11_fp32", "minilm_l6_v2")
QUICK = "quantize_static:rounding=nearest,calibrator=minmax,correct_bias=false,equalize=false"
NOISE = 0.03  # of a ratio of medians on a busy machine
SAMPLES = 12
HEAD = (
    "| pattern | zeros | threads | layers lowered | stay | dense ms | sparse / dense | notes |\n"
    "|---|---|---|---|---|---|---|---|"
)


def rows_of(
    name: str, pattern: str, zeros: float, source: Path, kit: ModuleType, folder: Path
) -> list[tuple[str, float]]:
    """A line of the table, and the ratio of times, for each number of threads."""
    feeds, found = kit.calibration(name, SAMPLES), []
    dense, path = folder / "dense.onnx", folder / "sparse.onnx"
    zeroed = f"sparsify_weights:sparsity={zeros},pattern={pattern},method=magnitude,reorder=false"
    steps = [parse_pass(step) for step in ("simplify_graph", zeroed, QUICK)]
    optimize(source, compose(steps), calibration=feeds, output=dense, verify="off")
    for threads in (1, 2):
        step = parse_pass(f"lower_sparse:threads={threads}")
        result = optimize(dense, compose([step]), calibration=feeds, output=path, verify="off")
        (told,) = result.report.passes
        sessions = [open_file(each, threads=threads) for each in (dense, path)]
        clock = time.thread_time if threads == 1 else time.perf_counter
        timing = interleaved(sessions, feeds[0], rounds=21, round_ms=20, clock=clock)
        line = (
            f"| {pattern} | {zeros:.0%} | {threads} | {len(told.changed)} | {len(told.skipped)} | "
            f"{timing.milliseconds[0]:.2f} | {timing.ratios[1]:.3f} | {'; '.join(told.notes)} |"
        )
        print(line, flush=True)
        found.append((line, timing.ratios[1] if told.changed else 1.0))
    return found


@pytest.mark.benchmark
@pytest.mark.parametrize("name", MODELS)
def test_no_model_becomes_slower(
    name: str, kit: ModuleType, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    is_kept_apart = name == "minilm_l6_v2"
    source = request.getfixturevalue("minilm") if is_kept_apart else Path(kit.model_path(name))
    print(f"\n{name}\n{HEAD}")
    found = [
        row
        for pattern in ("4x4", "1x4")
        for zeros in (0.5, 0.8, 0.9)
        for row in rows_of(name, pattern, zeros, source, kit, tmp_path)
    ]
    slower = [line for line, ratio in found if ratio > 1 + NOISE]
    assert not slower, "\n".join(slower)
