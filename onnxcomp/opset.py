"""Raises models of old operator sets to those that quantization needs.

Scales per channel came with opset 13, scales in blocks and codes of 4 bits with 21. onnx's own
converter drops metadata, local functions and bodies and wants all weights in memory. Most operators
that changed only took more types or attributes, and still mean the same by the same inputs; the
few others are rewritten by `operator_versions` up to 13 and by `newer_operators` up to 21.
See onnx/docs/Changelog.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
import onnx_graphsurgeon as gs

from onnxcomp.errors import OpsetConversionFailed
from onnxcomp.graph import (
    STANDARD_DOMAINS,
    Graph,
    Names,
    all_graphs,
    is_standard,
    opsets,
    sort_nodes,
)
from onnxcomp.newer_operators import NEWER
from onnxcomp.operator_versions import REWRITES, Converter
from onnxcomp.shapes import inferred_types

Rules = Mapping[str, Callable[[Converter, gs.Node], None]]

OLDEST = 7  # what changed up to it (broadcasting was an attribute) onnxruntime does not run either
STEPS = ((13, REWRITES), (21, NEWER))  # to these opsets, by these rules
NEWEST = STEPS[-1][0]


def opset_of(graph: gs.Graph) -> int | None:
    """The version of ONNX's own operator set, None where a graph does not import it."""
    return next((o.version for o in opsets(graph) if o.domain in STANDARD_DOMAINS), None)


def convert_opset(graph: Graph, minimum: int = 13) -> Graph:
    """``graph``, or a copy of it that uses opset ``minimum`` if it used an older one.

    Weights are shared with the original, and bodies of If, Loop and Scan converted too.

    Raises:
        OpsetConversionFailed: with the node that cannot be written in the newer opset.
    """
    current = opset_of(graph)
    if current is None or current >= minimum:
        return graph
    if minimum > NEWEST:
        raise OpsetConversionFailed(f"opset {minimum} was asked for, {NEWEST} is known")
    twin = graph.copy()
    names = Names(twin)
    for end, rules in STEPS:
        until = min(end, minimum)
        if current >= until:
            continue
        for body, types in inferred_types(twin):
            _convert(Converter(body, types, names, current, until), rules)
        for body in all_graphs(twin):
            body.opset = until
            body.import_domains = [
                onnx.helper.make_opsetid(
                    o.domain, until if o.domain in STANDARD_DOMAINS else o.version
                )
                for o in opsets(body)
            ]
        current = until
    return twin


def convert_in_place(graph: Graph, minimum: int) -> None:
    """`convert_opset` of ``graph`` itself, which stays as it is where that fails.

    Raises:
        OpsetConversionFailed: with the node that cannot be written in the newer opset.
    """
    twin = convert_opset(graph, minimum)
    if twin is graph:
        return
    for part in ("nodes", "inputs", "outputs"):
        getattr(graph, part)[:] = getattr(twin, part)
    graph.opset, graph.import_domains = twin.opset, twin.import_domains


def _convert(converter: Converter, rules: Rules) -> None:
    """Rewrites the nodes of one graph or body in place."""
    for node in list(converter.graph.nodes):
        if not is_standard(node):
            continue
        before, after = _since(node.op, converter.old), _since(node.op, converter.new)
        if converter.old < OLDEST and before != _since(node.op, OLDEST):
            raise converter.failure(node, f"it changed before opset {OLDEST}, which is too old")
        rewrite = rules.get(node.op)
        if rewrite is not None and (before is None or before != after):
            rewrite(converter, node)
        elif before is None or after is None:
            reason = f"it is unknown how to write it in opset {converter.new}"
            raise converter.failure(node, reason)
    sort_nodes(converter.graph)


def _since(op: str, opset: int) -> int | None:
    """The opset an operator of ``opset`` was last changed in; None where it is not in there."""
    try:
        schema = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else schema.since_version
