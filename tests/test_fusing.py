"""What follows a linear layer per channel is folded into it: onnxruntime says what is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.importing import from_proto
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.runtime import open_session
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


def random(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def simplify(graph: gs.Graph) -> PassReport:
    report = PassReport()
    SimplifyGraph().rewrite(graph, PassContext(target=resolve_target()), report)
    return report


def check(graph: gs.Graph, x: Array, operators: list[str], rtol: float = 1e-4) -> PassReport:
    """Simplifies ``graph``; it has to be of ``operators`` and answer as before."""
    expected = open_session(graph, optimize=False).run({"x": x})
    report = simplify(graph)
    assert [node.op for node in graph.nodes] == operators
    actual = open_session(graph, optimize=False).run({"x": x})
    for ours, theirs in zip(actual, expected, strict=True):
        scale = float(np.abs(theirs).max()) or 1
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * scale / 10)
    return report


def batch_norm(channels: int) -> dict[str, Array]:
    return {
        "gamma": random(channels),
        "beta": random(channels),
        "mean": random(channels),
        "var": np.abs(random(channels)) + np.float32(0.3),
    }


@settings(max_examples=25, deadline=None)
@given(
    dims=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3]),
    bias=st.booleans(),
    epsilon=st.sampled_from([1e-5, 1e-3, 0.5]),
    transposed=st.booleans(),
    pads=st.integers(0, 2),
    stride=st.integers(1, 2),
)
def test_batch_norm_folds_into_any_convolution(
    dims: int, group: int, bias: bool, epsilon: float, transposed: bool, pads: int, stride: int
) -> None:
    inputs, outputs = 2 * group, 3 * group
    shape = (inputs, 3) if transposed else (outputs, 2)
    constants = {"w": random(*shape, *[3] * dims), **batch_norm(outputs)}
    if bias:
        constants["b"] = random(outputs)
    op = "ConvTranspose" if transposed else "Conv"
    asymmetric = [pads] * dims + [max(0, pads - 1)] * dims
    nodes = [
        helper.make_node(
            op,
            ["x", "w", "b"] if bias else ["x", "w"],
            ["c"],
            group=group,
            pads=asymmetric,
            strides=[stride] * dims,
        ),
        helper.make_node(
            "BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], epsilon=epsilon
        ),
    ]
    x = random(2, inputs, *[7] * dims)
    check(graph_from(nodes, x, constants), x, [op])


def graph_from(nodes: list[Any], x: Array, constants: dict[str, Array]) -> gs.Graph:
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", kind, x.shape)],
            [helper.make_tensor_value_info("y", kind, None)],
            [numpy_helper.from_array(v, k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return from_proto(model)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_batch_norm_folds_into_gemm(transposed: int, alpha: float) -> None:
    graph = graph_of(
        f"""g (float[5, 4] x) => (float[5, 3] y) {{
            a = Gemm <transB = {transposed}, alpha = {alpha}, beta = 2.0> (x, w, b)
            y = BatchNormalization (a, gamma, beta, mean, var)
        }}""",
        w=random(3, 4) if transposed else random(4, 3),
        b=random(3),
        **batch_norm(3),
    )
    check(graph, random(5, 4), ["Gemm"])


def test_numbers_for_each_row_are_no_bias() -> None:
    graph = graph_of(
        "g (float[4, 4] x) => (float[4, 4] y) { a = Gemm (x, w, rows)  y = Mul (a, scale) }",
        w=random(4, 4), rows=random(4, 1), scale=random(4),
    )  # fmt: skip
    check(graph, random(4, 4), ["Gemm", "Mul"])


def test_batch_norm_makes_a_matmul_of_matrices_a_gemm() -> None:
    text = "a = MatMul (x, w) y = BatchNormalization (a, gamma, beta, mean, var)"
    graph = graph_of(
        f"g (float[N, 4] x) => (float[N, 3] y) {{ {text} }}", w=random(4, 3), **batch_norm(3)
    )
    check(graph, random(5, 4), ["Gemm"])
    graph = graph_of(  # its channels are on axis 1, those of MatMul on the last
        f"g (float[2, 3, 4] x) => (float[2, 3, 3] y) {{ {text} }}", w=random(4, 3), **batch_norm(3)
    )
    check(graph, random(2, 3, 4), ["MatMul", "BatchNormalization"])


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (6, 1, 1), (1, 6, 1, 1)])
def test_constants_per_channel_fold_into_conv(op: str, first: bool, shape: tuple[int]) -> None:
    operands = "k, c" if first else "c, k"
    graph = graph_of(
        f"""g (float[1, 4, 5, 5] x) => (float[1, 6, 5, 5] y) {{
            c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            y = {op} ({operands})
        }}""",
        w=random(6, 4, 3, 3),
        b=random(6),
        k=np.abs(random(*shape)) + np.float32(0.5),
    )
    stays = op == "Div" and first
    check(graph, random(1, 4, 5, 5), ["Conv", "Div"] if stays else ["Conv"])


@pytest.mark.parametrize(
    "shape", [(5,), (5, 5), (1, 1, 5), (6, 5, 5), (2, 1, 1, 1), (1, 1, 6, 1, 1)]
)
def test_other_constants_do_not(shape: tuple[int]) -> None:
    graph = graph_of(
        """g (float[1, 4, 5, 5] x) => (float[A, B, C, D] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w)
            y = Add (c, k)
        }""".replace("[A, B, C, D]", "[1, 1, 6, 5, 5]" if len(shape) > 4 else "[A, 6, 5, 5]"),
        w=random(6, 4, 3, 3),
        k=random(*shape),
    )
    check(graph, random(1, 4, 5, 5), ["Conv", "Add"])


def test_matmul_with_bias_becomes_gemm_for_matrices_only() -> None:
    text = "a = MatMul (x, w) y = Add (b, a)"
    graph = graph_of(
        f"g (float[N, 4] x) => (float[N, 3] y) {{ {text} }}", w=random(4, 3), b=random(3)
    )
    check(graph, random(5, 4), ["Gemm"])
    graph = graph_of(
        f"g (float[N, 2, 4] x) => (float[N, 2, 3] y) {{ {text} }}", w=random(4, 3), b=random(3)
    )
    check(graph, random(5, 2, 4), ["MatMul", "Add"])
    graph = graph_of(  # a row for each sample is no bias
        f"g (float[3, 4] x) => (float[3, 3] y) {{ {text} }}", w=random(4, 3), b=random(3, 1)
    )
    check(graph, random(3, 4), ["MatMul", "Add"])


@pytest.mark.parametrize("factor", [np.float32(0.125), random(3), random(1, 1, 3)])
def test_a_factor_behind_matmul_and_bias_folds_into_both(factor: Array) -> None:
    graph = graph_of(
        """g (float[N, 2, 4] x) => (float[N, 2, 3] y) {
            a = MatMul (x, w)
            s = Add (a, b)
            y = Mul (s, k)
        }""",
        w=random(4, 3),
        b=random(3),
        k=factor,
    )
    check(graph, random(5, 2, 4), ["MatMul", "Add"])


CHAIN = """g (float[1, 4, 5, 5] x) => (float[1, 4, 5, 5] y) {
    [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w)
    [norm] n = BatchNormalization (c, gamma, beta, mean, var)
    MORE
}"""


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("y = Add (n, c)", "conv before it is used elsewhere too"),
        (
            "d = Conv <pads = [1, 1, 1, 1]> (n, w) y = Relu (d)",
            "weight of conv is used elsewhere",
        ),
    ],
)
def test_shared_results_and_weights_stay_and_the_report_says_so(more: str, reason: str) -> None:
    graph = graph_of(CHAIN.replace("MORE", more), w=random(4, 4, 3, 3), **batch_norm(4))
    before = [node.op for node in graph.nodes]
    report = check(graph, random(1, 4, 5, 5), before)
    assert reason in report.skipped["norm"]


def test_shared_parameters_are_not_written_into() -> None:
    graph = graph_of(
        CHAIN.replace(
            "MORE",
            """d = Conv <pads = [1, 1, 1, 1]> (n, v)
            y = BatchNormalization (d, gamma, beta, mean, var)""",
        ),
        w=random(4, 4, 3, 3),
        v=random(4, 4, 3, 3),
        **batch_norm(4),
    )
    undo = graph.copy()
    x = random(1, 4, 5, 5)
    expected = open_session(undo, optimize=False).run({"x": x})[0]
    check(graph, x, ["Conv", "Conv"])
    np.testing.assert_array_equal(open_session(undo, optimize=False).run({"x": x})[0], expected)


def test_binary_weights_stay_binary() -> None:
    graph = graph_of(
        CHAIN.replace("MORE", "y = Relu (n)"), w=np.sign(random(4, 4, 3, 3)), **batch_norm(4)
    )
    report = check(graph, random(1, 4, 5, 5), ["Conv", "BatchNormalization", "Relu"])
    assert "binary" in report.skipped["norm"]


def test_training_mode_is_left_alone() -> None:
    graph = graph_of(
        """g (float[2, 4, 5, 5] x) => (float[2, 4, 5, 5] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w)
            y, m, v = BatchNormalization <training_mode = 1> (c, gamma, beta, mean, var)
        }""",
        w=random(4, 4, 3, 3),
        **batch_norm(4),
    )
    simplify(graph)
    assert [node.op for node in graph.nodes] == ["Conv", "BatchNormalization"]


def half_precision(gamma: float) -> gs.Graph:
    constants = {name: v.astype(np.float16) for name, v in batch_norm(4).items()}
    constants["gamma"][:] = gamma
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node(
            "BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], "norm"
        ),
    ]
    return graph_from(nodes, np.zeros((1, 4, 5, 5), np.float16), constants | {
        "w": random(4, 4, 3, 3).astype(np.float16)
    })  # fmt: skip


def test_float16_stays_float16_and_within_its_range() -> None:
    x = random(1, 4, 5, 5).astype(np.float16)
    graph = half_precision(0.7)
    check(graph, x, ["Conv"], rtol=1e-2)
    assert {t.dtype for t in graph.nodes[0].inputs[1:]} == {np.dtype(np.float16)}
    report = simplify(graph := half_precision(60000))
    assert [node.op for node in graph.nodes] == ["Conv", "BatchNormalization"]
    assert "leaves the range of float16" in report.skipped["norm"]


def test_bfloat16_is_folded_in_double_precision() -> None:
    import ml_dtypes

    kind = ml_dtypes.bfloat16
    constants = {name: v.astype(kind) for name, v in batch_norm(4).items()}
    weight = random(4, 4, 3, 3).astype(kind)
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Conv", ["x", "w"], ["c"]),
                helper.make_node("BatchNormalization", ["c", *constants], ["y"]),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [1, 4, 5, 5])],
            [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [1, 4, 3, 3])],
            [numpy_helper.from_array(v, k) for k, v in (constants | {"w": weight}).items()],
        ),
        opset_imports=[helper.make_opsetid("", 22)],
    )
    graph = from_proto(model)
    simplify(graph)
    (conv,) = graph.nodes
    gamma, beta, mean, var = (constants[k].astype(np.float64) for k in constants)
    scale = gamma / np.sqrt(var + 1e-5)
    expected = (weight.astype(np.float64) * scale[:, None, None, None]).astype(kind)
    assert conv.inputs[1].values.tobytes() == expected.tobytes()
    assert conv.inputs[2].values.tobytes() == (beta - mean * scale).astype(kind).tobytes()
