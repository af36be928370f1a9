"""How layers with dynamic activations are written into a graph: one method a form.

    product   y = x W  ->  scale_x * scale_w * (codes_x - zero_x) codes_w, with codes of x made at
              run time; onnxruntime fuses the chain into DynamicQuantizeMatMul, or
              MatMulIntegerToFloat where several layers share x.
    lstm      com.microsoft's DynamicQuantizeLSTM, which makes codes of inputs and states itself.
    lookup    rows of codes times the scale of each row.

DynamicQuantizeLinear knows one scale for a whole tensor, which the largest row dictates: in a
transformer often one token that nothing else depends on. So each row is divided by its largest
value first and its products multiplied by it again: a scale for every row (Yao et al.,
"ZeroQuant", 2022), and answers that hardly depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxcomp.graph import Names, input_at, label
from onnxcomp.opset import opset_of
from onnxcomp.quantization import TINY, Array

CONTRIB = "com.microsoft"
AXES_AS_INPUT = 18  # the opset from which ReduceMax takes its axes as an input
LSTM_INPUTS = 8  # of ONNX's LSTM; the scales of DynamicQuantizeLSTM follow behind


class DynamicWriter:
    """Writes integer layers; inputs and weights that several layers share are quantized once."""

    def __init__(self, graph: gs.Graph, names: Names) -> None:
        self.names, self.opset = names, opset_of(graph) or 0
        self._inputs: dict[tuple[int, str, bool], tuple[list[gs.Variable], gs.Tensor | None]] = {}
        self._shared: dict[str, gs.Constant] = {}

    def constant(self, name: str, values: Array) -> gs.Constant:
        """A new constant; a weight's is to be made once and handed to all that read it."""
        return gs.Constant(self.names.fresh(name), np.ascontiguousarray(values))

    def product(
        self, body: gs.Graph, node: gs.Node, codes: gs.Constant, scale: gs.Constant, by_row: bool
    ) -> None:
        """MatMul or Gemm -> MatMulInteger, scaled; a Gemm's bias is added behind it.

        Args:
            body: the graph that ``node`` is in.
            node: y = x W, with x not transposed.
            codes: int8 [in, out].
            scale: float32 [out] or [].
            by_row: a scale for each row of x, not one for all.
        """
        (codes_x, scale_x, zero_x), size = self._quantized_input(body, node.inputs[0], by_row)
        name, result = label(node), node.outputs[0]
        alpha, beta = (float(node.attrs.get(key, 1.0)) for key in ("alpha", "beta"))
        bias = input_at(node, 2)
        if alpha != 1:
            scale = self._scaled(scale, alpha)
        if bias is not None and beta != 1:
            factor = self._scalar(beta)
            bias = self._add(body, "Mul", f"{name}.beta", [bias, factor])
        sums = self._add(body, "MatMulInteger", name, [codes_x, codes, zero_x], dtype=np.int32)
        real = self._add(body, "Cast", f"{name}.real", [sums], to=TensorProto.FLOAT)
        both = self._add(body, "Mul", f"{name}.scale", [scale_x, scale])
        steps: list[tuple[str, str, gs.Tensor]] = [("Mul", "scaled", both)]
        if size is not None:
            steps.append(("Mul", "rows", size))
        if bias is not None:
            steps.append(("Add", "biased", bias))
        node.inputs.clear()
        node.outputs.clear()
        for op, what, other in steps:
            last = result if what == steps[-1][1] else None
            real = self._add(body, op, f"{name}.{what}", [real, other], last)

    def lstm(
        self, node: gs.Node, codes: Sequence[gs.Constant], scales: Sequence[gs.Constant]
    ) -> None:
        """LSTM -> DynamicQuantizeLSTM.

        Args:
            node: an LSTM of layout 0; inputs, outputs and attributes stay.
            codes: int8 [directions, in, 4 * hidden] of W and [directions, hidden, 4 * hidden] of R.
            scales: float32 [directions, 4 * hidden] of each, or [directions].
        """
        inputs = [*node.inputs] + [gs.Variable.empty()] * (LSTM_INPUTS - len(node.inputs))
        inputs[1:3] = codes
        for scale in scales:
            zero = f"{scale.name}.zero_point"
            if zero not in self._shared:
                self._shared[zero] = self.constant(zero, np.zeros(scale.shape, np.int8))
            inputs += [scale, self._shared[zero]]
        node.op, node.domain, node.inputs = "DynamicQuantizeLSTM", CONTRIB, inputs
        for output in node.outputs:  # custom operators have to say what they give
            output.dtype = np.dtype(np.float32) if output.name else output.dtype
        node.attrs.pop("layout", None)

    def _quantized_input(
        self, body: gs.Graph, tensor: gs.Tensor, by_row: bool
    ) -> tuple[list[gs.Variable], gs.Tensor | None]:
        """(codes, scale, zero point) of an activation, and the sizes its rows were divided by."""
        key = (id(body), tensor.name, by_row)
        if key not in self._inputs:
            values, size = self._normalized(body, tensor) if by_row else (tensor, None)
            outputs = [
                gs.Variable(self.names.fresh(f"{tensor.name}.{what}"), dtype)
                for what, dtype in (
                    ("codes", np.uint8),
                    ("scale", np.float32),
                    ("zero_point", np.uint8),
                )
            ]
            name = self.names.fresh(f"{tensor.name}.quantize")
            body.nodes.append(gs.Node("DynamicQuantizeLinear", name, {}, [values], list(outputs)))
            self._inputs[key] = outputs, size
        return self._inputs[key]

    def _normalized(self, body: gs.Graph, tensor: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor]:
        """x / size and size, the largest absolute value of each row, [..., 1]; never 0."""
        name = tensor.name
        absolute = self._add(body, "Abs", f"{name}.absolute", [tensor])
        axes: dict[str, Any] = {"axes": [-1]} if self.opset < AXES_AS_INPUT else {}
        inputs = [absolute] if axes else [absolute, self._axis()]
        largest = self._add(body, "ReduceMax", f"{name}.largest", inputs, keepdims=1, **axes)
        size = self._add(body, "Max", f"{name}.size", [largest, self._scalar(TINY)])
        return self._add(body, "Div", f"{name}.normalized", [tensor, size]), size

    def _axis(self) -> gs.Constant:
        if "axis" not in self._shared:
            self._shared["axis"] = self.constant("last_axis", np.asarray([-1], np.int64))
        return self._shared["axis"]

    def _scalar(self, value: float) -> gs.Constant:
        key = f"scalar.{value!r}"
        if key not in self._shared:
            self._shared[key] = self.constant(f"constant.{value:g}", np.asarray(value, np.float32))
        return self._shared[key]

    def _scaled(self, scale: gs.Constant, alpha: float) -> gs.Constant:
        key = f"{scale.name}*{alpha!r}"
        if key not in self._shared:
            self._shared[key] = self.constant(scale.name, scale.values * np.float32(alpha))
        return self._shared[key]

    def _add(
        self,
        body: gs.Graph,
        op: str,
        name: str,
        inputs: Sequence[gs.Tensor],
        output: gs.Tensor | None = None,
        dtype: Any = np.float32,
        **attributes: Any,
    ) -> gs.Tensor:
        """Appends a node; its one output."""
        result = output or gs.Variable(self.names.fresh(name), dtype)
        node = gs.Node(op, self.names.fresh(name), attributes, list(inputs), [result])
        body.nodes.append(node)
        return result
