"""Pools of codes with channels last, as onnxruntime has a fast kernel for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import Names, is_constant, is_standard, only_reader
from onnxcomp.layer_parts import dequantizer, scalar

CONTRIB = "com.microsoft"
LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # channels, as Transpose counts


def pool_channels_last(graph: gs.Graph) -> int:
    """Runs each two-dimensional MaxPool of uint8 codes with channels last; how many there were.

    Between dense layers of codes onnxruntime does so by itself. Behind others it pools codes as
    they lie, which takes some 40 times as long, so Transposes are written around it; beside those
    of a dense layer onnxruntime takes both away.
    """
    names, count = Names(graph), 0
    for node in list(graph.nodes):
        quantize = _codes_after(graph, node)
        if quantize is None:
            continue
        codes, made = node.inputs[0].inputs[0].inputs[0], quantize.outputs[0]
        stem = node.name or made.name
        moved, pooled = (
            gs.Variable(names.fresh(f"{codes.name}.channels_last"), np.uint8),
            gs.Variable(names.fresh(f"{made.name}.channels_last"), np.uint8),
        )
        attributes: dict[str, Any] = dict(node.attrs)
        attributes.pop("storage_order", None)  # of the indices
        quantize.outputs.clear()
        node.outputs.clear()
        graph.nodes += [
            gs.Node("Transpose", f"{stem}.to_last", {"perm": LAST}, [codes], [moved]),
            gs.Node("NhwcMaxPool", stem, attributes, [moved], [pooled], domain=CONTRIB),
            gs.Node("Transpose", f"{stem}.to_first", {"perm": FIRST}, [pooled], [made]),
        ]
        count += 1
    return count


def _codes_after(graph: gs.Graph, node: gs.Node) -> gs.Node | None:
    """The QuantizeLinear behind a MaxPool that makes codes of the same meaning as it reads."""
    if not is_standard(node) or node.op != "MaxPool" or len(node.attrs["kernel_shape"]) != 2:
        return None
    source = dequantizer(node.inputs[0])
    found = only_reader(graph, node.outputs[0]) if len(node.outputs) == 1 else None
    if source is None or found is None or found.op != "QuantizeLinear":
        return None
    before, after = _meaning(source), _meaning(found)
    return found if before is not None and before == after else None


def _meaning(node: gs.Node) -> tuple[float, int] | None:
    """Scale and zero point of codes of uint8, where each is one constant."""
    if len(node.inputs) < 3 or not all(is_constant(tensor) for tensor in node.inputs[1:]):
        return None
    scale, zero_point = node.inputs[1:3]
    if scale.values.size != 1 or zero_point.values.size != 1 or zero_point.dtype != np.uint8:
        return None
    return float(scalar(scale)), int(scalar(zero_point))
