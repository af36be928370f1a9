"""Targets that a graph computes from shapes: which axis each entry is the length of.

A target like that follows a cut by itself, if the axis that it reads and the one that it makes lose
the same. So they get equal labels; what is read and goes anywhere else has to stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channel_sweep import Axes, Sweep, is_size
from onnxcomp.graph import consumers, is_constant, is_standard, producer
from onnxcomp.union_find import Array

Source = tuple[gs.Tensor, int]  # the length of this axis
Entry = Source | int | None  # None: anything
TARGETS = {("ConstantOfShape", 0), ("Expand", 1), ("Resize", 3)}  # whose rules ask `follow`
SAME = ("Cast", "Identity", "Squeeze", "Unsqueeze")
READ = "its length is read at run time"


def follow(sweep: Sweep, target: gs.Tensor, made: Axes) -> None:
    """Lets the axes ``made`` lose what the axes lose whose lengths a computed target holds."""
    entries = sources(target)
    if entries is None or len(entries) > len(made):
        for labels in made:
            sweep.equations.pin(labels, "its target is computed")
        for tensor in shapes_behind(target):
            sweep.pin(tensor, READ)
        return
    skipped = len(made) - len(entries)  # Expand aligns them at the back
    ours = written(target)
    for i, (entry, labels) in enumerate(zip(entries, made[skipped:], strict=True)):
        if i in ours:
            continue
        if isinstance(entry, tuple):
            tensor, axis = entry
            read = sweep.axes(tensor)[axis]
            if read.size == labels.size:
                sweep.equations.same(read, labels)
            else:
                sweep.equations.pin(read, READ)
                sweep.equations.pin(labels, "its target is computed")
        elif entry != 1:  # an Expand to 1 changes nothing
            sweep.equations.pin(labels, "its target is computed")


def written(target: gs.Tensor) -> set[int]:
    """Which entries are numbers that a cut can rewrite: constants, alone or joined to a target."""
    found, place = set[int](), 0
    for tensor, size in parts(target):
        if is_constant(tensor):
            found.update(range(place, place + size))
        place += size
    return found


def parts(target: gs.Tensor) -> list[tuple[gs.Tensor, int]]:
    """What a target that nobody else reads is joined of, and how many entries each is.

    A constant is its own only part; empty where something is unknown.
    """
    if is_constant(target):
        return [(target, int(np.prod(target.shape)))]
    node = producer(target)
    if node is None or node.op != "Concat" or len(consumers(target)) != 1:
        return []
    sizes = [(tensor, _entries(tensor)) for tensor in node.inputs]
    found = [(tensor, size) for tensor, size in sizes if size is not None]
    return found if len(found) == len(sizes) else []


def sources(lengths: gs.Tensor, depth: int = 16) -> list[Entry] | None:
    """What each entry of a vector of lengths, or the one of a scalar, is; None: not even how many.

    ``depth`` bounds the operators that are looked through.
    """
    if is_constant(lengths):
        return [int(value) for value in np.asarray(lengths.values).ravel()]
    size = _entries(lengths)
    unknown: list[Entry] | None = None if size is None else [None] * size
    node = producer(lengths)
    if node is None or depth == 0 or not is_standard(node):
        return unknown
    if node.op == "Shape":
        if node.inputs[0].shape is None:
            return unknown
        axes = range(len(node.inputs[0].shape))
        read = axes[node.attrs.get("start", 0) : node.attrs.get("end")]
        return [(node.inputs[0], axis) for axis in read]
    if node.op == "Concat":
        parts = [sources(tensor, depth - 1) for tensor in node.inputs]
        return None if None in parts else [entry for part in parts for entry in part or ()]
    first = sources(node.inputs[0], depth - 1)
    picked = None if first is None else _picked(node, len(first))
    if first is None or picked is None:
        return unknown
    return [first[int(i)] for i in picked]


def read_axes(lengths: gs.Tensor, axes: Sequence[int | None]) -> set[int]:
    """Which of ``axes``, whose lengths a vector holds, are needed by more than `TARGETS`."""
    readers = consumers(lengths)
    needed = {axis for axis in axes if axis is not None}
    if not readers or not needed:  # nobody reads an output of the model, but a caller
        return needed
    found: set[int] = set()
    for node in readers:
        place = next(i for i, tensor in enumerate(node.inputs) if tensor is lengths)
        if (node.op, place) in TARGETS:
            continue
        if node.op == "Concat":
            before = [_entries(tensor) for tensor in node.inputs[:place]]
            if None in before or sum(tensor is lengths for tensor in node.inputs) > 1:
                return needed
            front: list[int | None] = [None] * sum(size or 0 for size in before)
            found |= read_axes(node.outputs[0], [*front, *axes])
            continue
        picked = _picked(node, len(axes)) if place == 0 else None
        if picked is None:
            return needed
        found |= read_axes(
            node.outputs[0], [axes[int(i)] if i < len(axes) else None for i in picked]
        )
    return found


def _picked(node: gs.Node, size: int) -> Array | None:
    """Which entries of its first input a node hands on, None where it does more than that."""
    whole = np.arange(size)
    if node.op in SAME:
        return whole
    if any(not is_constant(tensor) for tensor in node.inputs[1:] if tensor.name):
        return None
    if node.op == "Gather":
        return np.asarray(np.asarray(node.inputs[1].values).ravel() % max(size, 1))
    if node.op == "Slice" and len(node.inputs) > 2:
        values: list[Any] = [tensor.values for tensor in node.inputs[1:] if tensor.name]
        start, end = (int(np.asarray(value).ravel()[0]) for value in values[:2])
        step = int(np.asarray(values[3]).ravel()[0]) if len(values) > 3 else 1
        return whole[start:end:step] if step > 0 else None
    return None


def _entries(lengths: gs.Tensor) -> int | None:
    """How many a vector has; 1 for a scalar."""
    shape = lengths.shape
    if shape is None or len(shape) > 1 or not all(map(is_size, shape)):
        return None
    return int(shape[0]) if len(shape) else 1


def shapes_behind(lengths: gs.Tensor) -> list[gs.Tensor]:
    """The tensors whose shapes went into a target."""
    found, waiting, seen = [], [lengths], set()
    while waiting:
        node = producer(waiting.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op == "Shape":
            found.append(node.inputs[0])
        else:
            waiting += node.inputs
    return found
