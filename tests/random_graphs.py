"""Random ONNX models with everything that couples channels, for tests of structural pruning.

`models` is a hypothesis strategy. A model is 3 to 12 blocks, each drawn from a table, on images
[N, C, H, W] or sequences [N, L, D], with residuals, concatenations, splits, views, attention and
recurrence between them. The same drawn values give the same bytes, weights included. All float
vectors are away from 0 and 1: zero biases and unit scales would hide a wrong slice.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

T = TypeVar("T")
WIDEST, LARGEST_MAP, CLASSES = 24, 8, 3
EPSILON = 0.1  # where few channels are left, a small one makes outputs of rounding errors
ACTIVATIONS = ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Softplus"]


@dataclass(frozen=True)
class Tensor:
    """A name with its shape: the batch is 0, negative lengths are only known at run time."""

    name: str
    shape: tuple[int, ...]

    @property
    def image(self) -> bool:
        return len(self.shape) == 4

    @property
    def width(self) -> int:
        return self.shape[1] if self.image else self.shape[-1]

    @property
    def static(self) -> bool:
        return min(self.shape) >= 0


@dataclass
class Maker:
    """The model being made. ``integer(low, high)`` decides everything; lower is simpler."""

    integer: Callable[[int, int], int]
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    seen: list[Tensor] = field(default_factory=list)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def chance(self) -> bool:
        return self.integer(0, 1) == 1

    def op(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], f"n_{name}", **attributes))
        return name

    def ints(self, *values: int) -> str:
        return self._keep("sizes", np.asarray(values, np.int64))

    def scalar(self, value: float) -> str:
        return self._keep("scalar", np.float32(value))

    def weight(self, *shape: int, fan_in: int | None = None) -> str:
        gain = np.sqrt(1.5 / (fan_in or max(1, int(np.prod(shape[1:])))))
        return self._keep("weight", self._rng().normal(size=shape).astype(np.float32) * gain)

    def vector(self, *shape: int) -> str:
        """Away from zero, of both signs."""
        rng = self._rng()
        values = rng.uniform(0.2, 0.9, shape) * rng.choice([-1, 1], shape)
        return self._keep("vector", values)

    def positive(self, *shape: int) -> str:
        return self._keep("scale", self._rng().uniform(0.5, 1.6, shape))

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(f"{len(self.arrays)}".encode()))

    def _keep(self, kind: str, values: npt.ArrayLike) -> str:
        array = np.asarray(values)
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        name = f"{kind}_{len(self.arrays)}"
        self.arrays[name] = array
        return name

    def reduce(self, kind: str, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        inputs_since = 13 if kind == "ReduceSum" else 18
        if self.opset >= inputs_since:
            return self.op(kind, (x, self.ints(*axes)), keepdims=keepdims)
        return self.op(kind, (x,), axes=list(axes), keepdims=keepdims)

    def split(self, x: str, axis: int, sizes: Sequence[int]) -> list[str]:
        stem = f"split_{len(self.nodes)}"
        outputs = [f"{stem}_{i}" for i in range(len(sizes))]
        node = helper.make_node("Split", [x, self.ints(*sizes)], outputs, f"n_{stem}", axis=axis)
        self.nodes.append(node)
        return outputs

    def slice(self, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
        return self.op(
            "Slice",
            (x, self.ints(start), self.ints(end), self.ints(axis), self.ints(step)),
        )

    def reshape(self, x: str, *sizes: int) -> str:
        """With 0 for a length that stays; sometimes the batch is computed, as exporters do."""
        if sizes[0] or self.integer(0, 5) < 5:
            return self.op("Reshape", (x, self.ints(*sizes)))
        batch = self.op("Gather", (self.op("Shape", (x,)), self.ints(0)), axis=0)
        target = self.op("Concat", (batch, self.ints(*sizes[1:])), axis=0)
        return self.op("Reshape", (x, target))

    def reshape_like(self, x: str, model: str) -> str:
        return self.op("Reshape", (x, self.op("Shape", (model,))))

    def transpose(self, x: str, *perm: int) -> str:
        return self.op("Transpose", (x,), perm=list(perm))

    def act(self, x: str) -> str:
        return self.op(self.pick(ACTIVATIONS), (x,))

    def conv(self, x: Tensor, width: int, kernel: int = 1, groups: int = 1) -> Tensor:
        _, channels, *space = x.shape
        inputs = [x.name, self.weight(width, channels // groups, kernel, kernel)]
        if self.chance():
            inputs.append(self.vector(width))
        pad = kernel // 2
        y = self.op("Conv", inputs, group=groups, pads=[pad] * 4)
        return Tensor(y, (0, width, *space))

    def linear(self, x: Tensor, width: int) -> Tensor:
        y = self.op("MatMul", (x.name, self.weight(x.shape[-1], width, fan_in=x.shape[-1])))
        if self.chance():
            y = self.op("Add", (y, self.vector(width)))
        return Tensor(y, (*x.shape[:-1], width))

    def project(self, x: Tensor, width: int) -> Tensor:
        return self.conv(x, width) if x.image else self.linear(x, width)

    def new_width(self) -> int:
        return self.pick([4, 6, 8, 12, 5])

    def partner(self, x: Tensor) -> Tensor:
        """An earlier tensor that agrees with ``x`` but for the channels, if there is one."""
        agree = [t for t in self.seen if t.image == x.image and _rest(t) == _rest(x)]
        return self.pick(agree[::-1]) if agree else x


def _rest(x: Tensor) -> tuple[int, ...]:
    return x.shape[2:] if x.image else x.shape[:-1]


Block = Callable[[Maker, Tensor], Tensor]


def _axis(x: Tensor) -> int:
    return 1 if x.image else len(x.shape) - 1


def _with_width(x: Tensor, name: str, width: int) -> Tensor:
    axis = _axis(x)
    return Tensor(name, (*x.shape[:axis], width, *x.shape[axis + 1 :]))


# Blocks for images and sequences alike.


def layer(m: Maker, x: Tensor) -> Tensor:
    y = m.project(x, m.new_width())
    return Tensor(m.act(y.name), y.shape)


def residual(m: Maker, x: Tensor) -> Tensor:
    inner = m.project(x, m.new_width())
    y = m.project(Tensor(m.act(inner.name), inner.shape), x.width)
    return Tensor(m.op("Add", (x.name, y.name)), x.shape)


def long_residual(m: Maker, x: Tensor) -> Tensor:
    """Adds an earlier tensor, projected where its width is another."""
    other = m.partner(x)
    if other.width != x.width:
        other = m.project(other, x.width)
    return Tensor(m.op("Add", (other.name, x.name)), x.shape)


def concat(m: Maker, x: Tensor) -> Tensor:
    branches = [x, m.partner(x), m.project(x, m.new_width())][: m.integer(2, 3)]
    if m.chance():
        branches = branches[::-1]
    y = m.op("Concat", [branch.name for branch in branches], axis=_axis(x))
    return _narrow(m, _with_width(x, y, sum(branch.width for branch in branches)))


def _narrow(m: Maker, x: Tensor) -> Tensor:
    return x if x.width <= WIDEST else m.project(x, m.new_width())


def split(m: Maker, x: Tensor) -> Tensor:
    """Parts go their own ways and come back in another order, or are multiplied."""
    if x.width < 4:
        return layer(m, x)
    half = x.width // 2
    first, second = m.split(x.name, _axis(x), (half, x.width - half))
    one, other = _with_width(x, first, half), _with_width(x, second, x.width - half)
    if 2 * half == x.width and m.chance():
        gate = m.op("Sigmoid", (first,))
        return _with_width(x, m.op("Mul", (gate, second)), half)
    one = m.project(one, half)
    names = [other.name, one.name] if m.chance() else [one.name, other.name]
    return _with_width(x, m.op("Concat", names, axis=_axis(x)), x.width)


def stepped_slice(m: Maker, x: Tensor) -> Tensor:
    step = m.pick([1, 2, 3])
    start = m.integer(0, min(2, x.width - 1))
    end = m.pick([x.width, max(start + 1, x.width - 2)])
    width = len(range(start, end, step))
    y = _with_width(x, m.slice(x.name, _axis(x), start, end, step), width)
    return y if width >= 3 else m.project(y, m.new_width())


def reversed_slice(m: Maker, x: Tensor) -> Tensor:
    flipped = m.slice(x.name, _axis(x), x.width - 1, -x.width - 1, -1)
    return Tensor(m.op("Add", (x.name, flipped)) if m.chance() else flipped, x.shape)


def permutation(m: Maker, x: Tensor) -> Tensor:
    order = np.random.default_rng(x.width).permutation(x.width)
    return Tensor(m.op("Gather", (x.name, m.ints(*order.tolist())), axis=_axis(x)), x.shape)


def padded(m: Maker, x: Tensor) -> Tensor:
    """Zeros beside the channels, as shortcuts of old ResNets have them."""
    before, after = m.integer(0, 1), m.integer(1, 2)
    width, axis, rank = x.width + before + after, _axis(x), len(x.shape)
    pads = [0] * (2 * rank)
    pads[axis], pads[rank + axis] = before, after
    y = m.op("Pad", (x.name, m.ints(*pads)))
    other = m.project(x, width)
    return _narrow(m, _with_width(x, m.op("Add", (y, other.name)), width))


def shuffle(m: Maker, x: Tensor) -> Tensor:
    groups = m.pick([g for g in (2, 3, 4) if x.width % g == 0] or [1])
    if x.image:
        _, channels, height, width = x.shape
        if not x.static:
            return layer(m, x)
        y = m.reshape(x.name, 0, groups, channels // groups, height, width)
        y = m.transpose(y, 0, 2, 1, 3, 4)
        return Tensor(m.reshape(y, 0, channels, height, width), x.shape)
    y = m.reshape(x.name, 0, 0, groups, x.width // groups)
    y = m.transpose(y, 0, 1, 3, 2)
    return Tensor(m.reshape(y, 0, 0, x.width), x.shape)


def scaled(m: Maker, x: Tensor) -> Tensor:
    """A constant per channel, in one of the forms exporters write."""
    ones = [1] * (len(x.shape) - _axis(x) - 1)
    forms = [(x.width, *ones), (1,) * _axis(x) + (x.width, *ones)]
    kind = m.pick(["Mul", "Add", "Div", "PRelu", "Max"])
    parameter = m.positive(*m.pick(forms)) if kind == "Div" else m.vector(*m.pick(forms))
    swap = kind in ("Mul", "Add", "Max") and m.chance()
    return Tensor(m.op(kind, (parameter, x.name) if swap else (x.name, parameter)), x.shape)


def shared_weight(m: Maker, x: Tensor) -> Tensor:
    """One weight and bias, used twice in a row."""
    if x.image:
        inputs = (m.weight(x.width, x.width, 1, 1), m.vector(x.width))
        first = m.op("Tanh", (m.op("Conv", (x.name, *inputs)),))
        return Tensor(m.op("Conv", (first, *inputs)), x.shape)
    weight, bias = m.weight(x.width, x.width), m.vector(x.width)
    first = m.op("Tanh", (m.op("Add", (m.op("MatMul", (x.name, weight)), bias)),))
    return Tensor(m.op("Add", (m.op("MatMul", (first, weight)), bias)), x.shape)


def merged_bias(m: Maker, x: Tensor) -> Tensor:
    """Two layers of one width that read the same bias, though nothing else couples them."""
    width = m.new_width()
    bias = m.vector(width, 1, 1) if x.image else m.vector(width)
    first, second = m.project(x, width), m.project(x, width)
    one = m.op("Relu", (m.op("Add", (first.name, bias)),))
    other = m.op("Tanh", (m.op("Add", (second.name, bias)),))
    ends = [m.project(_with_width(x, name, width), x.width).name for name in (one, other)]
    return Tensor(m.op("Add", ends), x.shape)


def statistics_of_channels(m: Maker, x: Tensor) -> Tensor:
    """Gates by what reductions over the channels give."""
    kinds = ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2", "ReduceLogSumExp"]
    found = m.reduce(m.pick(kinds), x.name, [_axis(x)])
    return Tensor(m.op("Mul", (x.name, m.op("Sigmoid", (found,)))), x.shape)


def unit_length(m: Maker, x: Tensor) -> Tensor:
    length = m.reduce("ReduceL2", x.name, [_axis(x)])
    return Tensor(m.op("Div", (x.name, m.op("Add", (length, m.scalar(0.3))))), x.shape)


def stacked(m: Maker, x: Tensor) -> Tensor:
    """Branches on an axis of their own, weighted and summed, as in selective kernels."""
    ends = [m.project(x, x.width).name, x.name]
    rows = [m.op("Unsqueeze", (end, m.ints(1))) for end in ends]
    both = m.op("Concat", rows, axis=1)
    weighted = m.op("Mul", (both, m.vector(2, *[1] * (len(x.shape) - 1))))
    return Tensor(m.reduce("ReduceSum", weighted, [1], keepdims=0), x.shape)


def tiled(m: Maker, x: Tensor) -> Tensor:
    if 2 * x.width > WIDEST:
        return layer(m, x)
    repeats = [1] * len(x.shape)
    repeats[_axis(x)] = 2
    return _with_width(x, m.op("Tile", (x.name, m.ints(*repeats))), 2 * x.width)


def conditional(m: Maker, x: Tensor) -> Tensor:
    """One of two branches, decided at run time; both read the tensor from outside."""
    total = m.reduce("ReduceSum", x.name, range(len(x.shape)), keepdims=0)
    condition = m.op("Greater", (total, m.scalar(0)))
    branches = {}
    for branch, kind in (("then_branch", "Relu"), ("else_branch", "Neg")):
        name = f"{branch}_{len(m.nodes)}"
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        node = helper.make_node(kind, [x.name], [name], f"n_{name}")
        branches[branch] = helper.make_graph([node], branch, [], [value])
    return Tensor(m.op("If", (condition,), **branches), x.shape)


ANY: list[Block] = [
    *(layer, residual, long_residual, concat, split, stepped_slice, reversed_slice, permutation),
    *(padded, shuffle, scaled, shared_weight, merged_bias, statistics_of_channels, unit_length),
    *(stacked, tiled, conditional),
]


# Blocks for images.


def batch_norm(m: Maker, x: Tensor) -> Tensor:
    c = x.width
    y = m.conv(x, c, m.pick([1, 3]))
    parameters = (m.positive(c), m.vector(c), m.vector(c), m.positive(c))
    return Tensor(m.act(m.op("BatchNormalization", (y.name, *parameters))), x.shape)


def grouped(m: Maker, x: Tensor) -> Tensor:
    groups = m.pick([g for g in (2, 3, 4) if x.width % g == 0] or [1])
    return m.conv(x, groups * m.integer(1, 4), 3, groups)


def grouped_bottleneck(m: Maker, x: Tensor) -> Tensor:
    """Of a ResNeXt: what is inside the groups is read by two layers that couple nothing."""
    groups, inner = m.pick([2, 3]), m.integer(2, 4)
    y = m.conv(x, groups * inner)
    for _ in range(m.integer(1, 2)):
        y = m.conv(Tensor(m.act(y.name), y.shape), groups * inner, 3, groups)
        inputs = (y.name, m.positive(y.width), m.vector(y.width), m.vector(y.width))
        y = Tensor(m.op("BatchNormalization", (*inputs, m.positive(y.width))), y.shape)
    out = m.conv(Tensor(m.act(y.name), y.shape), x.width)
    return Tensor(m.op("Add", (x.name, out.name)), x.shape)


def depthwise(m: Maker, x: Tensor) -> Tensor:
    multiplier = m.integer(1, 2) if 2 * x.width <= WIDEST else 1
    y = m.conv(x, multiplier * x.width, 3, x.width)
    return Tensor(m.act(y.name), y.shape)


def gated(m: Maker, x: Tensor) -> Tensor:
    """Squeeze and excitation."""
    pooled = Tensor(m.op("GlobalAveragePool", (x.name,)), (0, x.width, 1, 1))
    inner = m.conv(pooled, m.new_width())
    gate = m.conv(Tensor(m.op("Relu", (inner.name,)), inner.shape), x.width)
    return Tensor(m.op("Mul", (x.name, m.op("Sigmoid", (gate.name,)))), x.shape)


def flat_gated(m: Maker, x: Tensor) -> Tensor:
    """The same by fully connected layers on [N, C]."""
    pooled = m.reduce("ReduceMean", x.name, [2, 3], keepdims=0)
    width = m.new_width()
    inner = m.op("Gemm", (pooled, m.weight(width, x.width), m.vector(width)), transB=1)
    weight = m.weight(width, x.width, fan_in=width)
    gate = m.op("Gemm", (m.op("Relu", (inner,)), weight, m.vector(x.width)))
    gate = m.reshape(m.op("Sigmoid", (gate,)), -1, x.width, 1, 1)
    return Tensor(m.op("Mul", (x.name, gate)), x.shape)


def spatial_gate(m: Maker, x: Tensor) -> Tensor:
    """Mean and maximum over the channels, concatenated and convolved."""
    rows = [m.reduce(kind, x.name, [1]) for kind in ("ReduceMean", "ReduceMax")]
    both = Tensor(m.op("Concat", rows, axis=1), (0, 2, *x.shape[2:]))
    gate = m.op("Sigmoid", (m.conv(both, 1, 3).name,))
    return Tensor(m.op("Mul", (x.name, gate)), x.shape)


def instance_norm(m: Maker, x: Tensor) -> Tensor:
    c = x.width
    return Tensor(
        m.op("InstanceNormalization", (x.name, m.positive(c), m.vector(c)), epsilon=EPSILON),
        x.shape,
    )


def group_norm(m: Maker, x: Tensor) -> Tensor:
    groups = m.pick([g for g in (1, 2, 3, 4) if x.width % g == 0])
    if m.opset >= 21 and m.chance():
        inputs = (x.name, m.positive(x.width), m.vector(x.width))
        return Tensor(
            m.op("GroupNormalization", inputs, num_groups=groups, epsilon=EPSILON), x.shape
        )
    y = m.reshape(x.name, 0, groups, -1)
    y = m.op("InstanceNormalization", (y, m.positive(groups), m.vector(groups)), epsilon=EPSILON)
    y = m.reshape(y, 0, *x.shape[1:]) if x.static else m.reshape_like(y, x.name)
    return Tensor(m.op("Mul", (y, m.vector(x.width, 1, 1))), x.shape)


def channels_last(m: Maker, x: Tensor) -> Tensor:
    """A block of ConvNeXt: normalisation and two layers on the last axis."""
    y = m.op(
        "LayerNormalization",
        (m.transpose(x.name, 0, 2, 3, 1), m.positive(x.width)),
        epsilon=EPSILON,
    )
    inner = m.linear(Tensor(y, (0, *x.shape[2:], x.width)), m.new_width())
    y = m.linear(Tensor(m.act(inner.name), inner.shape), x.width).name
    return Tensor(m.op("Add", (x.name, m.transpose(y, 0, 3, 1, 2))), x.shape)


def depth_to_space(m: Maker, x: Tensor) -> Tensor:
    _, _, height, width = x.shape
    if 2 * abs(height) > LARGEST_MAP:
        return batch_norm(m, x)
    channels = m.pick([3, 4, 6])
    y = m.conv(x, 4 * channels)
    y_name = m.op("DepthToSpace", (y.name,), blocksize=2, mode=m.pick(["DCR", "CRD"]))
    return Tensor(y_name, (0, channels, 2 * height, 2 * width))


def space_to_depth(m: Maker, x: Tensor) -> Tensor:
    """Four strided slices of the image beside each other, or the operator."""
    _, channels, height, width = x.shape
    if height % 2 or width % 2 or 4 * channels > 2 * WIDEST:
        return batch_norm(m, x)
    if m.chance():
        y = m.op("SpaceToDepth", (x.name,), blocksize=2)
    else:
        end = 2**31 - 1
        quarters = [
            m.slice(m.slice(x.name, 2, i, end, 2), 3, j, end, 2) for i in (0, 1) for j in (0, 1)
        ]
        y = m.op("Concat", quarters, axis=1)
    return _narrow(m, Tensor(y, (0, 4 * channels, height // 2, width // 2)))


def transposed_conv(m: Maker, x: Tensor) -> Tensor:
    _, channels, height, width = x.shape
    if 2 * abs(height) > LARGEST_MAP:
        return batch_norm(m, x)
    out = m.new_width()
    groups = 2 if channels % 2 == 0 and out % 2 == 0 and m.chance() else 1
    inputs = (x.name, m.weight(channels, out // groups, 2, 2, fan_in=channels), m.vector(out))
    y = m.op("ConvTranspose", inputs, strides=[2, 2], group=groups)
    return Tensor(y, (0, out, 2 * height, 2 * width))


def resized(m: Maker, x: Tensor) -> Tensor:
    _, channels, height, width = x.shape
    if 2 * abs(height) > LARGEST_MAP:
        return batch_norm(m, x)
    scales = m._keep("scales", np.asarray([1, 1, 2, 2], np.float32))
    y = m.op("Resize", (x.name, "", scales), mode=m.pick(["nearest", "linear"]))
    return Tensor(y, (0, channels, 2 * height, 2 * width))


def pooled(m: Maker, x: Tensor) -> Tensor:
    _, channels, height, width = x.shape
    if abs(height) < 4:
        return batch_norm(m, x)
    y = m.op(m.pick(["MaxPool", "AveragePool"]), (x.name,), kernel_shape=[2, 2], strides=[2, 2])
    return Tensor(y, (0, channels, height // 2, width // 2))


def pooled_beside(m: Maker, x: Tensor) -> Tensor:
    """The mean over the image, or a smaller image, at the size of the image again."""
    shape = m.op("Shape", (x.name,))
    if m.chance():  # the whole target is that of another tensor
        small = m.op("GlobalAveragePool", (x.name,))
        y = m.op("Expand", (small, shape))
    else:
        small = m.op("GlobalMaxPool", (x.name,))
        own, space = (shape if m.chance() else m.op("Shape", (small,))), shape
        parts = [m.slice(own, 0, 0, 2), m.slice(space, 0, 2, 4)]
        if not m.integer(0, 3):  # a size that the exporter knew
            parts[:1] = [m.slice(own, 0, 0, 1), m.ints(x.width)]
        target = m.op("Concat", parts, axis=0)
        y = m.op("Resize", (small, "", "", target), mode="nearest")
    both = m.op("Concat", (x.name, y), axis=1)
    return _narrow(m, _with_width(x, both, 2 * x.width))


def covariance_attention(m: Maker, x: Tensor) -> Tensor:
    """Attention between channels: their axis is the softmax's, so it has to stay."""
    _, channels, height, width = x.shape
    if not x.static:
        return gated(m, x)
    q = m.reshape(m.conv(x, channels).name, 0, channels, height * width)
    k = m.transpose(m.reshape(m.conv(x, channels).name, 0, channels, height * width), 0, 2, 1)
    weights = m.op("Softmax", (m.op("MatMul", (q, k)),), axis=-1)
    v = m.reshape(m.conv(x, channels).name, 0, channels, height * width)
    y = m.reshape(m.op("MatMul", (weights, v)), 0, channels, height, width)
    return Tensor(m.op("Add", (x.name, m.conv(Tensor(y, x.shape), channels).name)), x.shape)


def tokens(m: Maker, x: Tensor) -> Tensor:
    """From here on a sequence of pixels."""
    _, channels, height, width = x.shape
    length = height * width if x.static else -abs(height * width)
    y = m.reshape(x.name, 0, channels, length if x.static else -1)
    return Tensor(m.transpose(y, 0, 2, 1), (0, length, channels))


IMAGE: list[Block] = [
    *(
        grouped_bottleneck,
        batch_norm,
        grouped,
        depthwise,
        gated,
        flat_gated,
        spatial_gate,
        instance_norm,
        group_norm,
    ),
    *(channels_last, depth_to_space, space_to_depth, transposed_conv, resized, pooled),
    *(pooled_beside, covariance_attention, tokens),
]


# Blocks for sequences.


def layer_norm(m: Maker, x: Tensor) -> Tensor:
    inputs = (x.name, m.positive(x.width), m.vector(x.width))
    return Tensor(m.op("LayerNormalization", inputs[: m.integer(2, 3)], epsilon=EPSILON), x.shape)


def plain_layer_norm(m: Maker, x: Tensor) -> Tensor:
    """As exporters without the operator write it."""
    centred = m.op("Sub", (x.name, m.reduce("ReduceMean", x.name, [-1])))
    variance = m.reduce("ReduceMean", m.op("Pow", (centred, m.scalar(2))), [-1])
    y = m.op("Div", (centred, m.op("Sqrt", (m.op("Add", (variance, m.scalar(EPSILON))),))))
    return Tensor(m.op("Mul", (y, m.vector(x.width))), x.shape)


def root_mean_square(m: Maker, x: Tensor) -> Tensor:
    square = m.reduce("ReduceMean", m.op("Pow", (x.name, m.scalar(2))), [-1])
    root = m.op("Sqrt", (m.op("Add", (square, m.scalar(EPSILON))),))
    y = m.op("Mul", (x.name, m.op("Reciprocal", (root,))))
    return Tensor(m.op("Mul", (m.vector(x.width), y)), x.shape)


def gated_layers(m: Maker, x: Tensor) -> Tensor:
    inner = m.new_width()
    gate, up = m.linear(x, inner).name, m.linear(x, inner).name
    y = m.op("Mul", (m.op("Mul", (gate, m.op("Sigmoid", (gate,)))), up))
    down = m.linear(Tensor(y, (*x.shape[:-1], inner)), x.width).name
    return Tensor(m.op("Add", (x.name, down)), x.shape)


def einsum_layers(m: Maker, x: Tensor) -> Tensor:
    inner = m.new_width()
    weight = m.weight(x.width, inner, fan_in=x.width)
    y = m.act(m.op("Einsum", (x.name, weight), equation="bld,de->ble"))
    back = m.weight(x.width, inner, fan_in=inner)
    return Tensor(m.op("Einsum", (y, back), equation="ble,de->bld"), x.shape)


def mixed_tokens(m: Maker, x: Tensor) -> Tensor:
    """Layers over the axis of positions."""
    _, length, width = x.shape
    if not x.static:
        return gated_layers(m, x)
    t = Tensor(m.transpose(x.name, 0, 2, 1), (0, width, length))
    inner = m.linear(t, m.new_width())
    y = m.linear(Tensor(m.act(inner.name), inner.shape), length)
    return Tensor(m.op("Add", (x.name, m.transpose(y.name, 0, 2, 1))), x.shape)


def recurrent(m: Maker, x: Tensor) -> Tensor:
    _, length, width = x.shape
    kind = m.pick(["LSTM", "GRU", "RNN"])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    hidden, directions = m.pick([4, 6, 3]), m.integer(1, 2)
    rows = gates * hidden
    inputs = [m.transpose(x.name, 1, 0, 2), m.weight(directions, rows, width, fan_in=width)]
    inputs.append(m.weight(directions, rows, hidden, fan_in=hidden))
    if m.chance():
        inputs.append(m.vector(directions, 2 * rows))
    attributes = {"direction": "bidirectional"} if directions == 2 else {}
    if kind == "GRU":
        attributes["linear_before_reset"] = m.integer(0, 1)
    y = m.op(kind, inputs, hidden_size=hidden, **attributes)  # [L, directions, N, hidden]
    y = m.reshape(m.transpose(y, 2, 0, 1, 3), 0, 0, directions * hidden)
    return Tensor(y, (0, length, directions * hidden))


def conv_over_positions(m: Maker, x: Tensor) -> Tensor:
    width = m.new_width()
    inputs = (m.transpose(x.name, 0, 2, 1), m.weight(width, x.width, 3), m.vector(width))
    y = m.transpose(m.op("Conv", inputs, pads=[1, 1]), 0, 2, 1)
    return Tensor(y, (*x.shape[:-1], width))


def causal_scores(m: Maker, q: str, k: str) -> str:
    """softmax(q kT / s) of [..., L, d] and [..., d, L]."""
    scores = m.op("Mul", (m.op("MatMul", (q, k)), m.scalar(0.7)))
    return m.op("Softmax", (scores,), axis=-1)


def attention(m: Maker, x: Tensor) -> Tensor:
    """Heads by three layers, or by one whose output is divided in one of three ways."""
    _, length, _ = x.shape
    heads, width = m.pick([2, 3, 1]), m.pick([4, 2, 6])
    flat = heads * width
    form = m.pick(["apart", "split", "gather", "slices", "interleaved"])
    if form == "apart":
        parts = [m.linear(x, flat).name for _ in range(3)]
    elif form in ("split", "slices"):
        y = m.linear(x, 3 * flat).name
        if form == "split":
            parts = m.split(y, 2, [flat] * 3)
        else:
            parts = [m.slice(y, 2, i * flat, (i + 1) * flat) for i in range(3)]
    else:
        y = m.linear(x, 3 * flat).name
        if form == "gather":  # [N, L, 3, heads, width]
            y = m.transpose(m.reshape(y, 0, 0, 3, heads, width), 2, 0, 3, 1, 4)
        else:  # [N, L, heads, 3, width]
            y = m.transpose(m.reshape(y, 0, 0, heads, 3, width), 3, 0, 2, 1, 4)
        index = [m._keep("index", np.asarray(i, np.int64)) for i in range(3)]
        parts = [m.op("Gather", (y, i), axis=0) for i in index]
    if form in ("apart", "split", "slices"):
        parts = [m.transpose(m.reshape(p, 0, 0, heads, width), 0, 2, 1, 3) for p in parts]
    q, k, v = parts
    if m.chance():
        q, k = rotated(m, q, width), rotated(m, k, width)
    weights = causal_scores(m, q, m.transpose(k, 0, 1, 3, 2))
    y = m.transpose(m.op("MatMul", (weights, v)), 0, 2, 1, 3)
    y = m.reshape(y, 0, 0, flat)
    out = m.linear(Tensor(y, (0, length, flat)), x.width)
    return Tensor(m.op("Add", (x.name, out.name)), x.shape)


def rotated(m: Maker, x: str, width: int) -> str:
    """Rotary positions: the halves (-x2, x1) times a constant, beside x times another."""
    half = width // 2
    first, second = m.slice(x, 3, 0, half), m.slice(x, 3, half, width)
    turned = m.op("Concat", (m.op("Neg", (second,)), first), axis=3)
    cosine, sine = m.scalar(0.8), m.scalar(0.6)
    return m.op("Add", (m.op("Mul", (x, cosine)), m.op("Mul", (turned, sine))))


def heads_apart(m: Maker, x: Tensor) -> Tensor:
    """Linear attention: what becomes of the width of a head may tie it to that of others."""
    _, length, _ = x.shape
    heads, width = m.pick([2, 3]), m.pick([4, 3])
    q, k, v = (
        m.transpose(m.reshape(m.linear(x, heads * width).name, 0, 0, heads, width), 0, 2, 1, 3)
        for _ in range(3)
    )
    form = m.pick(["none", "activation", "scale", "bias", "unit", "own scale", "mixed"])
    if form == "activation":
        q, k = m.act(q), m.act(k)
    elif form in ("scale", "own scale"):
        q = m.op("Mul", (q, m.vector(width) if form == "scale" else m.vector(heads, 1, width)))
    elif form == "bias":
        q = m.op("Add", (q, m.vector(heads, 1, width)))
        v = m.op("Add", (v, m.vector(heads, 1, 1)))
    elif form == "unit":
        length_of_q = m.op("Add", (m.reduce("ReduceL2", q, [-1]), m.scalar(0.3)))
        q = m.op("Div", (q, length_of_q))
    elif form == "mixed":
        total = m.reduce("ReduceSum", q, [1])
        q = m.op("Add", (q, total))
    state = m.op("MatMul", (m.transpose(k, 0, 1, 3, 2), v))  # [N, heads, width, width]
    y = m.transpose(m.op("MatMul", (q, state)), 0, 2, 1, 3)
    y = Tensor(m.reshape(y, 0, 0, heads * width), (0, length, heads * width))
    return Tensor(m.op("Add", (x.name, m.linear(y, x.width).name)), x.shape)


def grouped_query_attention(m: Maker, x: Tensor) -> Tensor:
    """Two heads of keys and values, each for two or three of the queries."""
    _, length, _ = x.shape
    kv, repeats, width = 2, m.pick([2, 3]), m.pick([4, 2])
    heads = kv * repeats
    q = m.reshape(m.linear(x, heads * width).name, 0, 0, heads, width)
    q = m.transpose(q, 0, 2, 1, 3)
    pair = []
    for _ in range(2):
        y = m.reshape(m.linear(x, kv * width).name, 0, 0, kv, width)
        y = m.op("Unsqueeze", (m.transpose(y, 0, 2, 1, 3), m.ints(2)))
        y = m.op("Expand", (y, m.ints(1, 1, repeats, 1, 1)))
        pair.append(m.reshape(y, 0, heads, -1, width))
    if m.chance():
        q, pair[0] = rotated(m, q, width), rotated(m, pair[0], width)
    weights = causal_scores(m, q, m.transpose(pair[0], 0, 1, 3, 2))
    y = m.transpose(m.op("MatMul", (weights, pair[1])), 0, 2, 1, 3)
    flat = Tensor(m.reshape(y, 0, 0, heads * width), (0, length, heads * width))
    return Tensor(m.op("Add", (x.name, m.linear(flat, x.width).name)), x.shape)


def einsum_attention(m: Maker, x: Tensor) -> Tensor:
    _, length, _ = x.shape
    heads, width = 2, m.pick([4, 2])
    parts = [m.reshape(m.linear(x, heads * width).name, 0, 0, heads, width) for _ in range(3)]
    scores = m.op("Einsum", parts[:2], equation="bihd,bjhd->bhij")
    weights = m.op("Softmax", (scores,), axis=-1)
    y = m.op("Einsum", (weights, parts[2]), equation="bhij,bjhd->bihd")
    flat = Tensor(m.reshape(y, 0, 0, heads * width), (0, length, heads * width))
    return Tensor(m.op("Add", (x.name, m.linear(flat, x.width).name)), x.shape)


def fused_attention(m: Maker, x: Tensor) -> Tensor:
    """The operator of opset 23, on [N, L, heads * width]."""
    if m.opset < 23:
        return attention(m, x)
    heads, width = m.pick([2, 3]), m.pick([4, 2])
    kv_heads = m.pick([heads, 1])
    inputs = [m.linear(x, n * width).name for n in (heads, kv_heads, kv_heads)]
    y = m.op("Attention", inputs, q_num_heads=heads, kv_num_heads=kv_heads)
    out = m.linear(Tensor(y, (*x.shape[:2], heads * width)), x.width)
    return Tensor(m.op("Add", (x.name, out.name)), x.shape)


def native_root_mean_square(m: Maker, x: Tensor) -> Tensor:
    if m.opset < 23:
        return root_mean_square(m, x)
    return Tensor(m.op("RMSNormalization", (x.name, m.vector(x.width)), epsilon=EPSILON), x.shape)


SEQUENCE: list[Block] = [
    *(layer_norm, plain_layer_norm, root_mean_square, gated_layers, einsum_layers, mixed_tokens),
    *(recurrent, conv_over_positions, attention, grouped_query_attention, einsum_attention),
    *(fused_attention, native_root_mean_square, heads_apart),
]


def _start(m: Maker, batch: int | str) -> tuple[Tensor, onnx.ValueInfoProto]:
    kind = m.pick(["image", "sequence", "image", "tokens"])
    if kind == "image":
        shape = (3, *m.pick([(4, 4), (6, 6), (8, 8), (-4, -4)]))
        dims = [batch, 3, *("HW" if shape[1] < 0 else shape[1:])]
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)
        return m.conv(Tensor("x", (0, *shape)), m.new_width(), 3), value
    length = m.pick([3, 4, -1])
    dims = [batch, length if length > 0 else "L"]
    if kind == "sequence":
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [*dims, 5])
        return m.linear(Tensor("x", (0, length, 5)), m.new_width()), value
    width = m.new_width()
    value = helper.make_tensor_value_info("x", TensorProto.INT64, dims)
    y = m.op("Gather", (m.weight(7, width, fan_in=2), "x"), axis=0)
    return Tensor(y, (0, length, width)), value


def _end(m: Maker, x: Tensor) -> Tensor:
    if x.image and m.chance():
        pooled = m.op("GlobalAveragePool", (x.name,))
        flat = m.op("Flatten", (pooled,))
        inputs = (flat, m.weight(CLASSES, x.width), m.vector(CLASSES))
        return Tensor(m.op("Gemm", inputs, transB=1), (0, CLASSES))
    if x.image and x.static and m.chance():  # every pixel of every channel has a weight
        flat = m.reshape(x.name, 0, int(np.prod(x.shape[1:])))
        return m.linear(Tensor(flat, (0, int(np.prod(x.shape[1:])))), CLASSES)
    if not x.image and m.chance():
        mean = m.reduce("ReduceMean", x.name, [1], keepdims=0)
        return m.linear(Tensor(mean, (0, x.width)), CLASSES)
    return m.project(x, CLASSES)


def random_model(integer: Callable[[int, int], int]) -> onnx.ModelProto:
    """A model decided by ``integer(low, high)``, both ends included."""
    m = Maker(integer, opset=17)
    m.opset = m.pick([17, 21, 23])
    batch: int | str = m.pick(["N", 2])
    x, start = _start(m, batch)
    outputs = []
    for _ in range(m.integer(3, 12)):
        m.seen.append(x)
        block = m.pick(ANY) if m.chance() else m.pick(IMAGE if x.image else SEQUENCE)
        x = block(m, x)
    if m.integer(0, 5) == 5:  # an output in the middle: its channels stay
        outputs.append(m.pick(m.seen))
    outputs.append(_end(m, x))
    values = [
        helper.make_tensor_value_info(
            t.name,
            TensorProto.FLOAT,
            [batch, *(length if length > 0 else None for length in t.shape[1:])],
        )
        for t in {t.name: t for t in outputs}.values()
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in m.arrays.items()]
    graph = helper.make_graph(m.nodes, "random", [start], values, constants)
    opsets = [helper.make_opsetid("", m.opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11 if m.opset > 21 else 8)
    onnx.checker.check_model(model, full_check=True)
    return model


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """Random models; see the module."""
    return random_model(lambda low, high: draw(st.integers(low, high)))


def feed_of(model: onnx.ModelProto, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Random inputs of a model from here, for a batch of two; open lengths are 3 or 8."""
    rng = np.random.default_rng(seed)
    feed: dict[str, npt.NDArray[Any]] = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        open_ = {"N": 2, "L": 3, "H": 8, "W": 8}
        shape = [dim.dim_value or open_[dim.dim_param] for dim in tensor.shape.dim]
        if tensor.elem_type == TensorProto.INT64:
            feed[value.name] = rng.integers(0, 7, shape)
        else:
            feed[value.name] = rng.normal(size=shape).astype(np.float32)
    return feed
