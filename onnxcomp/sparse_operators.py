"""Layers of codes as operators that skip blocks of zeros, and how fast these are here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.evaluation import Timing, interleaved
from onnxcomp.kernels import DOMAIN
from onnxcomp.kernels.reference_sparse_int8 import FORMAT_VERSION, PackedInt8
from onnxcomp.layer_latency import EMPTY, LEAST_MS, OPSET
from onnxcomp.qdq_layers import QdqLayer
from onnxcomp.quantization import Array
from onnxcomp.runtime import Feed, Session, open_session

ROUNDS, ROUND_MS, BUDGET_S = 7, 3.0, 2.0

Constant = Callable[[str, Array], gs.Constant]  # of a role, such as "values"


def make_sparse(
    node: gs.Node, layer: QdqLayer, packed: PackedInt8, x: gs.Tensor, constant: Constant
) -> None:
    """Turns ``node`` into the sparse operator of a layer that reads x; outputs stay.

    Args:
        node: changed in place.
        layer: what it computes.
        packed: the layer's weight.
        x: codes, uint8.
        constant: makes a tensor of an array for one of the roles values, indices, offsets, scale
            and bias.
    """
    to_codes = layer.quantize is not None
    is_conv = layer.node.op == "Conv"
    attributes: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "out_channels": packed.out_channels,
        "in_channels": packed.in_channels,
        "block_rows": packed.block_rows,
        "x_zero_point": layer.x_zero_point,
    }
    if to_codes:
        attributes["y_zero_point"] = layer.y_zero_point
    if is_conv:
        attributes |= layer.window
    arrays: dict[str, Array] = {
        "values": packed.values,
        "indices": packed.indices,
        "offsets": packed.offsets,
        "scale": (layer.sum_scale / layer.y_scale).astype(np.float32),
    }
    if layer.bias is not None:
        arrays["bias"] = layer.bias
    product = "Conv" if is_conv else "MatMul"
    node.op = f"SparseQLinear{product}" if to_codes else f"Sparse{product}IntegerToFloat"
    node.domain, node.attrs = DOMAIN, attributes
    node.inputs.clear()
    node.inputs.extend([x, *(constant(role, array) for role, array in arrays.items())])


def layer_times(
    layer: QdqLayer, packings: Sequence[PackedInt8], x_shape: Sequence[int], threads: int
) -> tuple[float, list[float]]:
    """Milliseconds of a layer with its zeros and of each of its packings, run by turns.

    What an empty model takes is subtracted. onnxruntime runs a Conv of codes with channels last;
    the Transposes that it needs around one that is alone, and hardly any of in a whole model, are
    subtracted from its time, too.

    Raises:
        UnsupportedModel: onnxruntime does not take one of them.
    """
    x = np.random.default_rng(0).integers(0, 256, tuple(x_shape)).astype(np.uint8)
    dense = _open(_dense_nodes, layer, x_shape, threads)
    (y,) = dense.run({"x": x})
    opened: list[tuple[Session, Feed]] = [EMPTY.open(threads), (dense, {"x": x})]
    for packed in packings:
        sparse = _open(partial(_sparse_nodes, packed=packed), layer, x_shape, threads)
        opened.append((sparse, {"x": x}))
    if layer.node.op == "Conv" and layer.quantize is not None:
        for codes, order in ((x, (0, 2, 3, 1)), (y.transpose(0, 2, 3, 1), (0, 3, 1, 2))):
            opened.append((_transpose(codes.shape, order, threads), {"x": codes}))
    sessions, feeds = zip(*opened, strict=True)
    clock = time.thread_time if threads == 1 else time.perf_counter
    timing = interleaved(sessions, feeds, ROUNDS, ROUND_MS, BUDGET_S, clock)
    empty, *times = timing.milliseconds
    dense_ms, *others = [max(ms - empty, LEAST_MS) for ms in times]
    moved = sum(others[len(packings) :])
    return max(dense_ms - moved, LEAST_MS), others[: len(packings)]


def model_times(graphs: Sequence[gs.Graph], feed: Feed, threads: int) -> Timing:
    """Times of whole models that take turns.

    Raises:
        UnsupportedModel: onnxruntime does not take one of them.
    """
    sessions = [open_session(graph, threads=threads) for graph in graphs]
    clock = time.thread_time if threads == 1 else time.perf_counter
    return interleaved(sessions, feed, clock=clock)


def _open(
    nodes: Callable[[QdqLayer, gs.Variable], list[gs.Node]],
    layer: QdqLayer,
    x_shape: Sequence[int],
    threads: int,
) -> Session:
    x = gs.Variable("x", np.uint8, list(x_shape))
    made = nodes(layer, x)
    y = made[-1].outputs[0]
    y.dtype = np.uint8 if layer.quantize is not None else np.float32
    graph = gs.Graph(made, [x], [y], name="layer", opset=OPSET, ir_version=8)
    return open_session(graph, threads=threads)


def _transpose(shape: Sequence[int], order: Sequence[int], threads: int) -> Session:
    x, y = gs.Variable("x", np.uint8, list(shape)), gs.Variable("y", np.uint8)
    node = gs.Node("Transpose", "move", {"perm": list(order)}, [x], [y])
    graph = gs.Graph([node], [x], [y], name="layer", opset=OPSET, ir_version=8)
    return open_session(graph, threads=threads)


def _sparse_nodes(layer: QdqLayer, x: gs.Variable, packed: PackedInt8) -> list[gs.Node]:
    node = gs.Node("Sparse", "layer", {}, [], [gs.Variable("y")])
    make_sparse(node, layer, packed, x, gs.Constant)
    return [node]


def _dense_nodes(layer: QdqLayer, x: gs.Variable) -> list[gs.Node]:
    """The layer as `quantize_static` writes it."""
    is_conv, weight = layer.node.op == "Conv", layer.weight
    nodes: list[gs.Node] = []

    def then(op: str, *inputs: gs.Tensor | Array, **attributes: Any) -> gs.Variable:
        at = len(nodes)
        tensors = [
            gs.Constant(f"{at}.{index}", t) if isinstance(t, np.ndarray) else t
            for index, t in enumerate(inputs)
        ]
        nodes.append(gs.Node(op, f"{at}", attributes, tensors, [gs.Variable(f"y{at}")]))
        return nodes[-1].outputs[0]

    x_zero, zeros = np.asarray(layer.x_zero_point, np.uint8), np.zeros(len(weight), np.int8)
    values = then("DequantizeLinear", x, np.asarray(layer.x_scale), x_zero)
    codes = weight if is_conv else np.ascontiguousarray(weight.T)
    axis = 0 if is_conv else 1
    inputs = [values, then("DequantizeLinear", codes, layer.weight_scale, zeros, axis=axis)]
    if layer.bias is not None and layer.node.op != "MatMul":
        inputs.append(then("DequantizeLinear", layer.bias, layer.sum_scale, axis=0))
    made = then(layer.node.op, *inputs, **(layer.window if is_conv else {}))
    if layer.bias is not None and layer.node.op == "MatMul":
        made = then("Add", made, (layer.bias * layer.sum_scale).astype(np.float32))
    if layer.has_relu:
        made = then("Relu", made)
    if layer.quantize is not None:
        y_zero = np.asarray(layer.y_zero_point, np.uint8)
        then("QuantizeLinear", made, np.asarray(layer.y_scale), y_zero)
    return nodes
