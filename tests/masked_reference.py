"""The model that a structurally pruned model has to equal, made from the original and the report.

The report's ``removed`` lists, for every group of channels, the places it leaves:
``{"tensor", "axis", "indices", "constant"}``, in names of the original model. `masked_reference`
makes a model of the original's shapes whose kept entries depend on kept entries alone:

- Constants are zero at the listed indices, so removed channels are neither made nor read. Not
  zeroed are denominators (second inputs of Div, exponents) and variances, where zero would give
  infinity instead of nothing.
- Where an operator mixes entries of a removed axis without a weight that could be zero, its input
  is masked. A sum or a contraction of two activations reads zero, a maximum the lowest and a
  minimum the highest number, a product one. Means and normalisations divide by the number of kept
  entries: with the mask m, mean = sum(x m) / kept and variance = sum(((x - mean) m)^2) / kept.
- Denominators and arguments of logarithms read one at removed entries.

Elementwise operators and views need nothing: what stands at a removed place stays there. Masks are
applied with Where, so that not even a NaN at a removed place reaches a kept one.

An initializer that several nodes read (exporters merge equal biases) may be cut differently for
each of them. Every reader therefore gets a copy of its own, masked as its own activations demand;
where the operator does not say how axes correspond, as the report lists it.

`contradictions` is the other half of the check and runs nothing: constants and activations of
every node have to lose the same indices wherever the operator aligns their axes.

Only onnx and numpy are used, nothing of onnxcomp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Mask = dict[int, npt.NDArray[np.bool_]]  # axis -> kept [length]; an axis without entry is whole
Shape = tuple[int | None, ...]

ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Mean", "Sum", "Where", "PRelu"),
    *("And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "BitShift"),
    *("Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor"),
    *("Gelu", "HardSigmoid", "HardSwish", "Identity", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg"),
    *("Not", "QuickGelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin"),
    *("Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
}
ALIKE = {  # outputs shaped like the first input, which onnx does not know
    *("BiasGelu", "FastGelu", "GroupNormalization", "QuickGelu", "SimplifiedLayerNormalization"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
}
NEVER_ZERO = {("Div", 1), ("Pow", 1), ("BatchNormalization", 4)}
READ_AS_ONE = {("Div", 1), ("Pow", 0), ("Log", 0), ("Reciprocal", 0), ("Sqrt", 0), ("Mod", 1)}
ZERO_REDUCTIONS = {
    *("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "CumSum"),
    "LpNormalization",
}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LENGTHS = {"Shape", "Size"}
NEVER_PRUNED = {"Softmax", "LogSoftmax", "Hardmax", "TopK", "ArgMax", "ArgMin", "LRN"}


class Contradiction(ValueError):
    """The report says what no pruned model can be."""


@dataclass
class _Builder:
    """The model being made; `masks` and `shapes` are those of the original's tensors."""

    model: onnx.ModelProto
    masks: dict[str, Mask]
    shapes: Mapping[str, Shape]
    types: dict[str, int]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    made: dict[tuple[Any, ...], str] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        return next(o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx"))

    def constant(self, values: npt.ArrayLike, like: str = "", name: str = "masked") -> str:
        """A new initializer, of the type of ``like`` where that is given."""
        array = np.asarray(values)
        if like:
            array = array.astype(helper.tensor_dtype_to_np_dtype(self.types.get(like, 1)))
        unique = f"{name}.{len(self.model.graph.initializer)}"
        self.types[unique] = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.model.graph.initializer.append(numpy_helper.from_array(array, unique))
        return unique

    def add(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{op}.masked.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        self.types[output] = self.types.get(inputs[1 if op == "Where" else 0], TensorProto.FLOAT)
        return output

    def kept(self, tensor: str, axes: Iterable[int]) -> npt.NDArray[np.bool_] | None:
        """The mask over ``axes``, of length 1 on all others; None where nothing is removed."""
        mask = self.masks.get(tensor, {})
        axes = [axis for axis in axes if axis in mask]
        if not axes:
            return None
        rank = len(self.shapes[tensor])
        whole = np.ones((1,) * rank, dtype=bool)
        for axis in axes:
            whole = whole & mask[axis].reshape([-1 if a == axis else 1 for a in range(rank)])
        return whole

    def masked(self, read: str, original: str, axes: Iterable[int], fill: float = 0.0) -> str:
        """``read``, which stands for ``original``, with ``fill`` at what is removed of ``axes``."""
        kept = self.kept(original, axes)
        return read if kept is None else self.where(kept, read, fill)

    def where(self, kept: npt.NDArray[np.bool_], tensor: str, fill: float = 0.0) -> str:
        key = (tensor, kept.shape, kept.tobytes(), fill)
        if key not in self.made and self.opset >= 9:
            names = (self.constant(kept), tensor, self.constant(fill, like=tensor))
            self.made[key] = self.add("Where", names)
        elif key not in self.made:  # older operator sets have no Where of their own
            product = self.add("Mul", (tensor, self.constant(kept, like=tensor)))
            filled = self.constant(np.where(kept, 0.0, fill), like=tensor)
            self.made[key] = self.add("Add", (product, filled))
        return self.made[key]

    def mean(self, tensor: str, kept: npt.NDArray[np.bool_], axes: Sequence[int]) -> str:
        """Over ``axes``, which stay with length 1, of what is kept."""
        total = self.reduce("ReduceMean", self.where(kept, tensor), axes)
        counts = kept.sum(axis=tuple(axes), keepdims=True)
        whole = int(np.prod([kept.shape[axis] for axis in axes]))
        return self.add("Mul", (total, self.constant(whole / np.maximum(counts, 1), like=tensor)))

    def reduce(self, op: str, tensor: str, axes: Sequence[int]) -> str:
        if self.opset < 18:
            return self.add(op, (tensor,), axes=list(axes))
        return self.add(op, (tensor, self.constant(np.asarray(axes, np.int64))))


def masked_reference(
    model: onnx.ModelProto,
    removed: Sequence[Mapping[str, Any]],
    shapes: Mapping[str, Shape] | None = None,
) -> onnx.ModelProto:
    """The original with removed channels zeroed and statistics over kept ones.

    Args:
        model: the original; not changed.
        removed: the report's list of groups with their ``places``.
        shapes: of activations that shape inference does not find.

    Raises:
        Contradiction: a place does not exist, a softmax runs over a removed axis, or a reader of
            a shared initializer loses indices that the report does not list for it.
    """
    builder = _builder(model, removed, shapes or {})
    arrays = _arrays(builder.model)
    shared = _readers(builder.model.graph)
    for node in builder.model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for k, tensor in enumerate(node.input):
            if tensor in arrays and tensor in builder.masks and (node.op_type, k) not in NEVER_ZERO:
                mask = _of_reader(builder, node, k, alone=shared[tensor] == 1)
                copy.input[k] = builder.constant(_zeroed(arrays[tensor], mask), name=tensor)
        _mix(builder, copy, node, set(arrays))
    result = onnx.ModelProto()
    result.CopyFrom(builder.model)
    del result.graph.node[:]
    result.graph.node.extend(builder.nodes)
    _drop_unread(result.graph)
    return result


def contradictions(
    model: onnx.ModelProto,
    removed: Sequence[Mapping[str, Any]],
    shapes: Mapping[str, Shape] | None = None,
) -> list[str]:
    """Where inputs and outputs of one node lose different indices of an axis they share.

    Nodes that compute weights from constants and lengths alone are not looked at, nor what they
    made where several nodes read it: each may have its own in the pruned model.
    """
    builder = _builder(model, removed, shapes or {})
    shared = _readers(builder.model.graph)
    found = []
    computed = set(_arrays(builder.model))  # a weight may be cut after it was computed
    for node in _alive(builder.model.graph):
        if node.op_type in LENGTHS or computed.issuperset(filter(None, node.input)):
            computed |= set(node.output)
            continue
        for k, tensor in enumerate(node.input):
            if not tensor or (tensor in computed and shared[tensor] > 1):
                continue
            listed = builder.masks.get(tensor, {})
            for axis, kept in _demanded(builder, node, k).items():
                here = listed.get(axis)
                if (here is None) != (kept is None) or (
                    here is not None and kept is not None and not np.array_equal(here, kept)
                ):
                    found.append(
                        f"{node.op_type} {node.name or node.output[0]}: input {k} ({tensor}) loses "
                        f"{_lost(here)} of axis {axis}, the node's others {_lost(kept)}"
                    )
    return found


def pruned_shapes(
    model: onnx.ModelProto,
    removed: Sequence[Mapping[str, Any]],
    shapes: Mapping[str, Shape] | None = None,
) -> dict[str, Shape]:
    """What the shape of every listed tensor has to be after the removal."""
    builder = _builder(model, removed, shapes or {})
    found = {
        tensor: [
            int(mask[axis].sum()) if axis in mask else length
            for axis, length in enumerate(builder.shapes[tensor])
        ]
        for tensor, mask in builder.masks.items()
    }
    for place in (place for group in removed for place in group.get("by_head", ())):
        tensor, shape = place["tensor"], builder.shapes[place["tensor"]]
        counts = {len(set(indices)) for indices in place["indices"] if indices}
        if len(counts) != 1 or shape[place["along"]] not in (None, len(place["heads"])):
            raise Contradiction(
                f"heads of {tensor!r} lose {counts} indices of axis {place['axis']}"
            )
        lengths = found.setdefault(tensor, list(shape))
        lengths[place["axis"]] = int(lengths[place["axis"]] or 0) - counts.pop()
    return {tensor: tuple(lengths) for tensor, lengths in found.items()}


def inferred_shapes(model: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shapes (None: unknown length) and types of all tensors, constants included."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    shapes, types = _inferred(light)
    for node in light.graph.node:  # operators that onnx knows no shapes of
        if node.op_type in ALIKE and node.output[0] not in shapes and node.input[0] in shapes:
            source = node.input[0]
            light.graph.value_info.append(
                helper.make_tensor_value_info(node.output[0], types[source], shapes[source])
            )
            shapes, types = _inferred(light)
    for initializer in model.graph.initializer:
        shapes[initializer.name] = tuple(initializer.dims)
        types[initializer.name] = initializer.data_type
    return shapes, types


def _inferred(model: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    known = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, Shape] = {}
    types: dict[str, int] = {}
    for value in (*known.value_info, *known.input, *known.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            dims = tensor.shape.dim
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in dims
            )
    return shapes, types


def _builder(
    model: onnx.ModelProto, removed: Sequence[Mapping[str, Any]], given: Mapping[str, Shape]
) -> _Builder:
    own = onnx.ModelProto()
    own.CopyFrom(model)
    constants = [node for node in own.graph.node if node.op_type == "Constant"]
    for node in constants:
        attribute = node.attribute[0]
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            own.graph.initializer.append(value)
            own.graph.initializer[-1].name = node.output[0]
        else:
            kind = np.float32 if "float" in attribute.name else np.int64
            tensor = numpy_helper.from_array(np.asarray(value, kind), node.output[0])
            own.graph.initializer.append(tensor)
        own.graph.node.remove(node)
    shapes, types = inferred_shapes(own)
    shapes |= given
    masks: dict[str, Mask] = {}
    for place in (place for group in removed for place in group["places"]):
        tensor, axis = place["tensor"], place["axis"]
        indices = np.asarray(place["indices"], np.int64)
        shape = shapes.get(tensor)
        if shape is None or not 0 <= axis < len(shape) or shape[axis] is None:
            raise Contradiction(f"{tensor!r} has no known axis {axis}: {shape}")
        if not indices.size:
            continue
        length = int(shape[axis] or 0)
        if indices.min() < 0 or indices.max() >= length:
            raise Contradiction(f"{tensor!r} axis {axis} of length {length} loses {indices}")
        kept = masks.setdefault(tensor, {}).setdefault(axis, np.ones(length, dtype=bool))
        kept[indices] = False
    return _Builder(own, masks, shapes, types)


def _arrays(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    """Values of the initializers, read when they are asked for."""
    return _Lazy({tensor.name: tensor for tensor in model.graph.initializer})


class _Lazy(dict[str, Any]):
    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return numpy_helper.to_array(super().__getitem__(name))


def _readers(graph: onnx.GraphProto) -> dict[str, int]:
    """How often each tensor is read, by bodies of control flow too."""
    counts: dict[str, int] = {}
    for tensor in _read(graph):
        counts[tensor] = counts.get(tensor, 0) + 1
    return counts


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _read(attribute.g)
    yield from (output.name for output in graph.output)


def _alive(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes whose values an output depends on: the others are free to go as a whole."""
    read, alive = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if read & set(node.output):
            alive.append(node)
            read |= set() if node.op_type in LENGTHS else set(node.input)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    read |= set(_read(attribute.g))
    return alive[::-1]


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = set(_read(graph)) | {value.name for value in graph.input}
    stale = [tensor for tensor in graph.initializer if tensor.name not in read]
    for tensor in stale:
        graph.initializer.remove(tensor)


def _zeroed(array: npt.NDArray[Any], mask: Mask) -> npt.NDArray[Any]:
    array = array.copy()
    for axis, kept in mask.items():
        array[(slice(None),) * axis + (~kept,)] = 0
    return array


def _of_reader(builder: _Builder, node: onnx.NodeProto, k: int, alone: bool) -> Mask:
    """How one reader's copy of a constant is cut."""
    listed = builder.masks[node.input[k]]
    if alone:
        return listed
    mask = dict(listed)
    for axis, kept in _demanded(builder, node, k).items():
        if kept is None:
            mask.pop(axis, None)
        elif bool((~kept & listed.get(axis, np.ones_like(kept))).any()):
            raise Contradiction(
                f"{node.op_type} {node.name!r} needs {_lost(kept)} of axis {axis} of "
                f"{node.input[k]!r} removed, the report lists {_lost(listed.get(axis))}"
            )
        else:
            mask[axis] = kept
    return mask


def _lost(kept: npt.NDArray[np.bool_] | None) -> str:
    lost = [] if kept is None else np.flatnonzero(~kept).tolist()
    return f"{len(lost)} ({', '.join(map(str, lost[:6]))}{', ...' if len(lost) > 6 else ''})"


def _demanded(
    builder: _Builder, node: onnx.NodeProto, k: int
) -> dict[int, npt.NDArray[np.bool_] | None]:
    """Axes of input ``k`` that the operator aligns with an axis of another of its tensors.

    Each with the mask found there: None where that axis is whole.
    """
    if node.op_type in GATES:
        return _recurrent(builder, node, k)
    rule = DEMANDS.get("Elementwise" if node.op_type in ELEMENTWISE else node.op_type)
    shape = builder.shapes.get(node.input[k])
    if rule is None or shape is None or node.domain not in ("", "ai.onnx"):
        return {}
    found = {}
    for axis, (tensor, other) in rule(builder, node, k):
        theirs = builder.shapes.get(tensor)
        if theirs is None or not 0 <= axis < len(shape) or not 0 <= other < len(theirs):
            continue
        if shape[axis] is not None and shape[axis] == theirs[other] != 1:
            found[axis] = builder.masks.get(tensor, {}).get(other)
    return found


def _recurrent(
    builder: _Builder, node: onnx.NodeProto, k: int
) -> dict[int, npt.NDArray[np.bool_] | None]:
    """W [directions, gates * hidden, inputs], R [.., gates * hidden, hidden], B [.., 2 * gates *
    hidden]; hidden is the last axis of the outputs, inputs that of X."""
    masks, gates = builder.masks, GATES[node.op_type]
    hidden = None
    for place, tensor in enumerate(node.output[:2]):
        hidden = masks.get(tensor, {}).get(3 - place) if hidden is None else hidden
    if k not in (1, 2, 3):
        return {}
    found = {1: None if hidden is None else np.tile(hidden, gates * (2 if k == 3 else 1))}
    if k < 3:
        found[2] = hidden if k == 2 else masks.get(node.input[0], {}).get(2)
    return found


Pairs = Iterator[tuple[int, tuple[str, int]]]


def _aligned_right(builder: _Builder, node: onnx.NodeProto, k: int) -> Pairs:
    output = node.output[0]
    if node.op_type == "Clip" and k > 0:
        return
    shift = len(builder.shapes.get(output, ())) - len(builder.shapes[node.input[k]])
    for axis in range(len(builder.shapes[node.input[k]])):
        yield axis, (output, axis + shift)


def _per_channel(builder: _Builder, node: onnx.NodeProto, k: int) -> Pairs:
    if k == 0:
        for axis in range(len(builder.shapes[node.input[0]])):
            yield axis, (node.output[0], axis)
    else:
        yield 0, (node.output[0], 1)


def _layer_norm(builder: _Builder, node: onnx.NodeProto, k: int) -> Pairs:
    return _aligned_right(builder, node, k)


def _conv(builder: _Builder, node: onnx.NodeProto, k: int) -> Pairs:
    x, output, groups = node.input[0], node.output[0], _attribute(node, "group", 1)
    transposed = node.op_type == "ConvTranspose"
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    if k == 0 and groups == 1:
        yield 1, (node.input[1], in_axis)
    elif k == 1:
        if not transposed or groups == 1:
            yield out_axis, (output, 1)
        if transposed or groups == 1:
            yield in_axis, (x, 1)
    elif k == 2:
        yield 0, (output, 1)


def _gemm(builder: _Builder, node: onnx.NodeProto, k: int) -> Pairs:
    output = node.output[0]
    trans = [_attribute(node, "transA", 0), _attribute(node, "transB", 0)]
    if k == 2:
        yield from _aligned_right(builder, node, k)
        return
    free = (0 if k == 0 else 1) ^ trans[k]
    yield free, (output, k)
    yield 1 - free, (node.input[1 - k], (1 if k == 1 else 0) ^ trans[1 - k])


def _matmul(builder: _Builder, node: onnx.NodeProto, k: int) -> Pairs:
    output, other = node.output[0], node.input[1 - k]
    ranks = [len(builder.shapes.get(tensor, ())) for tensor in (*node.input[:2], output)]
    if min(ranks[:2]) < 2:
        return
    contracted = [ranks[0] - 1, ranks[1] - 2]
    yield contracted[k], (other, contracted[1 - k])
    for axis in range(ranks[k]):
        if axis != contracted[k]:
            yield axis, (output, axis + ranks[2] - ranks[k])


def _transpose(builder: _Builder, node: onnx.NodeProto, k: int) -> Pairs:
    rank = len(builder.shapes[node.input[0]])
    perm = _attribute(node, "perm", list(range(rank))[::-1])
    for place, axis in enumerate(perm):
        yield axis, (node.output[0], place)


def _gather(builder: _Builder, node: onnx.NodeProto, k: int) -> Pairs:
    data, indices = builder.shapes[node.input[0]], builder.shapes.get(node.input[1])
    if k != 0 or indices is None:
        return
    gathered = _attribute(node, "axis", 0) % len(data)
    for axis in range(len(data)):
        if axis != gathered:
            shift = 0 if axis < gathered else len(indices) - 1
            yield axis, (node.output[0], axis + shift)


def _einsum(builder: _Builder, node: onnx.NodeProto, k: int) -> Pairs:
    terms, output = _einsum_terms(node, len(builder.shapes[node.input[0]]))
    for axis, letter in enumerate(terms[k]):
        if letter in output:
            yield axis, (node.output[0], output.index(letter))
        else:
            others = [i for i, term in enumerate(terms) if i != k and letter in term]
            yield from ((axis, (node.input[i], terms[i].index(letter))) for i in others)


DEMANDS: dict[str, Callable[[_Builder, onnx.NodeProto, int], Pairs]] = {
    "Elementwise": _aligned_right,
    "BatchNormalization": _per_channel,
    "InstanceNormalization": _per_channel,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "Softmax": _aligned_right,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Gather": _gather,
    "Einsum": _einsum,
}


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _einsum_terms(node: onnx.NodeProto, rank: int) -> tuple[list[str], str]:
    """``rank`` is that of the first operand; an ellipsis stands for the same axes in all."""
    equation = _attribute(node, "equation", b"").decode().replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if not arrow:
        letters = "".join(terms)
        output = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    if "." in equation:
        letters = len(terms[0].replace(".", ""))
        hidden = "".join(chr(ord("0") + i) for i in range(max(0, rank - letters)))
        terms = [term.replace("...", hidden) for term in terms]
        output = output.replace("...", hidden)
    return terms, output


def _reduced_axes(builder: _Builder, node: onnx.NodeProto) -> list[int]:
    """Axes a reduction takes away, or the one that a CumSum or softmax runs over."""
    rank = len(builder.shapes[node.input[0]])
    if node.op_type.startswith("Reduce"):
        axes = _attribute(node, "axes", None)
        if len(node.input) > 1 and node.input[1]:
            axes = _value(builder, node.input[1]).tolist()
        if not axes:
            axes = [] if _attribute(node, "noop_with_empty_axes", 0) else range(rank)
    elif node.op_type == "CumSum":
        axes = _value(builder, node.input[1]).reshape(-1).tolist()
    elif node.op_type == "LRN":
        axes = [1]
    elif node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and builder.opset < 13:
        axes = range(_attribute(node, "axis", 1) % rank, rank)
    else:
        axes = [_attribute(node, "axis", 0 if node.op_type.startswith("Arg") else -1)]
    return [axis % rank for axis in axes]


def _value(builder: _Builder, name: str) -> npt.NDArray[Any]:
    for tensor in builder.model.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    raise NotImplementedError(f"{name!r} is computed")


def _mix(
    builder: _Builder, copy: onnx.NodeProto, node: onnx.NodeProto, constants: set[str]
) -> None:
    """Adds ``copy`` (of ``node``, its constants zeroed), masked where it mixes what is removed."""
    removed = [builder.masks.get(tensor, {}) for tensor in node.input]
    if not any(mask for tensor, mask in zip(node.input, removed, strict=True)):
        builder.nodes.append(copy)
        return
    for k, tensor in enumerate(node.input):
        if (node.op_type, k) in READ_AS_ONE and tensor not in constants and removed[k]:
            copy.input[k] = builder.masked(copy.input[k], tensor, removed[k], 1.0)
    op = node.op_type
    if op.startswith("Reduce") or op in ZERO_REDUCTIONS | NEVER_PRUNED:
        _reduction(builder, copy, node)
    elif op in NORMALISATIONS:
        if not NORMALISATIONS[op](builder, copy, node):
            builder.nodes.append(copy)
    else:
        if op in CONTRACTIONS:
            for k, axes in CONTRACTIONS[op](builder, node, constants):
                copy.input[k] = builder.masked(copy.input[k], node.input[k], axes)
        elif op.startswith("Global") and set(removed[0]) - {0, 1}:
            raise Contradiction(f"{op} {node.name!r} runs over a removed axis")
        builder.nodes.append(copy)


def _reduction(builder: _Builder, copy: onnx.NodeProto, node: onnx.NodeProto) -> None:
    op, x = node.op_type, node.input[0]
    axes = _reduced_axes(builder, node)
    kept = builder.kept(x, axes)
    if kept is None:
        builder.nodes.append(copy)
        return
    if op in NEVER_PRUNED:
        raise Contradiction(f"{op} {node.name!r} runs over a removed axis of {x!r}")
    extreme = 60000.0 if builder.types.get(x) == TensorProto.FLOAT16 else 3e38
    fill = {"ReduceMax": -extreme, "ReduceMin": extreme, "ReduceProd": 1.0}.get(op, 0.0)
    fill = -1e4 if op == "ReduceLogSumExp" else fill
    copy.input[0] = builder.where(kept, copy.input[0], fill)
    builder.nodes.append(copy)
    if op == "ReduceMean":
        output, copy.output[0] = copy.output[0], f"{copy.output[0]}.unscaled"
        ratio = kept.size / max(int(kept.sum()), 1)
        builder.add("Mul", (copy.output[0], builder.constant(ratio, like=x)), output)


def _layer_normalisation(
    builder: _Builder, copy: onnx.NodeProto, node: onnx.NodeProto, centred: bool
) -> bool:
    x = node.input[0]
    rank = len(builder.shapes[x])
    axes = list(range(_attribute(node, "axis", -1) % rank, rank))
    kept = builder.kept(x, axes)
    if kept is None:
        return False
    y = _normalised(
        builder, copy.input[0], x, kept, axes, _attribute(node, "epsilon", 1e-5), centred
    )
    steps = [("Mul", copy.input[1])] if len(copy.input) > 1 and copy.input[1] else []
    if len(copy.input) > 2 and copy.input[2]:
        steps.append(("Add", copy.input[2]))
    for op, parameter in steps:
        y = builder.add(op, (y, parameter))
    builder.add("Identity", (y,), copy.output[0])
    return True


def _normalised(
    builder: _Builder,
    tensor: str,
    like: str,
    kept: npt.NDArray[np.bool_],
    axes: Sequence[int],
    epsilon: float,
    centred: bool = True,
) -> str:
    """(x - mean) / sqrt(variance + epsilon) over what is kept; without mean where not centred."""
    if centred:
        tensor = builder.add("Sub", (tensor, builder.mean(tensor, kept, axes)))
    tensor = builder.where(kept, tensor)
    variance = builder.mean(builder.add("Mul", (tensor, tensor)), kept, axes)
    shifted = builder.add("Add", (variance, builder.constant(epsilon, like=like)))
    return builder.add("Div", (tensor, builder.add("Sqrt", (shifted,))))


def _scaled_by_channel(
    builder: _Builder, y: str, copy: onnx.NodeProto, node: onnx.NodeProto, repeats: int = 1
) -> None:
    """The affine step of a normalisation whose parameters [C] run over axis 1."""
    rank = len(builder.shapes[node.input[0]])
    form = builder.constant(np.asarray([1, -1, *[1] * (rank - 2)], np.int64))
    for op, parameter in zip(("Mul", "Add"), copy.input[1:3], strict=True):
        if repeats > 1:  # parameters of groups: each for its channels
            column = builder.add("Reshape", (parameter, builder.constant(np.asarray([-1, 1]))))
            wide = builder.constant(np.asarray([1, repeats], np.int64))
            parameter = builder.add("Expand", (column, wide))
        y = builder.add(op, (y, builder.add("Reshape", (parameter, form))))
    builder.add("Identity", (y,), copy.output[0])


def _instance_normalisation(builder: _Builder, copy: onnx.NodeProto, node: onnx.NodeProto) -> bool:
    x = node.input[0]
    axes = list(range(2, len(builder.shapes[x])))
    kept = builder.kept(x, axes)
    if kept is None:
        return False
    y = _normalised(builder, copy.input[0], x, kept, axes, _attribute(node, "epsilon", 1e-5))
    _scaled_by_channel(builder, y, copy, node)
    return True


def _group_normalisation(builder: _Builder, copy: onnx.NodeProto, node: onnx.NodeProto) -> bool:
    """Statistics of a group run over its channels [C / groups] and all spatial axes."""
    x = node.input[0]
    kept = builder.masks[x].get(1) if x in builder.masks else None
    if kept is None:
        return False
    groups = _attribute(node, "num_groups", 1)
    split = builder.constant(np.asarray([0, groups, kept.size // groups, -1], np.int64))
    parts = builder.add("Reshape", (copy.input[0], split))
    mask = kept.reshape(1, groups, -1, 1)
    y = _normalised(builder, parts, x, mask, [2, 3], _attribute(node, "epsilon", 1e-5))
    y = builder.add("Reshape", (y, builder.add("Shape", (x,))))
    per_group = builder.shapes[node.input[1]][0] == groups != kept.size
    repeats = kept.size // groups if per_group else 1
    _scaled_by_channel(builder, y, copy, node, repeats)
    return True


def _skip_layer_normalisation(
    builder: _Builder, copy: onnx.NodeProto, node: onnx.NodeProto, centred: bool
) -> bool:
    """onnxruntime's: of input + skip + bias, times gamma, plus beta."""
    x = node.input[0]
    kept = builder.kept(x, [len(builder.shapes[x]) - 1])
    if kept is None:
        return False
    given = [*copy.input, "", ""]
    gamma, beta, bias = (given[2], given[3], given[4]) if centred else (given[2], "", given[3])
    y = builder.add("Add", (copy.input[0], copy.input[1]))
    y = builder.add("Add", (y, bias)) if bias else y
    axes = [len(builder.shapes[x]) - 1]
    y = _normalised(builder, y, x, kept, axes, _attribute(node, "epsilon", 1e-12), centred)
    y = builder.add("Mul", (y, gamma))
    y = builder.add("Add", (y, beta)) if beta else y
    builder.add("Identity", (y,), copy.output[0])
    return True


def _mean_variance_normalisation(
    builder: _Builder, copy: onnx.NodeProto, node: onnx.NodeProto
) -> bool:
    x = node.input[0]
    axes = [a % len(builder.shapes[x]) for a in _attribute(node, "axes", [0, 2, 3])]
    kept = builder.kept(x, axes)
    if kept is None:
        return False
    y = _normalised(builder, copy.input[0], x, kept, axes, 1e-9)
    builder.add("Identity", (y,), copy.output[0])
    return True


NORMALISATIONS: dict[str, Callable[[_Builder, onnx.NodeProto, onnx.NodeProto], bool]] = {
    "LayerNormalization": lambda b, c, n: _layer_normalisation(b, c, n, centred=True),
    "RMSNormalization": lambda b, c, n: _layer_normalisation(b, c, n, centred=False),
    "SimplifiedLayerNormalization": lambda b, c, n: _layer_normalisation(b, c, n, centred=False),
    "SkipLayerNormalization": lambda b, c, n: _skip_layer_normalisation(b, c, n, centred=True),
    "SkipSimplifiedLayerNormalization": lambda b, c, n: _skip_layer_normalisation(
        b, c, n, centred=False
    ),
    "InstanceNormalization": _instance_normalisation,
    "GroupNormalization": _group_normalisation,
    "MeanVarianceNormalization": _mean_variance_normalisation,
}


Contracted = Iterator[tuple[int, list[int]]]  # input, axes that are summed over


def _between_activations(node: onnx.NodeProto, constants: set[str]) -> bool:
    """No factor is a constant, which would be zero at what is removed."""
    return not constants & set(node.input[:2])


def _matmul_axes(builder: _Builder, node: onnx.NodeProto, constants: set[str]) -> Contracted:
    for k in (0, 1) if _between_activations(node, constants) else ():
        rank = len(builder.shapes[node.input[k]])
        yield k, [rank - 1 if k == 0 or rank == 1 else rank - 2]


def _gemm_axes(builder: _Builder, node: onnx.NodeProto, constants: set[str]) -> Contracted:
    if _between_activations(node, constants):
        yield 0, [1 - _attribute(node, "transA", 0)]
        yield 1, [_attribute(node, "transB", 0)]


def _einsum_axes(builder: _Builder, node: onnx.NodeProto, constants: set[str]) -> Contracted:
    terms, output = _einsum_terms(node, len(builder.shapes[node.input[0]]))
    for k, term in enumerate(terms):
        if node.input[k] not in constants:
            yield k, [axis for axis, letter in enumerate(term) if letter not in output]


def _conv_axes(builder: _Builder, node: onnx.NodeProto, constants: set[str]) -> Contracted:
    """A grouped weight cannot say which channel of which group is gone: its input has to."""
    if node.input[1] not in constants or _attribute(node, "group", 1) > 1:
        yield 0, [1]


def _attention_axes(builder: _Builder, node: onnx.NodeProto, constants: set[str]) -> Contracted:
    """Query and key meet in a contraction: their removed channels have to be zero."""
    for k in (0, 1):
        yield k, [len(builder.shapes[node.input[k]]) - 1]


CONTRACTIONS: dict[str, Callable[[_Builder, onnx.NodeProto, set[str]], Contracted]] = {
    "MatMul": _matmul_axes,
    "Gemm": _gemm_axes,
    "Einsum": _einsum_axes,
    "Conv": _conv_axes,
    "ConvTranspose": _conv_axes,
    "Attention": _attention_axes,
}
