"""The table of `onnxcomp optimize`: what was gained, what was lost, and why."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from onnxcomp.gates import SLOWER
from onnxcomp.report import PassResult, Report
from onnxcomp.tables import (
    cost_table,
    count,
    decibels,
    heading,
    indented,
    listed,
    make_table,
    print_fidelity,
    print_kernels,
)

STYLES = {"kept": "green", "unchanged": "dim", "undone": "yellow", "failed": "red"}
MOST_REASONS = 6
MOST_CONVERSIONS = 5
UNFAITHFUL_DB = 10.0  # an error of a third of the signal
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.,]*")


def print_report(
    console: Console, report: Report, operators: Mapping[str, str], verbose: bool = False
) -> None:
    """Prints a report.

    Args:
        console: where to.
        report: of a run.
        operators: operator type of every node by its label, for saying what was changed.
        verbose: name every node.
    """
    title = report.model if not report.output else f"{report.model} -> {report.output}"
    console.print(Text(title, style="bold"))
    console.print(
        Text(f"recipe {report.recipe}, target {report.target}, {report.samples}{_gates(report)}")
    )
    console.print()
    scores = (report.score_before, report.score_after)
    costs = (report.before, report.after)
    console.print(cost_table(("before", "after"), costs, report.latency_ratio, scores))
    if report.fidelity is not None:
        heading(console, f"Fidelity to the original, on {report.fidelity.samples} samples")
        print_fidelity(console, report.fidelity)
    for warning in _warnings(report):
        console.print(Text(f"warning: {warning}", style="bold yellow"))
    heading(console, "Passes")
    _print_overview(console, report.passes)
    for result in report.passes:
        _print_pass(console, result, operators, verbose)
    if report.kernels is not None:
        print_kernels(console, report.kernels, MOST_CONVERSIONS if not verbose else sys.maxsize)
    if report.notes:
        heading(console, "Notes")
        for note in report.notes:
            indented(console, note)


def _warnings(report: Report) -> Iterator[str]:
    """What nobody should overlook in a run whose recipe has no gates to undo it."""
    if report.after.bytes > report.before.bytes:
        yield "the result is larger than the original; --must-pay undoes such passes"
    if report.latency_ratio is not None and report.latency_ratio > SLOWER:
        yield "the result is slower than the original; --must-pay undoes such passes"
    if report.fidelity is not None and report.fidelity.sqnr_db < UNFAITHFUL_DB:
        yield (
            f"the result answers differently from the original (SQNR"
            f" {decibels(report.fidelity.sqnr_db)}); --min-sqnr DB undoes such passes"
        )


def _gates(report: Report) -> str:
    gates = report.gates
    said = []
    if gates.get("min_sqnr_db") is not None:
        said.append(f"SQNR at least {gates['min_sqnr_db']:g} dB")
    if gates.get("aim_sqnr_db") is not None:
        said.append(f"aim {gates['aim_sqnr_db']:g} dB before a Softmax")
    if gates.get("max_drop") is not None:
        said.append(f"score at most {gates['max_drop']:g} points lower")
    if gates.get("must_pay"):
        said.append("smaller or faster")
    return f"\ngates: {', '.join(said)}" if said else "\nno gates: every pass is kept"


def _print_overview(console: Console, passes: list[PassResult]) -> None:
    table = make_table(
        "pass", "status", "changed", "left", "bytes", "time", "SQNR", left=("status",)
    )
    for result in passes:
        measured = result.latency_ratio is not None
        table.add_row(
            result.name,
            Text(result.status, style=STYLES[result.status]),
            count(len(result.changed)),
            count(len(result.skipped)),
            count(result.bytes),
            f"{result.latency_ratio:.3f}" if measured else "-",
            "-" if result.fidelity is None else decibels(result.fidelity.sqnr_db),
        )
    console.print(table)


def _print_pass(
    console: Console, result: PassResult, operators: Mapping[str, str], verbose: bool
) -> None:
    details = bool(result.changed or result.skipped or result.notes or result.reason)
    if not details:
        return
    console.print()
    console.print(Text.assemble((result.name, "bold"), f"  {result.status}"))
    if result.reason:
        style = STYLES.get(result.status, "")
        console.print(Text(f"  {result.reason}", style=style))
    if result.changed:
        kinds = Counter(operators.get(name, "new node") for name in result.changed)
        indented(console, f"changed {len(result.changed)}: {listed(kinds)}")
        if verbose:
            for name in result.changed:
                indented(console, name, 4)
    if result.skipped:
        indented(console, f"left alone {len(result.skipped)}, because:")
        _print_reasons(console, result.skipped, operators, verbose)
    numbers = ", ".join(
        f"{name.replace('_', ' ')}: {_number(value)}" for name, value in result.numbers.items()
    )
    if numbers:
        indented(console, numbers)
    for note in result.notes:
        indented(console, note)


def _print_reasons(
    console: Console, skipped: Mapping[str, str], operators: Mapping[str, str], verbose: bool
) -> None:
    groups = grouped(skipped)
    shown = groups if verbose else groups[:MOST_REASONS]
    for reason, names in shown:
        kinds = listed(Counter(operators.get(name, "node") for name in names))
        indented(console, f"{kinds}: {reason}", 4)
        if verbose:
            for name in names:
                indented(console, name, 6)
    if len(shown) < len(groups):
        rest = sum(len(names) for _, names in groups[len(shown) :])
        indented(console, f"{rest} nodes for {len(groups) - len(shown)} other reasons: see -v", 4)


def grouped(skipped: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """(reason, labels), the commonest first; reasons that differ in a figure or name are one."""
    groups: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        groups.setdefault(_VARYING.sub("#", reason), []).append(name)
    said = []
    for names in sorted(groups.values(), key=len, reverse=True):
        reasons = {skipped[name] for name in names}
        reason = skipped[names[0]]
        said.append((reason if len(reasons) == 1 else f"{reason}, or alike", names))
    return said


def _number(value: Any) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
