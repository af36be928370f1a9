"""The commands that run models beside each other: compare and benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcomp.options import (
    calibration_option,
    evaluate_option,
    help_settings,
    json_option,
    model_argument,
    print_json,
    rounds_option,
    seed_option,
    threads_option,
    working,
)


@click.command(
    "compare",
    **help_settings("compare model.onnx model.optimized.onnx --calibration samples.npz"),
)
@model_argument("a")
@model_argument("b")
@calibration_option
@evaluate_option
@seed_option
@threads_option
@rounds_option(21)
@json_option
def compare_command(a: Path, b: Path, evaluate: str | None, as_json: bool, **options: Any) -> None:
    """Compare B with A: answers, bytes, latency and memory."""
    with working() as progress:
        from onnxcomp.comparison import compare

        comparison = compare(a, b, evaluator=evaluate, progress=progress, **options)
    if as_json:
        print_json(comparison.as_dict())
        return
    from onnxcomp.tables import make_console, print_comparison

    print_comparison(make_console(), comparison)


@click.command(
    "benchmark", **help_settings("benchmark model.onnx model.optimized.onnx --threads 2")
)
@model_argument("models", nargs=-1)
@calibration_option
@seed_option
@threads_option
@rounds_option(21)
@json_option
def benchmark_command(models: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Time MODELS by turns; ratios are to the first."""
    with working() as progress:
        from onnxcomp.comparison import benchmark

        result = benchmark(models, progress=progress, **options)
    if as_json:
        print_json(result.as_dict())
        return
    from onnxcomp.tables import make_console, print_benchmark

    print_benchmark(make_console(), result)
