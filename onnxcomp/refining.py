"""Rounds the weights of a quantized graph again: layer after layer, on the codes each really reads.

A layer of the float model makes y = W x + b, its quantized twin W_q x_q + b_q, where x_q carries
the errors of all layers before it, already refined. Over a few samples E|y - W_q x_q - b_q|^2 is
least for b_q = b + W E[x] - W_q E[x_q] (empirical bias correction), and for W_q near the regression
W E[x x_qT] E[x_q x_qT]^-1, rounded by `rounding.gptq` in the metric of E[x_q x_qT].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.blas import one_blas_thread
from onnxcomp.gram import Window
from onnxcomp.graph import is_constant, label, producer
from onnxcomp.layer_inputs import rows_and_means
from onnxcomp.paired import moments
from onnxcomp.placement import Plan
from onnxcomp.quantization import FEW_BITS, TINY, Array, bias_codes
from onnxcomp.rounding import descend, gptq
from onnxcomp.runtime import Feed
from onnxcomp.stepping import Steps, can_step
from onnxcomp.targets import Role, Target
from onnxcomp.units import Unit

WIDEST = 2304  # inputs of an output channel: wider layers would take seconds each
ROWS_PER_SAMPLE = 256
LEAST_ROWS = 1024
ROWS_PER_INPUT = 2  # rows for each unknown of the regression, if there are so many
CHUNK_VALUES = 1 << 17  # of an input, by samples that are read at the same places
FEW_BITS_SAMPLES = 8  # as many samples where more depends on them
FEW_BITS_ROWS = 8  # as many rows
LEAST_DAMPING = 0.01  # more where rows are few: what they span by chance must not steer rounding
HELD_BACK = 4  # every fourth sample decides how far the regression may go
FEWEST, HELD_VALUES = 8, 1 << 23  # samples, and values of one tensor over all of them
RIDGES = (3.0, np.inf)  # as shares of the mean diagonal; inf leaves W as it was. Less overfits
SWEEPS = 2
SPARSE, NO_STEP = 0.25, 1e30  # zeros of a layer so many of which are kept: no step reaches a code


class Options(Protocol):
    """What has to be known of each layer; see `QuantizeStatic`."""

    @property
    def weight_bits(self) -> int:
        """Of the codes of weights."""

    @property
    def exposed_bits(self) -> int:
        """At least so many for the first layer, the last, and depthwise Convs."""

    @property
    def rounding(self) -> str:
        """Layers with "gptq" are refined."""

    @property
    def correct_bias(self) -> bool:
        """Whether biases may change."""


def layer_bits(plan: Plan, target: Target, options: Callable[[gs.Node], Options]) -> dict[int, int]:
    """Bits of the weights of each layer of ``plan``, by id of its unit."""
    layers = [unit for unit in plan.units if unit.operator.role is Role.LAYER]
    bits = {}
    for unit in layers:
        chosen = options(unit.node)
        is_exposed = unit in (layers[0], layers[-1]) or unit.is_depthwise
        wanted = max(chosen.weight_bits, chosen.exposed_bits if is_exposed else 0)
        bits[id(unit)] = min(wanted, target.weight_bits)
    return bits


def refinable(
    plan: Plan, bits: Mapping[int, int], options: Callable[[gs.Node], Options]
) -> list[Layer]:
    """The layers of ``plan``, not yet written, that `refine` takes."""
    return [
        Layer.of(unit, bits[id(unit)], options(unit.node).correct_bias)
        for unit in plan.units
        if id(unit) in bits
        and unit.node.op in ("Conv", "Gemm", "MatMul")
        and unit.output_axis is not None
        and options(unit.node).rounding == "gptq"
    ]


@dataclass(frozen=True)
class Layer:
    """A layer of a plan: what it was in float, and where its codes are once the plan is written.

    Attributes:
        unit: of the plan.
        source: name of its input in the float graph.
        weights: float32, as stored.
        output_axis: of ``weights``.
        bias: of the float layer, [out_channels], or None.
        bias_index: which input of the unit's adder it is.
        bits: of the weights' codes.
        corrects_bias: whether the bias may change.
    """

    unit: Unit
    source: str
    weights: Array
    output_axis: int
    bias: Array | None
    bias_index: int
    bits: int
    corrects_bias: bool

    @classmethod
    def of(cls, unit: Unit, bits: int, corrects_bias: bool) -> Layer:
        """Of a unit whose weights are a matrix or a Conv's, before the plan is written."""
        axis = unit.output_axis
        assert axis is not None
        return cls(
            unit=unit,
            source=unit.node.inputs[0].name,
            weights=unit.node.inputs[1].values,
            output_axis=axis,
            bias=unit.bias_values,
            bias_index=unit.bias_index,
            bits=bits,
            corrects_bias=corrects_bias,
        )

    @property
    def node(self) -> gs.Node:
        """Of the float graph first, of the quantized graph once that is written."""
        return self.unit.node

    @property
    def codes(self) -> gs.Constant:
        """The written constant with the weights' codes."""
        return _dequantizer(self.node.inputs[1]).inputs[0]

    @property
    def scale(self) -> Array:
        """Of the written codes, float64 [groups, out / groups, 1] or [1, 1, 1]."""
        values = np.asarray(_dequantizer(self.node.inputs[1]).inputs[1].values, np.float64)
        return values.reshape(self.groups, -1, 1) if values.ndim else values.reshape(1, 1, 1)

    @property
    def written_bias(self) -> tuple[gs.Constant, Array | None] | None:
        """The written constant with the bias and None, or with its codes and their scale."""
        adder = self.unit.adder
        if adder is None or len(adder.inputs) <= self.bias_index:
            return None
        tensor = adder.inputs[self.bias_index]
        if not tensor.name or is_constant(tensor):
            return (tensor, None) if tensor.name else None
        dequantizer = _dequantizer(tensor)
        return dequantizer.inputs[0], dequantizer.inputs[1].values

    def decode(self, codes: Array) -> Array:
        """What the written layer reads where its input has these codes: float32."""
        scale, zero_point = (t.values for t in _dequantizer(self.node.inputs[0]).inputs[1:3])
        if scale.ndim:  # one for each channel
            shape = (-1, *[1] * (len(self.weights.shape) - 2))
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        values = codes.astype(np.float32)
        values -= np.float32(zero_point)
        values *= scale
        return values

    @property
    def groups(self) -> int:
        """Of a Conv; 1 otherwise."""
        return int(self.node.attrs.get("group", 1)) if self.node.op == "Conv" else 1

    @property
    def window(self) -> Window | None:
        """How a Conv reads its input; None for products of matrices."""
        is_conv = self.node.op == "Conv"
        return Window.of_conv(self.node.attrs, self.weights.shape) if is_conv else None

    def table(self, values: Array) -> Array:
        """What has the shape of the weights, as [groups, out / groups, d]."""
        values = values.T if self.output_axis == 1 else values
        return values.reshape(self.groups, values.shape[0] // self.groups, -1)

    def stored(self, table: Array) -> Array:
        """The inverse of `table`."""
        shape = self.weights.T.shape if self.output_axis == 1 else self.weights.shape
        values = table.reshape(shape)
        return np.ascontiguousarray(values.T if self.output_axis == 1 else values)


@one_blas_thread()
def refine(
    before: gs.Graph,
    after: gs.Graph,
    layers: Sequence[Layer],
    samples: Callable[[int], Iterable[Feed]],
    count: int,
    seed: int,
) -> dict[str, str]:
    """Replaces codes and biases of ``layers`` in ``after`` by better ones.

    Args:
        before: the float graph, whose tensors have the names that `Layer.source` gives.
        after: the quantized graph; constants that ``layers`` names get new values.
        layers: any order.
        samples: gives at most so many feeds.
        count: how many to use: eight times as many if weights have few bits, and fewer where
            tensors are large.
        seed: of the choice of rows.

    Returns:
        Label -> reason, of layers that were left as they are.

    Raises:
        UnsupportedModel: onnxruntime cannot run a part of a graph.
    """
    if not (can_step(before) and can_step(after)):
        return {
            label(layer.node): "the graph has sequences or inputs with defaults" for layer in layers
        }
    factor = FEW_BITS_SAMPLES if any(layer.bits <= FEW_BITS for layer in layers) else 1
    feeds = list(samples(factor * min(count, _affordable(before))))
    floats, codes = Steps(before, feeds), Steps(after, feeds)
    del feeds  # each lets go of them once they are read
    position = {id(node): index for index, node in enumerate(after.nodes)}
    alive = [layer for layer in layers if id(layer.node) in position]  # others nobody read
    users = Counter(layer.codes.name for layer in alive)
    left = {}
    for index, layer in enumerate(sorted(alive, key=lambda layer: position[id(layer.node)])):
        reason = _reason_against(layer, users)
        if reason is not None:
            left[label(layer.node)] = reason
            continue
        read = codes.advance(_dequantizer(layer.node.inputs[0]).inputs[0].name)
        pairs = list(zip(floats.advance(layer.source), read, strict=True))
        del read
        if not _refine_layer(layer, pairs, [seed, index]):
            left[label(layer.node)] = "its values are too large: rounded to the nearest codes"
    return left


def _affordable(graph: gs.Graph) -> int:
    """How many samples may be held at once: few tensors are, the largest among them."""
    shapes = [t.shape for node in graph.nodes for t in node.outputs if t.shape is not None]
    known = [[size for size in shape if isinstance(size, int)] for shape in shapes]
    return max(FEWEST, HELD_VALUES // max([1, *(math.prod(sizes) for sizes in known)]))


def _dequantizer(tensor: gs.Tensor) -> gs.Node:
    node = producer(tensor)
    assert node is not None
    assert node.op == "DequantizeLinear"
    return node


def _reason_against(layer: Layer, users: Mapping[str, int]) -> str | None:
    if users[layer.codes.name] > 1:
        return "its weights are shared: rounded to the nearest codes"
    if layer.table(layer.weights).shape[2] > WIDEST:
        return f"more than {WIDEST} inputs an output: rounded to the nearest codes"
    return None


def _refine_layer(layer: Layer, pairs: list[tuple[Array, Array]], seed: list[int]) -> bool:
    """``pairs`` are a layer's inputs in the float model and its codes in the quantized, one pair a
    sample, and forgotten once they are read; whether their products are finite."""
    weights = layer.table(layer.weights.astype(np.float64))
    written = layer.written_bias if layer.corrects_bias else None
    centred = written is not None
    wanted = max(LEAST_ROWS, ROWS_PER_INPUT * weights.shape[2])
    wanted *= FEW_BITS_ROWS if layer.bits <= FEW_BITS else 1
    each = min(ROWS_PER_SAMPLE, -(-wanted // len(pairs)))
    sides, seen, means = _inputs(layer, pairs, each, seed)
    pairs.clear()
    shown, held, whole = moments(sides, seen, centred)
    del sides  # what is no longer needed of a wide layer makes room
    if not (np.isfinite(whole.gram).all() and np.isfinite(whole.lost).all()):
        return False
    losses = held.losses(weights, shown.regressions(weights, RIDGES))
    del shown, held
    (target,) = whole.regressions(weights, [RIDGES[int(np.argmin(losses))]])
    scale, high = layer.scale, 2 ** (layer.bits - 1) - 1
    damping = max(LEAST_DAMPING, whole.gram.shape[-1] / whole.count)
    zeros = weights == 0
    steps = np.where(zeros, NO_STEP, scale) if zeros.mean() >= SPARSE else scale
    codes = gptq(target, whole.gram, steps, 0, -high, high, damping=damping)
    if layer.bits <= FEW_BITS:  # with more, nothing is gained on samples never seen
        codes = descend(target, codes, whole.gram, steps, 0, -high, high, sweeps=SWEEPS)
    layer.codes.values = layer.stored(codes).astype(np.int8)
    if written is not None:
        shift = output_shift(weights, codes * scale, *means)
        bias = shift.reshape(-1) + (0 if layer.bias is None else layer.bias)
        _write_bias(*written, bias)
    return True


def _inputs(
    layer: Layer, pairs: list[tuple[Array, Array]], count: int, seed: list[int]
) -> tuple[list[Array], int, tuple[Array, Array]]:
    """Rows of x and of x_q, [groups, d, count], those held back last; how many are not; and means
    of x and of x_q in each sample, [samples, groups, d]."""
    few = max(1, CHUNK_VALUES // max(1, pairs[0][0].size))
    if len({x.shape for x, _ in pairs}) > 1:
        few = 1
    rows: list[tuple[Array, Array]] = []
    means: list[Array] = []
    for first in range(0, len(pairs), few):
        some = pairs[first : first + few]
        both = [*(x for x, _ in some), *(layer.decode(read) for _, read in some)]
        # whatever the axes of a matrix, a feed is one sample
        values = np.stack(both) if layer.window is None else np.concatenate(both)
        found, mean = rows_and_means(values, layer.window, count, [*seed, first])
        half = len(values) // 2
        rows += zip(found[:half], found[half:], strict=True)
        means.append(np.stack([mean[:half], mean[half:]]))
    held = rows[HELD_BACK - 1 :: HELD_BACK]
    del rows[HELD_BACK - 1 :: HELD_BACK]
    shown = sum(x.shape[2] for x, _ in rows)
    sides = [np.concatenate(side, axis=2) for side in zip(*rows, *held, strict=True)]
    seen, read = np.concatenate(means, axis=1).astype(np.float64)
    return sides, shown, (seen, read)


def output_shift(weights: Array, rounded: Array, seen: Array, read: Array) -> Array:
    """What the mean of a layer's outputs lost, W E[x] - W_q E[x_q]: float64 [groups, out].

    The part that the weights lost, (W - W_q) E[x], is known well. The part that its input lost
    is only as sure as the samples agree on it; what they may owe to chance is left out (the
    positive-part estimator of James and Stein, "Estimation with quadratic loss", 1961).

    Args:
        seen, read: means of x and of x_q in each sample, [samples, groups, d].
    """
    own = np.einsum("god,gd->go", weights - rounded, seen.mean(axis=0))
    lost = np.einsum("god,ngd->ngo", rounded, seen - read)
    mean, chance = lost.mean(axis=0), lost.var(axis=0) / max(1, len(lost) - 1)
    sure = np.maximum(0.0, 1.0 - chance / np.maximum(np.square(mean), TINY))
    return np.asarray(own + mean * sure)


def _write_bias(constant: gs.Constant, scale: Array | None, bias: Array) -> None:
    values = bias.astype(np.float32) if scale is None else bias_codes(bias, scale)
    constant.values = values.reshape(constant.values.shape)
