"""Weights stored as codes: the scales, and that runtimes see nothing but floats."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnxcomp.exporting import to_proto
from onnxcomp.graph import Names, remove_unused, sort_nodes
from onnxcomp.rounding import nearest
from onnxcomp.stored_codes import LARGEST_CODE, LEAST_ROWS, Scales, StoredWriter, balanced_scales
from onnxcomp.testing import graph_of
from onnxcomp.weight_sites import find_weights

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)


def rounding_noise(matrix: Array, scales: Scales) -> float:
    """Mean squared error of the nearest codes."""
    codes = nearest(matrix, scales.product, 0, -LARGEST_CODE, LARGEST_CODE)
    return float(np.square(codes * scales.product - matrix).mean())


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.sampled_from([1, 7, LEAST_ROWS]), st.integers(1, 9)),
        elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    ),
    st.booleans(),
)
def test_no_weight_is_clipped_or_more_than_half_a_step_away(matrix: Array, per_row: bool) -> None:
    scales = balanced_scales(matrix, per_row)

    steps = matrix / scales.product
    assert (scales.product > 0).all()
    assert np.abs(steps).max() <= LARGEST_CODE + 0.01
    codes = nearest(matrix, scales.product, 0, -LARGEST_CODE, LARGEST_CODE)
    assert np.abs(codes - steps).max() <= 0.51


def test_rows_and_columns_of_all_sizes_use_all_codes() -> None:
    rows, columns = 10 ** RANDOM.uniform(-2, 2, (200, 1)), 10 ** RANDOM.uniform(-1, 1, (1, 90))
    matrix = RANDOM.uniform(0.5, 1, (200, 90)) * rows * columns

    steps = np.abs(matrix / balanced_scales(matrix).product)

    assert steps.max(axis=1).min() > 126
    assert steps.max(axis=0).min() > 0.9 * LARGEST_CODE


def test_balancing_takes_noise_away_where_columns_differ() -> None:
    plain = np.asarray(RANDOM.standard_normal((256, 128)))
    uneven = plain * 10 ** RANDOM.uniform(-1, 1, (1, 128))

    def gain(matrix: Array) -> float:
        bound = np.abs(matrix).max(axis=1, keepdims=True) / LARGEST_CODE
        by_row = Scales(bound, np.ones((1, matrix.shape[1])))
        return rounding_noise(matrix, by_row) / rounding_noise(matrix, balanced_scales(matrix))

    assert gain(uneven) > 3
    assert (balanced_scales(plain).columns == 1).all()


def test_one_scale_and_few_rows_have_none_for_columns() -> None:
    matrix = np.asarray(RANDOM.standard_normal((LEAST_ROWS, 8)), np.float32)

    assert balanced_scales(matrix, per_row=False).rows.shape == (1, 1)
    for scales in (balanced_scales(matrix, per_row=False), balanced_scales(matrix[1:])):
        assert (scales.columns == 1).all()


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        balanced_scales(np.asarray([[1.0, np.nan]]))


LAYERS = {
    "conv": ("x [1, 8, 9, 9]", "Conv", (70, 8, 3, 3)),
    "grouped": ("x [1, 8, 9, 9]", "Conv <group = 4>", (80, 2, 3, 3)),
    "transposed": ("x [1, 8, 9, 9]", "ConvTranspose <strides = [2, 2]>", (8, 16, 3, 3)),
    "batched": ("x [3, 5, 12]", "MatMul", (3, 12, 70)),
    "gemm": ("x [12, 5]", "Gemm <transA = 1>", (12, 70)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_onnxruntime_runs_the_float_layer_on_what_the_codes_stand_for(
    layer: str, tmp_path: Path
) -> None:
    shape, operator, weight_shape = LAYERS[layer]
    name, sizes = shape.split(" ", 1)
    weight = np.asarray(RANDOM.standard_normal(weight_shape), np.float32)
    graph = graph_of(
        f"g (float{sizes.replace(' ', '')} {name}) => (float y) {{ y = {operator} (x, w) }}",
        w=weight,
    )
    site = find_weights(graph)[0]
    matrix = site.layout.matrix(weight)
    scales = balanced_scales(matrix)
    codes = nearest(matrix, scales.product, 0, -LARGEST_CODE, LARGEST_CODE)
    real = graph.copy()

    StoredWriter(graph, Names(graph)).write(site.constant, site.layout, codes, scales)
    sort_nodes(graph)
    remove_unused(graph)
    model = to_proto(graph)
    onnx.checker.check_model(model)

    constant = real.tensors()["w"]
    constant.values = site.layout.restored(codes * scales.product).astype(np.float32)
    x = np.asarray(RANDOM.standard_normal([int(n) for n in sizes.strip("[]").split(",")]), "f")
    found, wanted = (_run(proto, x, tmp_path) for proto in (model, to_proto(real)))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-4)
    assert found[1] == wanted[1]  # the same operators: unpacking was folded at load
    stored = {t.name: t for t in model.graph.initializer}
    assert list(stored["w.codes"].dims) == list(weight_shape)
    assert stored["w.codes"].data_type == onnx.TensorProto.INT8


def _run(model: onnx.ModelProto, x: Array, folder: Path) -> tuple[Array, Counter[str]]:
    """The output, and the operators of the graph that onnxruntime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    nodes = onnx.load(folder / "optimized.onnx").graph.node
    return np.asarray(session.run(None, {"x": x})[0]), Counter(node.op_type for node in nodes)
