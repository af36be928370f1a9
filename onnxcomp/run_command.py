"""The command `run`: a model on the arrays of an .npz."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.container_commands import base_option
from onnxcomp.options import (
    help_settings,
    json_option,
    model_argument,
    print_json,
    threads_option,
    working,
)
from onnxcomp.program import interruption_names

if TYPE_CHECKING:
    from onnxcomp.running import Run


@click.command(
    "run",
    **help_settings("run model.onnx --inputs x.npz -o y.npz", "run model.oxc --inputs x.npz"),
)
@model_argument()
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    metavar="X.npz",
    help="One array per input, by its name.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="Y.npz",
    help="Write one array per output; without it a few values of each are shown.",
)
@base_option
@threads_option
@json_option
def run_command(
    model: Path, inputs: Path | None, output: Path | None, as_json: bool, **options: Any
) -> None:
    """Run MODEL, an .onnx or .oxc, once."""
    naming = contextlib.nullcontext() if output is None else interruption_names(output)
    with naming, working() as progress:
        progress.stage(f"reading {model.name}")
        from onnxcomp.running import run_model

        done = run_model(model, inputs, output, **options)
    if as_json:
        print_json(done.as_dict())
    elif done.output is not None:
        count = len(done.outputs)
        click.echo(f"{done.output}: {count} array{'s' if count != 1 else ''}, {done.bytes:,} bytes")
    else:
        _print_outputs(done)


def _print_outputs(done: Run) -> None:
    from onnxcomp.running import SHOWN
    from onnxcomp.tables import UNKNOWN, make_console, make_table

    table = make_table("output", "dtype", "shape", "values", left=("dtype", "shape", "values"))
    for output in done.outputs:
        shape = output.shape
        more = shape is not None and len(output.values) == SHOWN and math.prod(shape) > SHOWN
        table.add_row(
            output.name,
            output.dtype,
            UNKNOWN if shape is None else "x".join(map(str, shape)) or "scalar",
            " ".join([*map(_written, output.values), *(["..."] if more else [])]),
        )
    make_console().print(table)


def _written(value: object) -> str:
    """Five digits of a number."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
