"""The commands of .oxc containers: pack, unpack, verify, and inspect's part."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

TARGETS = ("bits", "min_sqnr_db", "target_bytes", "max_drop")  # one of them, or --lossless

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


def _one_quality(lossless: bool, trellis: bool, targets: dict[str, Any]) -> dict[str, Any] | None:
    """What the options ask a quantized model to keep; None for all of it."""
    if lossless + sum(value is not None for value in targets.values()) != 1:
        raise click.UsageError(
            "say --lossless or how good it has to be: one of --bits, --min-sqnr, --target-bytes, "
            "--max-drop"
        )
    if lossless and trellis:
        raise click.UsageError("--trellis is a way to quantize; --lossless does not")
    return None if lossless else {**targets, "trellis": trellis}


_QUALITY_OPTIONS: tuple[Decorator, ...] = (
    click.option("--lossless", is_flag=True, help="Give back every bit when it is unpacked."),
    click.option(
        "--bits",
        type=click.FloatRange(min=0, min_open=True),
        metavar="B",
        help="Quantize to so many bits a weight, on average.",
    ),
    click.option(
        "--min-sqnr",
        "min_sqnr_db",
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


def quality_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that reach the command as one argument ``quality``, of `Quality` or None."""

    @functools.wraps(command)
    def collected(lossless: bool, trellis: bool, **options: Any) -> None:
        targets = {name: options.pop(name) for name in TARGETS}
        command(quality=_one_quality(lossless, trellis, targets), **options)

    wrapped: Callable[..., None] = collected
    for option in reversed(_QUALITY_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


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
    quality: dict[str, Any] | None,
    calibration: str | None,
    evaluate: str | None,
    seed: int,
    top: int,
    as_json: bool,
    **storing: Any,
) -> None:
    """Pack MODEL into a small container."""
    output = output or model.with_suffix(".oxc")
    with interruption_names(output), working() as progress:
        progress.stage(f"reading {model.name}")
        quantized = None
        if quality is None:
            from onnxcomp.container_packing import pack

            found = pack(model, output, progress=progress, **storing)
        else:
            from onnxcomp.coding_search import Quality, pack_quantized

            found, quantized = pack_quantized(
                model,
                output,
                Quality(**quality),
                calibration=calibration,
                evaluator=evaluate,
                seed=seed,
                progress=progress,
                **storing,
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
