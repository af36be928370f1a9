"""The operator library inside onnxruntime."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser
from operator_sessions import open_model, run

from onnxcomp import kernels
from onnxcomp.errors import KernelError

Floats = npt.NDArray[np.float32]


def random_sparse(in_features: int, out_features: int, *, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    kept = rng.random((in_features, out_features)) < 0.2
    return (rng.standard_normal((in_features, out_features)) * kept).astype(np.float32)


def random_floats(*shape: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sparse_model(
    packed: kernels.PackedWeights,
    bias: Floats | None = None,
    *,
    batch: str = "batch, tokens",
    declared: bool = True,
    **attributes: int,
) -> onnx.ModelProto:
    """X [batch, in] -> SparseMatMul -> Relu -> Y; IR 8 and opset 17, which onnxruntime 1.17 reads.

    `declared` writes the shape of the operator's output into the model's value_info.
    """
    leading = f"{batch}, " if batch else ""
    output = f"float[{leading}{packed.out_features}]"
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17, "{kernels.DOMAIN}" : 1]>
        sparse (float[{leading}{packed.in_features}] X) => ({output} Y)
        {f"<{output} product>" if declared else ""}
        {{
            product = {kernels.DOMAIN}.SparseMatMul (X, values, indices, offsets)
            Y = Relu (product)
        }}""")
    node = model.graph.node[0]
    node.name = "sparse"
    for name, number in {**packed.attributes, **attributes}.items():
        node.attribute.append(helper.make_attribute(name, number))
    constants = {"values": packed.values, "indices": packed.indices, "offsets": packed.offsets}
    if bias is not None:
        node.input.append("bias")
        constants["bias"] = bias
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return model


def run_dense(weight: Floats, bias: Floats | None, x: Floats) -> Any:
    """relu(x W + bias) by onnxruntime's own operators."""
    shape = ", ".join(str(n) for n in x.shape)
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        dense (float[{shape}] X) => (float[] Y)
        {{ product = MatMul (X, W)  sum = Add (product, bias)  Y = Relu (sum) }}""")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    added = np.zeros(weight.shape[1], np.float32) if bias is None else bias
    model.graph.initializer.append(numpy_helper.from_array(weight, "W"))
    model.graph.initializer.append(numpy_helper.from_array(added, "bias"))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["Y"], {"X": x})[0]


@pytest.mark.parametrize("block_size", [1, 2, 4, 16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        ("", (67,)),
        ("tokens", (0, 67)),
        ("tokens", (35, 67)),
        ("batch, tokens", (2, 19, 67)),
        ("2, heads, tokens", (2, 3, 1, 67)),
    ],
)
def test_operator_equals_dense_matmul(
    block_size: int, biased: bool, batch: str, shape: tuple[int, ...]
) -> None:
    weight, x = random_sparse(67, 45), random_floats(*shape)
    bias = random_floats(45, seed=2) if biased else None
    model = sparse_model(kernels.pack(weight, block_size=block_size), bias, batch=batch)
    expected = run_dense(weight, bias, x)
    y = run(model, x)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_threads_change_no_bit() -> None:
    # Large enough for the operator to ask onnxruntime for its threads.
    packed = kernels.pack(random_sparse(256, 300), block_size=2)
    model, x = sparse_model(packed, random_floats(300)), random_floats(3, 67, 256)
    single = run(model, x, threads=1)
    np.testing.assert_array_equal(run(model, x, threads=4), single)
    door = kernels.sparse_matmul(x, packed, random_floats(300))
    np.testing.assert_array_equal(np.maximum(door, 0), single)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(("tokens", "block_size"), [(37, 4), (150, 1), (66, 2)])
def test_threads_that_share_panels_change_no_bit(
    tokens: int, block_size: int, threads: int
) -> None:
    packed = kernels.pack(random_sparse(256, 304), block_size=block_size)
    model = sparse_model(packed, random_floats(304))
    session, alone = open_model(model, threads=threads), open_model(model)
    for seed in range(20):  # who fills a panel differs, and what was in it is overwritten
        x = random_floats(1, tokens, 256, seed=seed)
        y = session.run(["Y"], {"X": x})[0]
        np.testing.assert_array_equal(y, alone.run(["Y"], {"X": x})[0])


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize(("batch", "shape"), [("n, t", ["n", "t", 45]), ("2, 5", [2, 5, 45])])
def test_output_shape_is_inferred(declared: bool, batch: str, shape: list[int | str]) -> None:
    model = sparse_model(kernels.pack(random_sparse(67, 45)), batch=batch, declared=declared)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(kernels.library_path()))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert session.get_outputs()[0].shape == shape


PACKED = kernels.pack(np.eye(6, 6, dtype=np.float32), block_size=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 3}, "block_size is 3, expected 1, 2, 4 or 16"),
        ({"in_features": 0}, "in_features is 0, expected 1 to"),
        ({"out_features": -1}, "out_features is -1, expected 1 to"),
        ({"out_features": 9}, "the length of offsets is 4, expected 6"),
        ({"indices": PACKED.indices + 1}, "an index is 6, expected 0 to 5 at position 5"),
        ({"indices": PACKED.indices[None]}, r"indices has shape \[1, 6\], expected rank 1"),
        ({"indices": PACKED.indices.astype(np.int64)}, r"tensor\(int64\).*indices"),
        ({"values": PACKED.values.astype(np.float16)}, r"tensor\(float16\).*values"),
        ({"values": PACKED.values[1:]}, "the number of values is 10, expected 12"),
        ({"offsets": PACKED.offsets * 2}, "the last offset is 12, expected 6"),
        ({"offsets": PACKED.offsets[:0]}, "the length of offsets is 0, expected 4"),
    ],
)
def test_malformed_weights_are_refused(change: dict[str, Any], message: str) -> None:
    model = sparse_model(dataclasses.replace(PACKED, **change), batch="tokens")
    with pytest.raises(Exception, match=message):
        run(model, np.ones((1, 6), np.float32))


def test_other_format_versions_are_refused() -> None:
    model = sparse_model(PACKED, format_version=2)
    with pytest.raises(Exception, match="format_version is 2; this library reads 1"):
        run(model, np.ones((1, 1, 6), np.float32))


def test_missing_attribute_is_named() -> None:
    model = sparse_model(PACKED)
    attributes = model.graph.node[0].attribute
    del attributes[[a.name for a in attributes].index("block_size")]
    with pytest.raises(Exception, match="integer attribute block_size is missing"):
        run(model, np.ones((1, 1, 6), np.float32))


def test_weights_must_be_constant() -> None:
    model = sparse_model(PACKED)
    model.graph.input.append(helper.make_tensor_value_info("indices", onnx.TensorProto.INT32, [6]))
    with pytest.raises(Exception, match="indices must be an initializer"):
        run(model, np.ones((1, 1, 6), np.float32))


@pytest.mark.parametrize("size", [0, 5, 7])
def test_bias_of_another_length_is_refused(size: int) -> None:
    model = sparse_model(PACKED, np.ones(size, np.float32))
    with pytest.raises(Exception, match=rf"bias has shape \[{size}\], expected float32 \[6\]"):
        run(model, np.ones((1, 1, 6), np.float32))


def test_input_of_another_width_is_refused() -> None:
    model = sparse_model(PACKED, batch="tokens")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
    with pytest.raises(Exception, match=r"X has shape \[3, 5\], expected float32 \[..., 6\]"):
        run(model, np.ones((3, 5), np.float32))


def test_bias_may_be_computed() -> None:
    model = sparse_model(PACKED, batch="tokens")
    model.graph.node[0].input.append("late")
    model.graph.input.append(helper.make_tensor_value_info("late", onnx.TensorProto.FLOAT, [6]))
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(kernels.library_path()))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    late = np.arange(6, dtype=np.float32)
    y = session.run(["Y"], {"X": np.ones((2, 6), np.float32), "late": late})[0]
    np.testing.assert_array_equal(y, np.stack([late + 1] * 2))


def test_missing_library_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels._native, "__file__", str(tmp_path / "_native.so"))
    with pytest.raises(KernelError, match=r"libonnxcomp_ops.*is missing; install onnxcomp again"):
        kernels.library_path()
