"""Layers written with thinner weights: equal at full rank, and as wrong as is said below."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcomp.concrete_shapes import with_concrete_shapes
from onnxcomp.exporting import to_proto
from onnxcomp.factored_forms import Form, forms, possible_forms
from onnxcomp.gram import Array, Gram, Window
from onnxcomp.graph import Names, all_nodes
from onnxcomp.macs import count_macs
from onnxcomp.parameters import count_parameters
from onnxcomp.testing import graph_of
from onnxcomp.thin_layers import Rank

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


def full_rank(form: Form) -> Rank:
    """Where nothing is lost, by the shape of the weight alone."""
    shape = tuple(int(size) for size in form.weight.shape)
    if form.nodes[0].op != "Conv":
        return min(shape[-2:])
    (out, width), size = shape[:2], math.prod(shape[2:])
    if form.method == "tucker2":
        return out, width
    if form.method == "spatial":
        return min(out * shape[3], width * shape[2])
    of_method = {"svd": min(out, width), "svd_input": min(out, width * size)}
    return of_method.get(
        form.method, width if form.method == "svd_output" else min(out, width) * size
    )


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
