"""Factors that even out the channels of inputs, and whether one scale is enough for all rows.

y = x W = (x / s) (diag(s) W). A channel that is large in every row takes the codes from all
others; dividing it by s and multiplying its weights leaves the product as it is (Xiao et al.,
"SmoothQuant", 2022). The factors are chosen by the error of the integer product on rows of x. Which
channels are large is a matter of the weights more than of the samples, so that made-up ones serve
nearly as well; without any, normal values stand for what a normalization with constants gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.graph import Names, is_constant, producer
from onnxcomp.input_scaling import divide_input
from onnxcomp.quantization import TINY, Array, affine
from onnxcomp.statistics import Range

ROWS = 64  # of an input, to judge factors by
COLUMNS = 512  # of its weights
STRENGTHS = (0.5, 1.0)  # exponents tried
LEAST_GAIN = 0.63  # of the error has to be left at most, 2 dB less: dividing costs time
ROWS_GAIN = 1.5  # in error: scales of rows have to be worth the operators they take
SILENT = 1e-6  # of the mean energy of rows: what smaller ones lose does not count
LARGEST = 64.0  # factor; beyond it the weights of one channel would take all codes


Scales = Literal["auto", "row", "tensor"]


@dataclass(frozen=True)
class Products:
    """The layers that read one input.

    Attributes:
        body: the graph that they are in.
        input: x, [..., d].
        nodes: MatMul or Gemm, y = x W, whose weights nothing else reads.
        scales: one for each "row" of x, one for the "tensor", or what "auto" finds to be enough.
    """

    body: gs.Graph
    input: gs.Tensor
    nodes: list[gs.Node]
    scales: Scales = "auto"

    def weights(self) -> Array:
        """All weights side by side, [d, outputs]."""
        return np.concatenate([_matrix(node) for node in self.nodes], axis=1)


def smooth_inputs(
    groups: Sequence[Products],
    graph: gs.Graph,
    names: Names,
    samples: Calibration | None,
    limit: int,
    advance: Callable[[int, int], None],
    seed: int = 0,
) -> tuple[int, set[int]]:
    """Evens out inputs where that lowers the error of their products.

    Weights that change become new constants <weight>.smoothed; in float nothing changes.

    Args:
        groups: with different weights.
        graph: the outermost one, which samples are run through.
        names: of the graph.
        samples: real or made up, or None.
        limit: at most so many are run.
        advance: told how far that is.
        seed: of the rows that stand for samples.

    Returns:
        How many inputs were changed, and the ids of the nodes that need no scale for each row:
            with "auto" never without real samples, which alone show how rows differ.
    """
    seen = _observed(groups, graph, samples, limit, advance)
    random, changed = np.random.default_rng(seed), 0
    by_tensor = {id(node) for g in groups if g.scales == "tensor" for node in g.nodes}
    for group in groups:
        rows, scales = seen.get(group.input.name), group.scales
        if scales == "auto" and (samples is None or samples.synthetic):
            scales = "row"
        if rows is None:
            rows = _normalized_rows(group.input, random)
        if rows is None:
            continue
        factors, scales = choose_factors(rows, group.weights(), scales)
        if scales == "tensor":
            by_tensor |= {id(node) for node in group.nodes}
        if (factors == 1).all():
            continue
        for node in group.nodes:
            weight, last = node.inputs[1], bool(node.attrs.get("transB", 0))
            scaled = weight.values * (factors if last else factors[:, None])
            node.inputs[1] = gs.Constant(names.fresh(f"{weight.name}.smoothed"), scaled)
        divide_input(group.body, group.input, group.nodes, factors, names)
        changed += 1
    return changed, by_tensor


def choose_factors(rows: Array, weights: Array, scales: Scales = "auto") -> tuple[Array, Scales]:
    """The factors, float32 [d], under which the integer product of rows and weights is best.

    Args:
        rows: of the input, [n, d].
        weights: [d, outputs].
        scales: of the input; "auto" takes one for the tensor unless rows gain by ROWS_GAIN.

    Returns:
        The factors, and "row" or "tensor".
    """
    weights = weights[:, :: -(-weights.shape[1] // COLUMNS)]
    exact = rows @ weights
    ones = np.ones(rows.shape[1], np.float32)
    best = {}
    for how in ("row", "tensor") if scales == "auto" else (scales,):
        plain = _error(rows, weights, ones, exact, how)
        found = [(plain * LEAST_GAIN, ones)]
        found += [(_error(rows, weights, f, exact, how), f) for f in _candidates(rows, weights)]
        error, factors = min(found, key=lambda pair: pair[0])
        best[how] = (plain if factors is ones else error, factors)
    if scales == "auto":
        scales = "tensor" if best["tensor"][0] <= ROWS_GAIN * best["row"][0] else "row"
    return best[scales][1], scales


def _candidates(rows: Array, weights: Array) -> Iterator[Array]:
    """Powers of how far a channel, or channel over weights, is above the middle one."""
    sizes = np.abs(rows).max(axis=0)
    widths = np.sqrt(np.square(weights).mean(axis=1))
    for measure in (sizes, sizes / np.maximum(widths, widths.max(initial=0.0) * 1e-3 + TINY)):
        middle = float(np.median(measure))
        if middle > 0:
            above = np.clip(measure / middle, 1, LARGEST**2)
            for strength in STRENGTHS:
                yield np.minimum(above**strength, LARGEST).astype(np.float32)


def _error(rows: Array, weights: Array, factors: Array, exact: Array, scales: str) -> float:
    """Noise over signal of the product of codes, the mean over rows: a large one is one of many.

    Each column of the weights has a scale.
    """
    values = rows / factors
    if scales == "tensor":
        parameters = affine(Range(values.min(), values.max()), np.uint8)
        values = parameters.dequantize(parameters.quantize(values))
    else:
        values = _rounded(values, axis=1)
    product = values @ _rounded(weights * factors[:, None], axis=0)
    signal = np.square(exact).mean(axis=1)
    floor = SILENT * float(signal.mean()) + TINY
    return float((np.square(product - exact).mean(axis=1) / np.maximum(signal, floor)).mean())


def _rounded(values: Array, axis: int) -> Array:
    scale = np.abs(values).max(axis=axis, keepdims=True) / 127
    scale = np.maximum(scale, TINY).astype(np.float32)
    return np.asarray(np.rint(values / scale) * scale)


def _matrix(node: gs.Node) -> Array:
    values = np.asarray(node.inputs[1].values)
    return values.T if node.attrs.get("transB", 0) else values


class _Rows:
    """A statistic that keeps ROWS rows, spread over all it sees."""

    def __init__(self) -> None:
        self._kept: list[Array] = []

    def update(self, values: Array) -> None:
        """``values``: [..., d]; adds a few rows of each sample."""
        rows = values.reshape(-1, values.shape[-1])
        self._kept.append(rows[:: max(1, len(rows) // 4)][:4].copy())

    def result(self) -> Array:
        """float32 [at most ROWS, d]."""
        rows = np.concatenate(self._kept)
        return np.asarray(rows[:: -(-len(rows) // ROWS)], np.float32)


def _observed(
    groups: Sequence[Products],
    graph: gs.Graph,
    samples: Calibration | None,
    limit: int,
    advance: Callable[[int, int], None],
) -> dict[str, Array]:
    """Rows of the inputs that samples show, by name: those of the outermost graph."""
    if samples is None:
        return {}
    taps = {g.input.name: _Rows() for g in groups if g.body is graph and not is_constant(g.input)}
    samples.observe(graph, taps, limit=limit, advance=advance)
    rows = {name: rows.result() for name, rows in taps.items()}
    return {name: values for name, values in rows.items() if np.isfinite(values).all()}


def _normalized_rows(tensor: gs.Tensor, random: np.random.Generator) -> Array | None:
    """Rows as a normalization with constant scale gives them; None where none makes the tensor."""
    scale, shift = _constants_behind(tensor)
    if scale is None or scale.size < 2:
        return None
    normal = random.standard_normal((ROWS, scale.size))
    return np.asarray(normal * scale + shift, np.float32)


def _constants_behind(tensor: gs.Tensor) -> tuple[Array | None, Array | float]:
    """Scale [d] and bias of a LayerNormalization, or of Mul by a constant, perhaps with an Add."""
    node, shift = producer(tensor), 0.0
    if node is not None and node.op in ("LayerNormalization", "SimplifiedLayerNormalization"):
        scale, *bias = (_vector(t) for t in node.inputs[1:3])
        return scale, bias[0] if bias and bias[0] is not None else shift
    bias_values: Array | None = None
    if node is not None and node.op == "Add":
        bias_values, node = _split(node)
    if node is not None and node.op == "Mul":
        return _split(node)[0], shift if bias_values is None else bias_values
    return None, shift


def _split(node: gs.Node) -> tuple[Array | None, gs.Node | None]:
    """The constant vector of a sum or product, and what makes its other operand."""
    for index in (0, 1):
        vector = _vector(node.inputs[index])
        if vector is not None:
            return vector, producer(node.inputs[1 - index])
    return None, None


def _vector(tensor: gs.Tensor) -> Array | None:
    if not is_constant(tensor) or tensor.dtype != np.float32:
        return None
    values = np.asarray(tensor.values)
    return values.reshape(-1) if values.size == max([1, *values.shape[-1:]]) else None
