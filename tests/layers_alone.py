"""Two models whose graphs are alike but for some layers, compared layer by layer.

What one float32 rounding in a layer makes of a model's outputs depends on the model: an
InstanceNormalization multiplies it, a Sigmoid near 0 leaves nothing but it. So each layer is
given what it reads in one of the models, and nothing else may differ.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

TOLERANCES = {"float16": 2e-2, "float32": 1e-5, "float64": 1e-12}  # |difference| / |output|

Array = npt.NDArray[Any]


def run(model: onnx.ModelProto | Path, feed: Mapping[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, Path) else model.SerializeToString()
    found: list[Array] = ort.InferenceSession(
        source, options, providers=["CPUExecutionProvider"]
    ).run(None, dict(feed))
    return found


def assert_close(one: Array, other: Array, what: str) -> None:
    """Of outputs of the same layer."""
    assert one.shape == other.shape, what
    if one.dtype.kind != "f":
        np.testing.assert_array_equal(one, other, what)
        return
    assert np.isfinite(one).all(), what
    wanted = other.astype(np.float64)
    wrong, size = np.linalg.norm(one - wanted), np.linalg.norm(wanted)
    assert wrong <= TOLERANCES[str(one.dtype)] * size, (what, wrong / size)


def assert_layers_equal(
    path: Path, expected: Path, weights: Collection[str], feed: Mapping[str, Array]
) -> int:
    """Layers of the outermost graph that read ``weights`` in ``expected`` make the same of what
    they read in the other model; all other nodes and constants there are the same ones.

    Returns:
        how many layers of this graph there are.
    """
    model, other = onnx.load(path), onnx.load(expected)
    stays = {tuple(node.output): node for node in model.graph.node}
    constants, held = _constants(other.graph), _constants(model.graph)
    for name in constants.keys() - {*weights}:
        if name in held:
            assert held[name].SerializeToString() == constants[name].SerializeToString(), name
    turns = {
        node.output[0]: node
        for node in other.graph.node
        if node.op_type == "Transpose" and node.input[0] in weights
    }
    layers = []
    for node in other.graph.node:
        if node.output[0] in turns or node.op_type == "Constant":
            continue
        if {*weights, *turns} & {*node.input}:
            layers.append(node)
        else:
            assert _told(stays[tuple(node.output)]) == _told(node)
    shown = _shown(model, layers, feed) if layers else {}
    for node in layers:
        nodes = [turns[name] for name in node.input if name in turns] + [node]
        (found,) = run(_alone(nodes, constants, shown, other), _reads(nodes, shown))
        assert_close(shown[node.output[0]], found, f"{node.op_type} that makes {node.output[0]}")
    return len(layers)


def _told(node: onnx.NodeProto) -> tuple[Any, ...]:
    """What it computes, apart from its bodies."""
    attributes = {
        a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.g.node
    }
    return node.op_type, node.domain, [*node.input], [*node.output], attributes


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """By name; of Constant nodes too."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                attribute.t.name = node.output[0]
                found[node.output[0]] = attribute.t
    return found


def _shown(
    model: onnx.ModelProto, layers: list[onnx.NodeProto], feed: Mapping[str, Array]
) -> dict[str, Array]:
    """What the layers read and make in a model."""
    wanted = {name for node in layers for name in (*node.input, *node.output)}
    made = [name for node in model.graph.node for name in node.output if name in wanted]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    return dict(feed) | dict(zip(made, run(model, feed), strict=True))


def _reads(nodes: list[onnx.NodeProto], shown: Mapping[str, Array]) -> dict[str, Array]:
    names = {name for node in nodes for name in node.input}
    return {name: values for name, values in shown.items() if name in names}


def _alone(
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
    shown: Mapping[str, Array],
    model: onnx.ModelProto,
) -> onnx.ModelProto:
    """A model of a few nodes of another."""
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(values.dtype), values.shape
        )
        for name, values in _reads(nodes, shown).items()
    ]
    held = {name for node in nodes for name in node.input} & {*constants}
    graph = onnx.helper.make_graph(
        nodes,
        "alone",
        inputs,
        [onnx.ValueInfoProto(name=nodes[-1].output[0])],
        [constants[name] for name in held if name not in shown],
    )
    return onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
