"""What eight bits cost a single node, told from moments of its tensors without running it again."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationError
from onnxcomp.graph import is_constant, label
from onnxcomp.quantization import TINY, Array, symmetric
from onnxcomp.shapes import infer_shapes
from onnxcomp.statistics import MinMax, Moments, Statistic

SAMPLES = 16  # moments settle long before ranges do
SUMS = ("Add", "Concat", "Sub", "Sum")  # whose errors are those of their inputs
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def local_sqnr_db(
    graph: gs.Graph, labels: Collection[str], calibration: Calibration, weight_bits: int = 8
) -> dict[str, float]:
    """Estimated SQNR in dB of each node's own output when it alone is quantized.

    With the error dW of rounded weights and the error e of rounded inputs, the output of a layer
    y = W x is off by dW x + W e, of the energy

        tr dW G dWT + E[e^2] tr W WT,    G = E[x xT], here its diagonal,    E[e^2] = scale^2 / 12

    (Widrow and Kollar, "Quantization Noise", 2008, for the second term; the mean that the
    neglected rest of G stands for is what bias correction takes back). Sums pass their inputs'
    errors on, other operators pass on how large these are beside the inputs. Ranges are the exact
    ones.

    Args:
        graph: in float.
        labels: of the nodes wanted; those whose tensors are not real numbers are left out.
        calibration: of which SAMPLES are looked at.
        weight_bits: of weights, with one scale for each output channel.
    """
    graph = graph.copy()
    infer_shapes(graph)
    nodes = [node for node in graph.nodes if label(node) in labels and _is_real(node)]
    seen = _Seen.of(graph, nodes, calibration)
    found = {}
    for node in nodes:
        try:
            signal, noise = seen.energies(node, weight_bits)
        except CalibrationError:  # an empty tensor, or one that is not finite
            continue
        if signal > 0 and noise > 0 and math.isfinite(signal) and math.isfinite(noise):
            found[label(node)] = 10 * math.log10(signal / noise)
    return found


@dataclass(frozen=True)
class _Seen:
    """What samples show of the tensors of some nodes.

    Attributes:
        ranges: of what is rounded, by name.
        whole: of all tensors, by name.
        inputs: of what layers read, by name and axis of the channels.
    """

    ranges: dict[str, MinMax] = field(default_factory=dict)
    whole: dict[str, Moments] = field(default_factory=dict)
    inputs: dict[tuple[str, int], Moments] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: gs.Graph, nodes: Iterable[gs.Node], calibration: Calibration) -> _Seen:
        seen = cls()
        for node in nodes:
            for tensor in _activations(node):
                seen.ranges.setdefault(tensor.name, MinMax())
            if _weights(node) is not None:
                axis = _channel_axis(node)
                seen.inputs.setdefault((node.inputs[0].name, axis), Moments(axis))
            for tensor in [*_activations(node), node.outputs[0]]:
                seen.whole.setdefault(tensor.name, Moments())
        taps: dict[str, list[Statistic[Any]]] = {}
        for name, extremes in seen.ranges.items():
            taps.setdefault(name, []).append(extremes)
        by_channel = ((name, moments) for (name, _), moments in seen.inputs.items())
        for name, moments in [*seen.whole.items(), *by_channel]:
            taps.setdefault(name, []).append(moments)
        calibration.observe(graph, taps, limit=SAMPLES)
        return seen

    def energies(self, node: gs.Node, weight_bits: int) -> tuple[float, float]:
        """Of a node's output, and of its error when the node alone is quantized."""
        signal = float(_energies(self.whole[node.outputs[0].name]))
        read = [
            (_rounding_noise(self.ranges[t.name]), self.whole[t.name]) for t in _activations(node)
        ]
        noise = sum(error for error, _ in read)
        weights = _weights(node)
        if weights is not None:
            energy = _energies(self.inputs[node.inputs[0].name, _channel_axis(node)])
            noise = _layer_noise(node, weights, energy, noise, weight_bits)
        elif node.op not in SUMS:
            noise = signal * sum(error / max(float(_energies(m)), TINY) for error, m in read)
        return signal, noise


def _is_real(node: gs.Node) -> bool:
    tensors = [*_activations(node), *node.outputs[:1]]
    return bool(tensors) and all(t.dtype == np.float32 for t in tensors)


def _activations(node: gs.Node) -> list[gs.Tensor]:
    """What a layer multiplies its weights with; of other operators all they read."""
    tensors = node.inputs[:1] if _weights(node) is not None else node.inputs
    return [t for t in tensors if t.name and not is_constant(t) and t.dtype == np.float32]


def _weights(node: gs.Node) -> gs.Constant | None:
    if node.op not in LAYERS or len(node.inputs) < 2 or not is_constant(node.inputs[1]):
        return None
    weights = node.inputs[1]
    matrix = len(weights.shape) == 2 or node.op.startswith("Conv")
    return weights if matrix and weights.dtype == np.float32 else None


def _channel_axis(node: gs.Node) -> int:
    return 1 if node.op.startswith("Conv") else -1


def _rounding_noise(seen: MinMax) -> float:
    """E[e^2] of rounding to 256 levels over the range."""
    found = seen.result()
    width = max(float(found.high), 0.0) - min(float(found.low), 0.0)
    return (width / 255) ** 2 / 12


def _energies(moments: Moments) -> Array:
    """E[x^2], [] or [channels]."""
    found = moments.result()
    return np.asarray(found.variance + np.square(found.mean))


def _layer_noise(
    node: gs.Node, constant: gs.Constant, energies: Array, input_noise: float, bits: int
) -> float:
    """Energy of a layer's error, mean over its output channels.

    Args:
        node: the layer.
        constant: its weights.
        energies: E[x^2] of its input channels, [in_channels].
        input_noise: E[e^2] of its input.
        bits: of the weights.
    """
    weights, groups = constant.values, int(node.attrs.get("group", 1))
    if node.op == "ConvTranspose":  # [in, out / group, *kernel]
        inner = weights.reshape(groups, weights.shape[0] // groups, weights.shape[1], -1)
        table = inner.transpose(0, 2, 1, 3)
    else:
        stored = weights.T if node.op in ("Gemm", "MatMul") and not _transposed(node) else weights
        table = stored.reshape(groups, stored.shape[0] // groups, stored.shape[1], -1)
    flat = np.ascontiguousarray(table).reshape(table.shape[0] * table.shape[1], -1)
    parameters = symmetric(flat, 0, bits=bits)
    error = np.square(flat - parameters.dequantize(parameters.quantize(flat, bits)))
    by_input = error.reshape(table.shape).sum(3)
    rounded = np.einsum("goi,gi->", by_input, energies.reshape(groups, -1))
    passed = input_noise * float(np.square(flat, dtype=np.float64).sum())
    return (float(rounded) + passed) / len(flat)


def _transposed(node: gs.Node) -> bool:
    return bool(node.attrs.get("transB", 0))
