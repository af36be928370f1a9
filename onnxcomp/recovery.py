"""Repairs a pruned model from samples, without labels: layer after layer, in graph order.

A layer of the original makes y = W x + b. What is left of it reads x', which lacks channels and
carries the errors of all layers before it, already repaired. Its weights become those with which
E|y - W' x' - b'|^2 is least over the samples, held to what they were by a ridge. Where y is added
to a stream, the error that the stream has already is part of y.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.changed_layers import changed_readers
from onnxcomp.clipped_regression import Rows
from onnxcomp.concrete_shapes import is_known, with_concrete_shapes
from onnxcomp.factor_refinement import refit_factors
from onnxcomp.factored_layers import FactoredLayer, Written
from onnxcomp.gram import Array
from onnxcomp.graph import Names, label, volume
from onnxcomp.held_out import is_held
from onnxcomp.kept_indices import Left, taken
from onnxcomp.linear_layers import LinearLayer, Reader
from onnxcomp.linear_layers import reason_against as reason_against_layer
from onnxcomp.recovery_targets import Target, plain_target, target_of
from onnxcomp.recurrent_layers import RECURRENT, RecurrentPart, recurrent_parts
from onnxcomp.refitting import Fitter, Recovered, refit, refit_recurrent, refit_together
from onnxcomp.regression import Moments, reason_against
from onnxcomp.runtime import Feed
from onnxcomp.shared_layers import Evidence, Halves, SharedLayers, find_shared
from onnxcomp.stepping import Steps, can_step, most_held

_Rows = list[Array]  # x, y and, where there is one, what y is added to
Kept = Mapping[str, Sequence[Left]]
SAMPLES = 256
LEAST_ROWS = 1 << 14
ROWS_PER_INPUT = 8
WIDEST = 4608  # inputs of an output
FEWEST, HELD_VALUES = 8, 1 << 26  # samples, and values of one tensor over all of them
HELD_TOGETHER = 4  # times as many values of all tensors that are held at once
MOST_VALUES = 1 << 26  # of a layer's rows where they have to be kept
CHUNK_VALUES = 1 << 20  # of a layer's rows, by samples that are read at the same places


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


class SideBySide:
    """Two graphs, stepped through side by side; layers ahead may still change in the second."""

    def __init__(
        self,
        before: gs.Graph,
        after: gs.Graph,
        kept: Kept,
        feeds: Iterator[Feed],
        seed: int,
        rows: int = LEAST_ROWS,
    ) -> None:
        self._feeds, self._kept, self._seed, self._least = feeds, kept, seed, rows
        self._layers = 0
        one = next(feeds)
        self._sizes, self._tensors = _sizes(before, one), frozenset(before.tensors())
        first = [one, *itertools.islice(feeds, self._room(before.nodes, one) - 1)]
        self._count = len(first)
        self._before, self._after = Steps(before, first), Steps(after, first)
        self._joint: dict[int, Halves | str] = {}
        self._wanted: tuple[str, list[Array]] | None = None

    def _room(self, nodes: Iterable[gs.Node], held: Iterable[str]) -> int:
        """How many samples may be held at once while ``nodes`` run, of which some are ``held``."""
        largest, together = most_held(nodes, held, self._sizes)
        return max(FEWEST, HELD_VALUES // max(1, largest, together // HELD_TOGETHER))

    def _grow(self) -> None:
        """Takes more samples as soon as twice as many fit into memory from here on."""
        room = self._room(self._before.ahead(), self._before.kept())
        if room < 2 * self._count:
            return
        more = list(itertools.islice(self._feeds, room - self._count))
        self._count += len(more)
        self._before.extend(more)
        self._after.extend(more)

    def look_ahead(self, shared: Sequence[SharedLayers]) -> None:
        """Takes what layers read in the original that may not be asked for later."""
        layers = [(layer, found) for found in shared for layer in found.ahead]
        if not layers:
            return
        makers = enumerate(self._before.ahead())
        position = {t.name: index for index, node in makers for t in node.outputs}
        layers.sort(key=lambda pair: position[pair[0].node.outputs[0].name])
        whole = self._before.again()
        for layer, found in layers:
            if layer.source not in self._tensors:  # between thin layers, say
                self._joint[id(found)] = "what a layer with the same weights reads is new"
                continue
            pair = [
                [taken(values, self._kept.get(name, ())) for values in whole.advance(name)]
                for name in (layer.source, layer.made.name)
            ]
            evidence = self._shown(layer, plain_target(layer), pair[0], pair[1], None)
            self._joint[id(found)] = found.joined(self._joint.get(id(found)), layer, evidence)

    def joint_evidence(self, shared: SharedLayers) -> Halves | str:
        """What the samples show of layers with the same weights, or what is wrong with them."""
        total = self._joint.pop(id(shared), None)
        for layer in shared.now:
            total = shared.joined(total, layer, self.evidence(layer, plain_target(layer)))
        return "there are no samples" if total is None else total

    def parts_of(self, node: gs.Node) -> Iterator[RecurrentPart | str]:
        """What an LSTM, GRU or RNN multiplies with weights."""

        def gates_left(weights: gs.Tensor) -> Array:
            axes = self._kept.get(weights.name)
            return taken(weights.values, (None, axes[1], None) if axes else ())

        return recurrent_parts(node, self._before.maker(node.outputs), gates_left)

    def recurrent_evidence(self, part: RecurrentPart) -> Evidence | str:
        """What the samples show of one of them."""
        self._grow()
        whole = left = self._before.advance(part.source)
        if not part.reads_state:
            left = self._after.advance(part.source)
        elif part.source in self._kept:
            left = [taken(values, self._kept[part.source]) for values in whole]
        return self._shown(part, Target(part.source, None, -np.inf, np.inf), left, whole, None)

    def read_by(self, layer: Reader) -> list[Array]:
        """What a layer of the second graph reads, of each sample."""
        self._grow()
        return self._after.advance(layer.source)

    def evidence(self, layer: Reader, target: Target) -> Evidence | str:
        """What the samples show of a layer, or what is wrong with them."""
        if self._wanted is None or self._wanted[0] != target.total:  # else it is asked for again
            self._grow()
            self._wanted = target.total, self._before.advance(target.total)
        inputs = self._after.advance(layer.source)
        others = None if target.other is None else self._after.advance(target.other)
        wanted = [taken(values, self._kept.get(target.total, ())) for values in self._wanted[1]]
        if others is not None:
            shapes = (values.shape for values in wanted)
            others = [np.broadcast_to(o, shape) for o, shape in zip(others, shapes, strict=True)]
        return self._shown(layer, target, inputs, wanted, others)

    def _shown(
        self,
        layer: Reader,
        target: Target,
        inputs: list[Array],
        wanted: list[Array],
        others: list[Array] | None,
    ) -> Evidence | str:
        self._layers += 1
        groups, out, width = layer.weights.shape
        count = max(self._least, ROWS_PER_INPUT * width)
        if target.is_clipped:
            count = min(count, MOST_VALUES // (groups * (width + out)))
        unknowns = (layer.last if isinstance(layer, FactoredLayer) else layer).weights.shape[2]
        found: tuple[list[_Rows], list[_Rows]] = ([], [])
        moments: list[Moments | None] = [None, None]
        waiting: tuple[list[_Rows], list[_Rows]] = ([], [])
        for held, rows in self._rows(layer, inputs, wanted, others, -(-count // self._count)):
            x, y = rows[:2]
            if x.shape != (groups, width, y.shape[2]) or y.shape[:2] != (groups, out):
                return "its shape is not what is left of the original's"
            if target.is_clipped:
                found[held].append(rows)
            waiting[held].append(rows)
            if sum(part[0].shape[2] for part in waiting[held]) >= width:
                moments[held] = _added(moments[held], waiting[held])
        shown, judged = map(_added, moments, waiting)
        if shown is None or judged is None:
            return "there are no samples"
        reason = reason_against(shown + judged, unknowns)
        if reason is not None or not target.is_clipped:
            return reason or Evidence((shown, judged), None)
        return Evidence((shown, judged), (_clipped(found[0], target), _clipped(found[1], target)))

    def _rows(
        self,
        layer: Reader,
        inputs: list[Array],
        wanted: list[Array],
        others: list[Array] | None,
        each: int,
    ) -> Iterator[tuple[bool, _Rows]]:
        """Rows of x, of y and of what y is added to, and whether they are held back."""
        sides = [inputs, wanted] if others is None else [inputs, wanted, others]
        samples = list(zip(*sides, strict=True))
        if not layer.reads_channels:  # whatever its axes, a feed is one sample
            samples = [tuple(values[None] for values in sample) for sample in samples]
        few = max(1, CHUNK_VALUES // max(1, each * layer.weights.shape[-1] * layer.groups))
        if len({sample[0].shape for sample in samples}) > 1:
            few = 1
        scarce = len(samples) < FEWEST  # then one row in so many is held back instead
        for held in (False, True):
            part = [x for k, x in enumerate(samples) if scarce or is_held(k) is held]
            for first in range(0, len(part), few):
                seed = [self._seed, self._layers, held, first]
                x, *made = (np.concatenate(v) for v in zip(*part[first : first + few], strict=True))
                sampled = [layer.inputs(x, each, seed)]
                sampled += [layer.outputs(y, each, seed) for y in made]
                rows = [np.concatenate(list(values), axis=-1) for values in sampled]
                if scarce:
                    chosen = np.asarray([is_held(k) is held for k in range(rows[0].shape[-1])])
                    rows = [values[..., chosen] for values in rows]
                if len(rows) == 3:
                    rows[1] = rows[1] - rows[2]
                yield held, rows


def _added(sofar: Moments | None, waiting: list[_Rows]) -> Moments | None:
    """Adds rows that waited for one another: a product for each would be slower than large ones."""
    if not waiting:
        return sofar
    x, y = (np.concatenate(side, axis=-1) for side in zip(*(r[:2] for r in waiting), strict=True))
    waiting.clear()
    more = Moments.of(x, y)
    return more if sofar is None else sofar + more


def _clipped(parts: Sequence[_Rows], target: Target) -> Rows:
    x, y, *other = (np.concatenate(side, axis=-1) for side in zip(*parts, strict=True))
    added = other[0] if other else np.zeros((), y.dtype)
    return Rows(x, y, target.low - added, target.high - added)


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


def _sizes(graph: gs.Graph, feed: Feed) -> dict[str, int]:
    """How many values each tensor has for ``feed``, by name, where that is known."""
    _, types = with_concrete_shapes(graph, {name: np.shape(v) for name, v in feed.items()})
    tensors = [item for found in types.values() for item in found.items()]
    return {name: volume(t.shape) or 1 for name, t in tensors if is_known(t)}
