"""Removes units of channels from a graph: constants, sizes and attributes follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channel_equations import Unfollowed
from onnxcomp.channel_lengths import parts
from onnxcomp.channel_selections import slice_axes, sliced
from onnxcomp.channel_sweep import integers
from onnxcomp.channels import Channels
from onnxcomp.graph import Names, input_at, is_constant, sort_nodes
from onnxcomp.kept_indices import ByHead, Kept, kept_after, taken
from onnxcomp.union_find import Array


@dataclass
class Cut:
    """What a row of `SIZES` may ask while it follows in a node.

    Attributes:
        graph: the one being cut.
        kept: of every tensor that lost indices.
        names: of the graph.
    """

    graph: gs.Graph
    kept: Kept
    names: Names

    def axis(self, tensor: gs.Tensor, axis: int) -> Array | None:
        """The indices left of an axis, None where it keeps all.

        Where heads differ, those of the first: nodes that see more than the number would not have
        let them.
        """
        left = self.kept[tensor.name][axis] if tensor.name in self.kept else None
        return left.indices[0] if isinstance(left, ByHead) else left

    def constant(self, old: gs.Tensor, values: Array) -> gs.Constant:
        """New values for a shape, an index or the like, under a new name."""
        return gs.Constant(self.names.fresh(f"{old.name}.pruned"), values.astype(old.dtype))


def cut(graph: gs.Graph, channels: Channels, removed: Mapping[str, Array]) -> Kept:
    """Removes units in place; nodes and activations keep their names.

    Args:
        graph: the one that ``channels`` were found in, unchanged since.
        channels: its groups.
        removed: name of a group -> units to remove, [n], fewer than the group has; [heads, n]
            for one with heads.

    Returns:
        By name of a tensor that lost indices, for each axis those that are left, as indices of
        before; None for an axis that lost none. Constants appear under the names they had.
    """
    work = Cut(graph, kept_after(channels, removed), Names(graph))
    for node in list(graph.nodes):
        follow = SIZES.get(node.op)
        if follow is not None and any(t.name in work.kept for t in (*node.inputs, *node.outputs)):
            follow(work, node)
    _shrink(graph, channels, work)
    sort_nodes(graph)
    return work.kept


def _shrink(graph: gs.Graph, channels: Channels, work: Cut) -> None:
    """Cuts constants, each once for all its readers, and the shapes of activations."""
    small: dict[str, gs.Constant] = {}
    for node in graph.nodes:
        for i, tensor in enumerate(node.inputs):
            axes = work.kept.get(tensor.name)
            if axes is None or tensor.name not in channels.constants:
                continue
            if tensor.name not in small:
                name = work.names.fresh(f"{tensor.name}.pruned")
                values = np.ascontiguousarray(taken(tensor.values, axes))
                small[tensor.name] = gs.Constant(name, values)
            node.inputs[i] = small[tensor.name]
        for tensor in node.outputs:
            axes = work.kept.get(tensor.name)
            if axes is not None and tensor.shape is not None:
                shape = zip(tensor.shape, axes, strict=True)
                tensor.shape = [size if left is None else left.size for size, left in shape]


# --- what holds sizes -----------------------------------------------------------------------------


def _groups_of_conv(work: Cut, node: gs.Node) -> None:
    """As many as the full axis has of a group's: inputs of a Conv, outputs of a ConvTranspose."""
    groups = int(node.attrs.get("group", 1))
    if groups == 1:
        return
    kernel, full = node.inputs[1], node.outputs[0] if node.op == "ConvTranspose" else node.inputs[0]
    own, left = work.axis(kernel, 1), work.axis(full, 1)
    inner = int(kernel.shape[1]) if own is None else own.size
    node.attrs["group"] = (kernel.shape[1] * groups if left is None else left.size) // inner


def _groups_of_norm(work: Cut, node: gs.Node) -> None:
    left, groups = work.axis(node.inputs[0], 1), int(node.attrs["num_groups"])
    if left is not None:
        size = int(node.inputs[0].shape[1]) // groups
        node.attrs["num_groups"] = int(np.unique(left // size).size)


def _hidden_size(work: Cut, node: gs.Node) -> None:
    left = work.axis(node.inputs[2], 2)
    if left is not None:
        node.attrs["hidden_size"] = int(left.size)


def _target(index: int) -> Callable[[Cut, gs.Node], None]:
    """Reshape, Expand, Resize: the lengths of the output's axes; 0, -1 and 1 say nothing of it.

    A target is a constant, or constants and computed lengths that are joined.
    """

    def follow(work: Cut, node: gs.Node) -> None:
        tensor = input_at(node, index)
        result = node.outputs[0]
        if tensor is None or result.name not in work.kept:
            return
        kept = [work.axis(result, axis) for axis in range(len(result.shape))]
        found = parts(tensor)
        place = len(kept) - sum(size for _, size in found)  # Expand aligns them at the back
        for i, (part, size) in enumerate(found):
            if is_constant(part):
                numbers = _rewritten(work, part, kept[place : place + size])
                if part is tensor:
                    node.inputs[index] = numbers
                else:
                    tensor.inputs[0].inputs[i] = numbers
            place += size

    return follow


def _rewritten(work: Cut, tensor: gs.Tensor, kept: Sequence[Array | None]) -> gs.Tensor:
    target = np.array(tensor.values)
    for i, left in enumerate(kept):
        if left is not None and target.flat[i] > 1:
            target.flat[i] = left.size
    return work.constant(tensor, target)


def _pads(work: Cut, node: gs.Node) -> None:
    """As many new indices on either side as are left of them."""
    data, result = node.inputs[0], node.outputs[0]
    if result.name not in work.kept:
        return
    tensor = input_at(node, 1)
    old = np.asarray(node.attrs["pads"] if tensor is None else tensor.values)
    axes = [axis % len(data.shape) for axis in integers(node, 3) or range(len(data.shape))]
    pads = old.reshape(2, -1).copy()
    for i, axis in enumerate(axes):
        left, size = work.axis(result, axis), data.shape[axis]
        if left is not None:
            pads[:, i] = np.sum(left < pads[0, i]), np.sum(left >= pads[0, i] + size)
    if tensor is None:
        node.attrs["pads"] = pads.ravel().tolist()
    else:
        node.inputs[1] = work.constant(tensor, pads.ravel())


def _split(work: Cut, node: gs.Node) -> None:
    """The lengths of all parts, which are no longer even."""
    axis = int(node.attrs.get("axis", 0)) % len(node.inputs[0].shape)
    if work.axis(node.inputs[0], axis) is None:
        return
    lengths = []
    for tensor in node.outputs:
        left = work.axis(tensor, axis)
        lengths.append(int(tensor.shape[axis]) if left is None else left.size)
    node.attrs.pop("num_outputs", None)
    name = work.names.fresh(f"{node.outputs[0].name}.lengths")
    node.inputs = [node.inputs[0], gs.Constant(name, np.asarray(lengths, np.int64))]


def _slice(work: Cut, node: gs.Node) -> None:
    """A range of what is left; along axes where that is no range, a Gather."""
    data = node.inputs[0]
    try:
        bounds = slice_axes(node, len(data.shape))
    except Unfollowed:  # ranges of axes that stay
        return
    uneven = {}
    for axis, (start, end, step) in list(bounds.items()):
        left = work.axis(data, axis)
        if left is None:
            continue
        chosen = sliced(int(data.shape[axis]), start, end, step)
        place = np.searchsorted(left, chosen[np.isin(chosen, left)])
        if (np.diff(place) == 1).all():
            bounds[axis] = (int(place[0]), int(place[-1]) + 1, 1)
        else:
            uneven[axis] = place
            del bounds[axis]
    if data.name in work.kept:
        _write_slice(work, node, bounds, uneven)


def _write_slice(
    work: Cut,
    node: gs.Node,
    bounds: Mapping[int, tuple[int, int, int]],
    uneven: Mapping[int, Array],
) -> None:
    data, kind = node.inputs[0], node.inputs[1]
    for axis, place in list(uneven.items())[0 if bounds else 1 :]:
        taken = gs.Variable(work.names.fresh(f"{node.outputs[0].name}.taken"), data.dtype)
        inputs, name = [data, work.constant(kind, place)], work.names.fresh(f"{node.name}.taken")
        work.graph.nodes.append(gs.Node("Gather", name, {"axis": axis}, inputs, [taken]))
        data = taken
    if not bounds:
        axis, place = next(iter(uneven.items()))
        node.op, node.attrs = "Gather", {"axis": axis}
        node.inputs = [data, work.constant(kind, place)]
        return
    table = np.asarray([(*bound, axis) for axis, bound in bounds.items()], np.int64)
    starts, ends, steps, axes = table.T
    inputs = [work.constant(kind, values) for values in (starts, ends, axes, steps)]
    node.attrs, node.inputs = {}, [data, *inputs]


def _gather(work: Cut, node: gs.Node) -> None:
    """Indices of what is left, where they are constant."""
    data, indices = node.inputs
    axis = int(node.attrs.get("axis", 0)) % len(data.shape)
    left, result = work.axis(data, axis), node.outputs[0]
    if not is_constant(indices) or (left is None and result.name not in work.kept):
        return
    chosen = np.asarray(indices.values)
    for i in range(chosen.ndim):
        mine = work.axis(result, axis + i)
        chosen = chosen if mine is None else np.take(chosen, mine, i)
    if left is not None:
        chosen = np.searchsorted(left, chosen % int(data.shape[axis]))
    node.inputs[1] = work.constant(indices, np.asarray(chosen))


SIZES: dict[str, Callable[[Cut, gs.Node], None]] = {
    **dict.fromkeys(("Conv", "FusedConv", "ConvTranspose"), _groups_of_conv),
    "GroupNormalization": _groups_of_norm,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _hidden_size),
    "ConstantOfShape": _target(0),
    "Reshape": _target(1),
    "Expand": _target(1),
    "Resize": _target(3),
    "Pad": _pads,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
}
