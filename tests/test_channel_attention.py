"""Channels through operators of attention, cut against zeroed weights."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.channel_preparation import prepare
from onnxcomp.channels import Channels, find_channels
from onnxcomp.cutting import cut
from onnxcomp.graph import sort_nodes
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.testing import graph_of

RNG = np.random.default_rng(0)
TEXT = """<ir_version: 10, opset_import: ["" : 23]>
m (float[N, S, 6] x) => (float[N, S, 2] y) {{
    a = MatMul (x, wq) b = MatMul (x, wk) c = MatMul (x, wv)
    q0 = Reshape (a, split) k0 = Reshape (b, split) v0 = Reshape (c, split)
    q1 = Transpose <perm = [0, 2, 1, 3]> (q0) k = Transpose <perm = [0, 2, 1, 3]> (k0)
    v = Transpose <perm = [0, 2, 1, 3]> (v0)
    {turn}
    o = Attention <is_causal = 1{scale}> (q, k, v) p = Transpose <perm = [0, 2, 1, 3]> (o)
    j = Reshape (p, joined) y = MatMul (j, wo) }}"""


def weights() -> dict[str, np.ndarray]:
    shapes = {"wq": (6, 32), "wk": (6, 32), "wv": (6, 32), "wo": (32, 2)}
    return {k: RNG.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}


def made(scale: str = "", turn: str = "q = Identity (q1)", **values: np.ndarray) -> gs.Graph:
    return graph_of(
        TEXT.format(scale=scale, turn=turn),
        split=np.array([0, 0, 4, 8]),
        joined=np.array([0, 0, 32]),
        **values,
    )


def analysed(graph: gs.Graph, granularity: str = "auto") -> Channels:
    infer_shapes(graph)
    prepare(graph)
    sort_nodes(graph)
    return find_channels(graph, granularity)  # type: ignore[arg-type]


def check(values: dict[str, np.ndarray], granularity: str, **options: str) -> None:
    """Cuts unit 1 of every group and compares with weights zeroed at its places."""
    graph = made(**options, **values)
    channels = analysed(graph, granularity)
    zeroed = {name: value.copy() for name, value in values.items()}
    for place in (place for group in channels.groups for place in group.places):
        if place.tensor in zeroed:
            gone = (slice(None),) * place.axis + (place.units == 1,)
            zeroed[place.tensor][gone] = 0
    x = RNG.standard_normal((2, 5, 6)).astype(np.float32)
    (expected,) = open_session(made(**options, **zeroed)).run({"x": x})

    cut(graph, channels, {group.name: np.array([1]) for group in channels.groups})

    (found,) = open_session(graph).run({"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_heads_of_an_attention_leave_whole() -> None:
    channels = analysed(made(**weights()), "head")

    (group,) = channels.groups
    assert (group.size, group.span, channels.unknown) == (4, 8, {})
    check(weights(), "head")


def test_the_width_of_values_is_free_and_that_of_queries_where_the_scale_is_given() -> None:
    values = weights()
    plain = analysed(made(**values), "head_dim").groups
    scaled = analysed(made(scale=", scale = 0.3", **values), "head_dim").groups

    assert [group.places[0].tensor for group in plain] == ["wv"]
    assert [group.places[0].tensor for group in scaled] == ["wq", "wv"]
    check(values, "head_dim")
    check(values, "head_dim", scale=", scale = 0.3")


def test_a_rotary_embedding_keeps_its_width_and_frees_its_heads() -> None:
    tables = {k: RNG.standard_normal((9, 4)).astype(np.float32) for k in ("cosine", "sine")}
    turn = """s = Shape <start = 1, end = 2> (x) r = Squeeze (s) n = Range (zero, r, one)
        i = Unsqueeze (n, first) z = Expand (i, both)
        q = RotaryEmbedding (q1, cosine, sine, z)"""
    numbers = {"zero": np.array(0), "one": np.array(1), "first": np.array([0])}
    values = weights() | tables | numbers | {"both": np.array([2, 1])}

    (group,) = analysed(made(turn=turn, **values)).groups

    assert group.size == 4
    check(values, "head", turn=turn)


@pytest.mark.parametrize(
    ("made_by", "unknown"),
    [
        ("t = Trilu (a) y = MatMul (t, w2)", []),
        ("i = NonZero (x) t = Neg (a) y = MatMul (t, w2)", []),
    ],
)
def test_masks_have_rules(made_by: str, unknown: list[str]) -> None:
    graph = graph_of(
        f"m (float[4, 3] x) => (float[4, 2] y) {{ a = MatMul (x, w1) {made_by} }}",
        w1=np.ones((3, 6), np.float32),
        w2=np.ones((6, 2), np.float32),
    )

    assert list(analysed(graph).unknown) == unknown
