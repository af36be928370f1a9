"""What samples show of the layers of two graphs that are run side by side.

Rows of what a layer of the second graph reads, and of what the first one makes in its place, are
taken as the graphs are stepped through; a layer that was asked for may be given new weights before
the next one is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.clipped_regression import Rows
from onnxcomp.concrete_shapes import is_known, with_concrete_shapes
from onnxcomp.factored_layers import FactoredLayer
from onnxcomp.gram import Array
from onnxcomp.graph import volume
from onnxcomp.held_out import is_held
from onnxcomp.kept_indices import Left, taken
from onnxcomp.linear_layers import Reader
from onnxcomp.recovery_targets import Target, plain_target
from onnxcomp.recurrent_layers import RecurrentPart, recurrent_parts
from onnxcomp.regression import Moments, reason_against
from onnxcomp.runtime import Feed
from onnxcomp.shared_layers import Evidence, Halves, SharedLayers
from onnxcomp.stepping import Steps, most_held

_Rows = list[Array]  # x, y and, where there is one, what y is added to
Kept = Mapping[str, Sequence[Left]]  # by tensor of the first graph, what is left of its axes
LEAST_ROWS = 1 << 14
ROWS_PER_INPUT = 8
FEWEST, HELD_VALUES = 8, 1 << 26  # samples, and values of one tensor over all of them
HELD_TOGETHER = 4  # times as many values of all tensors that are held at once
MOST_VALUES = 1 << 26  # of a layer's rows where they have to be kept
CHUNK_VALUES = 1 << 20  # of a layer's rows, by samples that are read at the same places


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


def _sizes(graph: gs.Graph, feed: Feed) -> dict[str, int]:
    """How many values each tensor has for ``feed``, by name, where that is known."""
    _, types = with_concrete_shapes(graph, {name: np.shape(v) for name, v in feed.items()})
    tensors = [item for found in types.values() for item in found.items()]
    return {name: volume(t.shape) or 1 for name, t in tensors if is_known(t)}
