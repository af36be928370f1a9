"""What several commands share: options, progress, JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from onnxcomp.progress import Progress

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def model_argument(name: str = "model", nargs: int = 1) -> Decorator:
    """The path of a model, or of several."""
    kind = click.Path(path_type=Path)
    return click.argument(name, type=kind, nargs=nargs, required=True)


def help_settings(*examples: str) -> dict[str, Any]:
    """Settings of a command whose help ends with examples."""
    shown = "\n".join(f"  onnxcomp {line}" for line in examples)
    return {
        "epilog": f"\b\nExample:\n{shown}",
        "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
    }


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on stdout (docs/report.md)."
)
calibration_option = click.option(
    "--calibration",
    metavar="SRC",
    help="Samples: an .npz, a folder of .npz files or images, or FILE.py:FUNCTION.",
)
evaluate_option = click.option(
    "--evaluate",
    metavar="FILE.py:FUNCTION",
    help="A function of an onnxruntime session that returns a score, higher is better.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Of random choices.",
)
target_option = click.option(
    "--target",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto, x86-avx2, x86-vnni, arm64 or qdq-generic.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Intra-op threads of each session.",
)


def rounds_option(preset: int) -> Decorator:
    """How often each model is timed."""
    return click.option(
        "--rounds",
        type=click.IntRange(min=1),
        metavar="N",
        default=preset,
        show_default=True,
        help="Turns of each model on the clock.",
    )


def groups_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `inspect` takes for the channels that can be pruned together."""
    wanted = click.option(
        "--groups", is_flag=True, help="Show instead which channels can be pruned together."
    )
    picture = click.option(
        "--svg",
        type=click.Path(path_type=Path),
        metavar="FILE.svg",
        help="With --groups: draw them.",
    )
    samples = click.option(
        "--calibration", metavar="SRC", help="With --groups: samples to measure costs on."
    )
    decorated: Callable[..., Any] = wanted(picture(samples(command)))
    return decorated


def parse_shape(text: str) -> tuple[str, list[int]]:
    """The input and sizes of ``INPUT=1x3x224x224``; of a scalar, ``INPUT=``."""
    name, _, sizes = text.rpartition("=")
    try:
        shape = [int(size) for size in sizes.split("x")] if sizes else []
    except ValueError:
        shape = [0]
    if not name or any(size < 1 for size in shape):
        raise click.UsageError(f"--shape {text}: write INPUT=1x3x224x224")
    return name, shape


def check_gates_are_measured(
    verify: str, min_sqnr: float | None, max_drop: float | None, must_pay: bool
) -> None:
    """Refuses gates of a run that measures nothing."""
    if verify == "off" and (min_sqnr is not None or max_drop is not None or must_pay):
        raise click.UsageError("--verify off measures nothing, so no gate can be kept; drop either")


@contextlib.contextmanager
def working() -> Iterator[Progress]:
    """Progress on stderr, and nothing but results on stdout."""
    from onnxcomp.terminal import TerminalProgress, results_only_on_stdout

    with results_only_on_stdout(), TerminalProgress() as progress:
        yield progress


def print_json(data: dict[str, Any]) -> None:
    """Prints the whole answer; nothing else goes to stdout."""
    click.echo(json.dumps(data, indent=1, allow_nan=False))
