"""Layers of sparse float32 weights as models: by the operators, and by those of ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import kernels
from onnxcomp.kernels.sparse_conv import PackedConv, Window, unpack_conv

Floats = npt.NDArray[np.float32]
Shape = tuple[int | str, ...]


def block_sparse_floats(
    rng: np.random.Generator, *shape: int, density: float = 0.2, rows: int = 4
) -> Floats:
    """Weights [out, in, ...] with zeros in blocks of `rows` outputs."""
    kept = rng.random((-(-shape[0] // rows), *shape[1:])) < density
    kept = kept.repeat(rows, axis=0)[: shape[0]]
    return (rng.standard_normal(shape) * kept).astype(np.float32)


def random_floats(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


def layer_model(
    nodes: list[onnx.NodeProto], x_shape: Shape, constants: dict[str, npt.NDArray[Any]]
) -> onnx.ModelProto:
    """X -> nodes -> Y, whose shape is not declared; opset 17."""
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(kernels.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def packed_arrays(packed: PackedConv | kernels.PackedWeights) -> dict[str, npt.NDArray[Any]]:
    return {name: getattr(packed, name) for name in ("values", "indices", "offsets")}


def sparse_conv_model(
    packed: PackedConv,
    x_shape: Shape,
    bias: Floats | None = None,
    window: Window | None = None,
    *,
    relu: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    """The operator, named layer; attributes that are None are left out."""
    constants = packed_arrays(packed) | ({} if bias is None else {"bias": bias})
    given = packed.attributes(window, relu=relu) | attributes
    given = {name: value for name, value in given.items() if value is not None}
    domain = kernels.DOMAIN
    node = helper.make_node(
        "SparseConv", ["X", *constants], ["Y"], name="layer", domain=domain, **given
    )
    return layer_model([node], x_shape, constants)


def dense_conv_model(
    packed: PackedConv,
    x_shape: Shape,
    bias: Floats | None = None,
    window: Window | None = None,
    *,
    relu: bool = False,
) -> onnx.ModelProto:
    """The same by onnxruntime's own Conv and Relu."""
    constants = {"W": unpack_conv(packed)} | ({} if bias is None else {"bias": bias})
    names = ("kernel_shape", "strides", "dilations", "pads", "group")
    every = packed.attributes(window)
    attributes = {name: every[name] for name in names}
    nodes = [helper.make_node("Conv", ["X", *constants], ["product"], **attributes)]
    nodes.append(helper.make_node("Relu" if relu else "Identity", ["product"], ["Y"]))
    return layer_model(nodes, x_shape, constants)


def sparse_matmul_model(packed: kernels.PackedWeights, x_shape: Shape) -> onnx.ModelProto:
    constants = packed_arrays(packed)
    inputs = ["X", *constants]
    domain = kernels.DOMAIN
    node = helper.make_node("SparseMatMul", inputs, ["Y"], domain=domain, **packed.attributes)
    return layer_model([node], x_shape, constants)


def dense_matmul_model(weight: Floats, x_shape: Shape) -> onnx.ModelProto:
    """A weight [in, out]."""
    return layer_model([helper.make_node("MatMul", ["X", "W"], ["Y"])], x_shape, {"W": weight})
