"""Dynamic INT8: weights as codes, activations quantized at run time; needs no samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import (
    Names,
    all_graphs,
    consumers,
    is_constant,
    is_standard,
    label,
    producer,
    remove_unused,
    sort_nodes,
)
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.quantization import Affine, symmetric
from onnxcomp.targets import Target

LAYERS = ("MatMul", "Gemm")
STAY_FLOAT = {
    "Conv": "onnxruntime's ConvInteger is slower than its float Conv",
    "ConvTranspose": "onnxruntime has no integer kernel for it",
    "LSTM": "recurrent: errors of its state add up over time",
    "GRU": "recurrent: errors of its state add up over time",
    "RNN": "recurrent: errors of its state add up over time",
}


@dataclass(frozen=True, kw_only=True)
class QuantizeDynamic(Pass):
    """Runs MatMul in 8-bit integers with ranges measured at run time (dynamic INT8).

    y = x W becomes scale_x * scale_w * (codes_x - zero_x) codes_w, and a lookup in an embedding a
    lookup of codes and of their scale.

    Attributes:
        per_channel: one scale for each output channel of a weight, not one for all.
        embeddings: store tables that Gather reads as codes too, with one scale a row.
        smallest_weight: layers with fewer weights than this stay in float.
    """

    per_channel: bool = True
    embeddings: bool = True
    smallest_weight: int = 1024

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.smallest_weight < 0:
            raise ValueError(f"smallest_weight must not be negative, not {self.smallest_weight}")

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the MatMul, Gemm and Gather nodes with a constant float weight."""
        found = []
        for body in all_graphs(graph):
            for node in body.nodes:
                if _weight(node) is not None and not self._refusal(node):
                    found.append(label(node))
        return found

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Replaces each layer by integer operators; see `Pass.rewrite`."""
        writer = _Writer(Names(graph), context.target)
        for body in all_graphs(graph):
            before = len(report.changed)
            for node in report.visit(body.nodes):
                mine = self.options_for(node)
                refusal = "the recipe says so" if mine is None else mine._refusal(node)
                if mine is None or refusal:
                    if refusal and (node.op in STAY_FLOAT or node.op in (*LAYERS, "Gather")):
                        report.skip(node, refusal)
                    continue
                if _weight(node) is None:
                    continue
                if node.op == "Gather":
                    writer.look_up(body, node)
                else:
                    writer.multiply(body, node, mine.per_channel)
                report.change(node)
            if len(report.changed) > before:
                sort_nodes(body)
                remove_unused(body)

    def _refusal(self, node: gs.Node) -> str:
        """Why a node stays as it is; empty for those to change and those of no concern."""
        if not is_standard(node):
            return ""
        if node.op in STAY_FLOAT:
            return STAY_FLOAT[node.op]
        if node.op == "Gather":
            return self._refuse_table(node)
        if node.op not in LAYERS:
            return ""
        weight = _weight(node)
        if weight is None:
            return _no_weight(node)
        if np.prod(weight.shape) < self.smallest_weight:
            return f"only {np.prod(weight.shape):,} weights"
        if node.op == "Gemm" and node.attrs.get("transA", 0):
            return "its input is transposed"
        return ""

    def _refuse_table(self, node: gs.Node) -> str:
        table = _weight(node)
        if table is None or np.prod(table.shape) < self.smallest_weight:
            return ""
        if not self.embeddings:
            return "embeddings are left alone"
        if node.attrs.get("axis", 0) != 0 or len(table.shape) != 2:
            return "not a lookup of rows"
        if any(reader.op != "Gather" for reader in consumers(table)):
            return "its table is also read by another operator"
        return ""


def _weight(node: gs.Node) -> gs.Constant | None:
    """The constant float32 matrix of a layer, or the table of a Gather."""
    if not is_standard(node) or node.op not in (*LAYERS, "Gather"):
        return None
    weight = node.inputs[0 if node.op == "Gather" else 1]
    fits = is_constant(weight) and weight.dtype == np.float32 and len(weight.shape) == 2
    return weight if fits else None


def _no_weight(node: gs.Node) -> str:
    weight = node.inputs[1]
    maker = producer(weight)
    if maker is not None and maker.op == "DequantizeLinear":
        return "quantized already"
    if not is_constant(weight):
        return "both factors are computed"
    return f"its weight is {weight.dtype} of {len(weight.shape)} axes, not a float32 matrix"


class _Writer:
    """Writes integer layers; weights and inputs that several layers share are quantized once."""

    def __init__(self, names: Names, target: Target) -> None:
        self.names, self.target = names, target
        self.inputs: dict[tuple[int, str], tuple[gs.Variable, gs.Variable, gs.Variable]] = {}
        self.weights: dict[tuple[str, bool, bool], tuple[gs.Constant, gs.Constant]] = {}

    def multiply(self, body: gs.Graph, node: gs.Node, per_channel: bool) -> None:
        """MatMul or Gemm -> MatMulInteger, scaled; a Gemm's bias is added behind it."""
        codes_x, scale_x, zero_x = self._quantized_input(body, node.inputs[0])
        codes, scale = self._quantized_matrix(node, per_channel)
        name, result = label(node), node.outputs[0]
        sums = self._add(body, "MatMulInteger", name, [codes_x, codes, zero_x], np.int32)
        real = self._add(body, "Cast", f"{name}.real", [sums], np.float32, to=1)
        both = self._add(body, "Mul", f"{name}.scale", [scale_x, scale], np.float32)
        bias = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
        node.inputs.clear()
        node.outputs.clear()
        if bias is None:
            self._add(body, "Mul", f"{name}.scaled", [real, both], np.float32, result)
            return
        scaled = self._add(body, "Mul", f"{name}.scaled", [real, both], np.float32)
        self._add(body, "Add", f"{name}.biased", [scaled, bias], np.float32, result)

    def look_up(self, body: gs.Graph, node: gs.Node) -> None:
        """Gather of float rows -> Gather of codes times Gather of the rows' scales."""
        table, rows, name = node.inputs[0], node.inputs[1], label(node)
        key = (table.name, True, False)
        if key not in self.weights:
            parameters = symmetric(table.values, 0)
            codes = parameters.quantize(table.values)
            self.weights[key] = self._constants(table, codes, parameters.scale[:, None])
        codes, scale = self.weights[key]
        result = node.outputs[0]
        node.inputs.clear()
        node.outputs.clear()
        picked = self._add(body, "Gather", name, [codes, rows], np.int8, axis=0)
        real = self._add(body, "Cast", f"{name}.real", [picked], np.float32, to=1)
        scales = self._add(body, "Gather", f"{name}.scale", [scale, rows], np.float32, axis=0)
        self._add(body, "Mul", f"{name}.scaled", [real, scales], np.float32, result)

    def _quantized_input(
        self, body: gs.Graph, tensor: gs.Tensor
    ) -> tuple[gs.Variable, gs.Variable, gs.Variable]:
        """(codes, scale, zero point) of an activation, made at run time."""
        key = (id(body), tensor.name)
        if key not in self.inputs:
            outputs = (
                gs.Variable(self.names.fresh(f"{tensor.name}.codes"), np.uint8),
                gs.Variable(self.names.fresh(f"{tensor.name}.scale"), np.float32),
                gs.Variable(self.names.fresh(f"{tensor.name}.zero_point"), np.uint8),
            )
            name = self.names.fresh(f"{tensor.name}.quantize")
            body.nodes.append(
                gs.Node("DynamicQuantizeLinear", name, inputs=[tensor], outputs=list(outputs))
            )
            self.inputs[key] = outputs
        return self.inputs[key]

    def _quantized_matrix(
        self, node: gs.Node, per_channel: bool
    ) -> tuple[gs.Constant, gs.Constant]:
        """int8 codes [in, out] and float32 scale [out] or [] of a layer's weight."""
        weight, transposed = node.inputs[1], bool(node.attrs.get("transB", 0))
        bias = len(node.inputs) > 2
        if bias and float(node.attrs.get("beta", 1.0)) != 1.0:
            scaled = np.asarray(node.inputs[2].values * np.float32(node.attrs["beta"]))
            name = self.names.fresh(f"{node.inputs[2].name}.scaled")
            node.inputs[2] = gs.Constant(name, scaled)
        alpha = np.float32(node.attrs.get("alpha", 1.0))
        key = (f"{weight.name}*{alpha}", per_channel, transposed)
        if key not in self.weights:
            values = weight.values.T if transposed else weight.values
            bits = self.target.weight_bits
            parameters: Affine = symmetric(values, 1 if per_channel else None, bits=bits)
            codes = np.ascontiguousarray(parameters.quantize(values, bits))
            self.weights[key] = self._constants(weight, codes, parameters.scale * alpha)
        return self.weights[key]

    def _constants(
        self, weight: gs.Constant, codes: np.ndarray, scale: np.ndarray
    ) -> tuple[gs.Constant, gs.Constant]:
        return (
            gs.Constant(self.names.fresh(f"{weight.name}.codes"), codes),
            gs.Constant(self.names.fresh(f"{weight.name}.scale"), np.asarray(scale, np.float32)),
        )

    def _add(
        self,
        body: gs.Graph,
        op: str,
        name: str,
        inputs: list[gs.Tensor],
        dtype: type,
        output: gs.Tensor | None = None,
        **attributes: int,
    ) -> gs.Tensor:
        """Appends a node; its one output."""
        result = output or gs.Variable(self.names.fresh(name), dtype)
        node = gs.Node(op, self.names.fresh(name), attributes, list(inputs), [result])
        body.nodes.append(node)
        return result
