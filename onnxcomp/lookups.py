"""Embeddings as codes: a lookup of float rows becomes a lookup of codes and of their scales."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxcomp.graph import Names, label
from onnxcomp.quantization import symmetric


def write_lookups(graph: gs.Graph, nodes: Iterable[gs.Node]) -> None:
    """Gather(table, rows) -> Cast(Gather(codes, rows)) * Gather(scale, rows).

    A table [rows, width] becomes int8 codes of that shape and one float32 scale for each row,
    [rows, 1]; one that several lookups read is stored once. Rows differ in size by far more than
    their elements, so that one scale for all would waste most of the codes on most words.

    Args:
        graph: changed in place; its nodes are left to be sorted, and the tables to be removed.
        nodes: Gather nodes of ``graph`` with axis 0, whose table is a float32 matrix.
    """
    names = Names(graph)
    stored: dict[str, tuple[gs.Constant, gs.Constant]] = {}
    for node in nodes:
        table = node.inputs[0]
        if table.name not in stored:
            stored[table.name] = _constants(table, names)
        codes, scale = stored[table.name]
        look_up(graph, node, codes, scale, names)


def look_up(
    body: gs.Graph, node: gs.Node, codes: gs.Constant, scale: gs.Constant, names: Names
) -> None:
    """Gather of float rows -> Gather of codes [rows, width] times Gather of scales [rows, 1].

    Args:
        body: the graph or body that ``node`` is in; its nodes are left to be sorted.
        node: a Gather with axis 0 of the table that ``codes`` and ``scale`` stand for.
        codes: int8.
        scale: float32.
        names: of the whole model.
    """
    rows, result, name = node.inputs[1], node.outputs[0], label(node)
    picked = gs.Variable(names.fresh(f"{name}.codes"), np.int8, result.shape)
    real = gs.Variable(names.fresh(f"{name}.real"), np.float32, result.shape)
    scales = gs.Variable(names.fresh(f"{name}.scale"), np.float32)
    node.inputs, node.outputs = [codes, rows], [picked]
    body.nodes.extend(
        [
            gs.Node("Cast", names.fresh(real.name), {"to": TensorProto.FLOAT}, [picked], [real]),
            gs.Node("Gather", names.fresh(scales.name), {"axis": 0}, [scale, rows], [scales]),
            gs.Node("Mul", names.fresh(f"{name}.scaled"), {}, [real, scales], [result]),
        ]
    )


def _constants(table: gs.Constant, names: Names) -> tuple[gs.Constant, gs.Constant]:
    parameters = symmetric(table.values, 0)
    return (
        gs.Constant(names.fresh(f"{table.name}.codes"), parameters.quantize(table.values)),
        gs.Constant(names.fresh(f"{table.name}.scale"), parameters.scale[:, None]),
    )
