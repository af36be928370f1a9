"""How large the integers of an input may be: the rows of the tables they index.

Found by following an integer input forwards through operators that keep or shift its values until
they select from something: Gather's indices, OneHot's values, an embedding's ids.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import onnx_graphsurgeon as gs

_KEEP = {"Cast", "Clip", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape"}
_KEEP |= {"Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}  # values of input 0
_FUSED_TABLES = {0: 2, 1: 4}  # EmbedLayerNormalization: input of ids -> input of their table


def index_bounds(graph: gs.Graph) -> dict[str, int]:
    """For each graph input that selects from a table: one more than the largest valid value."""
    bounds = {}
    for tensor in graph.inputs:
        found = _bound(tensor)
        if found is not None:
            bounds[tensor.name] = found
    return bounds


def _bound(start: gs.Tensor) -> int | None:
    """Breadth first over (tensor, how much was added on the way)."""
    queue, seen, bounds = deque([(start, 0)]), {start.name}, []
    while queue:
        tensor, added = queue.popleft()
        for node in tensor.outputs:
            rows = _rows(node, tensor)
            if rows is not None:
                bounds.append(rows - added)
                continue
            step = _step(node, tensor)
            if step is None:
                continue
            for output in node.outputs:
                if output.name not in seen:
                    seen.add(output.name)
                    queue.append((output, added + step))
    usable = [bound for bound in bounds if bound > 0]
    return min(usable) if usable else None


def _is(node: gs.Node, index: int, tensor: gs.Tensor) -> bool:
    return len(node.inputs) > index and node.inputs[index].name == tensor.name


def _rows(node: gs.Node, tensor: gs.Tensor) -> int | None:
    """How many rows ``tensor`` selects from in ``node``; None when it selects nothing."""
    if node.op in ("Gather", "GatherElements", "GatherBlockQuantized") and _is(node, 1, tensor):
        axis = node.attrs.get("axis", node.attrs.get("gather_axis", 0))
        return _size(node.inputs[0], axis)
    if node.op == "OneHot" and _is(node, 0, tensor):
        depth = _scalar(node.inputs[1])
        return int(depth) if depth is not None else None
    if node.op == "EmbedLayerNormalization":
        for ids, table in _FUSED_TABLES.items():
            if _is(node, ids, tensor) and len(node.inputs) > table:
                return _size(node.inputs[table], 0)
    return None


def _size(table: gs.Tensor, axis: int) -> int | None:
    """Size of an axis, of the weight behind a Cast or DequantizeLinear if need be."""
    while True:
        shape = table.shape
        if shape is not None and -len(shape) <= axis < len(shape):
            size = shape[axis]
            return int(size) if isinstance(size, (int, np.integer)) and size > 0 else None
        if not table.inputs or table.inputs[0].op not in ("Cast", "DequantizeLinear", "Identity"):
            return None
        table = table.inputs[0].inputs[0]


def _step(node: gs.Node, tensor: gs.Tensor) -> int | None:
    """What ``node`` adds to the values of ``tensor``; None when they become something else."""
    if node.op in ("Concat", "Where") or (node.op in _KEEP and _is(node, 0, tensor)):
        return 0
    if node.op in ("Add", "Sub") and len(node.inputs) == 2:
        other = node.inputs[1] if _is(node, 0, tensor) else node.inputs[0]
        shift = _scalar(other)
        if shift is not None and (node.op == "Add" or _is(node, 0, tensor)):
            return int(shift) if node.op == "Add" else -int(shift)
    return None


def _scalar(tensor: gs.Tensor) -> float | None:
    """The value of a constant of one element."""
    if isinstance(tensor, gs.Constant) and np.prod(tensor.shape, dtype=np.int64) == 1:
        return float(np.asarray(tensor.values).ravel()[0])
    return None
