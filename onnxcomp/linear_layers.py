"""Conv, Gemm, MatMul and BatchNormalization as what they have in common: y = W x + b, in groups.

Of a BatchNormalization each channel is a group, W its scale over the deviation. A ConvTranspose is
a Conv by the kernel turned round, of its input with zeros in between. Of a batch of matrices each
is a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.gram import Array, Window
from onnxcomp.graph import Names, consumers, input_at, is_constant, is_standard
from onnxcomp.layer_inputs import sampled_rows
from onnxcomp.output_vectors import is_output_vector
from onnxcomp.recurrent_layers import RECURRENT
from onnxcomp.recurrent_layers import reason_against as reason_against_recurrent
from onnxcomp.transposed import spread_out, turned_round

LINEAR = ("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul")
CONVOLUTIONS = ("Conv", "ConvTranspose")
UNPADDED = ("NOTSET", "VALID")  # of auto_pad


class Reader(Protocol):
    """What a layer reads and makes, as rows; `LinearLayer` says what each stands for."""

    @property
    def source(self) -> str:
        """Name of the tensor it reads."""

    @property
    def groups(self) -> int:
        """Of what it multiplies."""

    @property
    def reads_channels(self) -> bool:
        """Whether its input is [batch, channels, *spatial]."""

    @property
    def weights(self) -> Array:
        """W, [groups, out / groups, d]."""

    def inputs(self, values: Array, count: int, seed: list[int]) -> Array:
        """Rows x."""

    def outputs(self, values: Array, count: int, seed: list[int]) -> Array:
        """Rows y."""


@dataclass(frozen=True)
class LinearLayer:
    """A node with constant weights that makes y = W x + b of rows x.

    Attributes:
        node: Conv, ConvTranspose, Gemm, MatMul or BatchNormalization.
        adder: the node whose ``bias_index``-th input is or may become the bias, or None.
        bias_index: of ``adder``'s inputs.
    """

    node: gs.Node
    adder: gs.Node | None
    bias_index: int

    @classmethod
    def of(cls, node: gs.Node) -> LinearLayer:
        """Of a node that `reason_against` finds nothing against."""
        if node.op != "MatMul":
            return cls(node, node, 2)
        readers = consumers(node.outputs[0])
        if len(readers) == 1 and readers[0].op == "Add" and not _batch(node):
            for index, tensor in enumerate(readers[0].inputs):
                out = node.inputs[1].shape[-1]
                if is_constant(tensor) and is_output_vector(tensor.shape, out):
                    return cls(node, readers[0], index)
        return cls(node, None, 0)

    @property
    def source(self) -> str:
        """Name of the tensor it reads."""
        return str(self.node.inputs[0].name)

    @property
    def made(self) -> gs.Tensor:
        """y with the bias."""
        return (self.adder or self.node).outputs[0]

    @property
    def groups(self) -> int:
        """Of a Conv, channels of a BatchNormalization or matrices of a MatMul; 1 otherwise."""
        if self.node.op == "MatMul":
            return math.prod(_batch(self.node))
        if self.node.op == "BatchNormalization":
            return int(self.node.inputs[1].shape[0])
        return int(self.node.attrs.get("group", 1)) if self.node.op in CONVOLUTIONS else 1

    @property
    def reads_channels(self) -> bool:
        """Whether its input is [batch, channels, *spatial] and not [..., d]."""
        return self.node.op in ("BatchNormalization", *CONVOLUTIONS)

    @property
    def weights(self) -> Array:
        """W, float64 [groups, out / groups, d]."""
        values = self.node.inputs[1].values.astype(np.float64)
        if self.node.op == "BatchNormalization":
            return np.asarray((values / self._deviation).reshape(-1, 1, 1))
        if self.node.op == "ConvTranspose":
            values = turned_round(values, self.groups)
        values = values.swapaxes(-1, -2) if self._is_transposed else values
        if self.node.op == "MatMul":
            return np.asarray(values.reshape(self.groups, *values.shape[-2:]))
        return np.asarray(values.reshape(self.groups, values.shape[0] // self.groups, -1))

    @property
    def bias(self) -> Array:
        """b, float64 [groups, out / groups]; 0 where there is none."""
        groups, out, _ = self.weights.shape
        constant = self._bias
        if constant is None:
            return np.zeros((groups, out))
        values = np.asarray(constant.values, np.float64).reshape(-1)
        if self.node.op == "BatchNormalization":
            values = values - self.weights.reshape(-1) * self.node.inputs[3].values
        return np.broadcast_to(values, (groups * out,)).reshape(groups, out)

    @property
    def takes_bias(self) -> bool:
        """Whether it has a bias or can get one."""
        return self.adder is not None

    def write(self, weights: Array, bias: Array | None, names: Names) -> None:
        """Puts new constants in place of the weights and, unless None, of the bias."""
        old = self.node.inputs[1]
        if self.node.op == "BatchNormalization" and bias is not None:
            bias = bias + weights[:, :, 0] * self.node.inputs[3].values[:, None]
            weights = weights * self._deviation.reshape(-1, 1, 1)
        values = weights.swapaxes(-1, -2) if self._is_transposed else weights
        if self.node.op == "ConvTranspose":
            inner, out, *kernel = old.shape
            values = values.reshape(self.groups * out, inner // self.groups, *kernel)
            values = turned_round(values, self.groups)
        values = np.ascontiguousarray(values.reshape(old.shape), old.dtype)
        self.node.inputs[1] = gs.Constant(names.fresh(f"{old.name}.refitted"), values)
        if bias is None or self.adder is None:
            return
        before = self._bias
        name = f"{old.name}.bias" if before is None else before.name
        shape = (-1,) if before is None or before.values.size == 1 else before.shape
        stored = bias.reshape(shape).astype(old.dtype)
        constant = gs.Constant(names.fresh(f"{name}.refitted"), stored)
        if len(self.adder.inputs) > self.bias_index:
            self.adder.inputs[self.bias_index] = constant
        else:
            self.adder.inputs.append(constant)

    def inputs(self, values: Array, count: int, seed: list[int]) -> Array:
        """Rows x of what a few samples read, [samples, groups, d, at most count]."""
        if self.node.op == "Conv":
            window = Window.of_conv(self.node.attrs, self.node.inputs[1].shape)
            return sampled_rows(values, window, count, seed)
        if self.node.op == "ConvTranspose":
            spread, window = spread_out(values, self.node.attrs, self.node.inputs[1].shape)
            return sampled_rows(spread, window, count, seed)
        return self.outputs(values, count, seed)

    def outputs(self, values: Array, count: int, seed: list[int]) -> Array:
        """Rows y, as `inputs` has x, at the same places."""
        if not self.reads_channels:
            tables = _tables(values, _batch(self.node))
            return np.concatenate([sampled_rows(t, None, count, seed) for t in tables], axis=1)
        if values.ndim == 2:
            values = values[:, :, None]
        window = Window(kernel=(1,) * (values.ndim - 2), group=self.groups)
        return sampled_rows(values, window, count, seed)

    @property
    def _deviation(self) -> Array:
        """Of a BatchNormalization, [channels]."""
        variance = self.node.inputs[4].values.astype(np.float64)
        return np.asarray(np.sqrt(variance + self.node.attrs.get("epsilon", 1e-5)))

    @property
    def _is_transposed(self) -> bool:
        """Whether the weights are stored as [in, out]."""
        return self.node.op == "MatMul" or (
            self.node.op == "Gemm" and not self.node.attrs.get("transB", 0)
        )

    @property
    def _bias(self) -> gs.Constant | None:
        return None if self.adder is None else input_at(self.adder, self.bias_index)


def reason_against(node: gs.Node) -> str | None:
    """Why a node with weights is none whose weights can be fitted, or None."""
    if node.op in RECURRENT:
        return reason_against_recurrent(node)
    if node.op not in LINEAR or not is_standard(node):
        return f"{node.op} is never refitted"
    is_normalization = node.op == "BatchNormalization"
    if not all(is_constant(t) for t in node.inputs[1 : 5 if is_normalization else 2]):
        return "its weights are computed"
    weights = node.inputs[1]
    if np.dtype(weights.dtype).kind != "f":
        return f"its weights are {weights.dtype}"
    if is_normalization:
        trains = node.attrs.get("training_mode", 0) or len(node.outputs) > 1
        return "it normalizes by the statistics of its input" if trains else None
    if node.op == "MatMul":
        repeats = any(size == 1 for size in _batch(node)) or len(weights.shape) < 2
        return "its weights repeat along an axis between others" if repeats else None
    if node.op == "Gemm" and any(node.attrs.get(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "its products are scaled"
    if node.op == "Gemm" and node.attrs.get("transA", 0):
        return "its input is transposed"
    if node.op == "ConvTranspose" and (
        "output_shape" in node.attrs or node.attrs.get("auto_pad", "NOTSET") not in UNPADDED
    ):
        return "its padding follows from the size of its output"
    bias = input_at(node, 2)
    if bias is not None:
        out = weights.shape[1] if _gemm_in_out(node) else weights.shape[0]
        if node.op == "ConvTranspose":
            out = weights.shape[1] * int(node.attrs.get("group", 1))
        if not is_constant(bias) or not is_output_vector(bias.shape, out):
            return "its bias is no constant vector"
    return None


def _batch(node: gs.Node) -> tuple[int, ...]:
    """Of a MatMul's weights the axes before the last two, but for leading ones of length 1."""
    if node.op != "MatMul":
        return ()
    sizes = [int(size) for size in node.inputs[1].shape[:-2]]
    first = next((axis for axis, size in enumerate(sizes) if size > 1), len(sizes))
    return tuple(sizes[first:])


def _tables(values: Array, batch: tuple[int, ...]) -> list[Array]:
    """What each of a batch of matrices is multiplied with, or makes, [samples, rows, d] each.

    Args:
        values: [samples, ..., *batch, rows, d]; axes of the batch may have length 1 or lack.
        batch: sizes of the axes of the batch; none for a single matrix.
    """
    if not batch:
        return [values]
    samples, *lead, rows, width = values.shape
    lead = [1] * (len(batch) - len(lead)) + lead
    free = tuple(lead[: len(lead) - len(batch)])
    whole = np.broadcast_to(
        values.reshape(samples, *lead, rows, width), (samples, *free, *batch, rows, width)
    )
    apart = whole.reshape(samples, math.prod(free), math.prod(batch), rows, width)
    return [np.ascontiguousarray(apart[:, :, i]) for i in range(math.prod(batch))]


def _gemm_in_out(node: gs.Node) -> bool:
    return bool(node.op == "Gemm" and not node.attrs.get("transB", 0))
