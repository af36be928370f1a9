"""Weights that are int8 codes in the file and floats at run time.

For layers that no integer kernel runs faster. The operators that make floats of the codes hang on
constants alone, so a runtime folds them when it loads the model: a quarter of the bytes in the
file, and at run time exactly the float layer. All operators are standard ONNX.

A weight [rows, d] may have two scales, real = codes * row_scale * column_scale. Where columns
differ in size, scaling them too leaves each row with values that use all its codes; as both scales
are applied before the layer runs, the second costs nothing there. (Kim et al., "SINQ", 2025,
balance rows and columns alike, by their deviations instead of their largest values.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxcomp.graph import Names, replace_uses
from onnxcomp.quantization import TINY, Array
from onnxcomp.weight_sites import Layout

LARGEST_CODE = 127
LEAST_ROWS = 64  # with fewer, the scales of the columns would take more than 6 % of the codes
LEAST_GAIN = 1.26  # in noise; 1 dB
BALANCING = 20  # steps; each halves, in decibels, what is left to balance


@dataclass(frozen=True)
class Scales:
    """Scales of a matrix: float32 ``rows`` [rows, 1] and ``columns`` [1, d], positive."""

    rows: Array
    columns: Array

    @property
    def product(self) -> Array:
        """The scale of each weight: float64 [rows, d]."""
        return np.asarray(self.rows.astype(np.float64) * self.columns)


def balanced_scales(matrix: Array, per_row: bool = True) -> Scales:
    """The scales that lose least to rounding, of one for each row with and without columns'.

    Those of columns are used from LEAST_GAIN on only: they move errors to columns with large
    weights, which is no gain where the inputs of just these are large.

    Args:
        matrix: [rows, d].
        per_row: False for one scale in all.

    Raises:
        ValueError: the matrix is not finite.
    """
    if not np.isfinite(matrix).all():
        raise ValueError("the weights are not finite")
    plain = _scales(matrix, np.ones((1, matrix.shape[1]), np.float32), per_row)
    if not per_row or len(matrix) < LEAST_ROWS:
        return plain
    balanced = _scales(matrix, _balancing_columns(np.abs(matrix)), per_row)
    gains = _rounding_noise(matrix, plain) >= LEAST_GAIN * _rounding_noise(matrix, balanced)
    return balanced if gains else plain


def _scales(matrix: Array, columns: Array, per_row: bool) -> Scales:
    """The smallest scales of rows for given ones of columns."""
    bound = np.abs(matrix / columns).max(axis=1 if per_row else None, keepdims=True, initial=0.0)
    rows = np.where(bound > 0, np.maximum(bound / LARGEST_CODE, TINY), 1.0)
    return Scales(rows.astype(np.float32), columns)


def _balancing_columns(sizes: Array) -> Array:
    """[1, d] such that rows and columns of sizes [rows, d], divided by it and by some [rows, 1],
    have about equal largest values."""
    rows, columns = np.ones((len(sizes), 1)), np.ones((1, sizes.shape[1]))
    for _ in range(BALANCING):
        left = sizes / (rows * columns)
        tops = _positive(left.max(axis=1, keepdims=True, initial=0.0))
        rows *= np.sqrt(tops)
        columns *= np.sqrt(_positive((left / tops).max(axis=0, keepdims=True, initial=0.0)))
    return np.asarray(columns / np.exp(np.log(columns).mean()), np.float32)


def _rounding_noise(matrix: Array, scales: Scales) -> float:
    steps = matrix / scales.product
    return float(np.square((np.rint(steps) - steps) * scales.product).mean())


def _positive(values: Array) -> Array:
    return np.where(values > 0, values, 1.0)


class StoredWriter:
    """Replaces weights by the operators that make floats of their codes, in the outermost graph."""

    def __init__(self, graph: gs.Graph, names: Names) -> None:
        self.graph, self.names = graph, names

    def write(self, weight: gs.Constant, layout: Layout, codes: Array, scales: Scales) -> None:
        """Lets all that read ``weight`` read Cast(codes) * row_scale * column_scale.

        Args:
            weight: a float32 constant that is no output of the outermost graph.
            layout: how it is a matrix [rows, d].
            codes: integers within +-127, [rows, d].
            scales: of the matrix.
        """
        name = weight.name
        stored = self._constant(f"{name}.codes", layout.restored(codes).astype(np.int8))
        real = self._add("Cast", f"{name}.real", stored, to=TensorProto.FLOAT)
        shape, outputs = layout.ordered, layout.outputs
        by_row = (*shape[:outputs], *[1] * (len(shape) - outputs))
        if scales.rows.size == 1:
            by_row = (1,) * len(shape)
        by_column = (*[1] * outputs, *shape[outputs:])
        rows = self._constant(f"{name}.scale", _turned(scales.rows, by_row, layout))
        real = self._add("Mul", f"{name}.scaled", real, rows)
        if (scales.columns != 1).any():
            columns = _turned(scales.columns, by_column, layout)
            constant = self._constant(f"{name}.column_scale", columns)
            real = self._add("Mul", f"{name}.balanced", real, constant)
        real.name = self.names.fresh(f"{name}.dequantized")
        real.dtype, real.shape = np.dtype(np.float32), list(layout.shape)
        replace_uses(self.graph, weight, real)

    def _constant(self, name: str, values: Array) -> gs.Constant:
        return gs.Constant(self.names.fresh(name), np.ascontiguousarray(values))

    def _add(self, op: str, name: str, *inputs: gs.Tensor, **attributes: int) -> gs.Variable:
        result = gs.Variable(self.names.fresh(name), np.float32)
        node = gs.Node(op, self.names.fresh(name), attributes, list(inputs), [result])
        self.graph.nodes.append(node)
        return result


def _turned(scale: Array, ordered: tuple[int, ...], layout: Layout) -> Array:
    """A scale in the order of a layout's axes, as it broadcasts against the weight."""
    return scale.reshape(ordered).transpose(layout.inverse)
