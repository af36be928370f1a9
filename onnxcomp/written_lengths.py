"""Writes what a graph computes of shapes as numbers where it is certain: a cut follows in those.

Where an entry of a target depends on a length that is only known at run time, the others still
become numbers: the target is then joined from both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import Names, is_constant, producer, sort_nodes
from onnxcomp.length_values import VALUES, Known, Value
from onnxcomp.lengths import Length
from onnxcomp.symbolic_shapes import infer_symbolic_shapes

TARGETS = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Resize": 3}
INDICES = {
    **{"Gather": (1,), "Pad": (1, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,)},
    **{"Tile": (1,), "Unsqueeze": (1,), "TopK": (1,), **{op: (at,) for op, at in TARGETS.items()}},
}  # inputs of int64


def write_lengths(graph: gs.Graph, names: Names) -> None:
    """Infers shapes with symbols, and puts numbers where they are read; nothing else changes."""
    known = infer_symbolic_shapes(graph)
    count = len(graph.nodes)
    for node in list(graph.nodes):
        if node.op in TARGETS and len(node.inputs) > TARGETS[node.op]:
            _write_target(graph, known, node, TARGETS[node.op], names)
        if node.op in VALUES and node.outputs[0].name in known.values:
            continue  # what reads it gets the number
        for i, tensor in enumerate(node.inputs):
            constant = _constant(known, node, i, names)
            if constant is not None and not is_constant(tensor):
                node.inputs[i] = constant
    if len(graph.nodes) > count:
        sort_nodes(graph)


def _constant(known: Known, node: gs.Node, index: int, names: Names) -> gs.Constant | None:
    """An input as a constant, where all of it is certain."""
    tensor = node.inputs[index]
    value = known.values.get(tensor.name)
    kind = np.int64 if index in INDICES.get(node.op, ()) else tensor.dtype
    if value is None or kind is None or not isinstance(kind, (type, np.dtype)):
        return None
    whole = all(isinstance(size, int) for size in value.ravel())
    if not whole and not (value.size == 1 and isinstance(value.item(), float)):
        return None  # or a weight behind an Identity
    return gs.Constant(names.fresh(f"{tensor.name}.value"), value.astype(kind))


def _write_target(graph: gs.Graph, known: Known, node: gs.Node, index: int, names: Names) -> None:
    target = node.inputs[index]
    shape = known.shapes.get(node.outputs[0].name)
    if is_constant(target) or shape is None or 0 in shape:
        return
    before = known.shape(node.inputs[0]) if index else None
    if index and before is None:
        return
    value = known.value(target)
    count = len(shape) if value is None else value.size
    if node.op == "Resize" and count != len(shape):  # some axes only
        return
    after = shape[len(shape) - count :]
    entries = _entries(node.op, before or (), after)
    if entries.count(None) == 1 and node.op == "Reshape":
        entries[entries.index(None)] = -1
    if None not in entries:
        node.attrs.pop("allowzero", None)
    elif node.attrs.get("allowzero", 0):  # a 0 would not copy
        entries = [None if isinstance(size, Length) else size for size in after]
    parts = [
        _part(graph, known, target, i, names) if entry is None else np.asarray([entry])
        for i, entry in enumerate(entries)
    ]
    if any(part is None for part in parts):
        return
    name = f"{node.outputs[0].name}.target"
    if None not in entries:
        node.inputs[index] = gs.Constant(names.fresh(name), np.asarray(entries, np.int64))
    else:
        node.inputs[index] = _joined(graph, parts, name, names)


def _joined(
    graph: gs.Graph, parts: Sequence[Value | gs.Tensor], name: str, names: Names
) -> gs.Variable:
    """The parts of a target, as a Concat makes them one tensor."""
    joined = gs.Variable(names.fresh(name), np.int64, [len(parts)])
    inputs = [
        gs.Constant(names.fresh(f"{name}.{i}"), part) if isinstance(part, np.ndarray) else part
        for i, part in enumerate(parts)
    ]
    graph.nodes.append(gs.Node("Concat", names.fresh(name), {"axis": 0}, inputs, [joined]))
    return joined


def _entries(op: str, before: Sequence[Any], after: Sequence[Any]) -> list[int | None]:
    """A target as numbers: 0 copies an axis of a Reshape, 1 keeps one of an Expand."""
    entries: list[int | None] = []
    front = len(after) - len(before)
    for i, size in enumerate(after):
        if not isinstance(size, Length):
            entries.append(size)
        elif op == "Reshape":
            entries.append(0 if i < len(before) and before[i] == size else None)
        elif op == "Expand":
            entries.append(1 if i >= front and before[i - front] == size else None)
        else:
            entries.append(None)
    return entries


def _part(
    graph: gs.Graph, known: Known, target: gs.Tensor, place: int, names: Names
) -> gs.Tensor | None:
    """One entry of a computed target as a vector of its own, of no more than it needs."""
    node = producer(target)
    if node is not None and node.op == "Concat":
        for tensor in node.inputs:
            value = known.value(tensor)
            if value is None:
                return None
            if place < value.size:
                return tensor if value.size == 1 else _part(graph, known, tensor, place, names)
            place -= value.size
    if node is not None and node.op == "Where":
        mine = known.value(target)
        for tensor in node.inputs[1:]:
            value = known.value(tensor)
            if mine is None or value is None or value.size != mine.size:
                continue
            if mine[place] is not None and mine[place] == value[place]:
                return _part(graph, known, tensor, place, names)
    if is_constant(target):
        return gs.Constant(names.fresh(f"{target.name}.{place}"), target.values[[place]])
    if known.value(target) is None and target.shape is None:
        return None
    taken = gs.Variable(names.fresh(f"{target.name}.{place}"), np.int64, [1])
    indices = gs.Constant(f"{taken.name}.index", np.asarray([place]))
    graph.nodes.append(gs.Node("Gather", taken.name, {"axis": 0}, [target, indices], [taken]))
    return taken
