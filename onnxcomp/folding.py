"""Constant folding: what depends on constants alone is computed once, by onnxruntime itself.

A result is stored only where the model does not grow beyond its budget by it: onnxruntime folds
everything else when it loads the model, so that a larger file would buy nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.errors import UnsupportedModel
from onnxcomp.exporting import data_type_of
from onnxcomp.graph import Graph, consumers, is_standard, opsets, replace_uses
from onnxcomp.importing import stored_bytes
from onnxcomp.rewriting import Array, Rule, Scope, input_at, peek, small_values
from onnxcomp.runtime import open_session

RANDOM = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
KEPT = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Constant", "Optional")
LARGEST_RESULT = 1 << 28  # bytes of one tensor on the way; more is not worth the memory
RECORD = 24  # bytes that a node, or a tensor besides name and values, takes in a file, at least


def fold_constants(scope: Scope) -> bool:
    """Replaces the results of constant nodes that are worth storing by constants."""
    folded = _Plan(scope).nodes()
    needed = _results(scope, folded)
    if not needed:
        return False
    values = _evaluate(scope, folded, needed)
    for name, array in values.items():
        replace_uses(scope.root, needed[name], gs.Constant(name, array))
    for node in reversed(folded):
        if not any(t.outputs for t in node.outputs):
            scope.drop(node)
    return bool(values)


def fold_shapes(scope: Scope, node: gs.Node) -> bool:
    """Shapes, and what is taken from them, become constants where the sizes are certain."""
    if node.op in ("Reshape", "Expand") or scope.is_output(node.outputs[0]):
        return False
    sizes = known_sizes(scope, node.outputs[0])
    if sizes is None or not all(isinstance(size, int) for size in sizes):
        return False
    shape = scope.static_shape(node.outputs[0])
    if shape is None or math.prod(shape) != len(sizes):
        return False
    kind = scope.data_type(node.outputs[0])
    if kind is None or data_type_of(np.int64) != kind:
        return False
    values = np.array(sizes, np.int64).reshape(shape)
    return scope.replace(node, gs.Constant(node.outputs[0].name, values))


def simplify_target(scope: Scope, node: gs.Node) -> bool:
    """Reshape(x, computed sizes)  ->  Reshape(x, constant), with 0 for a size that x has there.

    One size that is not known otherwise becomes -1: it follows from the others.
    """
    target = input_at(node, 1)
    if target is None or isinstance(target, gs.Constant) or node.attrs.get("allowzero", 0):
        return False
    sizes = known_sizes(scope, target)
    if sizes is None:
        return False
    data = scope.shape(node.inputs[0])
    result = []
    for place, size in enumerate(sizes):
        if isinstance(size, SizeOf) and _copies(scope, size, node.inputs[0], data, place):
            size = 0
        result.append(size if isinstance(size, int) else -1)
    if result.count(-1) > 1:
        return False
    scope.changed(node)
    node.inputs[1] = scope.constant(f"{node.outputs[0].name}.shape", np.array(result, np.int64))
    return True


@dataclass(frozen=True)
class SizeOf:
    """The size of one axis of a tensor, known only when the model runs."""

    tensor: str
    axis: int
    symbol: str | None


Size = int | SizeOf | None


def _copies(
    scope: Scope, size: SizeOf, data: gs.Tensor, shape: Sequence[object] | None, place: int
) -> bool:
    """Whether 0 at ``place`` of a Reshape's target, "as in the data", means ``size``."""
    if size.tensor == data.name:
        return size.axis == place
    if size.symbol is None or shape is None or place >= len(shape):
        return False
    promised = {d for t in scope.root.inputs for d in t.shape or () if isinstance(d, str)}
    return shape[place] == size.symbol and size.symbol in promised


def known_sizes(scope: Scope, tensor: gs.Tensor, depth: int = 16) -> list[Size] | None:
    """The elements of a small integer tensor as far as they are certain; None where nothing is."""
    values = small_values(tensor, 64)
    if values is not None:
        return [int(v) for v in values.reshape(-1)] if values.dtype.kind == "i" else None
    node = scope.maker(tensor, *_SIZES)
    shape = scope.static_shape(tensor)
    unknown: list[Size] | None = None
    if shape is not None and len(shape) <= 1 and math.prod(shape) <= 64:
        unknown = [None] * math.prod(shape)
    if node is None or depth == 0:
        return unknown
    found: list[Size] | None = _SIZES[node.op](scope, node, depth - 1)
    return found if found is not None else unknown


def _of_shape(scope: Scope, node: gs.Node, depth: int) -> list[Size] | None:
    shape = scope.shape(node.inputs[0])
    if shape is None:
        return None
    name = node.inputs[0].name
    sizes: list[Size] = [
        d if isinstance(d, int) else SizeOf(name, axis, d) for axis, d in enumerate(shape)
    ]
    return sizes[node.attrs.get("start", 0) : node.attrs.get("end", len(sizes))]


def _of_same(scope: Scope, node: gs.Node, depth: int) -> list[Size] | None:
    return known_sizes(scope, node.inputs[0], depth)


def _of_cast(scope: Scope, node: gs.Node, depth: int) -> list[Size] | None:
    if data_type_of(node.attrs["to"]) not in (data_type_of(np.int64), data_type_of(np.int32)):
        return None
    return known_sizes(scope, node.inputs[0], depth)


def _of_gather(scope: Scope, node: gs.Node, depth: int) -> list[Size] | None:
    sizes, indices = known_sizes(scope, node.inputs[0], depth), small_values(node.inputs[1], 64)
    if sizes is None or indices is None or scope.rank(node.inputs[0]) != 1:
        return None
    if not ((indices >= -len(sizes)) & (indices < len(sizes))).all():
        return None
    return [sizes[int(index)] for index in indices.reshape(-1)]


def _of_slice(scope: Scope, node: gs.Node, depth: int) -> list[Size] | None:
    sizes = known_sizes(scope, node.inputs[0], depth)
    ranges = [small_values(input_at(node, index), 1) for index in (1, 2)]
    step = small_values(input_at(node, 4), 1) if input_at(node, 4) else np.ones(1, np.int64)
    if sizes is None or scope.rank(node.inputs[0]) != 1 or step is None:
        return None
    if any(value is None or value.size != 1 for value in ranges) or int(step.reshape(-1)[0]) != 1:
        return None
    start, end = (int(value.reshape(-1)[0]) for value in ranges if value is not None)
    return sizes[start:end]


def _of_concat(scope: Scope, node: gs.Node, depth: int) -> list[Size] | None:
    parts = [known_sizes(scope, tensor, depth) for tensor in node.inputs]
    if any(part is None for part in parts) or scope.rank(node.outputs[0]) != 1:
        return None
    return [size for part in parts if part is not None for size in part]


_SIZES = {
    "Shape": _of_shape,
    "Gather": _of_gather,
    "Slice": _of_slice,
    "Concat": _of_concat,
    "Cast": _of_cast,
    **dict.fromkeys(("Identity", "Squeeze", "Unsqueeze", "Reshape"), _of_same),
}
SHAPE_RULES: dict[str, list[Rule]] = {op: [fold_shapes] for op in _SIZES} | {
    "Reshape": [simplify_target]
}


@dataclass
class _Plan:
    """Chooses constant nodes in order, as long as the model does not outgrow its budget."""

    scope: Scope
    chosen: dict[int, gs.Node] = field(default_factory=dict)

    def nodes(self) -> list[gs.Node]:
        """What to fold, producers first."""
        for node in self.scope.body.nodes:
            if not self._is_constant(node):
                continue
            growth = self._growth(node)
            if growth is None:
                continue
            if self.scope.afford(growth):
                self.chosen[id(node)] = node
            else:
                self.scope.decline(node, f"folding it would make the model {growth} bytes larger")
        return list(self.chosen.values())

    def _is_constant(self, node: gs.Node) -> bool:
        if not node.outputs or not is_standard(node) or node.op in RANDOM + KEPT:
            return False
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            return False
        if any(self.scope.is_output(tensor) for tensor in node.outputs):
            return False
        if node.op == "Dropout" and input_at(node, 2) is not None:
            return False
        return all(self._is_known(tensor) for tensor in node.inputs if tensor.name)

    def _is_known(self, tensor: gs.Tensor) -> bool:
        if isinstance(tensor, gs.Constant):
            return np.dtype(tensor.dtype).kind in "biufc"
        return bool(tensor.inputs) and id(tensor.inputs[0]) in self.chosen

    def _growth(self, node: gs.Node) -> int | None:
        """Bytes the model grows by when ``node`` is folded too; None where that is unknown."""
        growth = -RECORD - sum(len(t.name) for t in node.outputs)
        for tensor in node.outputs:
            if tensor.name and tensor.outputs:
                size = self._bytes(tensor)
                if size is None or size > LARGEST_RESULT:
                    return None
                growth += size + RECORD + len(tensor.name)
        for tensor in {t.name: t for t in node.inputs if t.name}.values():
            if all(id(r) in self.chosen or r is node for r in consumers(tensor)):
                growth -= (self._bytes(tensor) or 0) + RECORD + len(tensor.name)
        return growth

    def _bytes(self, tensor: gs.Tensor) -> int | None:
        shape, kind = self.scope.static_shape(tensor), self.scope.data_type(tensor)
        return None if shape is None or kind is None else stored_bytes(kind, math.prod(shape))


def _results(scope: Scope, folded: Sequence[gs.Node]) -> dict[str, gs.Tensor]:
    """Tensors that nodes outside of ``folded`` read."""
    inside = {id(node) for node in folded}
    tensors = [tensor for node in folded for tensor in node.outputs if tensor.name]
    return {t.name: t for t in tensors if any(id(r) not in inside for r in consumers(t))}


def _evaluate(
    scope: Scope, folded: Sequence[gs.Node], needed: dict[str, gs.Tensor]
) -> dict[str, Array]:
    """Values of the tensors ``needed``; what onnxruntime cannot compute is left out."""
    try:
        return _run(scope, folded, list(needed))
    except UnsupportedModel as error:
        if len(needed) == 1:
            scope.decline(folded[-1], f"it cannot be folded: {error}")
            return {}
    values: dict[str, Array] = {}
    for name, tensor in needed.items():
        values |= _evaluate(scope, _cone(folded, tensor), {name: tensor})
    return values


def _cone(folded: Sequence[gs.Node], tensor: gs.Tensor) -> list[gs.Node]:
    """Those of ``folded`` that ``tensor`` depends on, in order."""
    wanted = {tensor.name}
    cone = []
    for node in reversed(folded):
        if any(t.name in wanted for t in node.outputs):
            wanted |= {t.name for t in node.inputs}
            cone.append(node)
    return cone[::-1]


def _run(scope: Scope, nodes: Sequence[gs.Node], names: list[str]) -> dict[str, Array]:
    """Runs copies of ``nodes`` alone in onnxruntime."""
    twins: dict[str, gs.Tensor] = {}

    def twin(tensor: gs.Tensor) -> gs.Tensor:
        if not tensor.name:
            return gs.Variable.empty()
        if tensor.name not in twins:
            if isinstance(tensor, gs.Constant):
                twins[tensor.name] = gs.Constant(tensor.name, peek(tensor))
            else:
                twins[tensor.name] = gs.Variable(tensor.name)
        return twins[tensor.name]

    copies = [
        gs.Node(
            node.op,
            node.name,
            dict(node.attrs),
            [twin(t) for t in node.inputs],
            [twin(t) for t in node.outputs],
            node.domain,
        )
        for node in nodes
    ]
    graph = Graph(
        nodes=copies,
        outputs=[twins[name] for name in names],
        opset=scope.root.opset,
        import_domains=opsets(scope.root),
        ir_version=scope.root.ir_version,
    )
    results = open_session(graph, threads=1, optimize=False).run({})
    return {name: np.asarray(array) for name, array in zip(names, results, strict=True)}
