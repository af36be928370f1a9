"""Each operator of the library as a node of its own, small and with everything it may be given."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from sparse_int8_models import block_sparse, random_codes, random_steps, window_attributes

from onnxcomp import kernels
from onnxcomp.kernels import binary_layers
from onnxcomp.kernels.sparse_conv import pack_conv
from onnxcomp.kernels.sparse_int8 import Window, pack_int8

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """A node: what it reads, X first, and its attributes."""

    operator: str
    x: Array
    y: type
    constants: dict[str, Array]
    attributes: dict[str, Any]

    @property
    def node_name(self) -> str:
        return f"block/{self.operator}"

    def changed(self, **changes: Any) -> Call:
        """With another x, or other constants and attributes; None leaves one out."""
        x = changes.pop("x", self.x)
        constants, attributes = dict(self.constants), dict(self.attributes)
        for name, value in changes.items():
            of = constants if name in constants else attributes
            of[name] = value
        return dataclasses.replace(
            self,
            x=x,
            constants={name: array for name, array in constants.items() if array is not None},
            attributes={name: value for name, value in attributes.items() if value is not None},
        )


def _sparse_int8_calls() -> list[Call]:
    rng = np.random.default_rng(0)
    calls = []
    for weight, x in (
        (block_sparse(rng, 10, 12, density=0.5), random_codes(rng, 3, 12)),
        (block_sparse(rng, 10, 6, 3, 3, density=0.5), random_codes(rng, 1, 6, 5, 7)),
    ):
        packed = pack_int8(weight)
        for to_codes in (True, False):
            scaling = random_steps(rng, 10, biased=True).scaling(to_codes)
            arrays = {"values": packed.values, "indices": packed.indices, "offsets": packed.offsets}
            numbers: dict[str, Any] = {
                "format_version": 1,
                "out_channels": 10,
                "in_channels": packed.in_channels,
                "block_rows": packed.block_rows,
                "x_zero_point": scaling.x_zero_point,
            }
            if to_codes:
                numbers["y_zero_point"] = scaling.y_zero_point
            product = "Conv" if packed.kernel_shape else "MatMul"
            if packed.kernel_shape:
                numbers |= window_attributes(packed, Window(pads=(1, 1, 1, 1)))
            call = Call(
                operator=f"SparseQLinear{product}"
                if to_codes
                else f"Sparse{product}IntegerToFloat",
                x=x,
                y=np.uint8 if to_codes else np.float32,
                constants={**arrays, "scale": scaling.scale, "bias": np.asarray(scaling.bias)},
                attributes=numbers,
            )
            calls.append(call)
    return calls


def _binary_calls() -> list[Call]:
    rng = np.random.default_rng(1)
    signs = rng.choice(np.array([-1, 1], np.float32), 70 * 9 * 20)
    conv = binary_layers.pack_conv(signs.reshape(20, 70, 3, 3), pads=(1, 1, 1, 1))
    gemm = binary_layers.pack_gemm(signs[: 70 * 20].reshape(70, 20))
    floats = rng.standard_normal((1, 70, 5, 7)).astype(np.float32)
    image = binary_layers.pack_signs(floats)
    rows = binary_layers.pack_signs(floats[0].reshape(70, 35).T.copy())
    pool = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0]}
    scale, bias = rng.standard_normal((2, 20)).astype(np.float32)
    thresholds = rng.integers(-9, 9, 20).astype(np.int32)
    calls = [
        ("PackSigns", floats, np.uint64, {"levels": floats[0, :, 0, 0]}, {"comparison": 2}),
        ("BinaryMaxPool", image, np.uint64, {}, pool),
    ]
    for name, packed, x in (("Conv", conv, image), ("Gemm", gemm, rows)):
        weight: dict[str, Array] = {"weight": packed.bits}
        to_float = {**weight, "scale": scale, "bias": bias}
        to_bits = {**weight, "thresholds": thresholds}
        calls.append((f"Binary{name}", x, np.float32, to_float, packed.attributes))
        calls.append((f"Binary{name}Signs", x, np.uint64, to_bits, packed.attributes))
    return [
        Call(operator=name, x=x, y=y, constants=dict(arrays), attributes=dict(attributes))
        for name, x, y, arrays, attributes in calls
    ]


def _sparse_float_calls() -> list[Call]:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((9, 7)) * (rng.random((9, 7)) < 0.4)
    packed = kernels.pack(weight.astype(np.float32), block_size=2)
    arrays = {"values": packed.values, "indices": packed.indices, "offsets": packed.offsets}
    weight = rng.standard_normal((10, 6, 3, 3)) * (rng.random((10, 6, 3, 3)) < 0.4)
    conv = pack_conv(weight.astype(np.float32))
    filters = {"values": conv.values, "indices": conv.indices, "offsets": conv.offsets}
    return [
        Call(
            operator="SparseMatMul",
            x=rng.standard_normal((3, 9)).astype(np.float32),
            y=np.float32,
            constants={**arrays, "bias": rng.standard_normal(7).astype(np.float32)},
            attributes=dict(packed.attributes),
        ),
        Call(
            operator="SparseConv",
            x=rng.standard_normal((1, 6, 5, 7)).astype(np.float32),
            y=np.float32,
            constants={**filters, "bias": rng.standard_normal(10).astype(np.float32)},
            attributes=conv.attributes(Window(pads=(1, 1, 1, 1)), relu=True),
        ),
    ]


CALLS = {
    call.operator: call for call in _sparse_float_calls() + _sparse_int8_calls() + _binary_calls()
}


def model_of(*calls: Call, named: bool = True) -> onnx.ModelProto:
    """The nodes beside each other: <operator>.X to <operator>.Y; IR 8, opset 17.

    Sizes of the inputs are unknown, those of the outputs not declared.
    """
    nodes, inputs, outputs, arrays = [], [], [], []
    for call in calls:
        stem = f"{call.operator}."
        nodes.append(
            helper.make_node(
                call.operator,
                [f"{stem}X", *(stem + name for name in call.constants)],
                [f"{stem}Y"],
                name=call.node_name if named else "",
                domain=kernels.DOMAIN,
                **call.attributes,
            )
        )
        sizes = [f"{stem}{axis}" for axis in range(call.x.ndim)]
        x_type = helper.np_dtype_to_tensor_dtype(call.x.dtype)
        y_type = helper.np_dtype_to_tensor_dtype(np.dtype(call.y))
        inputs.append(helper.make_tensor_value_info(f"{stem}X", x_type, sizes))
        outputs.append(helper.make_tensor_value_info(f"{stem}Y", y_type, None))
        arrays += [numpy_helper.from_array(a, stem + name) for name, a in call.constants.items()]
    graph = helper.make_graph(nodes, "operators", inputs, outputs, arrays)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(kernels.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def feed_of(*calls: Call) -> dict[str, Array]:
    """What the inputs of `model_of` get."""
    return {f"{call.operator}.X": call.x for call in calls}
