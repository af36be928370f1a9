"""Repairs a pruned model from samples, without labels: layer after layer, in graph order.

A layer of the original makes y = W x + b. What is left of it reads x', which lacks channels and
carries the errors of all layers before it, already repaired. Its weights become those with which
E|y - W' x' - b'|^2 is least over the samples, held to what they were by a ridge. Where y is added
to a stream, the error that the stream has already is part of y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.gram import Array
from onnxcomp.graph import Names, consumers, is_constant, label, producer
from onnxcomp.linear_layers import LinearLayer
from onnxcomp.linear_layers import reason_against as reason_against_layer
from onnxcomp.regression import Fit, Moments, best_fit, reason_against
from onnxcomp.stepping import Steps, can_step

Kept = Mapping[str, Sequence[Array | None]]
SAMPLES = 256
LEAST_ROWS = 1 << 14
ROWS_PER_INPUT = 8
WIDEST = 4608  # inputs of an output
HELD_EVERY = 4  # one sample in so many judges the fit made from the others
FEWEST, HELD_VALUES = 8, 1 << 26  # samples, and values of one tensor over all of them
CHUNK_VALUES = 1 << 20  # of a layer's rows, by samples that are read at the same places
OPAQUE = {"ConvTranspose", "Gemm", "Conv", "MatMul", "LSTM", "GRU", "RNN", "Einsum", "DeformConv"}


@dataclass
class Recovered:
    """What `recover` did, by label of the node.

    Attributes:
        refitted: the nodes with new weights, in the order of the graph.
        skipped: the nodes that read something else than in the original and stay as they are,
            with the reason.
        errors: of each node that could be refitted, the error of its outputs before and after, on
            samples held back: E|y - y'|^2 as a share of the variance of y.
    """

    refitted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)


def recover(
    original: gs.Graph,
    pruned: gs.Graph,
    kept: Kept,
    calibration: Calibration,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    advance: Callable[[int, int], None] | None = None,
) -> Recovered:
    """Refits the weights and biases of ``pruned`` to what ``original`` makes of the samples.

    Every Conv, Gemm and MatMul with constant weights whose input is not that of the original is
    refitted, unless that does not lower the error of its outputs on samples held back. Each node
    runs once a sample in both graphs.

    Args:
        original: before anything was removed.
        pruned: what is left, sorted; changed in place. Names of nodes and of activations are
            those of ``original``.
        kept: by name of a tensor of ``original``, the indices that are left of each of its axes,
            None for all; tensors that are whole may be absent.
        calibration: samples; the first ``samples`` are used, or fewer where tensors are large.
        seed: of the choice of rows.
        advance: called with (layers done, layers in all).

    Raises:
        CalibrationError: the samples do not fit.
        UnsupportedModel: onnxruntime cannot run a part of a graph.
    """
    recovered = Recovered()
    layers: list[LinearLayer] = []
    for node in _changed_readers(original, pruned, kept):
        reason = _reason_against(node, original)
        if reason is None:
            layers.append(LinearLayer.of(node))
        else:
            recovered.skipped[label(node)] = reason
    if not (can_step(original) and can_step(pruned)):
        reason = "the graph has bodies or inputs with defaults"
        recovered.skipped |= {label(layer.node): reason for layer in layers}
        return recovered
    feeds = list(calibration.feeds(min(samples, _affordable(original))))
    walk = _Walk(Steps(original, feeds), Steps(pruned, feeds), kept, len(feeds), seed)
    names = Names(pruned)
    waiting = {id(layer.node) for layer in layers}
    for index, layer in enumerate(layers):
        if advance is not None:
            advance(index, len(layers))
        waiting.discard(id(layer.node))
        _refit(layer, _stream_of(layer, original, waiting), walk, names, recovered)
    return recovered


def _refit(
    layer: LinearLayer, stream: _Stream | None, walk: _Walk, names: Names, recovered: Recovered
) -> None:
    """Gives ``layer`` new weights, or a reason why not."""
    name = label(layer.node)
    bias = layer.bias
    start = Fit(layer.weights, bias)
    moments = walk.moments(layer, stream)
    reason = moments if isinstance(moments, str) else reason_against(sum_of(moments))
    if reason is not None or isinstance(moments, str):
        recovered.skipped[name] = str(reason)
        return
    shown, held = moments
    fit, before, after = best_fit(shown, held, start, with_bias=layer.takes_bias)
    recovered.errors[name] = before, after
    if fit is start:
        recovered.skipped[name] = "no other weights do better on samples held back"
        return
    layer.write(fit.weights, fit.bias if layer.takes_bias else None, names)
    recovered.refitted.append(name)


def sum_of(moments: tuple[Moments, Moments]) -> Moments:
    """Of all samples."""
    return moments[0] + moments[1]


@dataclass(frozen=True)
class _Stream:
    """Where a layer's output is added to something: what, and the sum; names of tensors."""

    other: str
    total: str


class _Walk:
    """Both graphs, stepped through side by side."""

    def __init__(self, before: Steps, after: Steps, kept: Kept, count: int, seed: int) -> None:
        self._before, self._after, self._kept = before, after, kept
        self._count, self._seed, self._layers = count, seed, 0

    def moments(self, layer: LinearLayer, stream: _Stream | None) -> tuple[Moments, Moments] | str:
        """Of the samples a fit is made from and of those it is judged by, or what is wrong."""
        self._layers += 1
        inputs = self._after.advance(layer.source)
        wanted = self._wanted(layer.made.name)
        if stream is not None:
            others, totals = self._after.advance(stream.other), self._wanted(stream.total)
            if all(o.shape == t.shape for o, t in zip(others, totals, strict=True)):
                wanted = [total - other for total, other in zip(totals, others, strict=True)]
        width = layer.weights.shape[-1]
        rows = max(LEAST_ROWS, ROWS_PER_INPUT * width)
        parts: list[Moments | None] = [None, None]
        for held, x, y in self._rows(layer, inputs, wanted, -(-rows // self._count)):
            if y.shape[1] != layer.weights.shape[1] or x.shape[1:] != (width, y.shape[2]):
                return f"its output has {y.shape[1]} channels, not {layer.weights.shape[1]}"
            more, sofar = Moments.of(x, y), parts[held]
            parts[held] = more if sofar is None else sofar + more
        shown, judged = parts
        if shown is None or judged is None:
            return "there are no samples"
        return shown, judged

    def _wanted(self, name: str) -> list[Array]:
        """What ``original`` makes, of which only what is kept."""
        return [_restricted(values, self._kept.get(name)) for values in self._before.advance(name)]

    def _rows(
        self, layer: LinearLayer, inputs: list[Array], wanted: list[Array], each: int
    ) -> Iterator[tuple[bool, Array, Array]]:
        """Rows x and y, [groups, d, n] and [groups, out, n], and whether they are held back."""
        pairs = list(zip(inputs, wanted, strict=True))
        if layer.node.op != "Conv":  # whatever its axes, a feed is one sample
            pairs = [(x[None], y[None]) for x, y in pairs]
        few = max(1, CHUNK_VALUES // max(1, each * layer.weights.shape[-1] * layer.groups))
        if len({x.shape for x, _ in pairs}) > 1:
            few = 1
        for held in (False, True):
            part = [p for k, p in enumerate(pairs) if (k % HELD_EVERY == HELD_EVERY - 1) is held]
            scarce = len(pairs) < FEWEST  # then one row in so many is held back instead
            for first in range(0, len(pairs if scarce else part), few):
                chunk = (pairs if scarce else part)[first : first + few]
                seed = [self._seed, self._layers, held, first]
                x, y = (np.concatenate(side) for side in zip(*chunk, strict=True))
                rows = layer.inputs(x, each, seed), layer.outputs(y, each, seed)
                if scarce:
                    chosen = np.arange(rows[0].shape[-1]) % HELD_EVERY == HELD_EVERY - 1
                    rows = rows[0][..., chosen == held], rows[1][..., chosen == held]
                a, b = (np.concatenate(list(side), axis=-1) for side in rows)
                yield held, a, b


def _restricted(values: Array, kept: Sequence[Array | None] | None) -> Array:
    for axis, indices in enumerate(kept or ()):
        if indices is not None:
            values = np.take(values, indices, axis)
    return values


def _changed_readers(original: gs.Graph, pruned: gs.Graph, kept: Kept) -> list[gs.Node]:
    """The nodes of ``pruned`` with weights that read something else than in ``original``."""
    known = original.tensors()
    changed = {name for name, axes in kept.items() if any(x is not None for x in axes)}
    found = []
    for node in pruned.nodes:
        reads = any(t.name in changed for t in node.inputs if not is_constant(t))
        fresh = any(is_constant(t) and t.name not in known for t in node.inputs)
        if reads or fresh:
            changed |= {t.name for t in node.outputs}
        if reads and node.op in OPAQUE and any(_is_weight(t) for t in node.inputs[1:]):
            found.append(node)
    return found


def _is_weight(tensor: gs.Tensor) -> bool:
    is_matrix = is_constant(tensor) and len(tensor.shape) > 1
    return is_matrix and np.dtype(tensor.dtype).kind == "f"


def _reason_against(node: gs.Node, original: gs.Graph) -> str | None:
    reason = reason_against_layer(node)
    if reason is not None:
        return reason
    layer = LinearLayer.of(node)
    if layer.weights.shape[-1] > WIDEST:
        return f"more than {WIDEST} inputs an output"
    if layer.made.name not in original.tensors():
        return "the original has nothing to compare it with"
    return None


def _stream_of(layer: LinearLayer, original: gs.Graph, waiting: set[int]) -> _Stream | None:
    """What the output of ``layer`` is added to, if no layer that is ``waiting`` has part in it."""
    made = layer.made
    readers = consumers(made)
    if len(readers) != 1 or readers[0].op not in ("Add", "Sum") or len(readers[0].inputs) != 2:
        return None
    (adder,) = readers
    other = adder.inputs[1 if adder.inputs[0] is made else 0]
    total = adder.outputs[0].name
    if other is made or is_constant(other) or total not in original.tensors():
        return None
    return None if _depends_on(other, waiting) else _Stream(other.name, total)


def _depends_on(tensor: gs.Tensor, nodes: set[int]) -> bool:
    """Whether any of ``nodes``, by id, has part in making ``tensor``."""
    seen: set[int] = set()
    open_tensors = [tensor]
    while open_tensors:
        node = producer(open_tensors.pop())
        if node is None or id(node) in seen:
            continue
        if id(node) in nodes:
            return True
        seen.add(id(node))
        open_tensors.extend(node.inputs)
    return False


def _affordable(graph: gs.Graph) -> int:
    """How many samples may be held at once: few tensors are, the largest among them."""
    shapes = [t.shape for node in graph.nodes for t in node.outputs if t.shape is not None]
    known = [[size for size in shape if isinstance(size, int)] for shape in shapes]
    return max(FEWEST, HELD_VALUES // max([1, *(math.prod(sizes) for sizes in known)]))
