"""Shapes of what selects from axes of symbolic lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_graphsurgeon as gs

from onnxcomp.graph import input_at
from onnxcomp.length_values import Known, Shape
from onnxcomp.lengths import Length, Size


def _slice(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    shape = list(known.shape(node.inputs[0]) or ())
    given = [input_at(node, index) for index in (1, 2, 3, 4)]
    if given[0] is None:
        return [None]
    starts, ends, _, steps = (known.value(tensor) for tensor in given)
    count = known.shape(given[0]) or ()
    places = known.integers(given[2])
    if given[2] is None and isinstance(count[0], int):
        places = list(range(count[0]))
    if places is None:
        return [None]
    for i, axis in enumerate(places):
        bound = [None if part is None else part.ravel().tolist()[i] for part in (starts, ends)]
        step = 1 if given[3] is None else None if steps is None else steps.ravel().tolist()[i]
        taken = _range(shape[axis], bound[0], bound[1], step)
        shape[axis] = known.opaque(node.outputs[0].name, axis) if taken is None else taken
    return [tuple(shape)]


def _range(size: Size, start: Any, end: Any, step: Any) -> Size | None:
    """How many indices a Slice takes; None where that is unknown."""
    if isinstance(size, int) and all(isinstance(x, int) for x in (start, end, step)):
        stop = None if step < 0 and end < -size else end
        return len(range(size)[start:stop:step])
    if step != 1 or start is None or end is None:
        return None
    if isinstance(end, int) and end >= 2**31 - 1:
        end = size
    if isinstance(start, int) and start < 0:
        return None
    if isinstance(end, int) and end < 0:
        end = size + end
    return end - start if isinstance(end, Length) else None  # such a range is within the axis


def _gather(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    data, indices = (known.shape(tensor) for tensor in node.inputs)
    if data is None or indices is None:
        return [None]
    axis = node.attrs.get("axis", 0) % len(data)
    return [(*data[:axis], *indices, *data[axis + 1 :])]


def _second(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    """GatherElements: shaped like the indices."""
    return [known.shape(node.inputs[1])]


def _split(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    shape = known.shape(node.inputs[0]) or ()
    axis, count = node.attrs.get("axis", 0) % len(shape), len(node.outputs)
    lengths = node.attrs.get("split") or known.integers(input_at(node, 1))
    if lengths is None and isinstance(shape[axis], int):
        part = -(-shape[axis] // count)
        lengths = [min(part, shape[axis] - i * part) for i in range(count)]
    if lengths is None:
        return [None] * count
    return [(*shape[:axis], int(size), *shape[axis + 1 :]) for size in lengths]


def _gather_nd(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    data, indices = (known.shape(tensor) for tensor in node.inputs)
    if data is None or indices is None or not isinstance(indices[-1], int):
        return [None]
    return [(*indices[:-1], *data[node.attrs.get("batch_dims", 0) + indices[-1] :])]


def _counted(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    """Range: from 0 by 1 the limit says how many."""
    start, end, step = (known.value(tensor) for tensor in node.inputs)
    if end is not None and end.size == 1 and start is not None and step is not None:
        limit = end.ravel()[0]
        if limit is not None and (start.ravel()[0], step.ravel()[0]) == (0, 1):
            return [(limit if isinstance(limit, Length) else int(limit),)]
    return [(known.opaque(node.outputs[0].name, 0),)]


def _selected(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    shape = known.shape(node.inputs[0]) or ()
    axis = node.attrs.get("axis", 0) % len(shape)
    single = (1,) if node.attrs.get("keepdims", 1) else ()
    return [(*shape[:axis], *single, *shape[axis + 1 :])]


SELECTIONS: dict[str, Callable[[Known, gs.Node], Sequence[Shape | None]]] = {
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _second,
    "GatherND": _gather_nd,
    "Split": _split,
    "Range": _counted,
    **dict.fromkeys(("ArgMax", "ArgMin"), _selected),
}
