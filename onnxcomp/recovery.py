"""Repairs a pruned model from samples, without labels: layer after layer, in graph order.

A layer of the original makes y = W x + b. What is left of it reads x', which lacks channels and
carries the errors of all layers before it, already repaired. Its weights become those with which
E|y - W' x' - b'|^2 is least over the samples, held to what they were by a ridge. Where y is added
to a stream, the error that the stream has already is part of y.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.changed_layers import changed_readers
from onnxcomp.factor_refinement import refit_factors
from onnxcomp.factored_layers import FactoredLayer, Written
from onnxcomp.graph import Names, label
from onnxcomp.linear_layers import LinearLayer, reason_against
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
    settled: Container[str] = (),
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
        settled: labels of layers that keep the weights they have.
        advance: called with (layers done, layers in all).

    Raises:
        CalibrationError: the samples do not fit.
        UnsupportedModel: onnxruntime cannot run a part of a graph.
    """
    recovery = _Recovery(original, pruned, kept, written or {}, fitters or {}, settled)
    if not (can_step(original) and can_step(pruned)):
        recovery.skip_all("the graph makes lists, or has inputs with defaults")
        return recovery.recovered
    walk = SideBySide(original, pruned, kept, calibration.feeds(samples), seed, rows)
    walk.look_ahead(recovery.shared)
    for index, layer in enumerate(recovery.layers):
        if advance is not None:
            advance(index, len(recovery.layers))
        recovery.refit(layer, walk)
    return recovery.recovered


class _Recovery:
    """One call of `recover`.

    Attributes:
        layers: of the pruned graph, to refit in this order.
        shared: those of them with the same weights.
        recovered: what came of it so far.
    """

    def __init__(
        self,
        original: gs.Graph,
        pruned: gs.Graph,
        kept: Kept,
        written: Written,
        fitters: Mapping[str, Fitter],
        settled: Container[str],
    ) -> None:
        """Finds the layers, and the reasons against others."""
        self._written, self._fitters = written, fitters
        self._known, self._names = original.tensors(), Names(pruned)
        self._makers = {t.name: node for node in original.nodes for t in node.outputs}
        self.layers: list[LinearLayer] = []
        self.recovered = Recovered()
        changed = {id(node) for node in changed_readers(original, pruned, kept)}
        nodes = [n for n in pruned.nodes if id(n) in changed or label(n) in fitters]
        nodes = [node for node in nodes if label(node) not in settled]
        self.shared, reasons = find_shared(nodes, pruned, self._reason_against)
        for node in nodes:
            reason = reasons.get(label(node)) or self._reason_against(node)
            if reason is None:
                self.layers.append(LinearLayer.of(node))
            else:
                self.recovered.skipped[label(node)] = reason
        self._waiting = {id(layer.node) for layer in self.layers}

    def _reason_against(self, node: gs.Node) -> str | None:
        reason = reason_against(node)
        if reason is not None:
            return reason
        if node.op in RECURRENT:
            return None
        layer = LinearLayer.of(node)
        if layer.weights.shape[-1] > WIDEST:
            return f"more than {WIDEST} inputs an output"
        if layer.made.name not in self._known:
            return "the original has nothing to compare it with"
        return None

    def skip_all(self, reason: str) -> None:
        """Leaves all layers as they are."""
        self.recovered.skipped |= {label(layer.node): reason for layer in self.layers}

    def refit(self, layer: LinearLayer, walk: SideBySide) -> None:
        """Refits a layer, those before it being settled, and with it those of the same weights."""
        node, names, recovered = layer.node, self._names, self.recovered
        together = next((found for found in self.shared if found.has(layer)), None)
        if node.op in RECURRENT:
            self._waiting.discard(id(node))
            refit_recurrent(node, walk, names, recovered)
        elif together is None:
            self._waiting.discard(id(node))
            self._refit_alone(layer, walk)
        elif id(node) in self._waiting:
            self._waiting -= {id(other.node) for other in together.layers}
            refit_together(together, walk, names, recovered)

    def _refit_alone(self, layer: LinearLayer, walk: SideBySide) -> None:
        target = target_of(layer, self._known, self._waiting)
        old = self._makers.get(layer.node.outputs[0].name)
        row = FactoredLayer.of(layer, old, self._known, self._written)
        if row is None:
            fit = self._fitters.get(label(layer.node), refit)
            fit(layer, target, walk, self._names, self.recovered)
        else:
            refit_factors(row, target, walk, self._names, self.recovered)
