"""What takes the place of a residual branch: nothing, a constant, or a linear map of its stream.

Of y = x + f(x), f(x) is replaced by T x + c, the ridge regression of f on x over some samples
(ReplaceMe, Shopkhoev et al., 2025, does so for transformers). For one matrix product in place of a
block that has ten, the sum stays near what it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import Names
from onnxcomp.quantization import TINY, Array
from onnxcomp.residual_blocks import Branch, Shapes

MOST_POSITIONS = 512  # of a tensor in one sample
LEAST_POSITIONS = 2  # for each channel
WIDEST = 1024  # channels; the Gram matrices of more take too much time and memory
RIDGES = 10.0 ** np.arange(-6.0, 4.5, 0.5)  # tried, of the mean eigenvalue


@dataclass(frozen=True)
class Layout:
    """Where the channels of a branch are.

    Attributes:
        axis: of the channels.
        rank: number of axes.
        channels: how many there are.
    """

    axis: int
    rank: int
    channels: int

    @property
    def is_image(self) -> bool:
        """Whether a map of the channels is a convolution; otherwise it is a matrix product."""
        return self.axis < self.rank - 1

    def rows(self, values: Array) -> Array:
        """Some positions of an activation, evenly spread: float64 [positions, channels]."""
        rows = np.moveaxis(values, self.axis, -1).reshape(-1, self.channels)
        step = -(-len(rows) // MOST_POSITIONS) if len(rows) else 1
        return np.asarray(rows[::step], np.float64)

    def vector(self, values: Array) -> Array:
        """``values`` [channels] so that they broadcast to an activation."""
        return values.reshape(-1, *[1] * (self.rank - 1 - self.axis))

    def matrix(self, values: Array) -> Array:
        """``values`` [out_channels, in_channels] as the weights of a Conv or MatMul."""
        if self.is_image:
            return values.reshape(*values.shape, *[1] * (self.rank - 2))
        return np.ascontiguousarray(values.T)


def layout_of(shapes: Shapes, name: str, values: Array) -> Layout | None:
    """Where the channels of a tensor are: on that of its axes along which the means differ most.

    Args:
        shapes: of the graph.
        name: of the tensor.
        values: of it, in one sample.
    """
    found = []
    for axis in {1, values.ndim - 1} if values.ndim > 1 else ():
        size = shapes.fixed(name, axis)
        if size is not None and size == values.shape[axis]:
            others = tuple(i for i in range(values.ndim) if i != axis)
            spread = float(np.square(values.mean(others, dtype=np.float64)).mean())
            found.append((spread, Layout(axis, values.ndim, size)))
    return max(found, key=lambda item: (item[0], item[1].axis))[1] if found else None


@dataclass(frozen=True)
class StandIn:
    """T x + c.

    Attributes:
        constant: c, [channels].
        matrix: T, [channels, channels]; None for 0.
    """

    constant: Array
    matrix: Array | None = None


class StandInFit:
    """Sums up what a stand-in for a branch follows from.

    Positions at which the branch is much larger than at most others count less: a few tokens carry
    activations so large (Sun et al., "Massive Activations in Large Language Models", 2024) that
    squared errors would look at nothing else, and a normalization takes their size away anyhow.
    """

    def __init__(self, channels: int, *, linear: bool) -> None:
        """``linear``: look at the stream too."""
        self._linear = linear
        self._weight, self._positions = 0.0, 0
        self._target, self._stream = np.zeros(channels), np.zeros(channels)
        self._energy = 0.0
        if linear:
            self._gram = np.zeros((channels, channels))
            self._cross = np.zeros((channels, channels))

    def update(self, stream: Array, target: Array) -> None:
        """Adds positions of x and of what stands for f(x), float64 [positions, channels] each."""
        energy = np.square(target).mean(1)
        floor = max(float(np.median(energy)), TINY) if len(energy) else 1.0
        weights = floor / np.maximum(energy, floor)
        if not (np.isfinite(target).all() and np.isfinite(stream).all()):
            return
        self._positions += len(target)
        self._weight += weights.sum()
        self._target += weights @ target
        if self._linear:
            weighted = stream * weights[:, None]
            self._stream += weights @ stream
            self._gram += weighted.T @ stream
            self._cross += weighted.T @ target
            self._energy += float(weights @ np.square(target).sum(1))

    def constant(self) -> StandIn:
        """The weighted mean of the branch."""
        return StandIn(self._target / max(self._weight, TINY))

    @property
    def is_determined(self) -> bool:
        """Whether enough was seen for a map that is not made up of chance."""
        return self._linear and self._positions >= LEAST_POSITIONS * len(self._target)

    def linear(self) -> StandIn:
        """The ridge regression whose ridge generalized cross-validation chooses.

        Golub, Heath and Wahba, "Generalized Cross-Validation as a Method for Choosing a Good Ridge
        Parameter", 1979: the least residual / (1 - degrees of freedom / positions)^2.
        """
        total = max(self._weight, TINY)
        mean, aim = self._stream / total, self._target / total
        gram = self._gram - total * np.outer(mean, mean)
        cross = self._cross - total * np.outer(mean, aim)
        energy = self._energy - total * float(aim @ aim)
        values, vectors = np.linalg.eigh(gram)
        values = np.maximum(values, max(values[-1], TINY) * 1e-12)
        turned = vectors.T @ cross
        explained = np.square(turned).sum(1) / values
        ridges = (RIDGES * values.mean())[:, None]
        shrunk = ridges / (values + ridges)  # [ridges, channels]
        residuals = energy - explained @ (1 - np.square(shrunk)).T
        freedom = (1 - shrunk).sum(1) / max(self._positions, 1)
        best = int(np.argmin(residuals / np.maximum(1 - freedom, 1e-3) ** 2))
        matrix = (vectors @ (turned / (values + ridges[best])[:, None])).T
        return StandIn(aim - matrix @ mean, matrix)


def write_stand_in(
    graph: gs.Graph, branch: Branch, layout: Layout, stand_in: StandIn, names: Names
) -> list[gs.Node]:
    """Puts a stand-in where a branch was; x + T x becomes one product. The branch stays, unread.

    Returns:
        The nodes of a linear map, as `map_nodes`.
    """
    index, operand = branch.cut
    node = graph.nodes[index]
    dtype = node.inputs[operand].dtype or np.dtype(np.float32)
    if stand_in.matrix is None:
        values = layout.vector(stand_in.constant.astype(dtype))
        node.inputs[operand] = gs.Constant(names.fresh(f"{branch.name}.constant"), values)
        return []
    others = [tensor for i, tensor in enumerate(node.inputs) if i != operand]
    if [tensor.name for tensor in others] == [branch.stream]:
        matrix, made = stand_in.matrix + np.eye(layout.channels), node.outputs[0]
        node.inputs.clear()
        node.outputs.clear()
    else:
        matrix, made = stand_in.matrix, gs.Variable(names.fresh(f"{branch.name}.stand_in"), dtype)
        node.inputs[operand] = made
    stream = graph.tensors()[branch.stream]
    weight = gs.Constant(names.fresh(f"{branch.name}.map"), layout.matrix(matrix.astype(dtype)))
    constant = gs.Constant(names.fresh(f"{branch.name}.constant"), stand_in.constant.astype(dtype))
    nodes = map_nodes(stream, weight, constant, made, layout, names)
    graph.nodes.extend(nodes)
    return nodes


def map_nodes(
    stream: gs.Tensor,
    weight: gs.Tensor,
    constant: gs.Tensor,
    made: gs.Tensor,
    layout: Layout,
    names: Names,
) -> list[gs.Node]:
    """T x + c as nodes: a Conv of kernel size 1, or MatMul and Add."""
    if layout.is_image:
        name = names.fresh(f"{made.name}.conv")
        return [gs.Node("Conv", name, inputs=[stream, weight, constant], outputs=[made])]
    product = gs.Variable(names.fresh(f"{made.name}.product"), made.dtype, stream.shape)
    return [
        gs.Node("MatMul", product.name, inputs=[stream, weight], outputs=[product]),
        gs.Node("Add", names.fresh(f"{made.name}.add"), inputs=[product, constant], outputs=[made]),
    ]
