"""Ways in which a layer can skip zeros: operators, blocks, and the weights packed for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.float_layers import FloatLayer
from onnxcomp.kernels import DOMAIN
from onnxcomp.kernels.reference import pack
from onnxcomp.kernels.reference_sparse_conv import pack_conv
from onnxcomp.kernels.reference_sparse_int8 import FORMAT_VERSION, QUAD, PackedInt8, pack_int8
from onnxcomp.qdq_layers import QdqLayer
from onnxcomp.quantization import Array

Layer = QdqLayer | FloatLayer
Constant = Callable[[str, Array], gs.Constant]  # of a role, such as "values"

BLOCK_ROWS = (4, 1)  # outputs; by 4 inputs
BLOCK_SIZES = (16, 4, 1)  # outputs; by 1 input
# What a weight in a block takes, beside one in the largest block.
CODE_WORK = {4: 1.0, 1: 1.5}
FLOAT_WORK = {16: 1.0, 4: 1.05, 1: 2.2}


@dataclass(frozen=True, kw_only=True)
class SparseForm:
    """One way to compute a layer without zeros.

    Attributes:
        operator: of the domain onnxcomp.
        attributes: of its node.
        arrays: its constants by role, such as values and bias.
        shared: the roles whose arrays are the weight's own, whatever layer reads it.
        pattern: the blocks, outputs x inputs.
        work: what it takes, roughly and without unit.
    """

    operator: str
    attributes: Mapping[str, Any]
    arrays: Mapping[str, Array]
    pattern: str
    work: float
    shared: tuple[str, ...] = ("values", "indices", "offsets")


def sparse_forms(layer: Layer, least: float) -> tuple[list[SparseForm], float]:
    """The forms with at least that share of zero blocks, and the largest share of any."""
    if isinstance(layer, QdqLayer):
        packings = [pack_int8(layer.weight, block_rows=r, groups=layer.group) for r in BLOCK_ROWS]
        shares = [_share_of_zeros(packed) for packed in packings]
        kept = [p for p, share in zip(packings, shares, strict=True) if share >= least]
        return [_code_form(layer, packed) for packed in kept], max(shares)
    shares = [zero_blocks(layer.weight, size, layer.group) for size in BLOCK_SIZES]
    sizes = [size for size, share in zip(BLOCK_SIZES, shares, strict=True) if share >= least]
    return [_float_form(layer, size) for size in sizes], max(shares)


def make_sparse(node: gs.Node, form: SparseForm, x: gs.Tensor, constant: Constant) -> None:
    """Turns ``node`` into a sparse operator that reads x; outputs stay.

    Args:
        node: changed in place.
        form: what it becomes.
        x: codes of uint8, or floats.
        constant: makes a tensor of an array for one of the roles of ``form.arrays``.
    """
    node.op, node.domain, node.attrs = form.operator, DOMAIN, dict(form.attributes)
    node.inputs.clear()
    node.inputs.extend([x, *(constant(role, array) for role, array in form.arrays.items())])


def zero_blocks(weight: Array, block_size: int, groups: int) -> float:
    """The share of blocks of ``block_size`` outputs x 1 input of [out, ...] that are all zero."""
    nonzero = (weight != 0).reshape(groups, len(weight) // groups, -1)
    starts = np.arange(0, nonzero.shape[1], block_size)
    return 1 - float(np.logical_or.reduceat(nonzero, starts, axis=1).mean())


def _share_of_zeros(packed: PackedInt8) -> float:
    quads = max(1, packed.positions) * -(-packed.in_channels // QUAD)
    return 1 - len(packed.indices) / ((len(packed.offsets) - 1) * quads)


def _code_form(layer: QdqLayer, packed: PackedInt8) -> SparseForm:
    to_codes = layer.quantize is not None
    attributes: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "out_channels": packed.out_channels,
        "in_channels": packed.in_channels,
        "block_rows": packed.block_rows,
        "x_zero_point": layer.x_zero_point,
    }
    if to_codes:
        attributes["y_zero_point"] = layer.y_zero_point
    is_conv = layer.node.op == "Conv"
    if is_conv:
        attributes |= layer.window
    arrays: dict[str, Array] = {
        "values": packed.values,
        "indices": packed.indices,
        "offsets": packed.offsets,
        "scale": (layer.sum_scale / layer.y_scale).astype(np.float32),
    }
    if layer.bias is not None:
        arrays["bias"] = layer.bias
    product = "Conv" if is_conv else "MatMul"
    return SparseForm(
        operator=f"SparseQLinear{product}" if to_codes else f"Sparse{product}IntegerToFloat",
        attributes=attributes,
        arrays=arrays,
        pattern=f"{packed.block_rows}x{QUAD}",
        work=packed.values.size * CODE_WORK[packed.block_rows],
    )


def _float_form(layer: FloatLayer, block_size: int) -> SparseForm:
    attributes: dict[str, Any]
    if layer.node.op == "Conv":
        packed = pack_conv(layer.weight, block_size=block_size, groups=layer.group)
        attributes = packed.attributes(relu=layer.has_relu) | layer.window
        arrays = {"values": packed.values, "indices": packed.indices, "offsets": packed.offsets}
    else:
        matrix = pack(np.ascontiguousarray(layer.weight.T), block_size=block_size)
        attributes = dict(matrix.attributes)
        arrays = {"values": matrix.values, "indices": matrix.indices, "offsets": matrix.offsets}
    bias = {} if layer.bias is None else {"bias": layer.bias}
    return SparseForm(
        operator="SparseConv" if layer.node.op == "Conv" else "SparseMatMul",
        attributes=attributes,
        arrays={**arrays, **bias},
        pattern=f"{block_size}x1",
        work=arrays["values"].size * FLOAT_WORK[block_size],
    )
