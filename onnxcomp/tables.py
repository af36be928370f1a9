"""What the command line prints, made to be read in 80 columns."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnxcomp.comparison import Benchmark, Comparison
from onnxcomp.kernel_use import KernelUse, Kind
from onnxcomp.listings import PassListing
from onnxcomp.report import Cost, Fidelity

UNKNOWN = "-"
KINDS: dict[Kind, str] = {
    "integer": "codes",
    "float": "float",
    "conversion": "conversions",
    "other": "indices, shapes",
}


def make_console() -> Console:
    """Prints to stdout, names of nodes as they are."""
    return Console(highlight=False, markup=False, emoji=False)


def make_table(*columns: str, left: Sequence[str] = ()) -> Table:
    """A plain table whose columns are right-aligned but the first and those in ``left``."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        words = index == 0 or column in left
        table.add_column(
            column, justify="left" if words else "right", no_wrap=not words, overflow="fold"
        )
    return table


def heading(console: Console, text: str) -> None:
    """A line that names what follows."""
    console.print()
    console.print(Text(text, style="bold"))


def indented(console: Console, text: str, by: int = 2) -> None:
    """A paragraph, wrapped and moved to the right."""
    console.print(Padding(Text(text), (0, 0, 0, by), expand=False))


# --- figures ----------------------------------------------------------------------------------


def count(value: int | None) -> str:
    """1,234,567."""
    return UNKNOWN if value is None else f"{value:,}"


def short_count(value: int | None) -> str:
    """1.23 M, for what nobody reads digit by digit."""
    if value is None:
        return UNKNOWN
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return (
                f"{value / size:.3g} {unit}"
                if value < 999.5 * size
                else f"{value / size:.0f} {unit}"
            )
    return str(value)


def milliseconds(value: float | None) -> str:
    """Three significant digits and the unit."""
    if value is None:
        return UNKNOWN
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{min(digits, 4)}f} ms"


def decibels(value: float) -> str:
    """One decimal; "exact" without any noise."""
    return "exact" if value == math.inf else "none" if value == -math.inf else f"{value:.1f} dB"


def percent(value: float | None) -> str:
    """One decimal, in %."""
    return UNKNOWN if value is None else f"{value:.1f} %"


def ratio(before: float | None, after: float | None) -> str:
    """After / before, three decimals."""
    return UNKNOWN if not before or after is None else f"{after / before:.3f}"


def listed(operators: Mapping[str, int], most: int = 6) -> str:
    """7 Conv, 2 Gemm: the commonest first."""
    counts = Counter(operators).most_common()
    shown = [f"{number} {name}" for name, number in counts[:most]]
    rest = sum(number for _, number in counts[most:])
    return ", ".join([*shown, f"{rest} others"] if rest else shown)


# --- parts that several commands share --------------------------------------------------------


def cost_table(
    names: tuple[str, str],
    costs: tuple[Cost, Cost],
    latency_ratio: float | None,
    scores: tuple[float | None, float | None] = (None, None),
) -> Table:
    """Bytes, parameters, MACs, latency and score of two models, and their ratios."""
    before, after = costs
    table = make_table("", *names, "ratio")
    table.add_row(
        "bytes", count(before.bytes), count(after.bytes), ratio(before.bytes, after.bytes)
    )
    table.add_row(
        "parameters",
        count(before.parameters),
        count(after.parameters),
        ratio(before.parameters, after.parameters),
    )
    table.add_row(
        "MACs", short_count(before.macs), short_count(after.macs), ratio(before.macs, after.macs)
    )
    table.add_row(
        "median latency",
        milliseconds(before.latency_ms),
        milliseconds(after.latency_ms),
        UNKNOWN if latency_ratio is None else f"{latency_ratio:.3f}",
    )
    if scores[0] is not None and scores[1] is not None:
        change = f"{scores[1] - scores[0]:+.2f} points"
        table.add_row("score", f"{scores[0]:.2f}", f"{scores[1]:.2f}", change)
    return table


def print_fidelity(console: Console, fidelity: Fidelity) -> None:
    """One row an output."""
    table = make_table("output", "SQNR", "cosine", "max difference", "same top-1")
    for output in fidelity.outputs:
        table.add_row(
            output.output,
            decibels(output.sqnr_db),
            f"{output.cosine:.5f}",
            f"{output.max_abs_difference:.3g}",
            percent(output.top1_agreement),
        )
    console.print(table)
    for output in fidelity.outputs:
        if output.note:
            indented(console, f"{output.output}: {output.note}")
    if fidelity.synthetic:
        warning = (
            "warning: measured on made-up inputs, which say little about real ones;"
            " give samples with --calibration"
        )
        console.print(Text(warning, style="yellow"))


def print_rest(console: Console, number: int, what: str) -> None:
    """How many rows a table left out, if any."""
    if number > 0:
        console.print(Text(f"... and {number} more {what}; --top N shows more", style="dim"))


def print_kernels(console: Console, use: KernelUse, top: int = 10) -> None:
    """What onnxruntime runs in integers and in float, and what the conversions left cost."""
    heading(console, "What onnxruntime runs")
    table = make_table("runs on", "time", "kernels", left=("kernels",))
    for kind, name in KINDS.items():
        kernels = [kernel for kernel in use.kernels if kernel.kind == kind]
        if kernels:
            counts = {kernel.op: kernel.count for kernel in kernels}
            table.add_row(name, f"{use.time_share(kind):.0%}", listed(counts))
    console.print(table)
    if use.conversions:
        table = make_table("conversion left", "of tensor", "elements", "time", left=("of tensor",))
        for left in use.conversions[:top]:
            share = f"{left.time_share:.1%}"
            table.add_row(left.op, left.tensor, count(left.elements), share)
        console.print(table)
        print_rest(console, len(use.conversions) - top, "conversions")


# --- compare, benchmark -----------------------------------------------------------------------


def print_comparison(console: Console, comparison: Comparison) -> None:
    """The table of `onnxcomp compare`."""
    a, b = comparison.a, comparison.b
    console.print(Text(f"A  {a.model}\nB  {b.model}"))
    console.print()
    table = cost_table(("A", "B"), (a.cost, b.cost), comparison.latency_ratio, (a.score, b.score))
    memory = (a.peak_memory_bytes, b.peak_memory_bytes)
    table.add_row("peak memory, bytes", *map(count, memory), ratio(*memory))
    console.print(table)
    heading(console, f"Fidelity of B against A, {comparison.samples}")
    print_fidelity(console, comparison.fidelity)


def print_benchmark(console: Console, benchmark: Benchmark) -> None:
    """The table of `onnxcomp benchmark`."""
    shapes = ", ".join(f"{name} {shape}" for name, shape in benchmark.shapes.items())
    threads = f"{benchmark.threads} thread{'s' if benchmark.threads > 1 else ''}"
    console.print(Text(f"{threads}, {benchmark.rounds} rounds; {shapes}"))
    console.print()
    table = make_table("model", "median latency", "ratio")
    for latency in benchmark.latencies:
        table.add_row(latency.model, milliseconds(latency.latency_ms), f"{latency.ratio:.3f}")
    console.print(table)


# --- passes, recipes --------------------------------------------------------------------------


def print_passes(console: Console, listings: Sequence[PassListing]) -> None:
    """The list of `onnxcomp passes`: each with its options."""
    for listing in listings:
        console.print(Text(listing.name, style="bold"))
        needs = " Needs samples." if listing.needs_calibration else ""
        indented(console, f"{listing.summary}{needs}")
        for option in listing.options:
            line = Text.assemble((option.name, "bold"), f" = {_written(option.default)}  ")
            console.print(
                Padding(line.append(f"({option.type})", style="dim"), (0, 0, 0, 2), expand=False)
            )
            indented(console, option.meaning, 6)
        console.print()


def _written(value: object) -> str:
    """A default as a recipe writes it."""
    return "none" if value is None else json.dumps(value)


def print_recipes(console: Console, recipes: Iterable[dict[str, object]]) -> None:
    """The list of `onnxcomp recipes`."""
    table = make_table("recipe", "description", left=("description",))
    for recipe in recipes:
        table.add_row(str(recipe["name"]), str(recipe["description"]))
    console.print(table)
