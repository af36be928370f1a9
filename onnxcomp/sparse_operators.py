"""How fast operators that skip zeros are here, beside those that do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.blocked_channels import reorders
from onnxcomp.layer_latency import EMPTY, LEAST_MS, OPSET
from onnxcomp.qdq_layers import QdqLayer
from onnxcomp.quantization import Array
from onnxcomp.runtime import Feed, Session, open_session
from onnxcomp.sparse_forms import Layer, SparseForm, make_sparse
from onnxcomp.timing import clock_for, interleaved

ROUNDS, ROUND_MS, BUDGET_S = 15, 1.5, 2.0
NEAR = 0.9, 1.05  # of the dense layer's time: what is within is timed once more


def layer_times(
    layer: Layer, forms: Sequence[SparseForm], x_shape: Sequence[int], threads: int
) -> tuple[float, list[float]]:
    """Milliseconds of a layer with its zeros and of each of its sparse forms, run by turns.

    The least of many short turns counts, which other work on the machine changes little. What an
    empty model takes is subtracted. onnxruntime runs a Conv of codes with channels last, and one of
    floats with blocks of channels; what it needs to move around one that is alone, and hardly any
    of in a whole model, is subtracted from its time, too.

    Raises:
        UnsupportedModel: onnxruntime does not take one of them.
    """
    x = _made_up(layer, x_shape)
    dense = _open(_dense_nodes, layer, x, threads)
    (y,) = dense.run({"x": x})
    opened: list[tuple[Session, Feed]] = [EMPTY.open(threads), (dense, {"x": x})]
    for form in forms:
        opened.append((_open(partial(_sparse_nodes, form=form), layer, x, threads), {"x": x}))
    if layer.node.op == "Conv" and y.dtype == np.uint8:
        last = (0, *range(2, y.ndim), 1)
        for codes, order in ((x, last), (y.transpose(last), np.argsort(last).tolist())):
            opened.append((_transpose(codes.shape, order, threads), {"x": codes}))
    elif layer.node.op == "Conv" and x.dtype == np.float32 and x.ndim == 4:
        opened += reorders(layer.weight.shape, layer.group, x, y, threads)
    least = _least_ms(opened, threads)
    dense_ms, sparse_ms = _apart(least, len(forms))
    if NEAR[0] * dense_ms < min(sparse_ms) < NEAR[1] * dense_ms:
        least = np.minimum(least, _least_ms(opened, threads))
    return _apart(least, len(forms))


def _least_ms(opened: Sequence[tuple[Session, Feed]], threads: int) -> Array:
    sessions, feeds = zip(*opened, strict=True)
    timing = interleaved(sessions, feeds, ROUNDS, ROUND_MS, BUDGET_S, clock_for(threads))
    return np.asarray(timing.fastest_ms)


def _apart(least: Array, forms: int) -> tuple[float, list[float]]:
    """Times of the dense layer and of its forms, of those that `layer_times` opens."""
    dense_ms, *others = np.maximum(least[1:] - least[0], LEAST_MS).tolist()
    return max(dense_ms - sum(others[forms:]), LEAST_MS), others[:forms]


def _made_up(layer: Layer, shape: Sequence[int]) -> Array:
    """What a layer may read: codes, or floats."""
    rng = np.random.default_rng(0)
    if isinstance(layer, QdqLayer):
        return rng.integers(0, 256, tuple(shape)).astype(np.uint8)
    return rng.standard_normal(tuple(shape), np.float32)


def _open(
    nodes: Callable[[Layer, gs.Variable], list[gs.Node]], layer: Layer, x: Array, threads: int
) -> Session:
    variable = gs.Variable("x", x.dtype.type, list(x.shape))
    made = nodes(layer, variable)
    y = made[-1].outputs[0]
    to_codes = isinstance(layer, QdqLayer) and layer.quantize is not None
    y.dtype = np.uint8 if to_codes else np.float32
    graph = gs.Graph(made, [variable], [y], name="layer", opset=OPSET, ir_version=8)
    return open_session(graph, threads=threads)


def _transpose(shape: Sequence[int], order: Sequence[int], threads: int) -> Session:
    x, y = gs.Variable("x", np.uint8, list(shape)), gs.Variable("y", np.uint8)
    node = gs.Node("Transpose", "move", {"perm": list(order)}, [x], [y])
    graph = gs.Graph([node], [x], [y], name="layer", opset=OPSET, ir_version=8)
    return open_session(graph, threads=threads)


def _sparse_nodes(layer: Layer, x: gs.Variable, form: SparseForm) -> list[gs.Node]:
    node = gs.Node("Sparse", "layer", {}, [], [gs.Variable("y")])
    make_sparse(node, form, x, gs.Constant)
    return [node]


class _Chain:
    """Nodes each of which reads, among others, what one before it made."""

    def __init__(self) -> None:
        self.nodes: list[gs.Node] = []

    def then(self, op: str, *inputs: gs.Tensor | Array, **attributes: Any) -> gs.Variable:
        """One more node; what it makes."""
        at = len(self.nodes)
        tensors = [
            gs.Constant(f"{at}.{index}", t) if isinstance(t, np.ndarray) else t
            for index, t in enumerate(inputs)
        ]
        self.nodes.append(gs.Node(op, f"{at}", attributes, tensors, [gs.Variable(f"y{at}")]))
        return self.nodes[-1].outputs[0]


def _float_inputs(
    chain: _Chain, layer: Layer, x: gs.Variable, weight: Array
) -> tuple[list[gs.Tensor | Array], gs.Tensor | Array | None]:
    """Input and weights of a layer, and its bias, codes behind DequantizeLinear."""
    if not isinstance(layer, QdqLayer):
        return [x, weight], layer.bias
    x_zero, zeros = np.asarray(layer.x_zero_point, np.uint8), np.zeros(len(layer.weight), np.int8)
    axis = 0 if layer.node.op == "Conv" else 1
    inputs: list[gs.Tensor | Array] = [
        chain.then("DequantizeLinear", x, np.asarray(layer.x_scale), x_zero),
        chain.then("DequantizeLinear", weight, layer.weight_scale, zeros, axis=axis),
    ]
    if layer.bias is None:
        return inputs, None
    if layer.node.op == "MatMul":  # an Add takes floats
        return inputs, (layer.bias * layer.sum_scale).astype(np.float32)
    return inputs, chain.then("DequantizeLinear", layer.bias, layer.sum_scale, axis=0)


def _dense_nodes(layer: Layer, x: gs.Variable) -> list[gs.Node]:
    """The layer by operators of ONNX, codes as `quantize_static` writes them."""
    chain, op = _Chain(), layer.node.op
    weight = layer.weight if op == "Conv" else np.ascontiguousarray(layer.weight.T)
    inputs, bias = _float_inputs(chain, layer, x, weight)
    if bias is not None and op != "MatMul":
        inputs.append(bias)
    made = chain.then(op, *inputs, **(layer.window if op == "Conv" else {}))
    if bias is not None and op == "MatMul":
        made = chain.then("Add", made, bias)
    if layer.has_relu:
        made = chain.then("Relu", made)
    if isinstance(layer, QdqLayer) and layer.quantize is not None:
        y_zero = np.asarray(layer.y_zero_point, np.uint8)
        chain.then("QuantizeLinear", made, np.asarray(layer.y_scale), y_zero)
    return chain.nodes
