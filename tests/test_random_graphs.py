"""The random models of the pruning tests themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import given, settings
from onnx import numpy_helper

from random_graphs import feed_of, models, random_model


def decisions(seed: int) -> Callable[[int, int], int]:
    rng = np.random.default_rng(seed)
    return lambda low, high: int(rng.integers(low, high + 1))


@settings(max_examples=15, deadline=None)
@given(models())
def test_every_model_runs_and_gives_finite_numbers(model: onnx.ModelProto) -> None:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    found = session.run(None, feed_of(model))

    assert all(np.isfinite(value).all() and np.abs(value).max() > 0 for value in found)


def test_the_same_decisions_give_the_same_bytes() -> None:
    one, other, third = (random_model(decisions(seed)) for seed in (5, 5, 6))

    assert one.SerializeToString() == other.SerializeToString() != third.SerializeToString()


def test_no_float_vector_holds_zeros_or_ones_and_every_operator_is_drawn() -> None:
    drawn = set()
    for seed in range(200):
        model = random_model(decisions(seed))
        drawn |= {node.op_type for node in model.graph.node}
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.size > 1 and "scales" not in tensor.name:
                assert not np.isin(values, [0, 1]).any(), tensor.name

    assert drawn >= {
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Gather"),
        *("BatchNormalization", "LayerNormalization", "InstanceNormalization", "Softmax", "Tile"),
        *("GroupNormalization", "Concat", "Split", "Slice", "Reshape", "Transpose", "Expand"),
        *("Pad", "DepthToSpace", "SpaceToDepth", "Resize", "MaxPool", "AveragePool", "PRelu"),
        *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2", "ReduceLogSumExp"),
    }
