"""What the rules that rewrite a graph share: what is known of its tensors, and safe small edits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from onnxcomp.exporting import data_type_of
from onnxcomp.graph import (
    Graph,
    Names,
    all_graphs,
    carried_of,
    detach,
    input_at,
    label,
    only_reader,
    opsets,
    producer,
    replace_uses,
    scoped_graphs,
    subgraphs,
)
from onnxcomp.shapes import Dim, TensorType, inferred_types

Array = npt.NDArray[Any]
Rule = Callable[["Scope", gs.Node], bool]  # True: it rewrote the node

SMALL = 4096  # elements up to which the values of a constant are looked at for a hint


class Report(Protocol):
    """Where rules say what they did: the report of a pass."""

    changed: list[str]
    skipped: dict[str, str]

    def skip(self, node: gs.Node | str, reason: str) -> None:
        """Records why ``node`` was left alone."""


@dataclass
class Budget:
    """Bytes by which the model may grow."""

    bytes: int


class Scope:
    """One graph or body while rules rewrite it.

    Tensor names keep denoting the same values whatever the rules do, so what was inferred at the
    start stays true.

    Attributes:
        root: the outermost graph.
        body: the graph whose nodes are being rewritten.
        path: key of ``body`` in `Carried`.
        names: fresh names for all of ``root``.
        report: where changes and reasons go.
        budget: bytes by which rules may still enlarge the model, for all scopes together.
        kept: labels of nodes to leave alone.
    """

    def __init__(
        self,
        root: gs.Graph,
        body: gs.Graph,
        path: str,
        types: dict[str, TensorType],
        names: Names,
        report: Report,
        budget: Budget,
        kept: frozenset[str] = frozenset(),
    ) -> None:
        self.root, self.body, self.path = root, body, path
        self.names, self.report, self.budget = names, report, budget
        self._types, self._kept = types, kept
        self._mine = {id(node) for node in body.nodes}
        self._outputs = {t.name for g in all_graphs(root) for t in g.outputs}
        self.opset = next((o.version for o in opsets(root) if o.domain in ("", "ai.onnx")), 0)

    def shape(self, tensor: gs.Tensor) -> tuple[Dim, ...] | None:
        """The shape of a tensor as far as it is certain."""
        if isinstance(tensor, gs.Constant):
            return tuple(int(size) for size in tensor.shape)
        known = self._types.get(tensor.name)
        return known.shape if known else None

    def static_shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """The shape of a tensor where all of it is certain."""
        shape = self.shape(tensor)
        if shape is None or not all(isinstance(size, int) for size in shape):
            return None
        return tuple(int(size) for size in shape if size is not None)

    def rank(self, tensor: gs.Tensor) -> int | None:
        """Number of dimensions."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def data_type(self, tensor: gs.Tensor) -> int | None:
        """The ONNX data type of a tensor."""
        if isinstance(tensor, gs.Constant):
            return data_type_of(tensor.dtype)
        known = self._types.get(tensor.name)
        return None if known is None or known.dtype is None else data_type_of(known.dtype)

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor is an output of the graph or of any body."""
        return tensor.name in self._outputs

    def only_reader(self, tensor: gs.Tensor) -> gs.Node | None:
        """The one node that needs a tensor; None where several do, or a caller."""
        return None if self.is_output(tensor) else only_reader(self.body, tensor)

    def feeds_only(self, node: gs.Node, reader: gs.Node) -> bool:
        """Whether the first output of ``node`` goes to ``reader`` alone."""
        return self.only_reader(node.outputs[0]) is reader

    def maker(self, tensor: gs.Tensor, *ops: str) -> gs.Node | None:
        """The node of this body that makes ``tensor``, if it is one of ONNX's ``ops``."""
        node = producer(tensor)
        if node is None or node.domain or node.op not in ops or id(node) not in self._mine:
            return None
        return node if self.may_touch(node) else None

    def may_touch(self, node: gs.Node) -> bool:
        """Whether the user left this node to us."""
        return not self._kept or label(node) not in self._kept

    def afford(self, growth: int) -> bool:
        """Whether the model may grow by ``growth`` bytes; if so they are spent."""
        if growth > self.budget.bytes:
            return False
        self.budget.bytes -= growth
        return True

    def constant(self, name: str, values: Array) -> gs.Constant:
        """A new constant under ``name`` or, where that is taken, the next free one."""
        return gs.Constant(self.names.fresh(name), np.ascontiguousarray(values))

    def variable(self, name: str, like: gs.Tensor, shape: Sequence[int]) -> gs.Variable:
        """A new tensor of ``shape`` and of the dtype of ``like``."""
        known = self._types.get(like.name)
        dtype = known.dtype if known else like.dtype
        fresh = gs.Variable(self.names.fresh(name), dtype=dtype, shape=list(shape))
        self._types[fresh.name] = TensorType(dtype, tuple(shape))
        return fresh

    def decline(self, node: gs.Node, reason: str) -> bool:
        """Records why a rule that fits ``node`` was not applied."""
        self.report.skip(node, reason)
        return False

    def changed(self, node: gs.Node) -> None:
        """Records that ``node`` was changed or removed."""
        name = label(node)
        self.report.skipped.pop(name, None)
        if name not in self.report.changed:
            self.report.changed.append(name)

    def drop(self, node: gs.Node) -> None:
        """Takes a node, and what its bodies read, out of the graph."""
        self.changed(node)
        detach(node)

    def replace(self, node: gs.Node, tensor: gs.Tensor) -> bool:
        """Lets ``tensor`` stand for the first output of ``node``, which goes.

        Where that is an output of a graph, the node that makes ``tensor`` takes over its name.
        """
        result = node.outputs[0]
        if not self.is_output(result):
            self.changed(node)
            replace_uses(self.root, result, tensor)
            self.drop(node)
            return True
        maker = producer(tensor)
        if maker is None or self.is_output(tensor) or id(maker) not in self._mine:
            return False
        if any(True for _ in subgraphs(maker)):
            return False  # its bodies are known by the name of its output
        self.drop(node)
        self.take_output(maker, tensor, result)
        return True

    def take_output(self, node: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
        """Makes ``node`` compute ``new`` instead of ``old``, for all readers of either."""
        replace_uses(self.root, old, new)
        first = node.outputs[0].name
        node.outputs[[t.name for t in node.outputs].index(old.name)] = new
        if first == old.name:
            self._move_extras(old.name, new.name)

    def _move_extras(self, old: str, new: str) -> None:
        """Doc string and metadata of a node are kept under the name of its first output."""
        carried = carried_of(self.root)
        extras = dict(carried.nodes)
        extras.pop(self.path + new, None)
        if self.path + old in extras:
            extras[self.path + new] = extras.pop(self.path + old)
        if extras.keys() != carried.nodes.keys() and isinstance(self.root, Graph):
            self.root.carried = dataclasses.replace(carried, nodes=extras)  # copies share the old


def scopes(
    root: gs.Graph, report: Report, budget: Budget, kept: frozenset[str] = frozenset()
) -> list[Scope]:
    """A scope for ``root`` and one for each body in it, outermost first."""
    names = Names(root)
    return [
        Scope(root, body, path, types, names, report, budget, kept)
        for (path, body), (_, types) in zip(scoped_graphs(root), inferred_types(root), strict=True)
    ]


def peek(constant: gs.Constant) -> Array:
    """The values of a constant, without making it keep them in memory."""
    values = constant._values
    return np.asarray(values.load() if isinstance(values, LazyValues) else values)


def is_sparse(constant: gs.Constant) -> bool:
    """Whether a constant is stored sparse; computing with it would make it dense."""
    return isinstance(constant._values, SparseValues)


def small_values(tensor: gs.Tensor | None, largest: int = SMALL) -> Array | None:
    """The values of a constant of at most ``largest`` elements; None for anything else."""
    if not isinstance(tensor, gs.Constant) or math.prod(tensor.shape) > largest:
        return None
    return peek(tensor)


def integers(node: gs.Node, index: int, attribute: str) -> list[int] | None:
    """A list of integers that opsets moved from an attribute to an input; None where unknown."""
    tensor = input_at(node, index)
    if tensor is not None:
        values = small_values(tensor)
        return None if values is None else [int(value) for value in values.reshape(-1)]
    values = node.attrs.get(attribute)
    return None if values is None else [int(value) for value in values]


def permutation(scope: Scope, node: gs.Node) -> list[int] | None:
    """The perm of a Transpose; without one it reverses the axes."""
    order = node.attrs.get("perm")
    if order is not None:
        return [int(axis) for axis in order]
    rank = scope.rank(node.inputs[0])
    return None if rank is None else list(range(rank))[::-1]


def broadcasts_into(small: Sequence[int], shape: Sequence[Dim] | None) -> bool:
    """Whether combining a constant of shape ``small`` with ``shape`` certainly gives ``shape``."""
    if all(size == 1 for size in small) and (not small or shape is not None):
        return not small or (shape is not None and len(small) <= len(shape))
    if shape is None or len(small) > len(shape):
        return False
    aligned = shape[len(shape) - len(small) :]
    return all(a in (1, b) for a, b in zip(small, aligned, strict=True))


def same_shape(a: Sequence[Dim] | None, b: Sequence[Dim] | None) -> bool:
    """Whether two shapes of tensors with the same number of elements are certainly equal.

    One unknown size in the same place of both follows from the others.
    """
    if a is None or b is None or len(a) != len(b):
        return False
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if not (isinstance(x, int) and x == y)]
    if not pairs:
        return True
    unknown = not any(isinstance(x, int) and isinstance(y, int) for x, y in pairs)
    return unknown and len(pairs) == 1 and 0 not in a and 0 not in b


def float_type(tensor_type: int | None) -> bool:
    """Whether linear layers of this type run on onnxruntime's CPU kernels."""
    return tensor_type in (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
    )
