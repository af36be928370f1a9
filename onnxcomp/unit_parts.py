"""What the layers of a graph hold of the units of each channel group.

A unit is read by some layers and made by others. What reads it decides what its removal costs
(`pruning.cheapest_first` under the Gram matrix of the inputs); where nothing with weights reads it,
as the queries and keys of an attention, the sizes of the weights that make it have to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.channels import ChannelGroup, Channels, Place
from onnxcomp.errors import CalibrationError
from onnxcomp.gram import Window
from onnxcomp.graph import is_constant, is_standard
from onnxcomp.held_out import SplitGram, SplitMoments
from onnxcomp.pruning import Part, centred
from onnxcomp.union_find import Array

WIDEST = 4608  # input columns: their Gram matrix takes 170 MB
AT_ONCE = 1 << 29  # bytes of Gram matrices that one go over the samples makes

Key = tuple[str, int, Window | None]  # tensor, axis, window of a Conv
Seen = tuple[Array, SplitGram | None]  # of all samples, [groups, d, d], and of two parts of them


@dataclass(frozen=True)
class WeightAxes:
    """Where a layer's weights have the channels that it reads and makes.

    Attributes:
        node: the layer.
        weights: its constant.
        reads: axis of the channels it sums over.
        makes: axis of the channels it makes.
        source: what its rows x are; None where no Gram matrix of them is taken.
    """

    node: gs.Node
    weights: gs.Constant
    reads: int
    makes: int
    source: Key | None

    @property
    def groups(self) -> int:
        """Of a Conv; 1 otherwise."""
        return int(self.node.attrs.get("group", 1))

    def matrix(self, axis: int) -> Array:
        """Weights with the channels of ``axis`` last, and the kernel after them, [other, d]."""
        values = self.weights.values
        other = self.makes if axis == self.reads else self.reads
        moved = np.moveaxis(values, (other, axis), (0, 1))
        return np.asarray(moved.reshape(values.shape[other], -1))

    def columns(self, units: Array, axis: int) -> Array:
        """The unit of each column of `matrix`, from those of the axis' indices."""
        kernel = int(np.prod(self.weights.shape)) // (
            self.weights.shape[self.reads] * self.weights.shape[self.makes]
        )
        assert len(units) == self.weights.shape[axis]
        return np.repeat(units, kernel)


def weight_axes(graph: gs.Graph) -> Iterator[WeightAxes]:
    """The layers of the outermost graph, in its order."""
    for node in graph.nodes:
        if not is_standard(node):
            continue
        if node.op in ("LSTM", "GRU", "RNN"):
            for tensor in node.inputs[1:3]:
                if is_constant(tensor):
                    yield WeightAxes(node, tensor, 2, 1, None)
        elif node.op == "MatMul":
            for index, tensor in enumerate(node.inputs):
                if is_constant(tensor) and len(tensor.shape) == 2:
                    source = _source(node.inputs[1 - index], -1 if index else -2, tensor, 1 - index)
                    yield WeightAxes(node, tensor, 1 - index, index, source)
        elif node.op in ("Conv", "ConvTranspose", "Gemm") and is_constant(node.inputs[1]):
            yield _layer(node, node.inputs[0], node.inputs[1])


def _layer(node: gs.Node, data: gs.Tensor, weights: gs.Constant) -> WeightAxes:
    if node.op == "Conv":
        window = Window.of_conv(node.attrs, weights.shape)
        return WeightAxes(node, weights, 1, 0, _source(data, 1, weights, 0, window))
    if node.op == "ConvTranspose":
        return WeightAxes(node, weights, 0, 1, None)
    reads = 1 if node.attrs.get("transB", 0) else 0
    axis = 0 if node.attrs.get("transA", 0) else -1
    return WeightAxes(node, weights, reads, 1 - reads, _source(data, axis, weights, 1 - reads))


def _source(
    data: gs.Tensor, axis: int, weights: gs.Constant, makes: int, window: Window | None = None
) -> Key | None:
    """What a Gram matrix is taken of, unless it would be too wide or nothing."""
    columns = int(np.prod(weights.shape)) // max(1, int(weights.shape[makes]))
    return None if is_constant(data) or columns > WIDEST else (data.name, axis, window)


def made_parts(graph: gs.Graph, channels: Channels) -> dict[str, list[Part]]:
    """By group, the weights that make its units: columns are outputs, without Gram matrices.

    Units of groups with heads are numbered head by head.
    """
    return _parts(graph, channels, reads=False, grams={})


def read_parts(
    graph: gs.Graph,
    channels: Channels,
    samples: Calibration | None = None,
    limit: int | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[ChannelGroup, list[Part]]]:
    """Each group with the weights that read its units, and the Gram matrices of their inputs.

    As many groups at a time as have room; ``graph`` must not change meanwhile.
    """
    places = _reading(graph, channels)
    waiting = list(channels.groups)
    while waiting:
        now: list[ChannelGroup] = []
        keys: set[Key] = set()
        room = AT_ONCE
        while waiting and (room > 0 or not now):
            group = waiting.pop(0)
            for layer in places.get(group.name, []) if samples is not None else ():
                if layer.source is not None and layer.source not in keys:
                    keys.add(layer.source)
                    room -= 3 * 8 * layer.groups * _width(layer) ** 2
            now.append(group)
        grams = {} if samples is None else observed(graph, keys, samples, limit, advance)
        parts = _parts(graph, channels, reads=True, grams=grams, only={g.name for g in now})
        for group in now:
            yield group, parts.get(group.name, [])


def _width(layer: WeightAxes) -> int:
    return int(np.prod(layer.weights.shape)) // int(layer.weights.shape[layer.makes])


def observed(
    graph: gs.Graph,
    keys: set[Key],
    samples: Calibration,
    limit: int | None,
    advance: Callable[[int, int], None] | None,
) -> dict[Key, Seen]:
    """The centred Gram matrices, [groups, d, d]; those that nothing was seen of are absent."""
    statistics = {key: SplitMoments(key[1], window=key[2]) for key in sorted(keys, key=str)}
    taps: dict[str, list[SplitMoments]] = {}
    for key, gram in statistics.items():
        taps.setdefault(key[0], []).append(gram)
    samples.observe(graph, taps, limit=limit, advance=advance)
    found: dict[Key, Seen] = {}
    for key, gram in statistics.items():
        try:
            whole, split = gram.result()
        except CalibrationError:  # nothing finite was seen
            continue
        matrix = centred(whole.matrix, whole.mean)
        if matrix.ndim == 2:
            matrix = matrix[None]
            split = None if split is None else split[None]
        if np.isfinite(matrix).all():
            found[key] = matrix, split
    return found


def _reading(graph: gs.Graph, channels: Channels) -> dict[str, list[WeightAxes]]:
    """By group, the layers that read it."""
    by_place = _by_place(channels)
    found: dict[str, list[WeightAxes]] = {}
    for layer in weight_axes(graph):
        for group, _ in by_place.get((layer.weights.name, layer.reads), []):
            found.setdefault(group.name, []).append(layer)
    return found


def _by_place(channels: Channels) -> dict[tuple[str, int], list[tuple[ChannelGroup, Place]]]:
    found: dict[tuple[str, int], list[tuple[ChannelGroup, Place]]] = {}
    for group in channels.groups:
        for place in group.places:
            if place.tensor in channels.constants:
                found.setdefault((place.tensor, place.axis), []).append((group, place))
    return found


def _parts(
    graph: gs.Graph,
    channels: Channels,
    *,
    reads: bool,
    grams: Mapping[Key, Seen],
    only: set[str] | None = None,
) -> dict[str, list[Part]]:
    by_place = _by_place(channels)
    found: dict[str, list[Part]] = {}
    for layer in weight_axes(graph):
        axis = layer.reads if reads else layer.makes
        for group, place in by_place.get((layer.weights.name, axis), []):
            if only is None or group.name in only:
                mine = _of_layer(layer, group, place, grams)
                found.setdefault(group.name, []).extend(mine)
    return found


def _of_layer(
    layer: WeightAxes, group: ChannelGroup, place: Place, grams: Mapping[Key, Seen]
) -> Sequence[Part]:
    """One part, or one for each group of a Conv: they read other inputs, or units of other heads.

    Units of a group with heads are numbered head by head.
    """
    axis = place.axis
    matrix = layer.matrix(axis)
    reads = axis == layer.reads and layer.node.op == "Conv"
    count = layer.groups if reads or place.along not in (-1, axis) else 1
    source = None if layer.source is None or axis == layer.makes else grams.get(layer.source)
    rows = len(matrix) // count
    return [
        Part(
            weights=block,
            units=layer.columns(_numbered(group, place, i * rows), axis),
            gram=None if source is None else source[0][i],
            share=1.0 / count,
            split=None if source is None or source[1] is None else source[1][i],
            constant=layer.weights.name,
            index=i,
        )
        for i, block in enumerate(np.split(matrix, count))
    ]


def _numbered(group: ChannelGroup, place: Place, row: int) -> Array:
    """The units of an axis' indices, those of each head apart; of one row where rows have heads."""
    if place.heads is None:
        return place.units
    head = place.heads if place.along == place.axis else place.heads[row]
    return np.where(place.units >= 0, head * group.size + place.units, -1)
