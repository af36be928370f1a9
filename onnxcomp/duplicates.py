"""Equal constants and equal nodes are kept once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable

import numpy as np
import onnx_graphsurgeon as gs
from onnx import AttributeProto

from onnxcomp.exporting import data_type_of
from onnxcomp.folding import RANDOM
from onnxcomp.graph import replace_uses
from onnxcomp.rewriting import Scope, is_sparse, peek, small_values
from onnxcomp.stored import StoredValues, external_range

SAMPLE = 1024  # elements compared before whole tensors are read


def merge_constants(scope: Scope) -> bool:
    """Lets every reader of a constant read the first one with the same bytes.

    Weights of the same shape are compared by a sample first, so that large ones are read only
    where they probably are equal.
    """
    groups: dict[Hashable, list[gs.Constant]] = {}
    for constant in _constants(scope):
        kind = (data_type_of(constant.dtype), tuple(constant.shape))
        groups.setdefault(kind, []).append(constant)
    merged = False
    for group in groups.values():
        for equals in _split(_split([group], _sample), _digest):
            for constant in equals[1:]:
                replace_uses(scope.root, constant, equals[0])
                merged = True
    return merged


def _constants(scope: Scope) -> Iterable[gs.Constant]:
    """Constants that nodes of the body itself read."""
    found = {t.name: t for node in scope.body.nodes for t in node.inputs}
    return [
        t
        for t in found.values()
        if isinstance(t, gs.Constant) and np.dtype(t.dtype).kind != "O"
        if not is_sparse(t) and not scope.is_output(t)
    ]


def _split(
    groups: Iterable[list[gs.Constant]], key: Callable[[gs.Constant], Hashable]
) -> list[list[gs.Constant]]:
    """Groups of at least two whose members have the same ``key``."""
    result = []
    for group in groups:
        parts: dict[Hashable, list[gs.Constant]] = {}
        for constant in group if len(group) > 1 else ():
            parts.setdefault(key(constant), []).append(constant)
        result += [part for part in parts.values() if len(part) > 1]
    return result


def _sample(constant: gs.Constant) -> Hashable:
    values = constant._values
    if isinstance(values, StoredValues) and values.is_external:
        return bytes(peek(constant).reshape(-1)[:SAMPLE].tobytes())  # reads the first pages only
    flat = peek(constant).reshape(-1)
    return bytes(flat[:: max(1, flat.size // SAMPLE)].tobytes())


def _digest(constant: gs.Constant) -> Hashable:
    values = constant._values
    if isinstance(values, StoredValues) and values.is_external:
        path, offset, _ = external_range(values.tensor, values.folder)
        return str(path), offset
    return hashlib.sha256(np.ascontiguousarray(peek(constant)).view(np.uint8).data).digest()


def merge_nodes(scope: Scope) -> bool:
    """Lets every reader of a node's results read those of the first node that computes the same."""
    first: dict[Hashable, gs.Node] = {}
    merged = False
    for node in scope.body.nodes:
        key = _computation(node) if scope.may_touch(node) else None
        if key is None:
            continue
        twin = first.setdefault(key, node)
        if twin is node or any(scope.is_output(tensor) for tensor in node.outputs):
            continue
        for mine, theirs in zip(list(node.outputs), twin.outputs, strict=True):
            replace_uses(scope.root, mine, theirs)
        scope.drop(node)
        merged = True
    return merged


def _computation(node: gs.Node) -> Hashable | None:
    """What a node computes, equal for nodes with equal results; None where it may vary."""
    if not node.outputs or node.op in RANDOM or node.domain:
        return None
    if node.op == "Dropout" and len(node.inputs) > 2:
        return None
    attributes = tuple((name, _value(value)) for name, value in sorted(node.attrs.items()))
    if any(value is None for _, value in attributes):
        return None
    present = tuple(bool(t.name) for t in node.outputs)
    return node.op, attributes, tuple(t.name for t in node.inputs), present


def _value(attribute: object) -> Hashable | None:
    """An attribute so that equal ones are equal; None for what is not compared."""
    if isinstance(attribute, (gs.Graph, gs.Node.AttributeRef)):
        return None
    if isinstance(attribute, gs.Constant):
        values = small_values(attribute)
        return None if values is None else (str(values.dtype), values.shape, values.tobytes())
    if isinstance(attribute, AttributeProto):
        return bytes(attribute.SerializeToString(deterministic=True))
    return repr(attribute)
