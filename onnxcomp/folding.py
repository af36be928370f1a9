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
from onnxcomp.graph import Graph, consumers, input_at, is_standard, opsets, replace_uses
from onnxcomp.rewriting import Array, Scope, is_sparse
from onnxcomp.runtime import open_session
from onnxcomp.stored import stored_bytes

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
SMALL = 256  # bytes; sharing a constant up to this size makes nodes no group
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


@dataclass
class _Plan:
    """Chooses constant nodes in order, as long as the model does not outgrow its budget."""

    scope: Scope
    chosen: dict[int, gs.Node] = field(default_factory=dict)

    def nodes(self) -> list[gs.Node]:
        """What to fold, producers first.

        Nodes that share weights are weighed together: slices of a weight that are joined again
        in another order take no more bytes than it did, though each of them alone would.
        """
        for group in self._groups(self._candidates()):
            if self._choose(group) is None:
                continue
            for node in group:
                growth = self._choose([node])
                if growth is not None:
                    reason = f"folding it would make the model {growth} bytes larger"
                    self.scope.decline(node, reason)
        return [node for node in self.scope.body.nodes if id(node) in self.chosen]

    def _choose(self, group: list[gs.Node]) -> int | None:
        """Takes ``group`` if the budget allows; if not, the bytes it would take."""
        growth = self._growth(group)
        if not self.scope.afford(growth):
            return growth
        self.chosen.update((id(node), node) for node in group)
        return None

    def _candidates(self) -> list[gs.Node]:
        made: set[str] = set()
        found = []
        for node in self.scope.body.nodes:
            if not self._is_constant(node, made):
                continue
            sizes = [self._bytes(t) for t in node.outputs if t.name and t.outputs]
            if all(size is not None and size <= LARGEST_RESULT for size in sizes):
                made |= {t.name for t in node.outputs}
                found.append(node)
        return found

    def _is_constant(self, node: gs.Node, made: set[str]) -> bool:
        if not node.outputs or not is_standard(node) or node.op in RANDOM + KEPT:
            return False
        if not self.scope.may_touch(node):
            return False
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            return False
        if any(self.scope.is_output(tensor) for tensor in node.outputs):
            return False
        if node.op == "Dropout" and input_at(node, 2) is not None:
            return False
        return all(
            _is_dense(t) if isinstance(t, gs.Constant) else t.name in made
            for t in node.inputs
            if t.name
        )

    def _groups(self, nodes: list[gs.Node]) -> list[list[gs.Node]]:
        """Nodes that read or make the same tensors, small constants aside, producers first."""
        group_of: dict[str, int] = {}
        groups: dict[int, list[gs.Node]] = {}
        for index, node in enumerate(nodes):
            names = {t.name for t in (*node.inputs, *node.outputs) if self._binds(t)}
            joined = {group_of[name] for name in names if name in group_of}
            groups[index] = [n for g in sorted(joined) for n in groups.pop(g)] + [node]
            group_of |= dict.fromkeys(names, index)
            group_of |= {name: index for name, group in group_of.items() if group in joined}
        return list(groups.values())

    def _binds(self, tensor: gs.Tensor) -> bool:
        size = self._bytes(tensor) if tensor.name else None
        return size is not None and (isinstance(tensor, gs.Variable) or size > SMALL)

    def _growth(self, group: list[gs.Node]) -> int:
        """Bytes the model grows by when ``group`` is folded too."""
        inside = self.chosen.keys() | {id(node) for node in group}
        growth = 0
        made = {t.name for node in group for t in node.outputs}
        for node in group:
            growth -= RECORD + sum(len(t.name) for t in node.outputs)
            for tensor in node.outputs:
                if any(id(reader) not in inside for reader in tensor.outputs):
                    growth += self._record(tensor)
        for tensor in {t.name: t for node in group for t in node.inputs if t.name}.values():
            if tensor.name not in made and all(id(r) in inside for r in tensor.outputs):
                growth -= self._record(tensor)
        return growth

    def _record(self, tensor: gs.Tensor) -> int:
        return (self._bytes(tensor) or 0) + RECORD + len(tensor.name)

    def _bytes(self, tensor: gs.Tensor) -> int | None:
        shape, kind = self.scope.static_shape(tensor), self.scope.data_type(tensor)
        return None if shape is None or kind is None else stored_bytes(kind, math.prod(shape))


def _is_dense(constant: gs.Constant) -> bool:
    """Whether the values are plain numbers, not strings, codes of few bits or sparse."""
    return np.dtype(constant.dtype).kind in "biufc" and not is_sparse(constant)


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
                twins[tensor.name] = tensor.copy()  # its values are not kept by this graph
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
