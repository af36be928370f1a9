"""Layers whose channels stay, and why."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from onnxcomp.channels import Channels
from onnxcomp.graph import label
from onnxcomp.unit_parts import weight_axes


def layers_that_stay(graph: gs.Graph, channels: Channels) -> Iterator[tuple[str, str]]:
    """Labels of layers that can lose neither what they make nor what they read, and why."""
    for layer in weight_axes(graph):
        makes, reads = ((layer.weights.name, axis) for axis in (layer.makes, layer.reads))
        single = layer.weights.shape[layer.reads] == 1
        if makes in channels.pinned and (single or reads in channels.pinned):
            yield label(layer.node), channels.pinned[makes]


def ends(graph: gs.Graph, first: bool, last: bool) -> dict[tuple[str, int], str]:
    """Axes of weights, and why they stay: what the first layer makes, what the last one reads."""
    layers = list(weight_axes(graph))
    held: dict[tuple[str, int], str] = {}
    if layers and first:
        held[layers[0].weights.name, layers[0].makes] = "made by the first layer"
    if layers and last:
        held[layers[-1].weights.name, layers[-1].reads] = "read by the last layer"
    return held
