"""Repairs a pruned model from samples, without labels: layer after layer, in graph order.

A layer of the original makes y = W x + b. What is left of it reads x', which lacks channels and
carries the errors of all layers before it, already repaired. Its weights become those with which
E|y - W' x' - b'|^2 is least over the samples, held to what they were by a ridge. Where y is added
to a stream, the error that the stream has already is part of y.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.changed_layers import changed_readers
from onnxcomp.factor_refinement import refit_factors
from onnxcomp.factored_layers import FactoredLayer, Written
from onnxcomp.graph import Names, label
from onnxcomp.linear_layers import LinearLayer
from onnxcomp.linear_layers import reason_against as reason_against_layer
from onnxcomp.recovery_targets import target_of
from onnxcomp.recurrent_layers import RECURRENT
from onnxcomp.refitting import Fitter, Recovered, refit, refit_recurrent, refit_together
from onnxcomp.shared_layers import find_shared
from onnxcomp.side_by_side import LEAST_ROWS, Kept, SideBySide
from onnxcomp.stepping import can_step

SAMPLES = 256
WIDEST = 4608  # inputs of an output


def recover(
    original: gs.Graph,
    pruned: gs.Graph,
    kept: Kept,
    calibration: Calibration,
    *,
    samples: int = SAMPLES,
    rows: int = LEAST_ROWS,
    seed: int = 0,
    written: Written | None = None,
    fitters: Mapping[str, Fitter] | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Recovered:
    """Refits the weights and biases of ``pruned`` to what ``original`` makes of the samples.

    Every Conv, Gemm and MatMul with constant weights, and every BatchNormalization, whose input
    is not that of the original, or another in its place, is refitted, unless that does not lower
    the error of its outputs on samples held back. Each node runs once a sample in both graphs.

    Args:
        original: before anything was removed.
        pruned: what is left, without channels or without whole branches, sorted; changed in
            place. Names of nodes and of activations are those of ``original``.
        kept: by name of a tensor of ``original``, the indices that are left of each of its axes,
            None for all; tensors that are whole may be absent.
        calibration: the first ``samples`` are used, fewer as long as tensors are large.
        rows: of the samples to fit a layer to, more for wide ones.
        seed: of the choice of rows.
        written: by label, layers of ``original`` that are rows of thin ones in ``pruned``: all of
            a row is fitted at once.
        fitters: by label, what gives layers of ``pruned`` new weights in another way than by
            regression, whatever they read.
        advance: called with (layers done, layers in all).

    Raises:
        CalibrationError: the samples do not fit.
        UnsupportedModel: onnxruntime cannot run a part of a graph.
    """
    recovered, fitters = Recovered(), fitters or {}
    layers: list[LinearLayer] = []
    changed = {id(node) for node in changed_readers(original, pruned, kept)}
    readers = [node for node in pruned.nodes if id(node) in changed or label(node) in fitters]
    shared, reasons = find_shared(readers, pruned, lambda node: _reason_against(node, original))
    for node in readers:
        reason = reasons.get(label(node)) or _reason_against(node, original)
        if reason is None:
            layers.append(LinearLayer.of(node))
        else:
            recovered.skipped[label(node)] = reason
    if not (can_step(original) and can_step(pruned)):
        reason = "the graph makes lists, or has inputs with defaults"
        recovered.skipped |= {label(layer.node): reason for layer in layers}
        return recovered
    walk = SideBySide(original, pruned, kept, calibration.feeds(samples), seed, rows)
    walk.look_ahead(shared)
    names = Names(pruned)
    waiting = {id(layer.node) for layer in layers}
    known = original.tensors()
    makers = {t.name: node for node in original.nodes for t in node.outputs}
    for index, layer in enumerate(layers):
        if advance is not None:
            advance(index, len(layers))
        together = next((found for found in shared if found.has(layer)), None)
        if layer.node.op in RECURRENT:
            waiting.discard(id(layer.node))
            refit_recurrent(layer.node, walk, names, recovered)
        elif together is None:
            waiting.discard(id(layer.node))
            target, old = target_of(layer, known, waiting), makers.get(layer.node.outputs[0].name)
            row = FactoredLayer.of(layer, old, known, written or {})
            if row is None:
                fit = fitters.get(label(layer.node), refit)
                fit(layer, target, walk, names, recovered)
            else:
                refit_factors(row, target, walk, names, recovered)
        elif id(layer.node) in waiting:
            waiting -= {id(other.node) for other in together.layers}
            refit_together(together, walk, names, recovered)
    return recovered


def _reason_against(node: gs.Node, original: gs.Graph) -> str | None:
    reason = reason_against_layer(node)
    if reason is not None:
        return reason
    if node.op in RECURRENT:
        return None
    layer = LinearLayer.of(node)
    if layer.weights.shape[-1] > WIDEST:
        return f"more than {WIDEST} inputs an output"
    if layer.made.name not in original.tensors():
        return "the original has nothing to compare it with"
    return None
