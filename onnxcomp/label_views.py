"""How labels of channels pass through operators that pool, cut, join or reorder axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import is_constant
from onnxcomp.homogeneity import LARGEST, Sweep, aligned, sizes
from onnxcomp.scale_labels import Array, compact


def pool_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Pooling and resizing: over space only."""
    data = node.inputs[0]
    if data.name not in sweep.of or any(size != 1 for size in sweep.of[data.name].shape[2:]):
        return None
    if node.op in ("Resize", "Upsample") and _leaves_space(node):
        return None
    return [sweep.of[data.name]]


def _leaves_space(node: gs.Node) -> bool:
    """Whether batch or channels change too, or values from outside come in."""
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    outside = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    return before is None or after is None or before[1] != after[1] or outside


def reduce_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Reductions over axes without labels."""
    found, axes = sweep.of.get(node.inputs[0].name), _axes(node)
    if found is None or axes is None or node.attrs.get("noop_with_empty_axes", 0):
        return None
    axes = sorted(axis % found.ndim for axis in axes) or list(range(found.ndim))
    if any(found.shape[axis] != 1 for axis in axes):
        return None
    if node.attrs.get("keepdims", 1):
        return [found]
    return [found.reshape([s for i, s in enumerate(found.shape) if i not in axes])]


def _axes(node: gs.Node) -> list[int] | None:
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1].name:
        return node.inputs[1].values.tolist() if is_constant(node.inputs[1]) else None
    return [] if axes is None else list(axes)


def concat_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Concat along the channels joins labels; along other axes they have to be equal."""
    output = node.outputs[0]
    axis = node.attrs["axis"] % len(output.shape)
    parts = []
    for tensor in node.inputs:
        found = sweep.of.get(tensor.name)
        if found is None or found.ndim != len(output.shape):  # its rank is unknown
            return None
        size = None if tensor.shape is None else tensor.shape[axis]
        if not isinstance(size, int):
            if found.shape[axis] != 1:
                return None
            size = 0
        parts.append((found, size))
    others = np.broadcast_shapes(*[_without(p.shape, axis) for p, _ in parts])
    if math.prod(others) * sum(max(size, 1) for _, size in parts) > LARGEST:
        return None
    if any(p.shape[axis] == 1 and not size for p, size in parts):  # no channels along this axis
        found = parts[0][0]
        for part, _ in parts[1:]:
            found = sweep.labels.same(sweep.labels.shared(found), sweep.labels.shared(part))
        return [found]
    full = [np.broadcast_to(p, (*others[:axis], size, *others[axis:])) for p, size in parts]
    return [compact(np.concatenate(full, axis))]


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def split_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Split along the channels cuts labels."""
    found = sweep.of.get(node.inputs[0].name)
    if found is None:
        return None
    axis = node.attrs.get("axis", 0) % found.ndim
    if found.shape[axis] == 1:
        return [found] * len(node.outputs)
    lengths = [t.shape[axis] for t in node.outputs]
    if not all(isinstance(n, int) for n in lengths) or sum(lengths) != found.shape[axis]:
        return None
    return np.split(found, np.cumsum(lengths)[:-1], axis)


def slice_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Slice, with constant bounds where it cuts channels."""
    found = sweep.of.get(node.inputs[0].name)
    if found is None or len(node.inputs) < 3:
        return None
    rank, bounds = found.ndim, [t for t in node.inputs[1:] if t.name]
    if not all(is_constant(t) for t in bounds):
        return [found] if found.size == 1 else None
    given = [np.asarray(t.values).tolist() for t in bounds]
    starts, ends = given[:2]
    axes = given[2] if len(given) > 2 else list(range(len(starts)))
    steps = given[3] if len(given) > 3 else [1] * len(axes)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if found.shape[axis] == 1:
            continue
        if step < 0:
            return None
        found = found[(slice(None),) * (axis % rank) + (slice(start, end, step),)]
    return [found]


def gather_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Gather, with constant indices where it takes channels."""
    data, indices = node.inputs
    found = sweep.of.get(data.name)
    if found is None:
        return None
    axis, rank = node.attrs.get("axis", 0) % found.ndim, len(node.outputs[0].shape)
    inserted = rank - found.ndim + 1
    if found.shape[axis] == 1:
        return [found.reshape((*found.shape[:axis], *[1] * inserted, *found.shape[axis + 1 :]))]
    return [np.take(found, indices.values, axis)] if is_constant(indices) else None


def transpose_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Transpose."""
    found = sweep.of.get(node.inputs[0].name)
    return None if found is None else [found.transpose(node.attrs.get("perm"))]


def reshape_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Reshape, Flatten, Squeeze, Unsqueeze: axes are matched from the back by their products."""
    data, output = node.inputs[0], node.outputs[0]
    found, before, after = sweep.of.get(data.name), sizes(data), sizes(output)
    if found is None or before is None or after is None:
        return None
    i, j = len(before), len(after)
    shape: list[int] = [1] * len(after)
    labels = found
    while i > 0 and any(size != 1 for size in labels.shape[:i]):
        first, last = i, j
        i, j = i - 1, max(j - 1, 0)
        left, right = before[i], after[j] if last else 1
        if not isinstance(left, int) or not isinstance(right, int):
            return None
        while left != right:
            if left < right and i > 0 and isinstance(before[i - 1], int):
                i -= 1
                left *= before[i]
            elif left > right and j > 0 and isinstance(after[j - 1], int):
                j -= 1
                right *= after[j]
            else:
                return None
        if any(size != 1 for size in labels.shape[i:first]):
            labels = np.broadcast_to(
                labels, (*labels.shape[:i], *before[i:first], *labels.shape[first:])
            )
            shape[j:last] = after[j:last]
    return [compact(labels.reshape(shape))]


def pad_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Padding; with zeros the new channels take any factor."""
    found = sweep.of.get(node.inputs[0].name)
    pads = node.inputs[1] if len(node.inputs) > 1 else None
    if found is None or pads is None:
        return None
    mode = node.attrs.get("mode", "constant")
    value = node.inputs[2] if len(node.inputs) > 2 else None
    computed = value is not None and bool(value.name) and not is_constant(value)
    if mode == "constant" and value is not None and value.name:
        computed = computed or bool(np.any(value.values))
    if computed:
        return None
    if all(size == 1 for size in found.shape):
        return [found]
    if not is_constant(pads) or (len(node.inputs) > 3 and node.inputs[3].name):
        return None
    amounts = pads.values.reshape(2, -1).T
    for axis, (begin, end) in enumerate(amounts.tolist()):
        if found.shape[axis] == 1 or (begin == 0 and end == 0):
            continue
        if mode != "constant" or min(begin, end) < 0:
            return None
        parts = [
            sweep.labels.fresh(*found.shape[:axis], n, *found.shape[axis + 1 :])
            for n in (begin, end)
        ]
        found = np.concatenate([parts[0], found, parts[1]], axis)
    return [found]


def expand_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Expand: labels keep axes of length 1."""
    found, rank = sweep.of.get(node.inputs[0].name), len(node.outputs[0].shape)
    return None if found is None else [aligned(found, rank)]
