"""The tables of `onnxcomp inspect` for models."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxcomp.inspection import Inspection, LayerCost, OperatorCost, PassReach
from onnxcomp.tables import (
    count,
    heading,
    listed,
    make_table,
    print_kernels,
    print_rest,
    short_count,
)


def print_inspection(console: Console, inspection: Inspection, top: int = 10) -> None:
    """Prints all tables, ``top`` rows of each."""
    _print_summary(console, inspection)
    _print_operators(console, inspection.operators, top)
    _print_layers(console, inspection.layers, top)
    if inspection.kernels is not None:
        print_kernels(console, inspection.kernels, top)
    _print_passes(console, inspection.passes)


def _print_summary(console: Console, inspection: Inspection) -> None:
    console.print(Text(inspection.model, style="bold"))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _summary(inspection).items():
        if value:
            table.add_row(name, value)
    console.print(table)


def _summary(inspection: Inspection) -> dict[str, str]:
    """What holds of the whole model, in words; empty where there is nothing to say."""
    opsets = ", ".join(f"{k or 'ai.onnx'} {v}" for k, v in inspection.opsets.items())
    macs = short_count(inspection.macs)
    if inspection.unknown_macs:
        macs = f"unknown: {len(inspection.unknown_macs)} nodes cannot be counted"
    return {
        "bytes": count(inspection.bytes),
        "parameters": count(inspection.parameters),
        "MACs": macs,
        "assumed for MACs": ", ".join(f"{k} = {v}" for k, v in inspection.assumed.items()),
        "opset": f"{opsets} (IR {inspection.ir_version})",
        "producer": inspection.producer,
        "inputs": "\n".join(map(str, inspection.inputs)),
        "outputs": "\n".join(map(str, inspection.outputs)),
        "external data": "\n".join(inspection.external_data) or "none",
        "custom domains": "\n".join(
            f"{domain}: {', '.join(ops)}" for domain, ops in inspection.custom_domains.items()
        )
        or "none",
        "local functions": "\n".join(inspection.functions),
        "subgraphs": "\n".join(f"{k}: {v} nodes" for k, v in inspection.subgraphs.items())
        or "none",
        "metadata": "\n".join(f"{k} = {v}" for k, v in inspection.metadata.items()),
    }


def _print_operators(console: Console, operators: Sequence[OperatorCost], top: int) -> None:
    heading(console, "By operator type")
    table = make_table("operator", "nodes", "parameters", "bytes", "MACs")
    for cost in operators[:top]:
        table.add_row(
            cost.op,
            count(cost.count),
            count(cost.parameters),
            count(cost.bytes),
            short_count(cost.macs),
        )
    console.print(table)
    print_rest(console, len(operators) - top, "operator types")


def _print_layers(console: Console, layers: Sequence[LayerCost], top: int) -> None:
    heading(console, "Largest layers")
    table = make_table("layer", "operator", "parameters", "bytes", "MACs", left=("operator",))
    for layer in layers[:top]:
        table.add_row(
            layer.name,
            layer.op,
            count(layer.parameters),
            count(layer.bytes),
            short_count(layer.macs),
        )
    console.print(table)
    print_rest(console, len(layers) - top, "layers")


def _print_passes(console: Console, passes: Sequence[PassReach]) -> None:
    heading(console, "What each pass could touch")
    table = make_table("pass", "nodes", "of which", left=("of which",))
    for reach in passes:
        table.add_row(reach.name, count(len(reach.candidates)), listed(reach.operators))
    console.print(table)
