"""The table of `onnxcomp sensitivity`."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from onnxcomp.sensitivity import Sensitivity
from onnxcomp.tables import UNKNOWN, count, decibels, heading, indented, make_table, percent


def print_sensitivity(console: Console, found: Sensitivity, top: int) -> None:
    """Prints the ``top`` layers that lose most.

    Args:
        console: where to.
        found: the ranking.
        top: how many rows.
    """
    console.print(Text(found.model, style="bold"))
    console.print(Text(f"{found.step}, target {found.target}, {found.samples}"))
    console.print(Text(f"all quantized: {decibels(found.all_db)} on {found.measured_on} samples"))
    if found.score_float is not None and found.score_all is not None:
        console.print(Text(f"score {found.score_float:.2f}, all quantized {found.score_all:.2f}"))
    heading(console, "Layers that lose most when they alone are quantized")
    scored = any(layer.score is not None for layer in found.layers)
    columns = ["", "node", "operator", "estimate", "measured", "of error", "MACs", "bytes"]
    table = make_table(*columns, *(["score"] if scored else []), left=("node", "operator"))
    for layer in found.layers[:top]:
        table.add_row(
            count(layer.rank),
            Text(layer.name),
            layer.op,
            UNKNOWN if layer.estimated_db is None else decibels(layer.estimated_db),
            UNKNOWN if layer.measured_db is None else decibels(layer.measured_db),
            percent(100 * layer.error_share),
            percent(None if layer.macs_share is None else 100 * layer.macs_share),
            percent(100 * layer.bytes_share),
            *([UNKNOWN if layer.score is None else f"{layer.score:.2f}"] if scored else []),
        )
    console.print(table)
    rest = found.layers[top:]
    if rest:
        share = percent(100 * sum(layer.error_share for layer in rest))
        indented(console, f"... and {len(rest)} more with {share} of the error; --top shows them")
    if found.notes:
        heading(console, "Notes")
        for note in found.notes:
            indented(console, note)
