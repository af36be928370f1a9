"""Layers of signs: what multiplies -1 and +1 becomes a count of bits that differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.binary_sites import (
    BinaryLayer,
    Junction,
    binary_layer,
    has_binary_weight,
    junction_of,
    only_read_by,
    sign_path,
)
from onnxcomp.graph import Names, label, producer, remove_unused, sort_nodes
from onnxcomp.kernels import DOMAIN
from onnxcomp.kernels.reference_binary import (
    COMPARISONS,
    Comparison,
    PackedConv,
    PackedGemm,
    pack_conv,
    pack_gemm,
    word_count,
)
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.shapes import infer_shapes
from onnxcomp.sign_sources import SignSource


@dataclass(frozen=True, kw_only=True)
class LowerBinary(Pass):
    """Runs layers whose weights and inputs are -1 and +1 on single bits.

    Attributes:
        sign_of_zero: what Sign is taken to make of a 0: "refuse" leaves layers in float whose
            input is the Sign of floats that could be 0.
    """

    sign_of_zero: Literal["refuse", "positive", "negative"] = "refuse"

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Finds the layers, then writes them from bits to bits; see `Pass.rewrite`."""
        infer_shapes(graph)
        work = _Lowering(graph, self)
        for node in report.visit(graph.nodes):
            if not has_binary_weight(node):
                continue
            reason = work.take(node)
            if reason:
                report.skip(node, reason)
        for layer in work.chosen():
            report.current = label(layer.node)
            report.change(layer.node)
            work.write(layer)
        remove_unused(graph)
        sort_nodes(graph)
        report.count("layers_that_give_bits", work.fused)

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the layers with weights of one magnitude."""
        return [label(node) for node in graph.nodes if has_binary_weight(node)]


class _Lowering:
    """The layers found so far, and the bits written."""

    def __init__(self, graph: gs.Graph, options: LowerBinary) -> None:
        self.graph, self.options = graph, options
        self._names = Names(graph)
        self._signed: dict[int, BinaryLayer] = {}  # whose sums are integers
        self._taken: dict[int, BinaryLayer] = {}  # of these, those that are lowered
        self._folded: dict[int, tuple[Junction, gs.Variable]] = {}  # by layer, with the signs
        self._bits: dict[str, gs.Variable] = {}  # of tensors of signs

    @property
    def fused(self) -> int:
        """The number of layers whose sums never leave the operator."""
        return len(self._folded)

    def take(self, node: gs.Node) -> str:
        """Chooses a layer; says why not, where it is left in float."""
        options = self.options.options_for(node)
        path = sign_path(node.inputs[0])
        if path is None:
            return "its input is not made of signs"
        layer = binary_layer(node)
        if isinstance(layer, str):
            return layer
        self._signed[id(node)] = layer
        if options is None:
            return "the recipe says so"
        source = path[0]
        if not source.zero_counts and options.sign_of_zero == "refuse":
            junction = junction_of(self.graph, source, self._signed)
            if not isinstance(junction, Junction):
                known = junction or "it reads floats"
                return f"{label(source.node)} makes 0 of a 0, which no bit stands for: {known}"
        self._taken[id(node)] = layer
        return ""

    def chosen(self) -> list[BinaryLayer]:
        """The layers to write, in the order of the graph; which give bits is settled first."""
        taken = set(self._taken)
        for layer in self._taken.values():
            source, _ = self._path(layer.node.inputs[0])
            signs = source.node.outputs[0]
            junction = junction_of(self.graph, source, self._taken)
            if isinstance(junction, Junction) and only_read_by(self.graph, signs, taken):
                self._folded[id(junction.layer.node)] = junction, signs
        return list(self._taken.values())

    def write(self, layer: BinaryLayer) -> None:
        """Makes a layer's node the binary operator, to bits or to floats."""
        node, weight = layer.node, layer.node.inputs[1].name
        bits = self._bits_of(node.inputs[0])
        directions, numbers, kind = np.ones(len(layer.scale), np.int8), [], ""
        if id(node) in self._folded:
            junction, signs = self._folded[id(node)]
            directions, kind = junction.folded.directions, "Signs"
            numbers = [self._constant(f"{weight}.thresholds", junction.folded.thresholds)]
            node.outputs.clear()
            node.outputs.append(self._words(signs))
            self._bits[signs.name] = node.outputs[0]
        elif layer.bias is not None or (layer.scale != 1).any():
            numbers = [self._constant(f"{weight}.scale", layer.scale)]
            if layer.bias is not None:
                numbers.append(self._constant(f"{weight}.bias", layer.bias))
        packed = self._pack(layer, directions)
        node.op = f"Binary{'Conv' if layer.weight.ndim == 4 else 'Gemm'}{kind}"
        node.domain = DOMAIN
        node.attrs = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in packed.attributes.items()
        }
        node.inputs.clear()
        node.inputs.extend([bits, self._constant(f"{weight}.bits", packed.bits), *numbers])

    def _path(self, tensor: gs.Tensor) -> tuple[SignSource, list[gs.Node]]:
        found = sign_path(tensor)
        assert found is not None  # `take` saw to it
        return found

    def _bits_of(self, tensor: gs.Tensor) -> gs.Variable:
        if tensor.name not in self._bits:
            source, path = self._path(tensor)
            self._bits[tensor.name] = self._moved(path[0]) if path else self._compared(source)
        return self._bits[tensor.name]

    def _moved(self, node: gs.Node) -> gs.Variable:
        """The bits behind a MaxPool, Flatten or Reshape."""
        came, made = self._bits_of(node.inputs[0]), node.outputs[0]
        bits = self._words(made)
        if node.op != "MaxPool":
            bits.shape = [made.shape[0], int(np.prod(came.shape[1:]))]
            self._add("Flatten", None, [came], bits, axis=1)
            return bits
        window = {
            "kernel_shape": list(node.attrs["kernel_shape"]),
            "strides": list(node.attrs.get("strides", [1, 1])),
            "pads": list(node.attrs.get("pads", [0] * 4)),
        }
        self._add("BinaryMaxPool", DOMAIN, [came], bits, **window)
        return bits

    def _compared(self, source: SignSource) -> gs.Variable:
        """The bits of a comparison of floats."""
        signs = source.node.outputs[0]
        bits = self._words(signs)
        comparison: Comparison = source.comparison
        if not source.zero_counts and self.options.sign_of_zero == "positive":
            comparison = "greater_or_equal"
        inputs = [source.tensor]
        if source.levels.any():
            inputs.append(self._constant(f"{signs.name}.thresholds", source.levels))
        number = COMPARISONS.index(comparison)
        self._add("PackSigns", DOMAIN, inputs, bits, comparison=number)
        return bits

    def _pack(self, layer: BinaryLayer, directions: Any) -> PackedConv | PackedGemm:
        attrs = layer.node.attrs
        if layer.weight.ndim == 2:
            flat = producer(layer.node.inputs[0])
            spatial = [1]
            if flat is not None and flat.op in ("Flatten", "Reshape"):
                spatial = flat.inputs[0].shape[2:]
            return pack_gemm(layer.weight * directions, positions=int(np.prod(spatial)))
        return pack_conv(
            layer.weight * directions.reshape(-1, 1, 1, 1),
            group=attrs.get("group", 1),
            strides=tuple(attrs.get("strides", (1, 1))),
            pads=tuple(attrs.get("pads", (0, 0, 0, 0))),
            dilations=tuple(attrs.get("dilations", (1, 1))),
        )

    def _words(self, signs: gs.Variable) -> gs.Variable:
        shape = list(signs.shape)
        shape[1] = word_count(shape[1]) if isinstance(shape[1], int) else None
        return gs.Variable(self._names.fresh(f"{signs.name}.bits"), np.uint64, shape)

    def _constant(self, name: str, values: Any) -> gs.Constant:
        return gs.Constant(self._names.fresh(name), np.ascontiguousarray(values))

    def _add(
        self,
        operator: str,
        domain: str | None,
        inputs: list[gs.Tensor],
        output: gs.Variable,
        **attributes: Any,
    ) -> None:
        name = self._names.fresh(f"{output.name}.{operator}")
        self.graph.nodes.append(gs.Node(operator, name, attributes, inputs, [output], domain))
