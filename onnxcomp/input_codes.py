"""Inputs that were 8-bit codes before somebody normalized them get the same codes again.

An image normalized by x = (code / 255 - mean) / deviation takes at most 256 values a channel,
evenly spaced, but each channel's spacing and zero are its own: one scale for all rounds every
pixel. Here the first layer reads u = code - zero_point instead, of scale 1 and never rounded:

    Conv(x, W, b) = Conv(u, W * step, b + sum W * step * (zero_point - origin)),
    x = step * (code - origin)

and QuantizeLinear makes the codes straight from x, with one scale for each channel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.graph import Names, consumers, is_constant, only_reader, producer, remove_unused
from onnxcomp.quantization import Affine, Array

CODES = 256
LEAST_LEVELS = 32  # distinct values of a channel; fewer do not show their spacing
TOLERANCE = 0.01  # of a step
LEAST_TIE_DISTANCE = 0.02  # of a step, between a value and where rounding turns
SAMPLES = 32
ENOUGH_VALUES = 1 << 19  # of a channel: more of them show no other levels


class Levels:
    """The distinct values of each channel (axis 1), as long as there are at most 256.

    Whole arrays are looked at until a channel has shown ENOUGH_VALUES, and none after that.
    """

    def __init__(self, channels: int) -> None:
        """For a tensor with ``channels`` channels."""
        self.values: list[Array] = [np.empty(0)] * channels
        self._count = 0

    def update(self, values: Array) -> None:
        """``values``: [batch, channels, ...]."""
        if not self.values or values.ndim < 2 or values.shape[1] != len(self.values):
            self.values = []
            return
        if self._count >= ENOUGH_VALUES:
            return
        self._count += values[:, 0].size
        for channel, known in enumerate(self.values):
            found = np.union1d(known, values[:, channel])
            if found.size > CODES or not np.isfinite(found).all():
                self.values = []
                return
            self.values[channel] = found

    def result(self) -> Grid | None:
        """The grid of the values, or None where they lie on none."""
        if not self.values or min(v.size for v in self.values) < LEAST_LEVELS:
            return None
        fitted = [_fit(values.astype(np.float64)) for values in self.values]
        found = [pair for pair in fitted if pair is not None]
        if len(found) != len(fitted):
            return None
        step, origin = np.array(found).T
        inside = bool(((origin > -0.5) & (origin < CODES - 0.5)).all())
        return Grid(step, origin) if inside else None


def _fit(values: Array) -> tuple[float, float] | None:
    """Step and origin of sorted values that lie on step * (code - origin), 0 <= code < 256."""
    step = float(np.diff(values).min())
    last = np.rint((values[-1] - values[0]) / step)
    if last >= CODES:
        return None
    step = float((values[-1] - values[0]) / last)
    codes = (values - values[0]) / step
    if np.abs(codes - np.rint(codes)).max() > TOLERANCE:
        return None
    return step, (CODES - 1 - last) // 2 - float(values[0]) / step


@dataclass(frozen=True)
class Grid:
    """Values step * (code - origin) of each channel, code = 0..255.

    Attributes:
        step, origin: float64 [channels]; origin is the code of 0, seldom an integer.
    """

    step: Array
    origin: Array

    @property
    def zero_point(self) -> int:
        """An integer near all origins."""
        return int(np.clip(np.rint(self.origin.mean()), 0, CODES - 1))

    @property
    def rounds_safely(self) -> bool:
        """Whether rounding x / step gives the codes however x was computed."""
        fraction = self.origin % 1
        return bool((np.abs(fraction - 0.5) > LEAST_TIE_DISTANCE).all())


@dataclass
class CodedInput:
    """A first layer that was made to read codes.

    Attributes:
        source: what the codes are made of: the input of the model, padded if the layer pads.
        tensor: u, which the layer reads.
        grid: of the values of the source.
    """

    source: gs.Tensor
    tensor: gs.Tensor
    grid: Grid

    def parameters(self, dtype: np.dtype[Any]) -> Affine:
        """Scale 1, and a zero point in the dtype of the codes."""
        lowest = int(np.iinfo(dtype).min)
        return Affine(np.asarray(np.float32(1)), np.asarray(self.grid.zero_point + lowest, dtype))

    def fold(self, graph: gs.Graph, names: Names) -> None:
        """Lets QuantizeLinear take the source itself, with one scale for each channel."""
        readers = consumers(self.tensor)
        if [n.op for n in readers] != ["QuantizeLinear"]:  # the layer stayed in float
            return
        node = readers[0]
        dtype = node.inputs[2].dtype
        zero_point = np.rint(self.grid.origin) + np.iinfo(dtype).min
        source, name = self.source, self.source.name
        node.inputs = [
            source,
            gs.Constant(names.fresh(f"{name}.scale"), self.grid.step.astype(np.float32)),
            gs.Constant(names.fresh(f"{name}.zero_point"), zero_point.astype(dtype)),
        ]
        node.attrs = {**node.attrs, "axis": 1}
        remove_unused(graph)


def code_inputs(
    graph: gs.Graph, layers: Collection[int], calibration: Calibration
) -> list[CodedInput]:
    """Lets first layers read codes where the inputs of the model were such; exact in float.

    Args:
        graph: changed in place.
        layers: the ids of the nodes that will run in integers.
        calibration: shows the values of the inputs.
    """
    found, names = [], Names(graph)
    for name, grid in find_coded_inputs(graph, calibration).items():
        node = first_conv(graph, graph.tensors()[name])
        if node is not None and id(node) in layers:
            found.append(read_codes(graph, node, grid, names))
    return found


def coded_scales(
    inputs: Iterable[CodedInput], shared: Mapping[str, str], dtype: np.dtype[Any]
) -> dict[str, Affine]:
    """The parameters of what first layers read, by name of the scale in a plan."""
    return {
        shared[coded.tensor.name]: coded.parameters(dtype)
        for coded in inputs
        if coded.tensor.name in shared
    }


def find_coded_inputs(graph: gs.Graph, calibration: Calibration) -> dict[str, Grid]:
    """Inputs of the model on a grid, by name; only those that one Conv alone reads.

    A grid whose zero lies half way between two codes (x = code / 127.5 - 1) is no use: which of
    the two a value is rounded to would hang on the last bit.
    """
    fitting = {t.name: t for t in graph.inputs if first_conv(graph, t) is not None}
    if not fitting:
        return {}
    levels = {name: Levels(int(t.shape[1])) for name, t in fitting.items()}
    calibration.observe(graph, levels, limit=SAMPLES)
    found = {name: seen.result() for name, seen in levels.items()}
    return {name: g for name, g in found.items() if g is not None and g.rounds_safely}


def first_conv(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """The Conv, of one group and constant weights, that alone reads an input of the model."""
    node = only_reader(graph, tensor, "Conv")
    if node is None or tensor.dtype != np.float32 or producer(tensor) is not None:
        return None
    if node.attrs.get("group", 1) != 1:
        return None
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    if any(t.name and not is_constant(t) for t in node.inputs[1:]) or node.inputs[0] is not tensor:
        return None
    shape = tensor.shape
    known = shape is not None and len(shape) > 2 and shape[1] == node.inputs[1].shape[1]
    return node if known and all(t.dtype == np.float32 for t in node.inputs) else None


def read_codes(graph: gs.Graph, node: gs.Node, grid: Grid, names: Names) -> CodedInput:
    """Lets a Conv read u = code - zero_point in place of the model's input; exact in float.

    Args:
        graph: changed in place.
        node: as `first_conv` gives it.
        grid: of its input.
        names: of the graph.
    """
    source = _padded(graph, node, names)
    rank = len(source.shape)
    per_channel = [1, -1, *[1] * (rank - 2)]

    def constant(what: str, values: Array) -> gs.Constant:
        shaped = values.reshape(per_channel).astype(np.float32)
        return gs.Constant(names.fresh(f"{source.name}.{what}"), np.ascontiguousarray(shaped))

    scaled, coded = (
        gs.Variable(names.fresh(f"{source.name}.{what}"), np.float32, source.shape)
        for what in ("steps", "codes_from_zero")
    )
    offset = grid.origin - grid.zero_point
    added = [
        gs.Node("Mul", scaled.name, {}, [source, constant("per_step", 1 / grid.step)], [scaled]),
        gs.Node("Add", coded.name, {}, [scaled, constant("origin", offset)], [coded]),
    ]
    at = graph.nodes.index(node)
    graph.nodes[at:at] = added
    weight, *bias = [t for t in node.inputs[1:] if t.name]
    values = weight.values.astype(np.float64) * grid.step.reshape(per_channel)
    shift = -(values * offset.reshape(per_channel)).reshape(values.shape[0], -1).sum(axis=1)
    total = shift + (bias[0].values if bias else 0)
    node.inputs = [
        coded,
        gs.Constant(names.fresh(f"{weight.name}.per_step"), values.astype(np.float32)),
        gs.Constant(names.fresh(f"{node.outputs[0].name}.origin"), total.astype(np.float32)),
    ]
    return CodedInput(source, coded, grid)


def _padded(graph: gs.Graph, node: gs.Node, names: Names) -> gs.Tensor:
    """The input of ``node`` with the zeros around it that the node has added so far."""
    data, pads = node.inputs[0], [int(p) for p in node.attrs.get("pads", ())]
    if node.attrs.get("auto_pad", "NOTSET") == "VALID" or not any(pads):
        return data
    half = len(pads) // 2
    grown = [
        size + before + after if isinstance(size, int) else None
        for size, before, after in zip(data.shape[2:], pads[:half], pads[half:], strict=True)
    ]
    result = gs.Variable(names.fresh(f"{data.name}.padded"), np.float32, [*data.shape[:2], *grown])
    amounts = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
    constant = gs.Constant(names.fresh(f"{data.name}.pads"), amounts)
    pad = gs.Node("Pad", result.name, {}, [data, constant], [result])
    graph.nodes.insert(graph.nodes.index(node), pad)
    node.attrs = {**node.attrs, "pads": [0] * len(pads)}
    return result
