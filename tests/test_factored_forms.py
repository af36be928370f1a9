"""Layers written with thinner weights: equal at full rank, and as wrong as is said below."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from factor_products import full_rank
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcomp.concrete_shapes import with_concrete_shapes
from onnxcomp.exporting import to_proto
from onnxcomp.factored_convolutions import kernel_error
from onnxcomp.factored_forms import Form, forms, possible_forms
from onnxcomp.gram import Array, Gram, Window
from onnxcomp.graph import Names, all_nodes
from onnxcomp.importing import from_proto
from onnxcomp.macs import count_macs
from onnxcomp.parameters import count_parameters
from onnxcomp.testing import graph_of
from onnxcomp.thin_layers import Rank
from onnxcomp.tied_factors import Tied

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")
few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def run(graph: gs.Graph, feed: Mapping[str, Array], level: str = LEVELS[0]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[Array] = session.run(None, dict(feed))
    return found


def node_named(graph: gs.Graph, name: str) -> gs.Node:
    return next(node for node in all_nodes(graph) if node.name == name)


def every_form(graph: gs.Graph, gram: Array | None = None, **options: Any) -> list[Form]:
    found = possible_forms(node_named(graph, "layer"), gram, **options)
    assert not isinstance(found, str), found
    return found


def written(graph: gs.Graph, method: str, rank: Rank | None = None, **options: Any) -> gs.Graph:
    """A copy in which the layer has a form, of full rank unless told."""
    twin = graph.copy()
    (form,) = [form for form in every_form(twin, **options) if form.method == method]
    form.write(twin, Names(twin), full_rank(form) if rank is None else rank)
    return twin


def assert_same_at_full_rank(graph: gs.Graph, feed: Mapping[str, Array]) -> set[str]:
    expected = run(graph, feed)
    methods = {form.method for form in every_form(graph)}
    for method in methods:
        twin = written(graph, method)
        assert [t.name for t in twin.outputs] == [t.name for t in graph.outputs]
        for level in LEVELS:
            for one, other in zip(expected, run(twin, feed, level), strict=True):
                assert one.shape == other.shape
                worst = np.abs(one - other).max(initial=0)
                assert worst <= 1e-5 * max(np.abs(one).max(initial=0), 1), (method, worst)
    return methods


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


# --- matrices ---------------------------------------------------------------------------------


def matmul(rng: np.random.Generator, lead: list[int], ones: int, side: str) -> gs.Graph:
    sizes = ", ".join(map(str, [*lead, 7, 6] if side == "right" else [*lead, 6, 7]))
    pair, shape = ("x, w", (6, 9)) if side == "right" else ("w, x", (9, 6))
    graph = graph_of(
        f"m (float[{sizes}] x) => (float[] y) {{ [layer] y = MatMul ({pair}) }}",
        w=normal(rng, *[1] * ones, *shape),
    )
    graph.outputs[0].shape = None  # its rank depends on ``ones``
    return graph


@few
@given(
    lead=st.lists(st.integers(1, 3), max_size=2),
    ones=st.integers(0, 2),
    side=st.sampled_from(["left", "right"]),
    seed=st.integers(0, 99),
)
def test_a_matmul_is_itself_at_full_rank(lead: list[int], ones: int, side: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = matmul(rng, lead, ones, side)
    feed = {"x": normal(rng, *map(int, graph.inputs[0].shape))}
    assert assert_same_at_full_rank(graph, feed) == {"svd"}


@few
@given(
    trans_a=st.booleans(),
    trans_b=st.booleans(),
    alpha=st.sampled_from([None, 1.0, -0.5, 3.0]),
    beta=st.sampled_from([None, 0.0, 2.5]),
    c=st.sampled_from([None, (), (9,), (1, 9), (7, 1), (7, 9)]),
    seed=st.integers(0, 99),
)
def test_a_gemm_is_itself_at_full_rank(
    trans_a: bool,
    trans_b: bool,
    alpha: float | None,
    beta: float | None,
    c: tuple[int, ...] | None,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    attributes = [f"transA = {int(trans_a)}", f"transB = {int(trans_b)}"]
    attributes += [] if alpha is None else [f"alpha = {alpha}"]
    attributes += [] if beta is None else [f"beta = {beta}"]
    constants = {"w": normal(rng, *((9, 6) if trans_b else (6, 9)))}
    constants |= {} if c is None else {"c": normal(rng, *c)}
    shape = (6, 7) if trans_a else (7, 6)
    graph = graph_of(
        f"""g (float[{shape[0]}, {shape[1]}] x) => (float[7, 9] y) {{
            [layer] y = Gemm <{", ".join(attributes)}> (x, w{"" if c is None else ", c"}) }}""",
        **constants,
    )
    assert_same_at_full_rank(graph, {"x": normal(rng, *shape)})


@pytest.mark.parametrize("indices", [(), (4,), (2, 3)])
def test_a_lookup_is_itself_at_full_rank(indices: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    sizes = ", ".join(map(str, indices))
    graph = graph_of(
        f"t (int64[{sizes}] i) => (float[{', '.join(map(str, [*indices, 5]))}] y) {{"
        " [layer] y = Gather <axis = 0> (table, i) }",
        table=normal(rng, 40, 5),
    )
    feed = {"i": rng.integers(-40, 40, indices)}
    assert assert_same_at_full_rank(graph, feed) == {"svd"}
    twin = written(graph, "svd", 2)
    assert [node.op for node in twin.nodes] == ["Gather", "MatMul"]
    assert [list(node.inputs[at].shape) for node, at in zip(twin.nodes, (0, 1), strict=True)] == [
        [40, 2],
        [2, 5],
    ]


# --- convolutions -----------------------------------------------------------------------------


@st.composite
def conv_cases(draw: st.DrawFn, dims: int) -> tuple[gs.Graph, dict[str, Array]]:
    def each(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims))

    rng = np.random.default_rng(draw(st.integers(0, 999)))
    out, width, kernel = draw(st.integers(1, 5)), draw(st.integers(1, 5)), each(1, 3)
    auto = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER", None]))
    attributes: dict[str, Any] = {"strides": each(1, 3)}
    if auto is None or not auto.startswith("SAME"):
        attributes["dilations"] = each(1, 2)
    if auto is not None:
        attributes["auto_pad"] = auto
    if auto in ("NOTSET", None):
        attributes["pads"] = [*each(0, 2), *each(0, 2)]
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    inputs: list[gs.Tensor] = [
        gs.Variable("x", np.float32, [2, width, *each(6, 9)]),
        gs.Constant("w", normal(rng, out, width, *kernel)),
    ]
    if draw(st.booleans()):
        inputs.append(gs.Constant("b", normal(rng, out)))
    y = gs.Variable("y", np.float32, ["N", out, *[f"s{i}" for i in range(dims)]])
    node = gs.Node("Conv", "layer", attributes, inputs, [y])
    graph = gs.Graph([node], [inputs[0]], [y], name="c", opset=17, ir_version=8)
    return graph, {"x": normal(rng, *inputs[0].shape)}


@pytest.mark.parametrize("dims", [1, 2, 3])
@few
@given(data=st.data())
def test_a_conv_is_itself_at_full_rank(dims: int, data: st.DataObject) -> None:
    graph, feed = data.draw(conv_cases(dims))
    assert_same_at_full_rank(graph, feed)


def conv(
    rng: np.random.Generator, shape: tuple[int, ...], attributes: str, side: int = 12
) -> gs.Graph:
    spatial = ", ".join([str(side)] * (len(shape) - 2))
    marks = ", ".join(f"s{i}" for i in range(len(shape) - 2))
    return graph_of(
        f"""c (float[N, {shape[1]}, {spatial}] x) => (float[N, {shape[0]}, {marks}] y) {{
            [layer] y = Conv <{attributes}> (x, w) }}""",
        w=normal(rng, *shape),
    )


# --- what is said of a form -------------------------------------------------------------------

CONVS = {
    "1 x 1": ((12, 10, 1, 1), "strides = [2, 2]"),
    "3 x 3": ((12, 10, 3, 3), "pads = [1, 1, 1, 1], strides = [2, 1]"),
    "2 x 5": ((9, 8, 2, 5), 'auto_pad = "SAME_LOWER"'),
    "3": ((12, 10, 3), "pads = [1, 1], dilations = [2]"),
}


def middle(form: Form) -> Rank:
    return form.ranks[len(form.ranks) // 2]


def half(form: Form) -> Rank:
    """A rank at which much is lost, whether it pays or not."""
    full = full_rank(form)
    return max(1, full // 2) if isinstance(full, int) else (max(1, full[0] // 2), full[1] // 2)


def assert_error_is_measured(graph: gs.Graph, feed: Mapping[str, Array], gram: Gram) -> None:
    """E|dy|^2 over rows or places, with the Gram matrix of the very same samples."""
    read = next(iter(feed.values()))
    gram.update(read)
    matrix = gram.result().matrix
    expected = run(graph, feed)[0].astype(np.float64)
    shape = expected.shape
    node = graph.nodes[0]
    channels = shape[1] if node.op == "Conv" else node.inputs[1].shape[-1]
    if node.op == "MatMul" and node.inputs[0].name == "w":
        channels = node.inputs[0].shape[-2]
    for form in every_form(graph, matrix):
        rank = half(form)
        wrong = run(written(graph, form.method, rank, gram=matrix), feed)[0] - expected
        measured = np.square(wrong).sum() / (wrong.size / channels)
        assert measured > 1e-3
        assert form.error(rank) == pytest.approx(measured, rel=1e-3), form.method


@pytest.mark.parametrize("case", CONVS)
def test_the_error_of_a_conv_is_what_samples_show(case: str) -> None:
    rng = np.random.default_rng(0)
    shape, attributes = CONVS[case]
    graph = conv(rng, shape, attributes)
    x = normal(rng, 3, shape[1], *[12] * (len(shape) - 2))
    x[:, 1:] += x[:, :1]
    window = Window.of_conv(graph.nodes[0].attrs, shape)
    assert_error_is_measured(graph, {"x": x}, Gram(window=window))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_error_of_a_matmul_is_what_samples_show(side: str) -> None:
    rng = np.random.default_rng(0)
    graph = matmul(rng, [20], 0, side)
    x = normal(rng, *map(int, graph.inputs[0].shape))
    assert_error_is_measured(graph, {"x": x}, Gram(-1 if side == "right" else -2))


def test_the_error_of_a_gemm_counts_its_alpha() -> None:
    rng = np.random.default_rng(0)
    graph = graph_of(
        "g (float[50, 6] x) => (float[50, 9] y) { [layer] y = Gemm <alpha = -3.0> (x, w, c) }",
        w=normal(rng, 6, 9),
        c=normal(rng, 9),
    )
    assert_error_is_measured(graph, {"x": normal(rng, 50, 6)}, Gram(-1))


def test_the_error_of_a_table_counts_rows_as_often_as_they_are_looked_up() -> None:
    rng = np.random.default_rng(0)
    graph = graph_of(
        "t (int64[300] i) => (float[300, 6] y) { [layer] y = Gather (table, i) }",
        table=normal(rng, 20, 6),
    )
    feed = {"i": rng.integers(0, 8, 300)}
    shares = np.bincount(feed["i"], minlength=20) / 300
    (form,) = every_form(graph, shares)
    wrong = run(written(graph, "svd", 3, gram=shares), feed)[0] - run(graph, feed)[0]
    assert form.error(3) == pytest.approx(np.square(wrong).sum() / 300, rel=1e-3)
    assert form.error(3) < 0.9 * every_form(graph)[0].error(3)  # |dW|^2 of all rows


def cases() -> dict[str, gs.Graph]:
    rng = np.random.default_rng(1)
    found = {name: conv(rng, *CONVS[name]) for name in CONVS}
    found["MatMul"] = graph_of(
        "m (float[N, 4, 24] x) => (float[N, 4, 40] y) { [layer] y = MatMul (x, w) }",
        w=normal(rng, 24, 40),
    )
    found["left"] = graph_of(
        "m (float[N, 24, 4] x) => (float[N, 40, 4] y) { [layer] y = MatMul (w, x) }",
        w=normal(rng, 40, 24),
    )
    found["Gemm"] = graph_of(
        "g (float[24, N] x) => (float[N, 40] y) {"
        " [layer] y = Gemm <transA = 1, transB = 1> (x, w) }",
        w=normal(rng, 40, 24),
    )
    found["Gather"] = graph_of(
        "t (int64[N, 3] i) => (float[N, 3, 16] y) { [layer] y = Gather (w, i) }",
        w=normal(rng, 50, 16),
    )
    return found


@pytest.mark.parametrize("case", cases())
def test_parameters_and_macs_are_those_of_the_written_graph(case: str) -> None:
    graph = cases()[case]
    shape = [5 if size == "N" else int(size) for size in graph.inputs[0].shape]
    sizes = {"x": shape} if case != "Gather" else {"i": shape}
    _, types = with_concrete_shapes(graph, sizes)
    known = {name: found.shape for found in types.values() for name, found in found.items()}
    found = forms(node_named(graph, "layer"), shapes=known)
    assert not isinstance(found, str)
    for form in found:
        assert form.layer_parameters == count_parameters(graph)
        assert form.layer_macs == count_macs(graph, sizes)
        for rank in (form.ranks[0], middle(form), form.ranks[-1]):
            twin = written(graph, form.method, rank)
            assert form.parameters(rank) == count_parameters(twin) < form.layer_parameters
            assert form.macs(rank) == count_macs(twin, sizes)
            assert case == "Gather" or form.macs(rank) <= form.layer_macs


@pytest.mark.parametrize("case", cases())
def test_estimates_fall_and_errors_are_near_them(case: str) -> None:
    graph = cases()[case]
    for form in every_form(graph):
        estimates = [form.estimate(rank) for rank in form.ranks]
        falling = all(a >= b - 1e-9 for a, b in itertools.pairwise(estimates))
        assert falling or form.method == "cp"
        rank = middle(form)
        assert form.error(rank) == pytest.approx(form.estimate(rank), rel=0.3)


@pytest.mark.parametrize("case", cases())
def test_layers_to_be_timed_run_and_are_those_of_the_written_graph(case: str) -> None:
    graph = cases()[case]
    shape = [5 if size == "N" else int(size) for size in graph.inputs[0].shape]
    _, types = with_concrete_shapes(graph, {graph.inputs[0].name: shape})
    known = {name: found.shape for found in types.values() for name, found in found.items()}
    for form in every_form(graph, shapes=known):
        layers = form.layers(middle(form))
        twin = written(graph, form.method, middle(form))
        made = None
        for layer, node in zip(
            layers, [node for node in twin.nodes if node.op != "Gather"], strict=True
        ):
            assert (layer.op, dict(layer.attributes)) == (node.op, dict(node.attrs))
            at = next(i for i, tensor in enumerate(node.inputs) if isinstance(tensor, gs.Constant))
            assert layer.shapes[at] == tuple(node.inputs[at].shape)
            session, feed = layer.open(threads=1)
            if made is not None:
                assert feed[f"x{1 - at}"].shape == made
            made = session.run(feed)[0].shape
        assert made == known[graph.outputs[0].name]
        before = form.layer_layers()
        assert [layer.op for layer in before] == ([] if case == "Gather" else [graph.nodes[0].op])
        for layer in before:
            assert layer.open(threads=1)[0].run(layer.open(threads=1)[1])[0].shape == made


def test_without_shapes_there_are_no_layers_and_macs_are_of_a_row() -> None:
    graph = cases()["MatMul"]
    (form,) = every_form(graph)
    assert form.layers(8) == form.layer_layers() == []
    assert form.layer_macs == 24 * 40
    assert form.macs(8) == 8 * (24 + 40)


def test_ranks_ascend_are_few_and_pay() -> None:
    graph = graph_of(
        "m (float[N, 96] x) => (float[N, 96] y) { [layer] y = MatMul (x, w) }",
        w=np.eye(96, dtype=np.float32),
    )
    (form,) = every_form(graph)
    assert form.ranks == (1, 2, 4, 8, 16, 24, 32, 40, 47)
    narrow = graph_of(
        "m (float[N, 96] x) => (float[N, 1] y) { [layer] y = MatMul (x, w) }",
        w=np.ones((96, 1), np.float32),
    )
    assert "fewer parameters" in forms(narrow.nodes[0])


# --- writing ----------------------------------------------------------------------------------


def test_names_show_where_nodes_and_tensors_come_from() -> None:
    twin = written(cases()["3 x 3"], "tucker2", (4, 5))
    assert [node.name for node in twin.nodes] == ["layer.in", "layer.core", "layer"]
    assert [node.outputs[0].name for node in twin.nodes] == ["y.in", "y.core", "y"]
    assert [node.inputs[1].name for node in twin.nodes] == ["w.factor0", "w.factor1", "w.factor2"]
    assert [node.inputs[1].dtype for node in twin.nodes] == [np.float32] * 3
    unnamed = cases()["MatMul"]
    unnamed.nodes[0].name = ""
    (form,) = possible_forms(unnamed.nodes[0])
    form.write(unnamed, Names(unnamed), 3)
    assert [node.name for node in unnamed.nodes] == ["", ""]


@pytest.mark.parametrize("case", cases())
def test_shapes_written_for_new_tensors_are_those_that_follow(case: str) -> None:
    graph = cases()[case]
    for form in every_form(graph):
        twin = written(graph, form.method, half(form))
        stated = to_proto(twin)
        assert len(stated.graph.value_info) == len(twin.nodes) - 1
        free = to_proto(twin)
        del free.graph.value_info[:]
        inferred = onnx.shape_inference.infer_shapes(free, strict_mode=True, data_prop=True)
        follows = {info.name: info for info in inferred.graph.value_info}
        for info in stated.graph.value_info:
            one, other = info.type.tensor_type, follows[info.name].type.tensor_type
            assert one.elem_type == other.elem_type
            assert len(one.shape.dim) == len(other.shape.dim)
            for a, b in zip(one.shape.dim, other.shape.dim, strict=True):
                assert a == b or a.dim_param or not b.dim_value


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_factors_have_the_type_of_the_weight(dtype: type) -> None:
    rng = np.random.default_rng(0)
    kind = {np.float64: "double", np.float16: "float16"}[dtype]
    graph = graph_of(
        f"m ({kind}[4, 24] x) => ({kind}[4, 40] y) {{ [layer] y = MatMul (x, w) }}",
        w=(normal(rng, 24, 3) @ normal(rng, 3, 40)).astype(dtype),
    )
    feed = {"x": normal(rng, 4, 24).astype(dtype)}
    tolerance = {np.float64: 1e-10, np.float16: 2e-2}[dtype]
    expected = run(graph, feed)[0]
    found = run(written(graph, "svd", 3 if dtype == np.float16 else 24), feed)[0]
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * 10)


def test_vectors_are_multiplied_from_either_side() -> None:
    rng = np.random.default_rng(0)
    for pair, shape in (("x, w", (6, 9)), ("w, x", (9, 6))):
        graph = graph_of(
            f"v (float[6] x) => (float[9] y) {{ [layer] y = MatMul ({pair}) }}",
            w=normal(rng, *shape),
        )
        assert_same_at_full_rank(graph, {"x": normal(rng, 6)})


def test_arrays_and_copies_of_the_graph_stay_as_they_were() -> None:
    graph = cases()["3 x 3"]
    before, old = to_proto(graph).SerializeToString(), graph.copy()
    kernel = graph.nodes[0].inputs[1].values
    for form in every_form(graph):
        twin = graph.copy()
        found = possible_forms(twin.nodes[0])
        assert not isinstance(found, str)
        next(f for f in found if f.method == form.method).write(twin, Names(twin), half(form))
    assert to_proto(graph).SerializeToString() == to_proto(old).SerializeToString() == before
    assert graph.nodes[0].inputs[1].values is kernel


# --- shared weights ---------------------------------------------------------------------------


def test_a_shared_kernel_is_taken_apart_once_for_convs_of_other_strides() -> None:
    rng = np.random.default_rng(0)
    graph = graph_of(
        """c (float[1, 8, 12, 12] x) => (float[1, 8, a, b] y, float[1, 8, c, d] z) {
            [layer] y = Conv <pads = [1, 1, 1, 1]> (x, w, one)
            r = Relu (y)
            [other] z = Conv <strides = [2, 2], dilations = [2, 2]> (r, w, two) }""",
        w=normal(rng, 8, 8, 3, 3),
        one=normal(rng, 8),
        two=normal(rng, 8),
    )
    feed = {"x": normal(rng, 1, 8, 12, 12)}
    assert len(assert_same_at_full_rank(graph, feed)) == 5
    _, types = with_concrete_shapes(graph, {"x": (1, 8, 12, 12)})
    known = {name: found.shape for found in types.values() for name, found in found.items()}
    for form in every_form(graph, shapes=known):
        rank = half(form)
        twin = written(graph, form.method, rank)
        assert [node.name for node in form.nodes] == ["layer", "other"]
        assert count_parameters(twin) == form.parameters(rank) + 16
        assert count_macs(twin, {"x": (1, 8, 12, 12)}) == form.macs(rank)
        assert len(form.layers(rank)) == len(twin.nodes) - 1
        assert form.layer_macs == count_macs(graph, {"x": (1, 8, 12, 12)})


def test_a_matrix_is_shared_by_products_and_lookups() -> None:
    rng = np.random.default_rng(0)
    graph = graph_of(
        """m (float[5, 20] x, int64[4] i) => (float[5, 12] y, float[5, 12] z, float[4, 12] t) {
            [layer] y = MatMul (x, w)
            [gemm] z = Gemm <beta = 0.5> (x, w, c)
            [table] t = Gather (w, i) }""",
        w=normal(rng, 20, 12),
        c=normal(rng, 12),
    )
    feed = {"x": normal(rng, 5, 20), "i": rng.integers(0, 20, 4)}
    assert_same_at_full_rank(graph, feed)
    assert count_parameters(written(graph, "svd", 3)) == 3 * (20 + 12) + 12


def test_a_table_is_shared_by_lookups_and_products_with_its_rows() -> None:
    """The head of a language model: a Gemm, or a MatMul with the transpose."""
    rng = np.random.default_rng(0)
    head = {
        "Gemm": "[layer] y = Gemm <transB = 1> (x, w, c)",
        "MatMul": "[turn] t = Transpose <perm = [1, 0]> (w) [layer] y = MatMul (x, t)",
        "left": "[layer] u = MatMul (w, x) y = Transpose <perm = [1, 0]> (u)",
    }
    for kind, text in head.items():
        sizes = "12, 5" if kind == "left" else "5, 12"
        graph = graph_of(
            f"""m (float[{sizes}] x, int64[4] i) => (float[5, 40] y, float[4, 12] z) {{
                {text} [rows] z = Gather (w, i) }}""",
            w=normal(rng, 40, 12),
            c=normal(rng, 40) if kind == "Gemm" else np.zeros(1, np.float32),
        )
        shape = [int(size) for size in graph.inputs[0].shape]
        feed = {"x": normal(rng, *shape), "i": rng.integers(0, 40, 4)}
        assert assert_same_at_full_rank(graph, feed) == {"svd"}
        tied = Tied(np.full(40, 1 / 40), np.diag(rng.random(12)))
        for gram in (None, tied):
            (form,) = every_form(graph, gram, shapes={"u": (40, 5)})
            assert [node.name for node in form.nodes] == ["rows", "layer"]
            twin = written(graph, "svd", 3, gram=gram)
            assert count_parameters(twin) - len(graph.nodes[0].inputs[2:]) * 40 == 3 * (40 + 12)
            assert form.layer_macs == 5 * 12 * 40
            assert form.macs(3) == 5 * 3 * (40 + 12) + 4 * 3 * 12
            made = {t.name: onnx.numpy_helper.to_array(t) for t in to_proto(twin).graph.initializer}
            p, q = made["w.factor0"], made["w.factor1"]
            x = feed["x"].T if kind == "left" else feed["x"]
            y = x @ (p @ q).T + (graph.nodes[0].inputs[2].values if kind == "Gemm" else 0)
            for one, other in zip(run(twin, feed), (y, (p @ q)[feed["i"]]), strict=True):
                np.testing.assert_allclose(one, other, atol=1e-4)
            onnx.shape_inference.infer_shapes(to_proto(twin), strict_mode=True, data_prop=True)


def test_tables_read_in_further_ways_stay() -> None:
    rng = np.random.default_rng(0)
    text = """m (float[5, 12] x, int64[4] i) => (float[5, 40] y, float[4, 12] z, float[] o) {{
        [rows] z = Gather (w, i) [layer] y = Gemm <transB = 1{}> (x, w) {} }}"""
    for alpha, other, word in (
        (", alpha = 2.0", "o = Identity (z)", "in another way"),
        ("", "[third] o = Add (w, w)", "third as well, and not as a weight"),
        ("", "[third] o = Transpose (w)", "third as well, and not as a weight"),
        ("", "t = Transpose (w) [third] o = MatMul (t, w)", "third as well, in another way"),
    ):
        graph = graph_of(text.format(alpha, other), w=normal(rng, 40, 12))
        found = forms(node_named(graph, "layer"))
        assert word in found, found


def test_readers_in_other_ways_are_named() -> None:
    rng = np.random.default_rng(0)
    text = """m (float[12, 12] x) => (float[12, 12] y, float[12, 12] z) {{
        [layer] y = MatMul (x, w) [other] z = {} }}"""
    for other, word in (
        ("Gemm <transB = 1> (x, w)", "other as well, in another way"),
        ("MatMul (w, x)", "other as well, in another way"),
        ("Gemm <alpha = 2.0> (x, w)", "other as well, in another way"),
        ("Add (x, w)", "other as well, and not as a weight"),
        ("Gemm (x, x, w)", "other as well, and not as a weight"),
    ):
        assert word in forms(graph_of(text.format(other), w=normal(rng, 12, 12)).nodes[0])


def test_branches_share_the_factors_of_an_outer_weight() -> None:
    rng = np.random.default_rng(0)
    graph = graph_of(
        """m (float[5, 20] x, bool b) => (float[5, 12] y) {
            y = If (b) <then_branch = yes () => (float[5, 12] p) { [layer] p = MatMul (x, w) },
                else_branch = no () => (float[5, 12] q) { [other] q = Gemm (x, w) }> }""",
        w=normal(rng, 20, 12),
    )
    assert len(every_form(graph)[0].nodes) == 2
    for branch in (True, False):
        assert_same_at_full_rank(graph, {"x": normal(rng, 5, 20), "b": np.asarray(branch)})
    twin = written(graph, "svd", 3)
    assert count_parameters(twin) == 3 * (20 + 12)
    assert len(to_proto(twin).graph.initializer) == 2


LOOP = """m (float[5, 12] x, int64 trips) => (float[5, 12] y, float[k, 5, 12] all) {
    go = Constant <value = bool {1}> ()
    y, all = Loop (trips, go, x) <body = b (int64 i, bool on, float[5, 12] state)
        => (bool still, float[5, 12] next, float[5, 12] seen) {
            still = Identity (on)
            [layer] moved = MatMul (state, w)
            [other] turned = Gemm <alpha = 2.0> (moved, v, c)
            next = Tanh (turned)
            seen = Identity (moved) }> }"""
SCAN = """m (float[5, 12] x, float[k, 5, 12] xs) => (float[5, 12] y, float[k, 5, 12] all) {
    y, all = Scan <num_scan_inputs = 1, body = b (float[5, 12] state, float[5, 12] now)
        => (float[5, 12] next, float[5, 12] seen) {
            [layer] moved = MatMul (now, w)
            [other] turned = Gemm <transB = 1> (state, v, c)
            sum = Add (moved, turned)
            next = Tanh (sum)
            seen = Identity (next) }> (x, xs) }"""
BRANCH = """m (float[5, 12] x, bool b) => (float[5, 12] y) {
    y = If (b) <then_branch = yes () => (float[5, 12] p) {
                    [layer] m = MatMul (x, w) [other] p = Gemm (m, v, c) },
                else_branch = no () => (float[5, 12] q) { q = Relu (x) }> }"""


@pytest.mark.parametrize("text", [LOOP, SCAN, BRANCH], ids=["Loop", "Scan", "If"])
@pytest.mark.parametrize("inside", [False, True])
def test_layers_in_bodies_are_taken_apart(text: str, inside: bool) -> None:
    """With their weights outside, or in the body itself, at full rank and at another."""
    rng = np.random.default_rng(0)
    weights = {"w": normal(rng, 12, 12) / 4, "v": normal(rng, 12, 12) / 4, "c": normal(rng, 12)}
    graph = graph_of(text, **weights)
    if inside:
        graph = with_constants_inside(graph)
    feeds: dict[str, Array] = {"x": normal(rng, 5, 12)}
    feeds |= {"trips": np.array(3)} if "trips" in text else {}
    feeds |= {"xs": normal(rng, 3, 5, 12)} if "xs" in text else {}
    feeds |= {"b": np.array(True)} if "bool b" in text else {}
    assert assert_same_at_full_rank(graph, feeds) == {"svd"}
    twin, made = graph.copy(), {}
    for name, weight in (("layer", "w"), ("other", "v")):
        (form,) = possible_forms(node_named(twin, name))
        form.write(twin, Names(twin), 3)
        first, second = (
            next(t.values for t in all_constants(twin) if t.name == f"{weight}.factor{at}")
            for at in (0, 1)
        )
        made[weight] = first @ second if first.shape == (12, 3) else second @ first
    assert {"layer.in", "other.in"} <= {node.name for node in all_nodes(twin)}
    expected = graph_of(text, **weights | {n: a.astype(np.float32) for n, a in made.items()})
    for one, other in zip(run(twin, feeds), run(expected, feeds), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    onnx.checker.check_model(to_proto(twin), full_check=True)


def all_constants(graph: gs.Graph) -> list[gs.Constant]:
    return [t for node in all_nodes(graph) for t in node.inputs if isinstance(t, gs.Constant)]


def with_constants_inside(graph: gs.Graph) -> gs.Graph:
    """As a file whose bodies have the initializers of their own."""
    proto = to_proto(graph)
    weights = [t for t in proto.graph.initializer if t.name in ("w", "v", "c")]
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("body", "then_branch"):
                attribute.g.initializer.extend(weights)
    for tensor in weights:
        proto.graph.initializer.remove(tensor)
    return from_proto(proto)


# --- refusals ---------------------------------------------------------------------------------

REFUSED = {
    "depthwise": (
        "(float[1, 8, 9, 9] x) => (float[1, 8, 7, 7] y) { [layer] y = Conv <group = 8> (x, w) }",
        (8, 1, 3, 3),
    ),
    "grouped": (
        "(float[1, 8, 9, 9] x) => (float[1, 8, 7, 7] y) { [layer] y = Conv <group = 2> (x, w) }",
        (8, 4, 3, 3),
    ),
    "factorize before quantizing": (
        "(float[4, 9] x) => (float[4, 8] y) <float s = {0.1}> {"
        " q = QuantizeLinear (w, s) d = DequantizeLinear (q, s) [layer] y = MatMul (x, d) }",
        (9, 8),
    ),
    "an input of the model": (
        "(float[1, 8, 9, 9] x, float[8, 8, 3, 3] w) => (float[1, 8, 7, 7] y) {"
        " [layer] y = Conv (x, w) }",
        (8, 8, 3, 3),
    ),
    "both factors are computed": (
        "(float[4, 8] x) => (float[4, 8] y) { a = Add (x, w) [layer] y = MatMul (x, a) }",
        (8, 8),
    ),
    "computed from w: simplify": (
        "(float[4, 9] x) => (float[4, 8] y) { t = Transpose (w) [layer] y = MatMul (x, t) }",
        (8, 9),
    ),
    "a batch of matrices": (
        "(float[3, 4, 9] x) => (float[3, 4, 8] y) { [layer] y = MatMul (x, w) }",
        (3, 9, 8),
    ),
    "a vector": ("(float[4, 9] x) => (float[4] y) { [layer] y = MatMul (x, w) }", (9,)),
    "rows of a table": (
        "(int64[4] x) => (float[9, 4] y) { [layer] y = Gather <axis = 1> (w, x) }",
        (9, 8),
    ),
    "weights of ConvTranspose are not": (
        "(float[1, 8, 9, 9] x) => (float[1, 8, 11, 11] y) { [layer] y = ConvTranspose (x, w) }",
        (8, 8, 3, 3),
    ),
}

REFUSED |= {
    "weights of Einsum": (
        '(float[4, 9] x) => (float[4, 8] y) { [layer] y = Einsum <equation = "ab,bc->ac"> (x, w) }',
        (9, 8),
    ),
    "weights of GRU": (
        "(float[5, 1, 9] x) => (float[5, 1, 1, 8] y) <float[1, 24, 8] r> {"
        " [layer] y = GRU <hidden_size = 8> (x, w, r) }",
        (1, 24, 9),
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_taken_apart_is_refused_in_words(reason: str) -> None:
    text, shape = REFUSED[reason]
    graph = graph_of(f"m {text}", w=normal(np.random.default_rng(0), *shape))
    assert reason in forms(node_named(graph, "layer"))


def test_codes_and_values_that_are_not_finite_are_refused() -> None:
    text = "m (int32[4, 9] x) => (int32[4, 8] y) { [layer] y = MatMul (x, w) }"
    assert "int32, not float" in forms(graph_of(text, w=np.ones((9, 8), np.int32)).nodes[0])
    text = text.replace("int32", "float")
    broken = np.full((9, 8), np.nan, np.float32)
    assert "not finite" in forms(graph_of(text, w=broken).nodes[0])
    integer = "m (uint8[4, 9] x) => (int32[4, 8] y) { [layer] y = MatMulInteger (x, w) }"
    found = forms(graph_of(integer, w=np.ones((9, 8), np.uint8)).nodes[0])
    assert "factorize before quantizing" in found


def test_methods_that_do_not_apply_name_those_that_do() -> None:
    graphs = cases()
    for case, method, fitting in (
        ("MatMul", "tucker2", "a matrix of 24 x 40 allows svd"),
        ("1 x 1", "spatial", "a kernel of 1 x 1 allows svd"),
        ("3", "cp", "a kernel of 3 allows svd_input, svd_output, tucker2"),
    ):
        assert fitting in forms(graphs[case].nodes[0], method=method)
    for method in ("svd", "tucker2", "spatial", "cp"):
        found = {
            form.method.partition("_")[0] for form in every_form(graphs["3 x 3"], method=method)
        }
        assert found == {method}
    with pytest.raises(ValueError, match="none of auto, svd"):
        forms(graphs["MatMul"].nodes[0], method="qr")


def test_a_weight_of_zeros_stays_zero() -> None:
    graph = cases()["3 x 3"]
    graph.nodes[0].inputs[1] = gs.Constant("w", np.zeros((12, 10, 3, 3), np.float32))
    for form in every_form(graph):
        assert form.error(half(form)) == 0
        y = run(written(graph, form.method, half(form)), {"x": np.ones((1, 10, 12, 12), "f")})[0]
        assert not y.any()


@pytest.mark.parametrize("method", ["svd_output", "tucker2", "spatial"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_estimates_of_correlated_patches_are_nearer_than_those_of_channels(
    method: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (16, 16, 3, 3)
    graph = conv(rng, shape, "pads = [1, 1, 1, 1]")
    smooth = normal(rng, 8, 16, 18, 18).cumsum(2).cumsum(3)
    smooth[:, 1:] += 2 * smooth[:, :-1]
    gram = Gram(window=Window.of_conv(graph.nodes[0].attrs, shape))
    gram.update(smooth)
    patches = gram.result().matrix[0]
    patches += 1e-3 * np.trace(patches) / len(patches) * np.eye(len(patches))
    channels = np.einsum("isjs->ij", patches.reshape(16, 9, 16, 9)) / 9
    form, rough = (
        next(form for form in every_form(graph, matrix) if form.method == method)
        for matrix in (patches, channels)
    )
    exact = np.log([form.error(rank) for rank in form.ranks])
    off = np.abs(np.log([form.estimate(rank) for rank in form.ranks]) - exact).mean()
    off_by_channels = np.abs(np.log([rough.estimate(rank) for rank in form.ranks]) - exact).mean()
    assert off < off_by_channels / 2
    nothing: Rank = (0, 0) if method == "tucker2" else 0
    energy = kernel_error(graph.nodes[0].inputs[1].values.astype(float), patches)
    assert form.estimate(nothing) == pytest.approx(energy)
