"""Ranges of what a network answers with, where no sample is real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import is_constant, producer
from onnxcomp.statistics import Range

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BOUNDED = ("Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Tanh", "Clip")
CONFIDENCE = 2.0  # logits of real inputs against those of made-up ones


def widened_logits(
    graph: gs.Graph, observed: Mapping[str, Sequence[str]], ranges: Mapping[str, Range]
) -> dict[str, Range]:
    """``ranges``, those of the last layers' outputs widened by CONFIDENCE.

    No made-up image shows anything that a network knows, so its logits stay low; a range from
    them would cut those of the classes off that it is surest of.

    Args:
        graph: with the layers.
        observed: for each scale, by name: the tensors whose values it has to cover.
        ranges: of each scale.
    """
    logits = _logits(graph)
    return {
        scale: Range(np.asarray(found.low * CONFIDENCE), np.asarray(found.high * CONFIDENCE))
        if logits.intersection(observed[scale])
        else found
        for scale, found in ranges.items()
    }


def _logits(graph: gs.Graph) -> set[str]:
    """Tensors between the last layers and the outputs, but none that its operator bounds."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(graph.outputs)
    while waiting:
        tensor = waiting.pop()
        node = producer(tensor)
        if tensor.name in seen or node is None:
            continue
        seen.add(tensor.name)
        if node.op not in BOUNDED:
            found.add(tensor.name)
        if node.op not in LAYERS:
            waiting += [t for t in node.inputs if not is_constant(t)]
    return found
