"""The commands of .oxc containers: pack, unpack, verify, and inspect's part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from onnxcomp.errors import OutputError
from onnxcomp.options import (
    Decorator,
    calibration_option,
    evaluate_option,
    help_settings,
    json_option,
    model_argument,
    print_json,
    seed_option,
    working,
)
from onnxcomp.program import interruption_names

base_option = click.option(
    "--base",
    type=click.Path(path_type=Path),
    metavar="OLD.oxc",
    help="The container that a delta package leaves unchanged tensors to.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="That work at once.  [default: one a processor]",
)


def _output_option(metavar: str, default: str) -> Decorator:
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar=metavar,
        help=f"Where to write.  [default: {default} beside the input]",
    )


def quality_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a quantized model has to keep."""
    options = (
        click.option(
            "--bits",
            type=click.FloatRange(min=0, min_open=True),
            metavar="B",
            help="Quantize to so many bits a weight, on average.",
        ),
        click.option(
            "--min-sqnr",
            type=float,
            metavar="DB",
            help="Quantize as far as the outputs keep this SQNR.",
        ),
        click.option(
            "--target-bytes",
            type=click.IntRange(min=1),
            metavar="N",
            help="Quantize so that the container has at most so many bytes.",
        ),
        click.option(
            "--max-drop",
            type=click.FloatRange(min=0),
            metavar="POINTS",
            help="Quantize as far as --evaluate loses at most so many points.",
        ),
        click.option(
            "--trellis",
            is_flag=True,
            help="Let codes of quantized weights depend on each other, for a smaller file.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command(
    "pack",
    **help_settings(
        "pack model.onnx --lossless -o model.oxc",
        "pack model.onnx --min-sqnr 25 --calibration samples.npz -o model.oxc",
        "pack tuned.onnx --lossless --base model.oxc -o tuned.oxc",
    ),
)
@model_argument()
@_output_option("OUT.oxc", "<model>.oxc")
@click.option("--lossless", is_flag=True, help="Give back every bit when it is unpacked.")
@quality_options
@calibration_option
@evaluate_option
@seed_option
@base_option
@click.option(
    "--prefer",
    type=click.Choice(["size", "speed"]),
    default="size",
    show_default=True,
    help="The shortest coding, or the shortest of those that decode fast.",
)
@threads_option
@click.option(
    "--top", type=click.IntRange(min=1), default=20, show_default=True, help="Rows of the table."
)
@json_option
def pack_command(
    model: Path,
    output: Path | None,
    lossless: bool,
    bits: float | None,
    min_sqnr: float | None,
    target_bytes: int | None,
    max_drop: float | None,
    trellis: bool,
    calibration: str | None,
    evaluate: str | None,
    seed: int,
    base: Path | None,
    prefer: Literal["size", "speed"],
    threads: int | None,
    top: int,
    as_json: bool,
) -> None:
    """Pack MODEL into a small container."""
    _check_one_target(lossless, bits, min_sqnr, target_bytes, max_drop)
    if lossless and trellis:
        raise click.UsageError("--trellis is a way to quantize; --lossless does not")
    output = output or model.with_suffix(".oxc")
    with interruption_names(output), working() as progress:
        progress.stage(f"reading {model.name}")
        quantized = None
        if lossless:
            from onnxcomp.container_packing import pack

            found = pack(
                model, output, base=base, prefer=prefer, threads=threads, progress=progress
            )
        else:
            from onnxcomp.coding_search import Quality, pack_quantized

            found, quantized = pack_quantized(
                model,
                output,
                Quality(
                    bits=bits,
                    min_sqnr_db=min_sqnr,
                    target_bytes=target_bytes,
                    max_drop=max_drop,
                    trellis=trellis,
                ),
                calibration=calibration,
                evaluator=evaluate,
                base=base,
                prefer=prefer,
                threads=threads,
                seed=seed,
                progress=progress,
            )
    if as_json:
        figures = {} if quantized is None else {"quantized": quantized.as_dict()}
        print_json({**found.as_dict(), **figures})
        return
    from onnxcomp.container_tables import print_contents
    from onnxcomp.tables import make_console

    print_contents(make_console(), found, top)
    if quantized is not None:
        click.echo(quantized.in_words())


def _check_one_target(lossless: bool, *targets: float | None) -> None:
    if lossless + sum(value is not None for value in targets) != 1:
        raise click.UsageError(
            "say --lossless or how good it has to be: one of --bits, --min-sqnr, --target-bytes, "
            "--max-drop"
        )


@click.command("unpack", **help_settings("unpack model.oxc -o model.onnx"))
@model_argument("container")
@_output_option("OUT.onnx", "<container>.onnx")
@base_option
@threads_option
def unpack_command(
    container: Path, output: Path | None, base: Path | None, threads: int | None
) -> None:
    """Write the model of CONTAINER."""
    if output is None:
        output = container.with_suffix(".onnx")
        if output.exists():  # perhaps the model that it was packed from, and not without loss
            raise OutputError(f"{output}: exists already; name the output with -o")
    with interruption_names(output), working() as progress:
        from onnxcomp.container_unpacking import unpack

        progress.stage(f"reading {container.name}")
        written = unpack(container, output, base=base, threads=threads, progress=progress)
    click.echo(f"{output}: {written:,} bytes")


@click.command("verify", **help_settings("verify model.oxc"))
@model_argument("container")
@base_option
@threads_option
def verify_command(container: Path, base: Path | None, threads: int | None) -> None:
    """Decode all of CONTAINER and check every checksum."""
    with working() as progress:
        from onnxcomp.container_unpacking import verify

        progress.stage(f"reading {container.name}")
        tensors = verify(container, base=base, threads=threads, progress=progress)
    click.echo(f"{container}: {tensors} tensors, all checksums hold")


def show_container(path: Path, top: int, as_json: bool) -> bool:
    """Prints what a container holds; False for other files."""
    from onnxcomp.container_reader import ContainerReader, is_container

    if not is_container(path):
        return False
    from onnxcomp.container_contents import contents
    from onnxcomp.container_tables import print_contents
    from onnxcomp.tables import make_console

    with ContainerReader(path) as reader:
        found = contents(reader)
    if as_json:
        print_json(found.as_dict())
    else:
        print_contents(make_console(), found, top)
    return True


COMMANDS = (pack_command, unpack_command, verify_command)
