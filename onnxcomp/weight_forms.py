"""How quantized weights are written into a graph: one class, one method a form.

    matmulnbits  com.microsoft's MatMulNBits and GatherBlockQuantized work on the codes.
    dequantize   DequantizeLinear makes floats of the codes; what that costs is the runtime's.
    expand       plain operators unpack the codes. They hang on constants alone, so a runtime folds
                 them when it loads the model: small in the file, float32 in memory, and at a run
                 exactly as fast as the float model.

Codes are packed in the file whatever the form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from onnxcomp.block_codes import BlockCodes, blocked, pack
from onnxcomp.graph import Names, input_at, label, replace_uses
from onnxcomp.lookups import look_up
from onnxcomp.quantization import Array
from onnxcomp.stored import stored_bytes
from onnxcomp.weight_sites import Layout, Site, Weight

CONTRIB = "com.microsoft"
INT8_ACTIVATIONS = 4  # accuracy_level of MatMulNBits that multiplies in integers
LONGEST_BLOCK = 128  # of MatMulNBits; what stands for whole rows
UNPACKING_BYTES = 400  # that the nodes take which unpack a tensor
CONTAINERS = (2, 4, 8)  # bits that codes are packed in


class FormWriter:
    """Replaces weights of one graph; constants and unpacking go into the outermost graph."""

    def __init__(self, graph: gs.Graph, names: Names) -> None:
        self.graph, self.names = graph, names
        self.bytes = 0  # of all constants added
        self.small: dict[tuple[str, tuple[int, ...], bytes], gs.Constant] = {}

    def matmulnbits(self, weight: Weight, rounded: BlockCodes) -> None:
        """Every MatMul and Gemm that reads the weight becomes a MatMulNBits.

        Activations are rounded to 8 bits, in blocks, at run time: in float it would be slower than
        the float MatMul.
        """
        name, bits = weight.constant.name, rounded.grid.bits
        rows, d = rounded.codes.shape
        size = rounded.grid.block_size or LONGEST_BLOCK
        scale, zero = rounded.scale, rounded.zero_point
        if not rounded.grid.block_size:
            blocks = -(-d // size)
            scale, zero = (np.repeat(x, blocks, axis=1) for x in (scale, zero))
        shared = [
            self._constant(f"{name}.codes", pack(blocked(rounded.codes, size), bits)),
            self._constant(f"{name}.scale", scale),
        ]
        if rounded.grid.symmetric:
            shared.append(gs.Variable.empty())
        else:
            shared.append(self._constant(f"{name}.zero_point", pack(zero, bits)))
        attributes = {
            "K": d,
            "N": rows,
            "bits": bits,
            "block_size": size,
            "accuracy_level": INT8_ACTIVATIONS,
        }
        for site in weight.sites:
            self._product(site, shared, attributes)

    def _product(self, site: Site, shared: Sequence[gs.Tensor], attributes: dict[str, int]) -> None:
        node = site.node
        inputs = [node.inputs[0], *shared]
        alpha, beta = (float(node.attrs.get(key, 1.0)) for key in ("alpha", "beta"))
        bias = input_at(node, 2)
        if alpha != 1:
            scale = shared[1].values * np.float32(alpha)
            inputs[2] = self._constant(shared[1].name, scale)
        if bias is not None and beta != 1:
            factor = self._constant(f"{bias.name}.beta", np.float32(beta))
            bias = self.add("Mul", f"{label(node)}.beta", [bias, factor], body=site.body)
        node.op, node.domain, node.attrs = "MatMulNBits", CONTRIB, dict(attributes)
        if bias is not None and (bias.shape is None or list(bias.shape) != [attributes["N"]]):
            result = node.outputs[0]
            node.outputs = [gs.Variable(self.names.fresh(f"{result.name}.product"), np.float32)]
            self.add("Add", f"{label(node)}.bias", [node.outputs[0], bias], result, site.body)
        elif bias is not None:
            inputs += [gs.Variable.empty()] * (4 - len(inputs)) + [gs.Variable.empty(), bias]
        while not inputs[-1].name:
            inputs.pop()
        node.inputs = inputs

    def lookup(self, weight: Weight, rounded: BlockCodes) -> None:
        """Every Gather that reads the weight becomes a GatherBlockQuantized."""
        name, grid = weight.constant.name, rounded.grid
        constants = [
            self._constant(f"{name}.codes", pack(rounded.codes, grid.bits)),
            self._constant(f"{name}.scale", rounded.scale),
        ]
        if not grid.symmetric:
            packed = pack(rounded.zero_point, grid.bits)
            constants.append(self._constant(f"{name}.zero_point", packed))
        for site in weight.sites:
            codes, *rest = constants
            node = site.node
            node.op, node.domain = "GatherBlockQuantized", CONTRIB
            node.attrs = {
                "bits": grid.bits,
                "block_size": rounded.width,
                "gather_axis": 0,
                "quantize_axis": 1,
            }
            node.inputs = [codes, node.inputs[1], *rest]

    def rows(self, weight: Weight, rounded: BlockCodes) -> None:
        """Every Gather that reads the weight picks 8-bit codes and their scales, by rows."""
        name, middle = weight.constant.name, rounded.grid.middle
        codes = self._constant(f"{name}.codes", _signed(rounded.codes, middle))
        scale = self._constant(f"{name}.scale", rounded.scale)
        for site in weight.sites:
            look_up(site.body, site.node, codes, scale, self.names)

    def dequantize(self, weight: Weight, rounded: BlockCodes) -> None:
        """A DequantizeLinear: per axis where rows are one axis and one block, else in blocks."""
        name, grid = weight.constant.name, rounded.grid
        layout = _untransposed(weight)
        bits = max(4, grid.bits)  # codes of 2 bits came with opset 25
        kind = np.dtype(_integer(bits, signed=grid.symmetric))
        codes, zero = rounded.codes, rounded.zero_point
        if grid.symmetric:
            codes = _signed(codes, grid.middle)
        parts = [(layout.restored(codes).astype(kind), "codes")]
        attributes: dict[str, int] = {}
        if rounded.scale.shape[1] == 1 and layout.outputs == 1:
            attributes["axis"] = layout.order[0]
            blocks = [rounded.scale[:, 0], zero[:, 0]]
        else:
            attributes |= {"axis": layout.order[-1], "block_size": rounded.width}
            blocks = [layout.restored(x) for x in (rounded.scale, zero)]
        parts.append((blocks[0], "scale"))
        if not grid.symmetric:
            parts.append((blocks[1].astype(kind), "zero_point"))
        inputs: list[gs.Tensor] = [self._constant(f"{name}.{what}", x) for x, what in parts]
        made = self.add("DequantizeLinear", name, inputs, **attributes)
        self._replace(weight, made, layout.shape)

    def expand(self, weight: Weight, rounded: BlockCodes) -> None:
        """Unpack, subtract the zero points, scale, and bring into shape."""
        name, grid, width = weight.constant.name, rounded.grid, rounded.width
        rows, d = rounded.codes.shape
        blocks = rounded.scale.shape[1]
        steps = self.unpacked(f"{name}.codes", blocked(rounded.codes, width), grid.bits, np.float32)
        if grid.symmetric:
            zero: gs.Tensor = self.shared("middle", np.asarray(grid.middle, np.float32))
        else:
            points = rounded.zero_point[..., None]
            saved = points.size - points.size * grid.bits // 8
            bits = grid.bits if saved > UNPACKING_BYTES else 8
            zero = self.unpacked(f"{name}.zero_point", points, bits, np.float32)
        scale = self._constant(f"{name}.scale", rounded.scale[..., None])
        steps = self.add("Sub", f"{name}.steps", [steps, zero])
        real = self.add("Mul", f"{name}.scaled", [steps, scale])
        if blocks * width != d:
            real = self._reshaped(name, real, (rows, blocks * width))
            real = self._sliced(name, real, d, 1)
        self._replace(weight, self._restored(name, real, weight.layout))

    def codebook(self, weight: Weight, values: Array, indices: Array, bits: int) -> None:
        """Gather of the codebook's values [k] by indices [rows, d]."""
        name = weight.constant.name
        table = self._constant(f"{name}.codebook", values)
        container = next(size for size in CONTAINERS if size >= bits)
        picked = self.unpacked(f"{name}.codes", indices, container, np.int32)
        real = self.add("Gather", f"{name}.looked_up", [table, picked], axis=0)
        self._replace(weight, self._restored(name, real, weight.layout))

    def bases(self, weight: Weight, signs: Array, scales: Array) -> None:
        """The sum of scaled signs, -1 and +1 [bases, rows, d], scales [bases, rows]; a bit each."""
        name = weight.constant.name
        ones = self.unpacked(f"{name}.signs", (signs > 0).astype(np.uint8), 1, np.float32)
        twice = self._constant(f"{name}.scale", np.float32(2 * scales[..., None]))
        below = self._constant(f"{name}.offset", np.float32(scales.sum(axis=0)[:, None]))
        steps = self.add("Mul", f"{name}.scaled", [ones, twice])
        first = self.shared("axis", np.zeros(1, np.int64))
        total = self.add("ReduceSum", f"{name}.total", [steps, first], keepdims=0)
        real = self.add("Sub", f"{name}.values", [total, below])
        self._replace(weight, self._restored(name, real, weight.layout))

    def float16(self, weight: gs.Constant, rounded: Array) -> None:
        """Cast to float32 of float16 values; ``weight`` is no output of any graph."""
        stored = self._constant(f"{weight.name}.float16", rounded)
        real = self.add("Cast", f"{weight.name}.float32", [stored], to=int(TensorProto.FLOAT))
        real.dtype, real.shape = np.dtype(np.float32), list(rounded.shape)
        replace_uses(self.graph, weight, real)

    def unpacked(self, name: str, codes: Array, bits: int, dtype: type) -> gs.Tensor:
        """uint8 ``codes`` of any shape as ``dtype`` of that shape.

        A byte holds codes that are far apart, number i of each of 8 / bits equal parts: so the
        shifts that take them apart run along whole parts, which is fast.
        """
        to = int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        if bits == 8:
            return self.add("Cast", f"{name}.real", [self._constant(name, codes)], to=to)
        count = 8 // bits
        parts = np.pad(codes.reshape(-1), (0, -codes.size % count)).reshape(count, -1)
        packed = self._constant(name, pack(np.ascontiguousarray(parts.T), bits).reshape(1, -1))
        up = self.shared("up", np.arange(8 - bits, -1, -bits).astype(np.uint8)[:, None])
        down = self.shared("down", np.asarray(8 - bits, np.uint8))
        high = self.add("BitShift", f"{name}.high", [packed, up], direction="LEFT")
        low = self.add("BitShift", f"{name}.low", [high, down], direction="RIGHT")
        real = self.add("Cast", f"{name}.real", [low], to=to)
        if codes.size % count:
            flat = self._reshaped(name, real, (-1,))
            real = self._sliced(name, flat, codes.size, 0)
        return self._reshaped(name, real, codes.shape)

    def _restored(self, name: str, real: gs.Tensor, layout: Layout) -> gs.Tensor:
        """[rows, d], or as many in any shape, as the array it stands for."""
        real = self._reshaped(name, real, layout.ordered)
        if layout.order != tuple(range(len(layout.order))):
            real = self.add("Transpose", f"{name}.turned", [real], perm=list(layout.inverse))
        return real

    def _reshaped(self, name: str, tensor: gs.Tensor, shape: Sequence[int]) -> gs.Tensor:
        sizes = self.shared("shape", np.asarray(shape, np.int64))
        return self.add("Reshape", f"{name}.shaped", [tensor, sizes])

    def _sliced(self, name: str, tensor: gs.Tensor, end: int, axis: int) -> gs.Tensor:
        ends = {"start": 0, "end": end, "axis": axis}
        inputs = [self.shared(what, np.asarray([x])) for what, x in ends.items()]
        return self.add("Slice", f"{name}.cut", [tensor, *inputs])

    def _replace(self, weight: Weight, real: gs.Tensor, shape: Sequence[int] | None = None) -> None:
        """Lets all that read the weight read ``real``, under the name <weight>.dequantized."""
        real.name = self.names.fresh(f"{weight.constant.name}.dequantized")
        real.dtype, real.shape = np.dtype(np.float32), list(shape or weight.layout.shape)
        replace_uses(self.graph, weight.constant, real)

    def _constant(self, name: str, values: Array | np.generic) -> gs.Constant:
        array = np.ascontiguousarray(values).reshape(np.shape(values))
        self.bytes += stored_bytes(int(helper.np_dtype_to_tensor_dtype(array.dtype)), array.size)
        return gs.Constant(self.names.fresh(name), array)

    def shared(self, what: str, values: Array) -> gs.Constant:
        """A small constant that many weights are unpacked with."""
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self.small:
            self.small[key] = self._constant(f"unpacking.{what}", values)
        return self.small[key]

    def add(
        self,
        op: str,
        name: str,
        inputs: Sequence[gs.Tensor],
        output: gs.Tensor | None = None,
        body: gs.Graph | None = None,
        **attributes: Any,
    ) -> gs.Tensor:
        """Appends a node, to the outermost graph unless told; its one output.

        Nodes that unpack weights have no names: they are many, and their outputs tell.
        """
        result = output or gs.Variable(self.names.fresh(name))
        own = "" if body is None else self.names.fresh(name)
        node = gs.Node(op, own, attributes, list(inputs), [result])
        (self.graph if body is None else body).nodes.append(node)
        return result


def _untransposed(weight: Weight) -> Layout:
    """The layout [in, out] for weights that Gemm nodes transpose, which then do not: only so does
    onnxruntime find their DequantizeLinear. The weight's own layout for all others."""
    nodes = [site.node for site in weight.sites]
    if not weight.is_product or not all(n.op == "Gemm" and n.attrs.get("transB") for n in nodes):
        return weight.layout
    for node in nodes:
        node.attrs = {key: value for key, value in node.attrs.items() if key != "transB"}
    return Layout(weight.layout.shape[::-1], (1, 0), 1)


def _signed(codes: Array, middle: int) -> Array:
    return (codes.astype(np.int16) - middle).astype(np.int8)


def _integer(bits: int, signed: bool) -> np.dtype[Any]:
    name = f"{'' if signed else 'U'}INT{bits}"
    kind: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, name))
    return kind
