"""A word of warning where samples are too few to tell channels apart."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.channels import Channels
from onnxcomp.concrete_shapes import with_concrete_shapes
from onnxcomp.graph import label, volume
from onnxcomp.unit_parts import weight_axes

SHOWN = 3  # layers that are named


def few_samples(
    graph: gs.Graph, channels: Channels, samples: Calibration, limit: int
) -> str | None:
    """Says of how many layers, and groups that they read, too little was seen; None for none.

    A layer with n inputs needs more than n rows of them: fewer rows always seem to follow from
    fewer inputs, so that channels look superfluous that are not.

    Args:
        graph: the one that ``channels`` were found in.
        channels: its groups.
        samples: all like the first.
        limit: at most so many of them count.
    """
    feed = next(samples.feeds(1))
    count = min(limit, len(samples))
    twin, types = with_concrete_shapes(graph, {name: np.shape(v) for name, v in feed.items()})
    known = types[id(twin)]
    readers: dict[tuple[str, int], set[str]] = {}
    for group in channels.groups:
        for place in group.places:
            readers.setdefault((place.tensor, place.axis), set()).add(group.name)
    found: list[tuple[float, str]] = []
    groups: set[str] = set()
    for layer in weight_axes(graph):
        mine = readers.get((layer.weights.name, layer.reads))
        made = known.get(layer.node.outputs[0].name)
        size = None if made is None else volume(made.shape)
        if layer.source is None or not mine or not size:
            continue
        out = int(layer.weights.shape[layer.makes])
        inputs, rows = int(np.prod(layer.weights.shape)) // out, count * size // out
        if rows <= inputs:
            words = f"{label(layer.node)} ({rows} rows for {inputs} inputs)"
            found.append((rows / inputs, words))
            groups |= mine
    if not found:
        return None
    worst = ", ".join(words for _, words in sorted(found)[:SHOWN])
    return (
        f"{len(found)} layers that read {len(groups)} groups saw no more rows of samples than they"
        f" have inputs, such as {worst}: what their channels cost is uncertain; give more samples"
    )
