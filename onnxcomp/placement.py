"""Which nodes run on codes, and which tensors share a scale: the plan of a static quantization.

A unit is a node that runs in integers, with the Relu or Clip behind it that its output's scale
makes superfluous. Nothing is changed here; `qdq.py` writes the plan into the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import consumers, is_constant, is_output, is_standard, label
from onnxcomp.targets import Operator, Role, Target

FOLDED = ("Relu", "Clip")
NO_GAIN = "its neighbours are float: nothing to gain"


@dataclass
class Unit:
    """A node that runs on codes.

    Attributes:
        node: the operator.
        operator: how the target runs it.
        inputs: indices of the node's inputs that are activations or constants to quantize.
        activation: the Relu or Clip folded into its output's scale, or None.
    """

    node: gs.Node
    operator: Operator
    inputs: tuple[int, ...]
    activation: gs.Node | None = None

    @property
    def outputs(self) -> list[gs.Tensor]:
        """The tensors it makes, those of the folded activation in place of its own."""
        return list((self.activation or self.node).outputs)

    @property
    def activations(self) -> list[gs.Tensor]:
        """The tensors it reads that are no constants."""
        return [t for t in (self.node.inputs[i] for i in self.inputs) if not is_constant(t)]


@dataclass
class Plan:
    """What to quantize.

    Attributes:
        units: in the order of the graph.
        shared: name of each tensor that gets codes -> name of the tensor whose scale it has.
        observed: for each scale, by name: the tensors whose values it has to cover.
        skipped: label -> reason, of nodes that could run in integers and do not.
    """

    units: list[Unit] = field(default_factory=list)
    shared: dict[str, str] = field(default_factory=dict)
    observed: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


Refusal = Callable[[gs.Node], str | None]  # a reason to leave a node in float, or None


def plan_static(graph: gs.Graph, target: Target, refuse: Refusal) -> Plan:
    """Plans INT8 for everything between the first and the last layer of a branch.

    Layers always run in integers. Other operators do when codes reach them and somebody reads
    their codes; at the tail, where the result is float anyway, they stay in float, which saves a
    rounding. Concat hands its scale to the producers that only it reads.

    Args:
        graph: the outermost graph; bodies of If and Loop stay in float.
        target: what runs in integers.
        refuse: why a node must not be touched, asked for every node the target could run.
    """
    skipped: dict[str, str] = {}
    units = _worthwhile(list(_possible_units(graph, target, refuse, skipped)), skipped)
    coded = _coded_tensors(units)
    shared = _share_scales(graph, units, coded)
    return Plan(units, shared, _observed(units, shared), skipped)


def _possible_units(
    graph: gs.Graph, target: Target, refuse: Refusal, skipped: dict[str, str]
) -> Iterator[Unit]:
    outermost = {id(node) for node in graph.nodes}
    for node in graph.nodes:
        operator = target.operators.get(node.op) if is_standard(node) else None
        if operator is None:
            continue
        reason = refuse(node) or reason_against(node, operator)
        if reason is None:
            activation = _foldable(graph, node, operator, outermost)
            yield Unit(node, operator, _activation_inputs(node, operator), activation)
        else:
            skipped[label(node)] = reason


def _activation_inputs(node: gs.Node, operator: Operator) -> tuple[int, ...]:
    if operator.role is Role.ARITHMETIC:
        return tuple(range(len(node.inputs)))
    return (0,)


def reason_against(node: gs.Node, operator: Operator) -> str | None:
    """Why the integer form of ``operator`` cannot take ``node``, or None.

    Shapes and dtypes have to be inferred before.
    """
    data = [node.inputs[i] for i in _activation_inputs(node, operator)]
    if any(t.dtype != np.float32 for t in data):
        return f"its input is {_dtype_name(data)}, not float32"
    if operator.role is Role.LAYER:
        return _reason_against_layer(node)
    if all(is_constant(t) for t in data):
        return "all its inputs are constants"
    if len([t for t in node.outputs if t.name]) != len(node.outputs):
        return "an output is absent"
    if node.op == "MaxPool" and len(node.outputs) > 1:
        return "it also returns indices"
    if node.op == "Resize" and not _copies_pixels(node):
        return "it interpolates"
    if node.op == "Pad" and not _pads_with_constant(node):
        return "what it pads with is not known"
    if operator.role is Role.ARITHMETIC and any(not _small_enough(t) for t in data):
        return "one of its constants is not finite"
    return None


def _dtype_name(tensors: Iterable[gs.Tensor]) -> str:
    wrong = next(t.dtype for t in tensors if t.dtype != np.float32)
    return "of unknown type" if wrong is None else str(np.dtype(wrong) if wrong else wrong)


def _small_enough(tensor: gs.Tensor) -> bool:
    return not is_constant(tensor) or bool(np.isfinite(tensor.values).all())


def _copies_pixels(node: gs.Node) -> bool:
    outside = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    return node.attrs.get("mode", "nearest") == "nearest" and not outside


def _pads_with_constant(node: gs.Node) -> bool:
    if node.attrs.get("mode", "constant") != "constant" or len(node.inputs) < 3:
        return True
    value = node.inputs[2]
    return not value.name or (is_constant(value) and bool(np.isfinite(value.values).all()))


def _reason_against_layer(node: gs.Node) -> str | None:
    data, weights, *rest = node.inputs
    bias = next((t for t in rest if t.name), None)
    if is_constant(data):
        return "its input is a constant"
    if not is_constant(weights):
        return "its weights are computed" if node.op != "MatMul" else "both factors are activations"
    if weights.dtype != np.float32:
        return f"its weights are {weights.dtype}, not float32"
    if bias is not None and not is_constant(bias):
        return "its bias is computed"
    if node.op == "MatMul" and len(weights.shape) != 2:
        return f"its weights have {len(weights.shape)} dimensions, not 2"
    if node.op == "Gemm":
        if node.attrs.get("transA", 0):
            return "its input is transposed"
        if node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0:
            return "alpha or beta is not 1"
        if (
            bias is not None
            and bias.shape[-1:] != [np.prod(bias.shape, dtype=int)][: len(bias.shape)]
        ):
            return "its bias is no vector"
    constants = [weights.values] + ([] if bias is None else [bias.values])
    if not all(np.isfinite(values).all() for values in constants):
        return "its weights are not finite"
    return None


def output_axis(node: gs.Node) -> int:
    """The axis of a layer's weight, as stored, along which its output channels lie."""
    if node.op == "Conv" or (node.op == "Gemm" and node.attrs.get("transB", 0)):
        return 0
    return 1


def bias_index(node: gs.Node) -> int | None:
    """Which input of a layer is the bias; None where the operator has none."""
    return None if node.op == "MatMul" else 2


def _worthwhile(units: list[Unit], skipped: dict[str, str]) -> list[Unit]:
    """Drops operators between float neighbours, until only those that pay are left."""
    while True:
        made = {t.name for unit in units for t in unit.outputs}
        layers = [unit for unit in units if unit.operator.role is Role.LAYER]
        coded = made | {t.name for unit in layers for t in unit.activations}
        inside = {id(unit.node) for unit in units}
        kept = [unit for unit in units if _pays(unit, made, coded, inside)]
        if len(kept) == len(units):
            return kept
        left = {id(unit.node) for unit in kept}
        skipped |= {label(u.node): NO_GAIN for u in units if id(u.node) not in left}
        units = kept


def _pays(
    unit: Unit, made: Collection[str], coded: Collection[str], inside: Collection[int]
) -> bool:
    """Whether codes reach a unit, somebody reads its codes, and no large float input is left that
    would have to be quantized for it alone."""
    if unit.operator.role is Role.LAYER:
        return True
    reads = any(t.name in made for t in unit.activations)
    cheap = all(t.name in coded or _is_broadcast(t, unit.outputs[0]) for t in unit.activations)
    return reads and cheap and any(id(n) in inside for t in unit.outputs for n in consumers(t))


def _is_broadcast(tensor: gs.Tensor, result: gs.Tensor) -> bool:
    """Whether ``tensor`` is smaller than what is computed from it: a gate, not a feature map."""
    return tensor.shape is not None and result.shape is not None and tensor.shape != result.shape


def _foldable(
    graph: gs.Graph, node: gs.Node, operator: Operator, outermost: Collection[int]
) -> gs.Node | None:
    """The Relu or Clip that alone reads the node's output and that a scale can stand for."""
    if operator.role is Role.MOVER or len(node.outputs) != 1 or is_output(graph, node.outputs[0]):
        return None
    readers = consumers(node.outputs[0])
    if len(readers) != 1 or readers[0].op not in FOLDED or not is_standard(readers[0]):
        return None
    low, high = clip_bounds(readers[0])
    return readers[0] if low <= 0 <= high and id(readers[0]) in outermost else None


def clip_bounds(node: gs.Node) -> tuple[float, float]:
    """The range that a Relu or Clip lets through; (1, 0), an empty one, where it is computed."""
    if node.op == "Relu":
        return 0.0, np.inf
    bounds = [-np.inf, np.inf]
    for index, tensor in enumerate(node.inputs[1:3]):
        if tensor.name:
            if not is_constant(tensor):
                return 1.0, 0.0
            bounds[index] = float(np.asarray(tensor.values).ravel()[0])
    return bounds[0], bounds[1]


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
    for unit in units:
        if unit.node.op != "Concat":
            continue
        root = find(unit.outputs[0].name)
        for tensor in unit.activations:
            group = [coded[n] for n in coded if find(n) == find(tensor.name)]
            if all(_only_feeds(graph, t, unit.node, group, inside) for t in group):
                parent[find(tensor.name)] = root
    return {name: find(name) for name in coded}


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
