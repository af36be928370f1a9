"""Labels, groups and cuts on models small enough to know the answer."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.channel_preparation import prepare
from onnxcomp.channels import ChannelGroup, Channels, find_channels
from onnxcomp.cutting import cut
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.testing import graph_of

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def analysed(text: str, **constants: np.ndarray) -> tuple[gs.Graph, Channels]:
    graph = graph_of(text, **constants)
    infer_shapes(graph)
    prepare(graph)
    return graph, find_channels(graph)


def touched(group: ChannelGroup) -> dict[tuple[str, int], list[int]]:
    """For each place the indices of unit 0."""
    return {(p.tensor, p.axis): np.flatnonzero(p.units == 0).tolist() for p in group.places}


def answer(graph: gs.Graph, **feed: np.ndarray) -> np.ndarray:
    (found,) = open_session(graph).run(feed)
    return np.asarray(found)


MLP = """mlp (float[N, 3] x) => (float[N, 2] y) {
    [first] a = Gemm (x, w1, b1)  [act] b = Relu (a)  [second] y = MatMul (b, w2) }"""


def test_channels_between_two_layers_are_one_group() -> None:
    _, channels = analysed(MLP, w1=normal(3, 5), b1=normal(5), w2=normal(5, 2))
    (group,) = channels.groups
    assert (group.name, group.size, group.span) == ("first", 5, 1)
    assert touched(group) == {
        ("w1", 1): [0],
        ("b1", 0): [0],
        ("a", 1): [0],
        ("b", 1): [0],
        ("w2", 0): [0],
    }
    assert group.parameters.tolist() == [3 + 1 + 2] * 5
    assert channels.pinned == {
        ("w1", 0): "an input of the model",
        ("w2", 1): "an output of the model",
    }
    assert str(group).splitlines()[1] == "  w1 axis 1: 5 of 5 indices, unit 0 at [0]"


def test_cut_equals_masked() -> None:
    weights = {"w1": normal(3, 5), "b1": normal(5), "w2": normal(5, 2)}
    graph, channels = analysed(MLP, **weights)
    kept = cut(graph, channels, {"first": np.asarray([1, 3])})
    assert {name: [None if k is None else k.tolist() for k in axes] for name, axes in kept.items()}[
        "w1"
    ] == [None, [0, 2, 4]]
    x = normal(4, 3)
    hidden = np.maximum(x @ weights["w1"] + weights["b1"], 0) * [1, 0, 1, 0, 1]
    assert np.allclose(answer(graph, x=x), hidden @ weights["w2"], atol=1e-5)
    assert [t.shape for t in graph.nodes[0].inputs[1:]] == [(3, 3), (3,)]


def test_a_residual_stream_is_one_group() -> None:
    _, channels = analysed(
        """net (float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y) {
            [stem] a = Conv (x, w0)  [inner] b = Conv (a, w1)  [outer] c = Conv (b, w2)
            [sum] d = Add (a, c)  [last] y = Conv (d, w3) }""",
        w0=normal(6, 3, 1, 1),
        w1=normal(4, 6, 1, 1),
        w2=normal(6, 4, 1, 1),
        w3=normal(2, 6, 1, 1),
    )
    assert {g.name: g.size for g in channels.groups} == {"stem": 6, "inner": 4}
    stem = channels.groups[0]
    assert set(touched(stem)) == {
        ("w0", 0),
        ("a", 1),
        ("w1", 1),
        ("w2", 0),
        ("c", 1),
        ("d", 1),
        ("w3", 1),
    }


ATTENTION = """attention (float[1, 5, 6] x) => (float[1, 5, 6] y) {
    [qkv] a = MatMul (x, w1)
    [split] b = Reshape (a, s1)
    [order] c = Transpose <perm = [2, 0, 3, 1, 4]> (b)
    q = Gather (c, zero)  k = Gather (c, one)  v = Gather (c, two)
    t = Transpose <perm = [0, 1, 3, 2]> (k)
    [scores] d = MatMul (q, t)  e = Softmax (d)
    [values] f = MatMul (e, v)
    g = Transpose <perm = [0, 2, 1, 3]> (f)
    h = Reshape (g, s2)
    [out] y = MatMul (h, w2) }"""


def attention(granularity: str, heads: int = 4) -> Channels:
    graph = graph_of(
        ATTENTION,
        w1=normal(6, 3 * heads * 8),
        w2=normal(heads * 8, 6),
        s1=np.asarray([1, 5, 3, heads, 8]),
        s2=np.asarray([1, 5, heads * 8]),
        zero=np.asarray(0),
        one=np.asarray(1),
        two=np.asarray(2),
    )
    infer_shapes(graph)
    return find_channels(graph, granularity)  # type: ignore[arg-type]


def test_heads_leave_with_their_queries_keys_and_values() -> None:
    (group,) = attention("head").groups
    assert (group.size, group.span) == (4, 24)
    assert touched(group)["w1", 1] == [*range(8), *range(32, 40), *range(64, 72)]
    assert touched(group)["w2", 0] == list(range(8))


def test_or_every_head_loses_the_same_width() -> None:
    (group,) = attention("head_dim").groups
    assert (group.size, group.span) == (8, 12)
    assert touched(group)["w1", 1] == list(range(0, 96, 8))
    assert touched(group)["w2", 0] == [0, 8, 16, 24]


@pytest.mark.parametrize("granularity", ["head", "head_dim"])
def test_groups_of_a_conv(granularity: str) -> None:
    weights = {"w0": normal(8, 3, 1, 1), "w1": normal(12, 2, 3, 3), "w2": normal(2, 12, 1, 1)}
    graph = graph_of(
        """net (float[1, 3, 8, 8] x) => (float[1, 2, 6, 6] y) {
            [stem] a = Conv (x, w0) [grouped] b = Conv <group = 4> (a, w1) [last] y = Conv (b, w2)
        }""",
        **weights,
    )
    infer_shapes(graph)
    channels = find_channels(graph, granularity)  # type: ignore[arg-type]
    first = channels.groups[0]
    spans = {"head": [3], "head_dim": [4, 4]}
    assert [g.span for g in channels.groups] == spans[granularity]
    cut(graph, channels, {first.name: np.asarray([1])})
    shapes = [tuple(node.inputs[1].shape[:2]) for node in graph.nodes]
    expected = {
        "head": ([(6, 3), (9, 2), (2, 9)], 3),
        "head_dim": ([(4, 3), (12, 1), (2, 12)], 4),
    }
    assert (shapes, graph.nodes[1].attrs["group"]) == expected[granularity]
    assert answer(graph, x=normal(1, 3, 8, 8)).shape == (1, 2, 6, 6)


def test_convs_that_share_their_input_shrink_by_the_same_factor() -> None:
    """One by its groups and the other within them would leave a single unit."""
    _, channels = analysed(
        """net (float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y) {
            [stem] a = Conv (x, w0)  [one] b = Conv <group = 8> (a, w1)
            [other] c = Conv <group = 8> (a, w2)  d = Add (b, c)  [last] y = Conv (d, w3) }""",
        w0=normal(48, 3, 1, 1),
        w1=normal(48, 6, 1, 1),
        w2=normal(48, 6, 1, 1),
        w3=normal(2, 48, 1, 1),
    )
    assert {(g.name, g.size, g.span) for g in channels.groups} == {("stem", 6, 8), ("one", 6, 8)}


def test_halves_of_a_split_and_their_join() -> None:
    graph, channels = analysed(
        """net (float[N, 3] x) => (float[N, 2] y) {
            a = MatMul (x, w1)  b, c = Split <axis = 1> (a, lengths)
            d = Relu (b)  e = Concat <axis = 1> (c, d)  y = MatMul (e, w2) }""",
        w1=normal(3, 10),
        w2=normal(10, 2),
        lengths=np.asarray([4, 6]),
    )
    assert sorted(group.size for group in channels.groups) == [4, 6]
    first = next(g for g in channels.groups if g.size == 4)
    assert touched(first)["w2", 0] == [6]
    cut(graph, channels, {first.name: np.asarray([0])})
    assert graph.nodes[1].inputs[1].values.tolist() == [3, 6]
    assert answer(graph, x=normal(2, 3)).shape == (2, 2)


def test_what_nobody_wrote_a_rule_for_stays_and_is_named() -> None:
    _, channels = analysed(
        """net (float[N, 3] x) => (float[N, 2] y) {
            a = MatMul (x, w1)  [odd] b = TopKLike (a)  y = MatMul (b, w2) }""",
        w1=normal(3, 10),
        w2=normal(10, 2),
    )
    assert channels.groups == ()
    assert channels.unknown["odd"] == "no rule for TopKLike"


def test_a_shuffle_ties_no_groups_together() -> None:
    graph, channels = analysed(
        """net (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) {
            [stem] a = Conv (x, w0)  b = Reshape (a, s1)  c = Transpose <perm = [0, 2, 1, 3, 4]> (b)
            d = Reshape (c, s2)  [last] y = Conv (d, w1) }""",
        w0=normal(6, 3, 1, 1),
        w1=normal(2, 6, 1, 1),
        s1=np.asarray([1, 2, 3, 4, 4]),
        s2=np.asarray([1, 6, 4, 4]),
    )
    (group,) = channels.groups
    assert (group.size, group.span) == (6, 1)
    cut(graph, channels, {group.name: np.asarray([1])})
    assert [node.op for node in graph.nodes] == ["Conv", "Gather", "Conv"]
    assert graph.nodes[1].inputs[1].values.tolist() == [0, 2, 3, 1, 4]


def test_equal_biases_tie_no_layers_together() -> None:
    _, channels = analysed(
        """net (float[N, 3] x) => (float[N, 2] y) {
            a = Gemm (x, w1, zero)  b = Relu (a)  c = Gemm (b, w2, zero)  y = MatMul (c, w3) }""",
        w1=normal(3, 4),
        w2=normal(4, 4),
        w3=normal(4, 2),
        zero=np.zeros(4, np.float32),
    )
    assert [group.size for group in channels.groups] == [4, 4]


def test_numbers_in_a_computed_target_of_a_reshape_follow_the_cut() -> None:
    """Two lengths are open, so no constant target can say [N, 4, 3, H, W]."""
    graph, channels = analysed(
        """m (float[N, 5, H, W] x) => (float[N, 2, P, Q] y) {
            a = Conv <strides = [2, 2]> (x, w1) s = Shape (a) space = Slice (s, two, four)
            t = Concat <axis = 0> (heads, space) h = Reshape (a, t) r = Relu (h)
            t2 = Concat <axis = 0> (joined, space) j = Reshape (r, t2) y = Conv (j, w2) }""",
        **{"w1": normal(12, 5, 3, 3), "w2": normal(2, 12, 1, 1), "two": np.array([2])},
        **{"four": np.array([4]), "heads": np.array([0, 4, 3]), "joined": np.array([0, 12])},
    )
    x = normal(2, 5, 7, 9)
    w1, w2 = (graph.tensors()[name].values for name in ("w1", "w2"))
    left = [i for i in range(12) if i not in (3, 4, 5)]
    alone = graph_of(
        """m (float[N, 5, H, W] x) => (float[N, 2, P, Q] y) {
            a = Conv <strides = [2, 2]> (x, w1) r = Relu (a) y = Conv (r, w2) }""",
        w1=w1[left],
        w2=w2[:, left],
    )
    (group,) = channels.groups

    cut(graph, channels, {group.name: np.array([1])})

    assert (group.size, group.span, channels.unknown) == (4, 3, {})
    np.testing.assert_allclose(answer(graph, x=x), answer(alone, x=x), rtol=1e-5, atol=1e-6)


def test_targets_computed_from_shapes_are_followed_without_simplifying_first() -> None:
    """As TorchScript writes x.view(n, 4, -1): inference does not see the last length."""
    graph, channels = analysed(
        """m (float[N, 5] x) => (float[N, 2] y) {
            a = MatMul (x, w1) s = Shape (a) n = Gather <axis = 0> (s, zero)
            t = Concat <axis = 0> (n, heads) h = Reshape (a, t) r = Relu (h)
            s2 = Shape (r) n2 = Gather <axis = 0> (s2, zero) t2 = Concat <axis = 0> (n2, flat)
            j = Reshape (r, t2) y = MatMul (j, w2) }""",
        **{"w1": normal(5, 12), "w2": normal(12, 2), "zero": np.array([0])},
        **{"heads": np.array([4, -1]), "flat": np.array([-1])},
    )
    x = normal(2, 5)
    w1, w2 = (graph.tensors()[name].values for name in ("w1", "w2"))

    (group,) = channels.groups
    cut(graph, channels, {group.name: np.array([1])})

    assert (group.size, group.span, channels.unknown) == (4, 3, {})
    expected = np.maximum(x @ np.delete(w1, [3, 4, 5], 1), 0) @ np.delete(w2, [3, 4, 5], 0)
    np.testing.assert_allclose(answer(graph, x=x), expected, rtol=1e-5, atol=1e-6)


def test_the_bias_of_a_fused_gelu_leaves_with_its_channels() -> None:
    graph, channels = analysed(
        """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        m (float[N, 3] x) => (float[N, 2] y) {
            a = MatMul (x, w1) g = com.microsoft.FastGelu (a, b) y = MatMul (g, w2) }""",
        **{"w1": normal(3, 6), "b": normal(6), "w2": normal(6, 2)},
    )
    (group,) = channels.groups
    assert ("b", 0) in touched(group)

    cut(graph, channels, {group.name: np.array([0, 4])})

    assert answer(graph, x=normal(5, 3)).shape == (5, 2)


BESIDE = """m (float[N, 3, H, W] x) => (float[N, 2, P, Q] y) {
    a = Conv (x, w1) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
    s = Shape (a) space = Slice (s, two, four) own = Shape (p) front = Slice (own, zero, two)
    t = Concat <axis = 0> (front, space) r = Resize <mode = "nearest"> (p, , , t)
    j = Concat <axis = 1> (a, r) y = Conv (j, w2) }"""
SIZES = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "four": np.array([4])}


def test_a_target_made_of_lengths_follows_the_cut_by_itself() -> None:
    weights = {"w1": normal(5, 3, 1, 1), "w2": normal(2, 10, 1, 1)}
    graph, channels = analysed(BESIDE, **weights, **SIZES)
    (group,) = channels.groups
    assert touched(group)["j", 1] == [0, 5]
    x = normal(2, 3, 4, 6)
    zeroed = {
        "w1": np.where(np.arange(5).reshape(5, 1, 1, 1) == 1, 0, weights["w1"]),
        "w2": np.where(np.arange(10).reshape(1, 10, 1, 1) % 5 == 1, 0, weights["w2"]),
    }
    expected = answer(graph_of(BESIDE, **zeroed, **SIZES), x=x)

    cut(graph, channels, {group.name: np.array([1])})

    np.testing.assert_allclose(answer(graph, x=x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "front",
    [
        "n = Slice (own, zero, one) front = Concat <axis = 0> (n, five)",
        "n = Slice (own, zero, one) c = Slice (own, one, two) "
        "d = Mul (c, one) front = Concat <axis = 0> (n, d)",
    ],
    ids=["a number in the target", "a length that is computed with"],
)
def test_a_target_that_holds_a_number_follows_the_cut(front: str) -> None:
    text = BESIDE.replace("front = Slice (own, zero, two)", front)
    weights = {"w1": normal(5, 3, 1, 1), "w2": normal(2, 10, 1, 1), "five": np.array([5])}
    graph, channels = analysed(text, **weights, **SIZES)
    x = normal(2, 3, 4, 6)
    (group,) = channels.groups

    cut(graph, channels, {group.name: np.array([1])})

    zeroed = {
        "w1": np.where(np.arange(5).reshape(5, 1, 1, 1) == 1, 0, weights["w1"]),
        "w2": np.where(np.arange(10).reshape(1, 10, 1, 1) % 5 == 1, 0, weights["w2"]),
    }
    expected = answer(graph_of(text, **zeroed, five=np.array([5]), **SIZES), x=x)
    np.testing.assert_allclose(answer(graph, x=x), expected, rtol=1e-5, atol=1e-6)


def test_states_that_are_filled_in_for_any_batch_shrink_with_a_recurrence() -> None:
    """As exporters write the first state of an LSTM: zeros [1, N, hidden]."""
    weights = {"w": normal(1, 16, 3), "r": normal(1, 16, 4), "out": normal(4, 2)}
    graph, channels = analysed(
        """m (float[T, N, 3] x) => (float[T, N, 2] y) {
            s = Shape (x) n = Slice (s, one, two) t = Concat <axis = 0> (one, n, four)
            h = ConstantOfShape (t) a, b, c = LSTM <hidden_size = 4> (x, w, r, , , h, h)
            d = Squeeze (a, one) y = MatMul (d, out) }""",
        **weights,
        **SIZES,
    )
    (group,) = channels.groups
    x = normal(5, 2, 3)

    cut(graph, channels, {group.name: np.array([2])})

    left = [0, 1, 3]
    gates = np.concatenate([np.asarray(left) + 4 * i for i in range(4)])
    alone = graph_of(
        """m (float[T, N, 3] x) => (float[T, N, 2] y) {
            a, b, c = LSTM <hidden_size = 3> (x, w, r) d = Squeeze (a, one)
            y = MatMul (d, out) }""",
        w=weights["w"][:, gates],
        r=weights["r"][:, gates][:, :, left],
        out=weights["out"][left],
        one=np.array([1]),
    )
    np.testing.assert_allclose(answer(graph, x=x), answer(alone, x=x), rtol=1e-5, atol=1e-6)


def test_groups_of_a_normalization_over_open_space_leave_whole() -> None:
    """As exporters write GroupNorm on images of any size: [N, 4, -1] and back."""
    weights = {"w1": normal(12, 3, 1, 1), "w2": normal(2, 12, 1, 1)}
    ones = {"scale": normal(4), "shift": normal(4), "rows": np.array([0, 4, -1])}
    graph, channels = analysed(
        """m (float[N, 3, H, W] x) => (float[N, 2, P, Q] y) {
            a = Conv (x, w1) b = Reshape (a, rows) c = InstanceNormalization (b, scale, shift)
            s = Shape (a) d = Reshape (c, s) y = Conv (d, w2) }""",
        **weights,
        **ones,
    )
    x = normal(2, 3, 4, 6)
    (group,) = channels.groups

    cut(graph, channels, {group.name: np.array([1])})

    assert (group.size, group.span, channels.unknown) == (4, 3, {})
    left = [0, 1, 2, 6, 7, 8, 9, 10, 11]
    alone = graph_of(
        """m (float[N, 3, 4, 6] x) => (float[N, 2, 4, 6] y) {
            a = Conv (x, w1) b = Reshape (a, rows) c = InstanceNormalization (b, scale, shift)
            d = Reshape (c, image) y = Conv (d, w2) }""",
        w1=weights["w1"][left],
        w2=weights["w2"][:, left],
        scale=ones["scale"][[0, 2, 3]],
        shift=ones["shift"][[0, 2, 3]],
        rows=np.array([0, 3, -1]),
        image=np.array([0, 9, 4, 6]),
    )
    np.testing.assert_allclose(answer(graph, x=x), answer(alone, x=x), rtol=1e-4, atol=1e-5)


def test_only_axes_that_are_repeated_a_computed_number_of_times_stay() -> None:
    """As exporters write a table of positions for any batch."""
    graph, channels = analysed(
        """m (float[N, 5, 3] x) => (float[N, 5, 2] y) {
            a = MatMul (x, w1) s = Shape (x) n = Slice (s, zero, one)
            t = Concat <axis = 0> (n, one, one) p = Tile (table, t) b = Add (a, p)
            y = MatMul (b, w2) }""",
        **{"w1": normal(3, 6), "table": normal(1, 5, 6), "w2": normal(6, 2)},
        **SIZES,
    )

    (group,) = channels.groups

    assert (group.size, channels.unknown) == (6, {})
    assert touched(group)["table", 2] == touched(group)["p", 2] == [0]
    cut(graph, channels, {group.name: np.array([4])})
    assert answer(graph, x=normal(2, 5, 3)).shape == (2, 5, 2)


@pytest.mark.parametrize("equation", ["...qhd,...khd->...hqk", "...qhd,...khd"])
def test_heads_in_an_einsum_with_an_ellipsis(equation: str) -> None:
    _, channels = analysed(
        f"""m (float[N, 5, 3] x) => (float[N, 5, 2] y) {{
            a = MatMul (x, w1) b = MatMul (x, w2) q = Reshape (a, heads) k = Reshape (b, heads)
            c = Einsum <equation = "{equation}"> (q, k) d = ReduceMean <axes = [-1]> (c)
            y = MatMul (x, w3) }}""",
        **{"w1": normal(3, 12), "w2": normal(3, 12), "w3": normal(3, 2)},
        heads=np.array([0, 0, 4, 3]),
    )

    assert channels.unknown == {}
