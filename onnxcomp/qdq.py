"""Writes a plan into a graph as QuantizeLinear / DequantizeLinear pairs (ONNX opset 13).

Runtimes fuse DequantizeLinear -> operator -> QuantizeLinear into one integer kernel, so each tensor
with codes gets one pair, and the weights of layers are stored as codes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import (
    Names,
    is_constant,
    is_output,
    producer,
    remove_unused,
    replace_uses,
    sort_nodes,
)
from onnxcomp.integer_forms import keep_gelu_whole
from onnxcomp.placement import Plan
from onnxcomp.quantization import (
    Affine,
    Array,
    bias_codes,
    least_weight_scale,
    rounding_bias,
    symmetric,
)
from onnxcomp.statistics import Range
from onnxcomp.targets import Role, Target
from onnxcomp.uncoded_layers import keep_uncoded
from onnxcomp.units import Unit, clip_bounds, normalization, output_gain, written_operand


@dataclass
class Quantized:
    """A tensor in three forms.

    Attributes:
        name: as in the plan.
        tensor: what a unit or float node makes; has another name if ``name`` is a graph output.
        codes: behind QuantizeLinear.
        dequantized: behind DequantizeLinear; the tensor itself where it is a graph output.
    """

    name: str
    tensor: gs.Tensor
    codes: gs.Variable
    dequantized: gs.Tensor


@dataclass
class Writer:
    """Writes one plan.

    Attributes:
        graph: the graph that was planned on; changed in place.
        plan: what to quantize.
        scales: parameters of each scale of the plan, by name.
        target: for the number of weight bits and the dtype of constants.
        per_channel: whether a layer's weights get a scale for each output channel.
        means: of the inputs of layers, [in_channels], by name and channel axis; the biases of
            layers that read those make up for what rounding the weights adds to the mean.
        weight_bits: of each layer's weights; None for as many as the target takes.
    """

    graph: gs.Graph
    plan: Plan
    scales: Mapping[str, Affine]
    target: Target
    per_channel: Callable[[gs.Node], bool]
    means: Mapping[tuple[str, int], Array] = field(default_factory=dict)
    weight_bits: Callable[[Unit], int] | None = None
    names: Names = field(init=False)

    def __post_init__(self) -> None:
        self.names = Names(self.graph)
        self._parameters: dict[str, list[gs.Constant]] = {}
        self._weights: dict[tuple[str, int | None], tuple[gs.Variable, Affine]] = {}

    def write(self) -> None:
        """Changes the graph; afterwards it is sorted and free of unused nodes."""
        floors = self._least_scales()
        for unit in self.plan.units:
            self._fold_activation(unit)
            if unit.operator.role is Role.LAYER:
                self._write_layer(unit, floors)
        tensors = self.graph.tensors()
        made = {t.name: unit for unit in self.plan.units for t in unit.outputs}
        forms = {name: self._forms(tensors[name], name in made) for name in self.plan.shared}
        for unit in self.plan.units:
            self._read_codes(unit, forms)
        for name, form in forms.items():
            self._write_pair(form, made.get(name))
        if self.target.splits_dequantized:
            keep_gelu_whole(self.graph, self.names)
        if self.target.codes_weights:
            keep_uncoded(self.graph, self.names)
        sort_nodes(self.graph)
        remove_unused(self.graph)

    # --- activations ----------------------------------------------------------------------------

    def _fold_activation(self, unit: Unit) -> None:
        if self.target.symmetric or not self._stands_for_activation(unit):
            return  # it is kept, and the pair stands behind it
        activation, unit.activation = unit.activation, None
        if activation is not None:
            outputs = list(activation.outputs)
            activation.outputs.clear()
            activation.inputs.clear()
            unit.node.outputs = outputs
            self.graph.nodes.remove(activation)

    def _stands_for_activation(self, unit: Unit) -> bool:
        """Whether the codes of a unit's output end where the Relu or Clip behind it does."""
        if unit.activation is None:
            return True
        low, high = clip_bounds(unit.activation)
        found = self._affine_of(unit.outputs[0].name)
        return bool(low <= found.low + found.scale / 2 and found.high <= high + found.scale / 2)

    def _forms(self, tensor: gs.Tensor, made_by_unit: bool) -> Quantized:
        dtype = self._affine_of(tensor.name).dtype
        codes = self._variable(f"{tensor.name}.codes", dtype, tensor)
        if made_by_unit and is_output(self.graph, tensor):
            raw = self._variable(f"{tensor.name}.float", tensor.dtype, tensor)
            node = producer(tensor)
            assert node is not None
            replace_output(node, tensor, raw)
            return Quantized(tensor.name, raw, codes, tensor)
        dequantized = self._variable(f"{tensor.name}.dequantized", tensor.dtype, tensor)
        return Quantized(tensor.name, tensor, codes, dequantized)

    def _read_codes(self, unit: Unit, forms: Mapping[str, Quantized]) -> None:
        """Points the inputs of a unit at what was quantized."""
        if unit.operator.written_as:
            self._rewrite(unit)
        for index in unit.inputs:
            tensor = unit.node.inputs[index]
            if is_constant(tensor):
                unit.node.inputs[index] = self._quantized_constant(tensor)
            elif unit.operator.on_codes:
                unit.node.inputs[index] = forms[tensor.name].codes
                if unit.node.op == "Pad":
                    self._pad_with_zero_point(unit.node, self._affine_of(tensor.name))
            else:
                unit.node.inputs[index] = forms[tensor.name].dequantized

    def _rewrite(self, unit: Unit) -> None:
        """Makes a node the operator that it is written as, most with one constant operand."""
        node, name = unit.node, unit.node.outputs[0].name
        if unit.operator.written_as == "LeakyRelu":
            node.op, node.attrs, node.inputs = "LeakyRelu", {"alpha": 0.0}, node.inputs[:1]
            return
        if unit.operator.written_as == "Conv":
            self._write_normalization(node)
            return
        operand = self._constant(f"{name}.operand", written_operand(node))
        unit.output_gain = output_gain(node, unit.operator)
        node.op, node.attrs = unit.operator.written_as, {}
        node.inputs = [node.inputs[0], operand]
        unit.inputs = (0, 1)

    def _write_normalization(self, node: gs.Node) -> None:
        """Its one weight for each channel has a code without error."""
        factor, shift = normalization(node)
        name, data, kernel = node.outputs[0].name, node.inputs[0], len(node.inputs[0].shape) - 2
        weights = factor.astype(np.float32).reshape(-1, 1, *[1] * kernel)
        seen = self._affine_of(data.name).scale
        parameters = symmetric(weights, 0, least_weight_scale(shift, seen))
        codes = self._constant(f"{name}.weight.codes", parameters.quantize(weights))
        dequantized = self._dequantized(f"{name}.weight", codes, parameters, weights)
        bias = self._dequantized_bias(f"{name}.bias", shift, seen * parameters.scale)
        node.op, node.inputs = "Conv", [data, dequantized, bias]
        node.attrs = {"group": len(factor), "kernel_shape": [1] * kernel}

    def _pad_with_zero_point(self, node: gs.Node, parameters: Affine) -> None:
        if node.attrs.get("mode", "constant") != "constant":
            return
        code = self._constant(f"{node.outputs[0].name}.padding", parameters.zero_point)
        if len(node.inputs) > 2:
            node.inputs[2] = code
        else:
            node.inputs.append(code)

    def _write_pair(self, form: Quantized, unit: Unit | None) -> None:
        parameters = self._parameters_of(form.name)
        if unit is not None and form.dequantized.name != form.name:
            replace_uses(self.graph, form.tensor, form.dequantized)
        if unit is not None and unit.operator.on_codes:
            replace_output(unit.node, form.tensor, form.codes)
        else:
            written = parameters if unit is None else self._before_gain(parameters, unit)
            self._node("QuantizeLinear", [form.tensor, *written], form.codes)
        self._node("DequantizeLinear", [form.codes, *parameters], form.dequantized)

    def _before_gain(self, parameters: list[gs.Constant], unit: Unit) -> list[gs.Constant]:
        """The parameters to write codes with that are read with ``parameters``."""
        if unit.output_gain == 1.0:
            return parameters
        scale = np.asarray(parameters[0].values / np.float32(unit.output_gain))
        name = f"{unit.node.outputs[0].name}.before_gain.scale"
        return [self._constant(name, scale), parameters[1]]

    def _quantized_constant(self, tensor: gs.Constant) -> gs.Variable:
        """One scale for a constant operand of Add, Mul or Concat."""
        key = (tensor.name, None)
        if key not in self._weights:
            seen = Range(tensor.values.min(initial=0.0), tensor.values.max(initial=0.0))
            parameters = self.target.activation_parameters(seen)
            self._weights[key] = self._write_constant(tensor, parameters, 8)
        return self._weights[key][0]

    # --- layers ---------------------------------------------------------------------------------

    def _axis(self, unit: Unit) -> int | None:
        return unit.output_axis if self.per_channel(unit.node) else None

    def _bits(self, unit: Unit) -> int:
        return self.target.weight_bits if self.weight_bits is None else self.weight_bits(unit)

    def _least_scales(self) -> dict[tuple[str, int | None], Array]:
        """The smallest scale each weight may have for the biases of all layers that use it."""
        floors: dict[tuple[str, int | None], Array] = {}
        for unit in self.plan.units:
            bias = unit.bias_values
            if bias is None:
                continue
            key = (unit.node.inputs[1].name, self._axis(unit))
            floor = least_weight_scale(bias, self._affine_of(unit.node.inputs[0].name).scale)
            least = floor if key[1] is not None else floor.max(initial=0.0)
            floors[key] = np.maximum(floors.get(key, 0.0), least)
        return floors

    def _write_layer(self, unit: Unit, floors: Mapping[tuple[str, int | None], Array]) -> None:
        weights, bits = unit.node.inputs[1], self._bits(unit)
        key = (weights.name, self._axis(unit))
        if key not in self._weights:
            parameters = symmetric(weights.values, key[1], floors.get(key, 0.0), bits)
            self._weights[key] = self._write_constant(weights, parameters, bits)
        dequantized, parameters = self._weights[key]
        bias = self._corrected_bias(unit, parameters)
        unit.node.inputs[1] = dequantized
        if bias is not None:
            self._write_bias(unit, bias, parameters)

    def _corrected_bias(self, unit: Unit, parameters: Affine) -> Array | None:
        """The bias of a layer plus what rounding its weights takes from the mean of its output."""
        bias = unit.bias_values
        means = self.means.get((unit.node.inputs[0].name, unit.channel_axis))
        if means is None or unit.adder is None or not unit.means_give_bias:
            return bias
        weights = unit.node.inputs[1].values
        rounded = parameters.dequantize(parameters.quantize(weights, self._bits(unit)))
        if unit.output_axis == 1:
            weights, rounded = weights.T, rounded.T
        shift = rounding_bias(weights, rounded, means, unit.node.attrs.get("group", 1))
        return shift if bias is None else bias + shift

    def _write_bias(self, unit: Unit, bias: Array, weights: Affine) -> None:
        adder, index = unit.adder, unit.bias_index
        assert adder is not None
        name = f"{unit.node.outputs[0].name}.bias" if unit.bias is None else unit.bias.name
        if unit.has_integer_bias and self.target.integer_bias:
            scale = self._affine_of(unit.node.inputs[0].name).scale * weights.scale
            written: gs.Tensor = self._dequantized_bias(name, bias, scale)
        else:
            written = self._constant(f"{name}.corrected", bias.astype(np.float32))
        if index < len(adder.inputs):
            adder.inputs[index] = written
        else:
            adder.inputs.append(written)

    def _dequantized_bias(self, name: str, bias: Array, scale: Array) -> gs.Variable:
        parameters = Affine(scale, np.zeros(scale.shape, np.int32), 0 if scale.ndim else None)
        codes = self._constant(f"{name}.codes", bias_codes(bias, scale))
        return self._dequantized(name, codes, parameters, bias)

    # --- nodes and constants --------------------------------------------------------------------

    def _write_constant(
        self, tensor: gs.Constant, parameters: Affine, bits: int
    ) -> tuple[gs.Variable, Affine]:
        codes = self._constant(f"{tensor.name}.codes", parameters.quantize(tensor.values, bits))
        return self._dequantized(tensor.name, codes, parameters, tensor), parameters

    def _dequantized(
        self, name: str, codes: gs.Constant, parameters: Affine, like: Any
    ) -> gs.Variable:
        result = self._variable(f"{name}.dequantized", np.dtype(np.float32), like)
        inputs = [codes, *self._constants_of(name, parameters)]
        self._node("DequantizeLinear", inputs, result, parameters.axis)
        return result

    def _affine_of(self, name: str) -> Affine:
        return self.scales[self.plan.shared[name]]

    def _parameters_of(self, name: str) -> list[gs.Constant]:
        """The constants <tensor>.scale and <tensor>.zero_point, one pair for each shared scale."""
        scale = self.plan.shared[name]
        if scale not in self._parameters:
            self._parameters[scale] = self._constants_of(scale, self.scales[scale])
        return self._parameters[scale]

    def _constants_of(self, name: str, parameters: Affine) -> list[gs.Constant]:
        return [
            self._constant(f"{name}.scale", parameters.scale),
            self._constant(f"{name}.zero_point", parameters.zero_point),
        ]

    def _constant(self, name: str, values: Array) -> gs.Constant:
        return gs.Constant(self.names.fresh(name), np.asarray(values))

    def _variable(self, name: str, dtype: Any, like: Any) -> gs.Variable:
        return gs.Variable(self.names.fresh(name), dtype=dtype, shape=like.shape)

    def _node(
        self, op: str, inputs: Iterable[gs.Tensor], output: gs.Tensor, axis: int | None = None
    ) -> None:
        attrs = {} if axis is None else {"axis": axis}
        name = self.names.fresh(f"{output.name}.{op}")
        self.graph.nodes.append(
            gs.Node(op, name, attrs=attrs, inputs=list(inputs), outputs=[output])
        )


def replace_output(node: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    """Makes ``node`` write ``new`` where it wrote ``old``."""
    node.outputs[[t.name for t in node.outputs].index(old.name)] = new
