"""Which nodes run on codes, and which tensors share a scale: the plan of a static quantization.

Nothing is changed here; `qdq.py` writes the plan into the graph.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import consumers, is_constant, is_output, is_standard, label, volume
from onnxcomp.targets import Operator, Role, Target
from onnxcomp.units import (
    Unit,
    activation_inputs,
    adds_bias,
    clip_bounds,
    foldable,
    is_concerned,
    is_foreign_layer,
    is_product,
    output_bounds,
    reason_against,
    saturates,
)

UNBOUNDED = (-math.inf, math.inf)
SMALLEST_TABLE = 1024  # elements of an embedding; below, its scales outweigh what codes save
NO_GAIN = "its neighbours are float: nothing to gain"
FOREIGN = "an operator of {}: quantize the model as it was before operators were fused"
SLOW = "its {}: slower in integers here"
PRODUCT = "both factors are activations: hardly faster in integers, and less faithful"
CONSTANT_ON_THE_LEFT = "its weights are on the left: hardly faster in integers"


@dataclass
class Plan:
    """What to quantize.

    Attributes:
        units: in the order of the graph.
        shared: name of each tensor that gets codes -> name of the tensor whose scale it has.
        observed: for each scale, by name: the tensors whose values it has to cover.
        skipped: label -> reason, of nodes that could run in integers and do not.
        lookups: Gather nodes whose table, an embedding, is stored as codes.
    """

    units: list[Unit] = field(default_factory=list)
    shared: dict[str, str] = field(default_factory=dict)
    observed: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    lookups: list[gs.Node] = field(default_factory=list)


Refusal = Callable[[gs.Node], str | None]  # a reason to leave a node in float, or None


def plan_static(
    graph: gs.Graph, target: Target, refuse: Refusal, *, products: bool = False
) -> Plan:
    """Plans INT8 for everything between the first and the last layer of a branch.

    Layers always run in integers. Other operators do when codes reach them and somebody reads
    their codes; at the tail, where the result is float anyway, they stay in float, which saves a
    rounding. Concat hands its scale to the producers that only it reads.

    Args:
        graph: the outermost graph; bodies of If and Loop stay in float.
        target: what runs in integers.
        refuse: why a node must not be touched, asked for every node the target could run.
        products: multiply activations by activations in integers even where it does not pay.
    """
    skipped: dict[str, str] = {}
    products = products or target.products_pay
    possible = list(_possible_units(graph, target, refuse, skipped, products))
    units = _worthwhile(possible, skipped)
    coded = _coded_tensors(units)
    shared = _share_scales(graph, units, coded)
    lookups = list(_lookups(graph, refuse, skipped)) if target.row_lookup else []
    return Plan(units, shared, _observed(units, shared), skipped, lookups)


def _lookups(graph: gs.Graph, refuse: Refusal, skipped: dict[str, str]) -> Iterator[gs.Node]:
    """The Gather nodes that read rows of a large constant table."""
    for node in graph.nodes:
        if node.op != "Gather" or not is_standard(node) or not is_constant(node.inputs[0]):
            continue
        table = node.inputs[0]
        if table.dtype != np.float32 or (volume(table.shape) or 0) < SMALLEST_TABLE:
            continue
        reason = refuse(node)
        if reason is None and (node.attrs.get("axis", 0) != 0 or len(table.shape) != 2):
            reason = "it does not look up rows"
        if reason is None and any(reader.op != "Gather" for reader in consumers(table)):
            reason = "its table is also read by another operator"
        if reason is None:
            yield node
        else:
            skipped[label(node)] = reason


def _operator(node: gs.Node, target: Target) -> Operator | None:
    """How the target runs a node in integers, or None."""
    if not is_standard(node):
        return None
    return target.product if is_product(node) else target.operators.get(node.op)


def _reason_against_product(node: gs.Node) -> str:
    return CONSTANT_ON_THE_LEFT if is_constant(node.inputs[0]) else PRODUCT


def _possible_units(
    graph: gs.Graph, target: Target, refuse: Refusal, skipped: dict[str, str], products: bool
) -> Iterator[Unit]:
    outermost = {id(node) for node in graph.nodes}
    layers: dict[str, Unit] = {}  # by the tensor they make
    folded: set[int] = set()
    for node in graph.nodes:
        if node.op in target.float_only:
            skipped[label(node)] = target.float_only[node.op]
        elif is_foreign_layer(node):
            skipped[label(node)] = FOREIGN.format(node.domain)
        operator = _operator(node, target)
        if operator is None or not is_concerned(node, operator) or id(node) in folded:
            continue
        layer = next((layers[t.name] for t in node.inputs if t.name in layers), None)
        if layer is not None and adds_bias(node, layer):
            layer.adder = node
            continue
        reason = refuse(node) or reason_against(node, operator)
        if reason is None and is_product(node) and not products:
            reason = _reason_against_product(node)
        if reason is not None:
            skipped[label(node)] = reason
            continue
        activation = foldable(graph, node, operator, outermost)
        folded.add(id(activation))
        unit = Unit(node, operator, activation_inputs(node, operator), activation)
        if operator.role is Role.LAYER:
            layers[node.outputs[0].name] = unit
            unit.adder = node if node.op != "MatMul" else None
        yield unit


def _worthwhile(units: list[Unit], skipped: dict[str, str]) -> list[Unit]:
    """Drops operators until only those that pay are left; ``skipped`` gains those dropped."""
    while True:
        region = _Region.of(units)
        kept = []
        for unit in units:
            reason = region.reason_against(unit)
            if reason is None:
                kept.append(unit)
            else:
                skipped[label(unit.node)] = reason
        if len(kept) == len(units):
            return kept
        units = kept


@dataclass
class _Region:
    """What runs in integers for now.

    Attributes:
        made: names of the tensors that units make.
        read: names of the tensors that layers read -> by how many.
        inside: ids of the units' nodes.
    """

    made: set[str]
    read: Counter[str]
    inside: set[int]

    @classmethod
    def of(cls, units: list[Unit]) -> _Region:
        layers = [unit for unit in units if unit.operator.role is Role.LAYER]
        return cls(
            {t.name for unit in units for t in unit.outputs},
            Counter(t.name for unit in layers for t in unit.activations),
            {id(unit.node) for unit in units},
        )

    def reason_against(self, unit: Unit) -> str | None:
        """Why a unit does not pay: no codes reach it, nobody reads its codes, a large float input
        would have to be quantized for it alone, or its integer kernel is slower."""
        if unit.operator.role is Role.LAYER:
            return None if self._is_fast(unit) else SLOW.format(_channels(unit.node))
        if is_product(unit.node):
            return None
        reads = any(t.name in self.made for t in unit.activations)
        cheap = all(
            t.name in self.made or t.name in self.read or _is_broadcast(t, unit.outputs[0])
            for t in unit.activations
        )
        return None if reads and cheap and self._is_read(unit) else NO_GAIN

    def _is_read(self, unit: Unit) -> bool:
        return any(id(n) in self.inside for t in unit.outputs for n in consumers(t))

    def _is_fast(self, unit: Unit) -> bool:
        """Weighs a convolution's kernels and the conversions on both sides of them."""
        speed, data, result = unit.operator.speed, unit.node.inputs[0], unit.outputs[0]
        if speed is None or data.shape is None or unit.node.outputs[0].shape is None:
            return True
        read, written = elements(data.shape), elements(unit.node.outputs[0].shape)
        shape = [int(size) for size in unit.node.inputs[1].shape]
        readers = consumers(result)
        is_coded, coded_alone = data.name in self.made, self.read[data.name] == 1
        converted = 0 if is_coded or not coded_alone else read
        if not readers or any(id(n) not in self.inside for n in readers):
            converted += written
        saved = (read if is_coded else 0) + (written if self._is_read(unit) else 0)
        groups = int(unit.node.attrs.get("group", 1))
        return speed.pays(shape, groups, written // shape[0], converted, saved)


def _channels(node: gs.Node) -> str:
    shape, groups = node.inputs[1].shape, int(node.attrs.get("group", 1))
    return f"{shape[1]} to {shape[0] // groups} channels{' a group' if groups > 1 else ''}"


def elements(shape: Iterable[Any]) -> int:
    """Elements of a tensor of one sample; sizes that are open are taken to be small."""
    sizes = [s if isinstance(s, int) else 16 if axis else 1 for axis, s in enumerate(shape)]
    return math.prod(sizes)


def _is_broadcast(tensor: gs.Tensor, result: gs.Tensor) -> bool:
    """Whether ``tensor`` is smaller than what is computed from it: a gate, not a feature map."""
    if tensor.shape is None or result.shape is None:
        return False
    return list(tensor.shape) != list(result.shape)


def _coded_tensors(units: list[Unit]) -> dict[str, gs.Tensor]:
    """The activations that get codes: what units read, and what they make unless it stays float.

    Where a result stays float, nobody's scale stands for the Relu behind it: it is kept.
    """
    coded = {t.name: t for unit in units for t in unit.activations}
    for unit in units:
        if not unit.operator.float_output:
            coded |= {t.name: t for t in unit.outputs}
    for unit in units:
        if not any(t.name in coded for t in unit.outputs):
            unit.activation = None
    return coded


def _share_scales(
    graph: gs.Graph, units: list[Unit], coded: dict[str, gs.Tensor]
) -> dict[str, str]:
    """Name -> name of the tensor that stands for all that share its scale."""
    parent = {name: name for name in coded}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    inside = {id(unit.node) for unit in units}
    for unit in units:
        if unit.operator.role is Role.MOVER:
            for output in unit.outputs:
                parent[find(output.name)] = find(unit.node.inputs[0].name)
    bounds = _bounds(units)
    for unit in units:
        if unit.node.op != "Concat":
            continue
        root = find(unit.outputs[0].name)
        low, high = bounds[unit.outputs[0].name]
        for tensor in unit.activations:
            group = [coded[n] for n in coded if find(n) == find(tensor.name)]
            least, most = bounds.get(tensor.name, UNBOUNDED)
            if low < least or high > most:
                continue  # the Relu folded into this input needs a scale that ends where it does
            if all(_only_feeds(graph, t, unit.node, group, inside) for t in group):
                parent[find(tensor.name)] = root
    return {name: find(name) for name in coded}


def _bounds(units: list[Unit]) -> dict[str, tuple[float, float]]:
    """What the activations folded into units, and constants, say of the values of their outputs."""
    bounds: dict[str, tuple[float, float]] = {}
    for unit in units:
        if unit.activation is not None:
            found = clip_bounds(unit.activation)
        elif saturates(unit.node, unit.operator):
            found = output_bounds(unit.node)
        elif unit.operator.role is Role.MOVER:
            found = bounds.get(unit.node.inputs[0].name, UNBOUNDED)
        elif unit.node.op == "Concat":
            parts = [_bounds_of(tensor, bounds) for tensor in unit.node.inputs]
            found = (min(low for low, _ in parts), max(high for _, high in parts))
        else:
            found = UNBOUNDED
        bounds |= {tensor.name: found for tensor in unit.outputs}
    return bounds


def _bounds_of(tensor: gs.Tensor, bounds: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    if is_constant(tensor):
        return float(tensor.values.min(initial=0.0)), float(tensor.values.max(initial=0.0))
    return bounds.get(tensor.name, UNBOUNDED)


def _only_feeds(
    graph: gs.Graph, tensor: gs.Tensor, node: gs.Node, group: list[gs.Tensor], inside: set[int]
) -> bool:
    """Whether all readers of ``tensor`` are ``node`` or hand it on within its group."""
    names = {t.name for t in group}
    if is_output(graph, tensor):
        return False
    return all(
        reader is node or (id(reader) in inside and all(t.name in names for t in reader.outputs))
        for reader in consumers(tensor)
    )


def _observed(units: list[Unit], shared: dict[str, str]) -> dict[str, list[str]]:
    """The tensors to watch for each scale: the Concat alone where it holds all the others."""
    derived = {t.name for unit in units if unit.operator.role is Role.MOVER for t in unit.outputs}
    for unit in units:
        if unit.node.op == "Concat":
            scale = shared[unit.outputs[0].name]
            derived |= {t.name for t in unit.activations if shared[t.name] == scale}
    watched: dict[str, list[str]] = {}
    for name, scale in shared.items():
        if name not in derived:
            watched.setdefault(scale, []).append(name)
    return watched
