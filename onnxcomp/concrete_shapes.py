"""Shapes of all tensors for given sizes of the inputs, also where they are computed in the graph.

onnx's shape inference follows little arithmetic on shapes; exporters write a lot of it. So what
follows from known shapes alone is computed here, and inference is asked again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
from onnx import inliner

from onnxcomp.exporting import to_proto, without_data
from onnxcomp.graph import (
    Graph,
    carried_of,
    is_constant,
    is_standard,
    subgraphs,
)
from onnxcomp.importing import from_proto
from onnxcomp.shapes import TensorType, inferred_types

log = logging.getLogger(__name__)

LARGEST_VALUE = 1024  # elements; shapes, axes and pads have a few
MOST_ROUNDS = 40  # each resolves what depends on a shape that the round before found
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"}
Types = dict[int, dict[str, TensorType]]  # by id of the graph or body


def with_concrete_shapes(
    graph: gs.Graph, shapes: Mapping[str, Sequence[int]]
) -> tuple[Graph, Types]:
    """A copy of ``graph`` whose inputs have ``shapes``, and the types of its tensors.

    Local functions are expanded. What the shapes decide has become constants.
    """
    twin = _expanded(graph)
    for tensor in twin.inputs:
        if tensor.name in shapes:
            tensor.shape = [int(size) for size in shapes[tensor.name]]
    types = inferred_types(twin)
    for _ in range(MOST_ROUNDS):
        unknown = [_fold(body, found) for body, found in types]
        if not any(unknown):
            break
        types = inferred_types(twin)
    return twin, {id(body): found for body, found in types}


def known_shapes(graph: gs.Graph, feed: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of all activations whose sizes follow from those of the inputs ``feed``, by name."""
    known, types = with_concrete_shapes(graph, {name: np.shape(v) for name, v in feed.items()})
    return {
        name: tuple(int(str(size)) for size in found.shape or ())
        for name, found in types[id(known)].items()
        if is_known(found)
    }


def is_known(found: TensorType | None) -> bool:
    """Whether every size of a tensor is known."""
    return (
        found is not None
        and found.shape is not None
        and all(isinstance(size, (int, np.integer)) for size in found.shape)
    )


def _expanded(graph: gs.Graph) -> Graph:
    if not carried_of(graph).header.functions:
        twin: Graph = graph.copy()
        return twin
    return from_proto(inliner.inline_local_functions(to_proto(graph, without_data)))


def _fold(graph: gs.Graph, types: Mapping[str, TensorType]) -> bool:
    """Turns what follows from known shapes into constants; whether any was found."""
    ends = {tensor.name for tensor in graph.outputs}
    folded = [id(node) for node in list(graph.nodes) if _take_branch(graph, node)]
    for node in graph.nodes:
        if len(node.outputs) != 1 or node.outputs[0].name in ends or is_constant(node.outputs[0]):
            continue
        value = _value(node, types, graph.opset)
        if value is None or value.size > LARGEST_VALUE:
            continue
        result = node.outputs[0]
        node.outputs.clear()
        result.to_constant(np.array(value, order="C"))
        folded.append(id(node))
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in folded]
    return bool(folded)


def _take_branch(graph: gs.Graph, node: gs.Node) -> bool:
    """Puts the nodes of the branch that an If takes in its place, where that is decided."""
    if node.op != "If" or not is_constant(node.inputs[0]):
        return False
    taken = node.attrs["then_branch" if np.all(node.inputs[0].values) else "else_branch"]
    results = list(node.outputs)
    node.outputs.clear()
    for inner in taken.nodes:
        for tensor in inner.outputs:
            if tensor.name:
                tensor.name = f"{results[0].name}/{tensor.name}"  # branches may share names
    at = graph.nodes.index(node)
    graph.nodes[at:at] = [
        *taken.nodes,
        *(
            gs.Node("Identity", inputs=[inner], outputs=[outer])
            for inner, outer in zip(taken.outputs, results, strict=True)
        ),
    ]
    return True


def _value(node: gs.Node, types: Mapping[str, TensorType], opset: int) -> npt.NDArray[Any] | None:
    """The output of a node where it is decided by shapes and small constants."""
    if not node.inputs or not is_standard(node) or node.op in _RANDOM:
        return None
    if node.op in ("Shape", "Size"):
        source = node.inputs[0]
        found = types.get(source.name)
        shape = source.shape if is_constant(source) else found.shape if found else None
        if not is_constant(source) and not is_known(found):
            return None
        sizes = np.asarray(shape, np.int64)
        if node.op == "Size":
            return np.asarray(math.prod(sizes.tolist()), np.int64)
        return sizes[node.attrs.get("start", 0) : node.attrs.get("end")]
    if any(True for _ in subgraphs(node)) or not all(map(_is_small, node.inputs)):
        return None
    return _computed(node, opset)


def _is_small(tensor: gs.Tensor) -> bool:
    return not tensor.name or (is_constant(tensor) and math.prod(tensor.shape) <= LARGEST_VALUE)


def _computed(node: gs.Node, opset: int) -> npt.NDArray[Any] | None:
    """What onnx's reference implementation says of a node with constant inputs."""
    from onnx.reference import ReferenceEvaluator  # takes a while to import, and few models need it

    try:
        alone = gs.Graph(nodes=[node], outputs=list(node.outputs), opset=opset)
        (value,) = ReferenceEvaluator(to_proto(alone)).run(None, {})
    except Exception as error:
        log.debug("%s %s stays unknown: %s", node.op, node.name, error)
        return None
    return value if isinstance(value, np.ndarray) else np.asarray(value)
