"""The tables of `onnxcomp pack` and of `inspect` for containers."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxcomp.container_contents import Contents, TensorContents
from onnxcomp.tables import UNKNOWN, count, decibels, heading, indented, make_table


def print_contents(console: Console, found: Contents, top: int) -> None:
    """Prints totals and the ``top`` tensors that take most bytes.

    Args:
        console: where to.
        found: the container.
        top: how many rows.
    """
    _print_totals(console, found)
    if not found.tensors:
        return
    heading(console, "Tensors that take most bytes")
    order = sorted(found.tensors, key=lambda tensor: -tensor.packed_bytes)
    console.print(_table(order[:top], with_errors=found.error_db is not None))
    rest = order[top:]
    if rest:
        packed = sum(tensor.packed_bytes for tensor in rest)
        indented(console, f"... and {len(rest)} more with {packed:,} bytes; --top shows them")


def _print_totals(console: Console, found: Contents) -> None:
    console.print(Text(found.path, style="bold"))
    whole = f"{found.bytes:,} bytes, {100 * found.ratio:.1f} % of the model's {found.model_bytes:,}"
    console.print(Text(whole))
    parts = (
        f"graph {found.skeleton_packed_bytes:,} (of {found.skeleton_bytes:,}),"
        f" directory {found.directory_bytes:,},"
        f" {len(found.tensors)} tensors {sum(t.packed_bytes for t in found.tensors):,}"
    )
    console.print(Text(parts))
    if found.needs_base:
        console.print(Text("a delta package: it needs its base (--base)"))
    if found.error_db is not None:
        console.print(Text(f"errors of the tensors, if independent, {decibels(found.error_db)}"))


def _table(tensors: Sequence[TensorContents], *, with_errors: bool) -> Table:
    errors = ("error",) if with_errors else ()
    table = make_table(
        *("tensor", "shape", "stored as", "coded by", "bytes", "bits/weight", *errors),
        left=("tensor", "shape", "stored as", "coded by"),
    )
    for tensor in tensors:
        table.add_row(
            Text(tensor.name),
            "x".join(map(str, tensor.shape)),
            tensor.representation if tensor.same_as is None else f"same as {tensor.same_as}",
            _coders(tensor),
            count(tensor.packed_bytes),
            f"{tensor.bits_per_weight:.2f}",
            *(["none" if tensor.error_db is None else decibels(tensor.error_db)] if errors else []),
        )
    return table


def _coders(tensor: TensorContents) -> str:
    """The back ends with their profiles: rans/0, raw/8."""
    return ", ".join(tensor.profiles) or UNKNOWN
