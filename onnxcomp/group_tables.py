"""What `onnxcomp inspect --groups` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from onnxcomp.group_inspection import GroupInfo, GroupInspection, draw_groups, inspect_groups
from onnxcomp.model import load_model
from onnxcomp.options import print_json, working
from onnxcomp.parameters import external_files
from onnxcomp.report_tables import grouped
from onnxcomp.tables import (
    UNKNOWN,
    count,
    heading,
    indented,
    make_console,
    make_table,
    percent,
    short_count,
)
from onnxcomp.writing import check_target, write_text

FEW = 3  # layers of a group, and examples of what stays


def print_groups(console: Console, found: GroupInspection, top: int) -> None:
    """Prints the groups that hold most parameters.

    Args:
        console: where to.
        found: the groups.
        top: rows of each table.
    """
    console.print(Text(found.model, style="bold"))
    console.print(_summary(found))
    if found.groups:
        _print_groups(console, found, top)
    if found.pinned:
        heading(console, "Axes of weights that stay")
        axes = {f"{p.tensor} axis {p.axis}": p.reason for p in found.pinned}
        _print_reasons(console, axes, ("axis", "axes"), top)
    if found.unknown:
        heading(console, "Nodes whose tensors stay")
        _print_reasons(console, found.unknown, ("node", "nodes"), top)
    for note in found.notes:
        indented(console, note)


def _summary(found: GroupInspection) -> str:
    if not found.groups:
        return "no channels that could be removed"
    groups = "1 group" if len(found.groups) == 1 else f"{len(found.groups)} groups of channels"
    return (
        f"{groups}; with one unit left of each, {count(found.least_parameters)} of "
        f"{count(found.parameters)} parameters and {short_count(found.least_macs)} of "
        f"{short_count(found.macs)} MACs"
    )


def _print_groups(console: Console, found: GroupInspection, top: int) -> None:
    largest = sorted(found.groups, key=lambda group: -group.units * group.parameters)
    heading(console, "Groups, and what removing one unit saves")
    cost = [] if found.samples is None else ["cost of half"]
    table = make_table("group", "units", "span", "parameters", "MACs", *cost)
    for group in largest[:top]:
        lost = UNKNOWN if group.half_cost is None else percent(100 * group.half_cost)
        table.add_row(
            group.name,
            count(group.units),
            count(group.span),
            count(round(group.parameters)),
            short_count(round(group.macs)),
            *(lost for _ in cost),
        )
    console.print(table)
    if len(largest) > top:
        console.print(Text(f"... and {len(largest) - top} more; --top N shows more", style="dim"))
    if found.samples is not None:
        indented(console, f"costs on {found.samples}")
    heading(console, "Layers of each group")
    for group in largest[:top]:
        indented(console, group.name)
        for line in _sides(group):
            indented(console, line, 4)


def _sides(group: GroupInfo) -> list[str]:
    sides = (("made by", group.made_by), ("read by", group.read_by))
    return [f"{word} {_some(labels)}" for word, labels in sides if labels]


def _some(names: Sequence[str]) -> str:
    rest = len(names) - FEW
    return ", ".join([*names[:FEW], f"{rest} more"] if rest > 0 else names)


def _print_reasons(
    console: Console, reasons: Mapping[str, str], what: tuple[str, str], top: int
) -> None:
    alike = grouped(reasons)
    for reason, names in alike[:top]:
        indented(console, f"{len(names)} {what[len(names) > 1]}: {reason}")
        indented(console, _some(names), 4)
    if len(alike) > top:
        rest = sum(len(names) for _, names in alike[top:])
        indented(console, f"{rest} {what[rest > 1]} for other reasons; --top N shows them")


def show_groups(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    calibration: str | None,
    svg: Path | None,
    as_json: bool,
    top: int,
) -> None:
    """Runs `onnxcomp inspect --groups`: prints the groups and draws them to a file.

    Raises:
        UnsupportedModel: the model cannot be read.
        OutputError: the picture cannot be written.
    """
    with working() as progress:
        progress.stage(f"reading {path.name}")
        model = load_model(path)
        if svg is not None:
            check_target(svg, [path, *external_files(model.graph)], "--svg")
        found = inspect_groups(model, shapes=shapes, calibration=calibration, progress=progress)
        if svg is not None:
            write_text(svg, draw_groups(model))
    if as_json:
        print_json(found.as_dict())
    else:
        print_groups(make_console(), found, top)
