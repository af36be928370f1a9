"""How the search for channel groups grows with a graph: 10, 100 and 1,000 layers.

    pytest -m benchmark -s tests/benchmarks/test_channel_analysis.py

Seconds of CPU are the least of three runs, shape inference apart; memory is the peak of what numpy
and Python allocate on the way. Both should grow as the number of labels does.
"""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.channel_preparation import prepare
from onnxcomp.channels import collect, find_channels
from onnxcomp.importing import from_proto
from onnxcomp.shapes import infer_shapes

WIDTH = 64


def chain(layers: int) -> gs.Graph:
    """x [N, 64, 8, 8] -> residual blocks of three layers, joined by Concat and Split -> y."""
    weight = numpy_helper.from_array(np.ones((WIDTH, WIDTH, 1, 1), np.float32))
    bias = numpy_helper.from_array(np.ones(WIDTH, np.float32))
    halves = numpy_helper.from_array(np.array([WIDTH, WIDTH]), "halves")
    nodes, constants, last = [], [halves], "x"
    for i in range(layers):
        for values, name in ((weight, f"w{i}"), (bias, f"b{i}")):
            tensor = onnx.TensorProto()
            tensor.CopyFrom(values)
            tensor.name = name
            constants.append(tensor)
        nodes.append(helper.make_node("Conv", [last, f"w{i}", f"b{i}"], [f"c{i}"], f"conv{i}"))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        last = f"r{i}"
        if i % 3 == 2:
            both, parts = f"j{i}", [f"p{i}", f"q{i}"]
            nodes.append(helper.make_node("Concat", [last, f"r{i - 2}"], [both], axis=1))
            nodes.append(helper.make_node("Split", [both, "halves"], parts, axis=1))
            nodes.append(helper.make_node("Add", parts, [f"s{i}"], f"add{i}"))
            last = f"s{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"]))
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH, size, size])
        for name, size in (("x", 8), ("y", 1))
    ]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], constants)
    opsets = [helper.make_opsetid("", 17)]
    found = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    infer_shapes(found)
    prepare(found)
    return found


def seconds(graph: gs.Graph) -> float:
    start = time.process_time()
    find_channels(graph)
    return time.process_time() - start


def peak_bytes(graph: gs.Graph) -> int:
    tracemalloc.start()
    find_channels(graph)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.benchmark
def test_analysis_of_a_chain_grows_linearly() -> None:
    print("\nlayers     labels  groups  CPU seconds  microseconds a label   MiB  bytes a label")
    shares = {}
    for layers in (10, 100, 1000):
        graph = chain(layers)
        labels = collect(graph)[0].equations.count
        least, peak = min(seconds(graph) for _ in range(3)), peak_bytes(graph)
        shares[layers] = peak / labels
        print(
            f"{layers:6d} {labels:10d} {len(find_channels(graph).groups):7d} {least:12.3f} "
            f"{1e6 * least / labels:21.2f} {peak / 2**20:5.1f} {shares[layers]:14.0f}"
        )

    assert shares[1000] < 1.5 * shares[100] < 1.5 * 1.5 * shares[10]
