"""Layers of sparse int8 weights as models: by the operators, and by those of ONNX."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import kernels
from onnxcomp.kernels import reference_sparse_int8 as reference
from onnxcomp.kernels.sparse_int8 import PackedInt8, Scaling, Window, unpack_int8

Codes = npt.NDArray[np.uint8]
Shape = tuple[int | str, ...]


def block_sparse(
    rng: np.random.Generator, *shape: int, density: float = 0.2, rows: int = 4
) -> npt.NDArray[np.int8]:
    """Weights [out, in, ...] with zeros in blocks of `rows` outputs by 4 inputs."""
    blocks = rng.random((-(-shape[0] // rows), -(-shape[1] // 4), *shape[2:])) < density
    kept = blocks.repeat(rows, axis=0).repeat(4, axis=1)[: shape[0], : shape[1]]
    return (rng.integers(-127, 128, shape) * kept).astype(np.int8)


def random_codes(rng: np.random.Generator, *shape: int) -> Codes:
    return rng.integers(0, 256, shape).astype(np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """The scales of a layer: real = scale * (code - zero_point)."""

    x: float = 0.02
    weight: npt.NDArray[np.float32]
    y: float = 0.05
    x_zero_point: int = 121
    y_zero_point: int = 130
    bias: npt.NDArray[np.int32] | None = None

    def scaling(self, to_codes: bool) -> Scaling:
        scale = np.float32(self.x) * self.weight
        return Scaling(
            scale=scale / np.float32(self.y) if to_codes else scale,
            bias=self.bias,
            x_zero_point=self.x_zero_point,
            y_zero_point=self.y_zero_point if to_codes else None,
        )


def random_steps(rng: np.random.Generator, channels: int, *, biased: bool) -> Steps:
    bias = rng.integers(-3000, 3000, channels).astype(np.int32) if biased else None
    weight = rng.uniform(0.001, 0.003, channels).astype(np.float32)
    return Steps(weight=weight, bias=bias)


def window_attributes(packed: PackedInt8, window: Window) -> dict[str, Any]:
    return {
        "kernel_shape": list(packed.kernel_shape),
        "strides": list(window.strides),
        "dilations": list(window.dilations),
        "pads": list(window.pads),
        "group": packed.groups,
    }


def sparse_model(
    packed: PackedInt8,
    scaling: Scaling,
    x_shape: Shape,
    window: Window | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """X -> the operator, named layer -> Y, whose shape is not declared; opset 17."""
    to_codes = scaling.y_zero_point is not None
    if packed.kernel_shape:
        operator = "SparseQLinearConv" if to_codes else "SparseConvIntegerToFloat"
        attributes = window_attributes(packed, window or Window()) | attributes
    else:
        operator = "SparseQLinearMatMul" if to_codes else "SparseMatMulIntegerToFloat"
    constants = {
        "values": packed.values,
        "indices": packed.indices,
        "offsets": packed.offsets,
        "scale": scaling.scale,
    }
    if scaling.bias is not None:
        constants["bias"] = scaling.bias
    numbers = {
        "format_version": reference.FORMAT_VERSION,
        "out_channels": packed.out_channels,
        "in_channels": packed.in_channels,
        "block_rows": packed.block_rows,
        "x_zero_point": scaling.x_zero_point,
    }
    if to_codes:
        numbers["y_zero_point"] = scaling.y_zero_point or 0
    node = helper.make_node(
        operator,
        ["X", *constants],
        ["Y"],
        name="layer",
        domain=kernels.DOMAIN,
        **{key: number for key, number in (numbers | attributes).items() if number is not None},
    )
    y_type = TensorProto.UINT8 if to_codes else TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "sparse",
        [helper.make_tensor_value_info("X", TensorProto.UINT8, x_shape)],
        [helper.make_tensor_value_info("Y", y_type, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(kernels.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def qdq_model(
    packed: PackedInt8,
    steps: Steps,
    x_shape: tuple[int, ...],
    to_codes: bool,
    window: Window | None = None,
) -> onnx.ModelProto:
    """DequantizeLinear; MatMul, Gemm (with a bias) or Conv; QuantizeLinear."""
    weight = unpack_int8(packed)
    is_conv = bool(packed.kernel_shape)
    zeros = np.zeros(packed.out_channels, np.int8)
    x_scale, x_zero = np.float32(steps.x), np.uint8(steps.x_zero_point)
    constants: dict[str, Any] = {
        "x_scale": x_scale,
        "x_zero": x_zero,
        "w": weight if is_conv else np.ascontiguousarray(weight.T),
        "w_scale": steps.weight,
        "w_zero": zeros,
        "y_scale": np.float32(steps.y),
        "y_zero": np.uint8(steps.y_zero_point),
    }
    axis = 0 if is_conv else 1
    nodes = [
        helper.make_node("DequantizeLinear", ["X", "x_scale", "x_zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["weight"], axis=axis),
    ]
    bias = []
    if steps.bias is not None:
        constants |= {"b": steps.bias, "b_scale": x_scale * steps.weight}
        constants["b_zero"] = np.zeros_like(steps.bias)
        inputs = ["b", "b_scale", "b_zero"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, ["bias"], axis=0))
        bias = ["bias"]
    if is_conv:
        attributes = window_attributes(packed, window or Window())
        nodes.append(helper.make_node("Conv", ["x", "weight", *bias], ["product"], **attributes))
    else:
        product = "Gemm" if bias else "MatMul"
        nodes.append(helper.make_node(product, ["x", "weight", *bias], ["product"]))
    quantize = ["product", "y_scale", "y_zero"]
    last = helper.make_node("QuantizeLinear", quantize, ["Y"])
    nodes.append(last if to_codes else helper.make_node("Identity", ["product"], ["Y"]))
    y_type = TensorProto.UINT8 if to_codes else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("X", TensorProto.UINT8, x_shape)],
        [helper.make_tensor_value_info("Y", y_type, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def float_model(
    packed: PackedInt8, steps: Steps, x_shape: tuple[int, ...], window: Window | None = None
) -> onnx.ModelProto:
    """The layer in float32, from X to Y."""
    weight = unpack_int8(packed)
    scales = steps.weight.reshape(-1, *[1] * (weight.ndim - 1))
    dense = (weight * scales).astype(np.float32)
    if packed.kernel_shape:
        attributes = window_attributes(packed, window or Window())
        node = helper.make_node("Conv", ["X", "w"], ["Y"], **attributes)
    else:
        node = helper.make_node("MatMul", ["X", "w"], ["Y"])
        dense = np.ascontiguousarray(dense.T)
    graph = helper.make_graph(
        [node],
        "float",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(dense, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
