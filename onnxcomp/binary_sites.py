"""Layers of -1 and +1 in a graph: what they are, what feeds them, what becomes of their sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcomp.graph import consumers, is_constant, is_output, is_standard, producer
from onnxcomp.sign_sources import SignSource, affine_chain, apply_chain, per_channel, source_of
from onnxcomp.sign_thresholds import Affine, Folded, fold

LAYERS = ("Conv", "MatMul", "Gemm")
WORD_BITS = 64


@dataclass(frozen=True)
class BinaryLayer:
    """A Conv, MatMul or Gemm with weights of -a or +a in each output channel.

    Attributes:
        node: it.
        weight: its weights, [out, in / group, kernel_h, kernel_w] of a Conv, else [in, out].
        scale: a, [out].
        bias: [out], or None.
    """

    node: gs.Node
    weight: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None

    @property
    def largest_sum(self) -> int:
        """The number of signs that an output adds up."""
        return self.weight.size // len(self.scale)

    @property
    def sums(self) -> Affine:
        """The layer's output as a function of the sum of signs."""
        identity = Affine.identity(len(self.scale))
        if self.bias is None and (self.scale == 1).all():
            return identity
        return identity.then(
            self.scale.astype(np.float64),
            0.0 if self.bias is None else self.bias.astype(np.float64),
        )


@dataclass(frozen=True)
class Junction:
    """A sign source that compares what became of a binary layer's sums, and how that folds."""

    layer: BinaryLayer
    folded: Folded


def has_binary_weight(node: gs.Node) -> bool:
    """Whether it is a layer whose constant weights have one magnitude in each output channel."""
    if not is_standard(node) or node.op not in LAYERS or len(node.inputs) < 2:
        return False
    weight = node.inputs[1]
    if not is_constant(weight) or len(weight.shape) != (4 if node.op == "Conv" else 2):
        return False
    if weight.dtype != np.float32 or 0 in weight.shape:
        return False
    sizes = np.abs(_by_output(node))
    return bool((sizes[:, 0] > 0).all() and (sizes == sizes[:, :1]).all())


def binary_layer(node: gs.Node) -> BinaryLayer | str:
    """The layer of a node with binary weights, or what the binary operators lack for it."""
    rank = 4 if node.op == "Conv" else 2
    shape = node.outputs[0].shape
    if shape is None or len(shape) != rank:
        return f"its output is not known to have {rank} dimensions"
    rows = _by_output(node)
    scale = np.abs(rows[:, 0])
    bias = None
    if len(node.inputs) > 2 and node.inputs[2].name:
        found = _bias(node)
        if found is None or found.dtype != np.float32:
            return "its bias is not one constant for each output channel"
        bias = np.broadcast_to(found, scale.shape)
    refusal = _conv_refusal(node) if node.op == "Conv" else _gemm_refusal(node)
    if refusal:
        return refusal
    weight = np.asarray(node.inputs[1].values)
    if node.op == "Gemm" and node.attrs.get("transB", 0):
        weight = weight.T
    return BinaryLayer(node, weight, scale, bias)


def sign_path(tensor: gs.Tensor) -> tuple[SignSource, list[gs.Node]] | None:
    """What makes ``tensor`` a sign, and the nodes that hand it on, the last one first."""
    path: list[gs.Node] = []
    while True:
        source = source_of(tensor)
        if source is not None:
            return source, path
        node = producer(tensor)
        if node is None or not hands_signs_on(node):
            return None
        path.append(node)
        tensor = node.inputs[0]


def hands_signs_on(node: gs.Node) -> bool:
    """Whether a node's output has the signs of its input, which an operator of bits can move."""
    if not is_standard(node) or len([t for t in node.outputs if t.name]) != 1:
        return False
    came, goes = node.inputs[0].shape, node.outputs[0].shape
    if came is None or goes is None or len(came) != 4:
        return False
    if node.op == "MaxPool":
        plain = node.attrs.get("auto_pad", "NOTSET") == "NOTSET" and not node.attrs.get("ceil_mode")
        return plain and set(node.attrs.get("dilations", [1])) == {1}
    if node.op in ("Flatten", "Reshape") and len(goes) == 2:
        sizes = came[1:]
        return all(isinstance(n, int) for n in sizes) and goes[1] == int(np.prod(sizes))
    return False


def junction_of(
    graph: gs.Graph, source: SignSource, layers: dict[int, BinaryLayer]
) -> Junction | str | None:
    """How ``source`` follows from the sums of one of ``layers`` (by id of node).

    None where it does not, text where it does but the comparison does not fold.
    """
    chain = list(affine_chain(graph, source.tensor))
    end = source.tensor if not chain else _entry(chain[-1])
    node = producer(end)
    layer = None if node is None else layers.get(id(node))
    if layer is None or is_output(graph, end) or len(consumers(end)) != 1:
        return None
    affine = apply_chain(layer.sums, chain[::-1])
    folded = fold(
        affine,
        source.comparison,
        source.levels,
        layer.largest_sum,
        zero_counts=source.zero_counts,
    )
    return folded if isinstance(folded, str) else Junction(layer, folded)


def only_read_by(graph: gs.Graph, tensor: gs.Tensor, lowered: set[int]) -> bool:
    """Whether all that reads these signs, pooled or flattened too, are ``lowered`` layers."""
    if is_output(graph, tensor):
        return False
    for node in consumers(tensor):
        if id(node) in lowered and node.inputs[0] is tensor:
            continue
        if not hands_signs_on(node) or not only_read_by(graph, node.outputs[0], lowered):
            return False
    return True


def _entry(node: gs.Node) -> gs.Tensor:
    return next(t for t in node.inputs if not is_constant(t))


def _by_output(node: gs.Node) -> npt.NDArray[Any]:
    """The weights, one row an output."""
    weight = np.asarray(node.inputs[1].values)
    outputs_first = node.op == "Conv" or (node.op == "Gemm" and node.attrs.get("transB", 0))
    rows = weight if outputs_first else weight.T
    return rows.reshape(len(rows), -1)


def _bias(node: gs.Node) -> npt.NDArray[Any] | None:
    """[1] or [out], if it is constant; one of a Conv has no other shape."""
    if node.op == "Gemm":
        return per_channel(node.inputs[2], 2)
    return np.asarray(node.inputs[2].values) if is_constant(node.inputs[2]) else None


def _conv_refusal(node: gs.Node) -> str:
    if node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return f"auto_pad is {node.attrs['auto_pad']}: pads have to be written out"
    group = node.attrs.get("group", 1)
    outputs, channels = node.inputs[1].shape[:2]
    if group > 1 and (channels % WORD_BITS or outputs // group % WORD_BITS):
        return f"groups of {channels} channels do not fill words of {WORD_BITS}"
    return ""


def _gemm_refusal(node: gs.Node) -> str:
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    odd = [name for name, value in plain.items() if node.attrs.get(name, value) != value]
    return f"{odd[0]} is {node.attrs[odd[0]]}" if node.op == "Gemm" and odd else ""
