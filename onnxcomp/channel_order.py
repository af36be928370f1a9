"""Channels in another order: neighbours that are alike make blocks of zeros cost less.

A model answers the same whatever the order of the channels between its layers, as long as all that
makes and reads them has the same one. `channels` tells where each unit of a group lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.channels import ChannelGroup, Channels, Place
from onnxcomp.graph import constants, is_constant
from onnxcomp.quantization import Array
from onnxcomp.sparsity import Pattern
from onnxcomp.statistics import Moments
from onnxcomp.weight_sites import Weight

CHANNELS = {"Conv": 1, "Gemm": -1, "MatMul": -1}  # the axis that weights are multiplied along


@dataclass(frozen=True)
class Scores:
    """What is lost with each weight of a layer, for blocks of its outputs and inputs.

    Attributes:
        values: [*shape of the weight], at least 0.
        blocks: by axis, how many neighbouring indices a block takes of it; axes of which blocks
            take only one may be absent.
    """

    values: Array
    blocks: Mapping[int, int]


def observed_scores(
    graph: gs.Graph,
    weights: Mapping[str, tuple[Weight, Pattern]],
    samples: Calibration,
    limit: int,
    advance: Callable[[int, int], None],
) -> dict[str, Scores]:
    """Scores by the square of a weight and the variance of what it is multiplied with.

    Args:
        graph: that the weights are of.
        weights: by name of the constant, each with the blocks of its zeros.
        samples, limit: the first so many tell the variances.
        advance: called with (samples done, samples in all).
    """
    known = {name for name, tensor in graph.tensors().items() if not is_constant(tensor)}
    taps: dict[str, list[Moments]] = {}
    for weight, _ in weights.values():
        node = weight.sites[0].node
        if len(weight.sites) == 1 and node.inputs[0].name in known and node.op in CHANNELS:
            taps[node.inputs[0].name] = [Moments(CHANNELS[node.op])]
    if taps:
        samples.observe(graph, taps, limit=limit, advance=advance)
    found = {}
    for name, (weight, pattern) in weights.items():
        layout, values = weight.layout, np.square(weight.constant.values, dtype=np.float64)
        inputs = layout.order[layout.outputs]
        blocks = {inputs: pattern.columns}
        if layout.outputs == 1:
            blocks[layout.order[0]] = pattern.rows
        tap = taps.get(weight.sites[0].node.inputs[0].name)
        variance = tap[0].result().variance if tap else np.ones(1)
        if len(variance) == values.shape[inputs]:  # of a Conv in groups each sees a part
            values = values * np.expand_dims(
                variance, [axis for axis in range(values.ndim) if axis != inputs]
            )
        found[name] = Scores(values, blocks)
    return found


def alike_together(
    graph: gs.Graph, channels: Channels, scores: Mapping[str, Scores]
) -> dict[str, Array]:
    """New values of constants with which blocks of the weights that have scores are more uneven.

    Channels become neighbours when their weights are large in the same places: then blocks have
    either most of what counts or little of it.

    Args:
        graph: is not changed.
        channels: of the graph.
        scores: by name of the weights.

    Returns:
        by name, constants with their channels in the new order.
    """
    found = constants(graph)
    orders: dict[tuple[str, int], Array] = {}
    for group in channels.groups:
        if not can_be_ordered(group):
            continue
        likeness, block = _likeness(group, scores)
        if block < 2 or group.size <= block:
            continue
        order = _gathered(likeness, block)
        for place in group.places:
            if place.tensor in channels.constants:
                key = place.tensor, place.axis
                before = orders.get(key, np.arange(len(place.units)))
                orders[key] = _moved(before, place.units, order)
    made: dict[str, Array] = {}
    for (name, axis), order in orders.items():
        values = made.get(name)
        if values is None:
            values = np.asarray(found[name].values)
        made[name] = np.ascontiguousarray(np.take(values, order, axis))
    return made


def can_be_ordered(group: ChannelGroup) -> bool:
    """Whether the units of a group may change places: each is one index of every axis."""
    return group.span == 1 == group.heads and all(
        place.heads is None and _is_once(place) for place in group.places
    )


def _is_once(place: Place) -> bool:
    units = place.units[place.units >= 0]
    return len(np.unique(units)) == len(units)


def _likeness(group: ChannelGroup, scores: Mapping[str, Scores]) -> tuple[Array, int]:
    """How alike units are, [size, size], and the largest block that takes several of them."""
    likeness, block = np.zeros((group.size, group.size), np.float32), 0
    for place in group.places:
        known = scores.get(place.tensor)
        size = 0 if known is None else known.blocks.get(place.axis, 1)
        if known is None or size < 2:
            continue
        sizes = np.sqrt(np.moveaxis(known.values, place.axis, 0)).reshape(len(place.units), -1)
        of_units = np.zeros((group.size, sizes.shape[1]), np.float32)
        seen = place.units >= 0
        of_units[place.units[seen]] = sizes[seen]
        total = float(np.sum(known.values, dtype=np.float64))
        if total > 0:
            likeness += (of_units @ of_units.T) * (known.values.size / total)
            block = max(block, size)
    return likeness, block


def _gathered(likeness: Array, block: int) -> Array:
    """An order of units: the largest that is left, then those most alike to its block so far."""
    left, order = np.ones(len(likeness), bool), list[int]()
    sizes = np.diagonal(likeness)
    together = sizes
    for at in range(len(likeness)):
        pull = sizes if at % block == 0 else together
        best = int(np.argmax(np.where(left, pull, -np.inf)))
        together = likeness[best] if at % block == 0 else together + likeness[best]
        left[best] = False
        order.append(best)
    return np.asarray(order)


def _moved(before: Array, units: Array, order: Array) -> Array:
    """Indices of an axis with its units in an order: where u was comes ``order[u]``.

    Args:
        before: indices that other groups along the axis have moved already.
        units: of each index, -1 for none.
        order: of units; an axis has all of them or none.
    """
    place = np.zeros(len(order), np.int64)
    seen = np.flatnonzero(units >= 0)
    place[units[seen]] = seen
    moved = before.copy()
    moved[seen] = place[order[units[seen]]]
    return moved
