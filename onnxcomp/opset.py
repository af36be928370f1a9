"""Raises models of old operator sets to the one that per-channel quantization needs.

onnx's own converter drops metadata, local functions and bodies and wants all weights in memory.
Most operators that changed between opset 7 and 13 only took more types or attributes, and still
mean the same by the same inputs; the few others are rewritten by `operator_versions`.
See onnx/docs/Changelog.md.
"""

from __future__ import annotations

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
from onnxcomp.operator_versions import REWRITES, Converter
from onnxcomp.shapes import inferred_types

OLDEST = 7  # what changed up to it (broadcasting was an attribute) onnxruntime does not run either
NEWEST = 13  # beyond it, other operators change than those below


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
    for body, types in inferred_types(twin):
        _convert(Converter(body, types, names, current, minimum))
    for body in all_graphs(twin):
        body.opset = minimum
        body.import_domains = [
            onnx.helper.make_opsetid(
                o.domain, minimum if o.domain in STANDARD_DOMAINS else o.version
            )
            for o in opsets(body)
        ]
    return twin


def _convert(converter: Converter) -> None:
    """Rewrites the nodes of one graph or body in place."""
    for node in list(converter.graph.nodes):
        if not is_standard(node):
            continue
        before, after = _since(node.op, converter.old), _since(node.op, converter.new)
        if converter.old < OLDEST and before != _since(node.op, OLDEST):
            raise converter.failure(node, f"it changed before opset {OLDEST}, which is too old")
        rewrite = REWRITES.get(node.op)
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
