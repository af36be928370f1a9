"""Stores the codes of weights with few bits as few bits.

Plain operators unpack them. They hang on constants alone, so a runtime folds them when it loads the
model, before it looks for DequantizeLinear -> Conv: the same integer kernels run on the same codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxcomp.graph import Names, is_constant, producer, sort_nodes
from onnxcomp.placement import Plan
from onnxcomp.targets import Target
from onnxcomp.weight_forms import CONTAINERS, UNPACKING_BYTES, FormWriter


def pack_codes(graph: gs.Graph, plan: Plan, bits: Mapping[int, int], target: Target) -> int:
    """Packs the codes of layers of at most 4 bits; how many weights it packed.

    Args:
        graph: ``plan`` is written into it already; changed in place.
        plan: of the layers.
        bits: of the weights of each layer, by id of its unit.
        target: nothing is packed for one that may not fold constants.
    """
    if target.everywhere:
        return 0
    writer, packed = FormWriter(graph, Names(graph)), 0
    alive = {id(node) for node in graph.nodes}
    for unit in plan.units:
        if id(unit) not in bits or id(unit.node) not in alive:
            continue
        dequantizer = producer(unit.node.inputs[1])
        container = next(size for size in CONTAINERS if size >= bits[id(unit)])
        if container == 8 or dequantizer is None or not is_constant(dequantizer.inputs[0]):
            continue
        codes = dequantizer.inputs[0]
        if codes.values.size * (8 - container) // 8 > UNPACKING_BYTES:
            dequantizer.inputs[0] = _packed(writer, codes, container)
            packed += 1
    sort_nodes(graph)
    return packed


def _packed(writer: FormWriter, codes: gs.Constant, bits: int) -> gs.Tensor:
    """int8 codes within ``bits`` bits, as they come out of unpacking."""
    name, offset = codes.name, np.asarray(2 ** (bits - 1), np.int32)
    unsigned = (codes.values.astype(np.int32) + offset).astype(np.uint8)
    raised = writer.unpacked(f"{name}.packed", unsigned, bits, np.int32)
    centred = writer.add("Sub", f"{name}.centred", [raised, writer.shared(f"offset{bits}", offset)])
    result = writer.add("Cast", name, [centred], to=int(TensorProto.INT8))
    result.dtype, result.shape = np.dtype(np.int8), list(codes.shape)
    return result
