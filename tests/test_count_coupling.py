"""Heads and groups of a Conv lose as many channels each, but each its own."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masked_reference import masked_reference, pruned_shapes
from onnxcomp.channel_preparation import prepare
from onnxcomp.channels import ChannelGroup, find_channels
from onnxcomp.exporting import to_proto
from onnxcomp.importing import from_proto
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.prune_channels import PruneChannels
from onnxcomp.report import plain
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of, model_of

RNG = np.random.default_rng(0)
Values = np.ndarray[Any, Any]


def normal(*shape: int) -> Values:
    return RNG.standard_normal(shape).astype(np.float32)


def groups(text: str, granularity: str = "head_dim", **constants: Values) -> list[ChannelGroup]:
    graph = graph_of(text, **constants)
    infer_shapes(graph)
    prepare(graph)
    return list(find_channels(graph, granularity).groups)  # type: ignore[arg-type]


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """What is imported is used up."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin


def pruned(
    model: onnx.ModelProto, **options: Any
) -> tuple[onnx.ModelProto, dict[str, Values], list[dict[str, Any]]]:
    """The model, its constants by the names they had, and the report's list."""
    graph, report = from_proto(copied(model)), PassReport()
    context = PassContext(target=resolve_target(), original=graph.copy())
    PruneChannels(multiple=1, importance="l1", **options).rewrite(graph, context, report)
    result = to_proto(graph)
    constants = {
        tensor.name.removesuffix(".pruned"): numpy_helper.to_array(tensor)
        for tensor in result.graph.initializer
    }
    return result, constants, plain(report.removed)


def difference(
    model: onnx.ModelProto, result: onnx.ModelProto, removed: list[Any], x: Values
) -> float:
    """Of the pruned model's answer to the original's with what left zeroed."""
    answers = [
        open_session(from_proto(copied(m))).run({"x": x})[0]
        for m in (masked_reference(model, removed), result)
    ]
    assert np.abs(answers[0]).max() > 0.1
    return float(np.abs(answers[0] - answers[1]).max())


GROUPED = """net (float[1, 3, 6, 6] x) => (float[1, 2, 4, 4] y) {
    [stem] a = Conv (x, w0, b0)  r = Relu (a)
    [grouped] b = Conv <group = 2> (r, w1, b1)  s = Relu (b)
    [last] y = Conv (s, w2) }"""


def scaled(sizes: list[float], *shape: int) -> Values:
    """Rows whose l1 norms are as ``sizes``."""
    values = normal(len(sizes), *shape)
    norms = np.abs(values).reshape(len(sizes), -1).sum(axis=1)
    return np.asarray(
        values * (np.asarray(sizes) / norms).reshape(-1, *[1] * len(shape)), np.float32
    )


def grouped_model() -> onnx.ModelProto:
    """Channels 0 and 3 of the first group's four matter, 1 and 2 of the second's."""
    outer = scaled([9, 1, 1, 9, 1, 9, 9, 1], 3, 1, 1)
    inner = normal(6, 4, 3, 3)
    last = normal(2, 6, 1, 1)
    inner /= np.abs(inner).sum(axis=(0, 2, 3), keepdims=True)
    constants = {"w0": outer, "b0": normal(8) * 0.01, "w1": inner, "b1": normal(6), "w2": last}
    return model_of(GROUPED, **constants)


def test_each_group_of_a_conv_keeps_the_channels_that_matter_to_it() -> None:
    model = grouped_model()
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}

    result, left, removed = pruned(model, sparsity=0.5, overrides={"grouped": {"sparsity": 0.0}})

    assert np.array_equal(left["w0"], constants["w0"][[0, 3, 5, 6]])
    own = [constants["w1"][:3][:, [0, 3]], constants["w1"][3:][:, [1, 2]]]
    assert np.array_equal(left["w1"], np.concatenate(own))
    (entry,) = [e for e in removed if e["group"] == "stem"]
    assert (entry["units"], entry["removed_units"]) == (4, 2)
    places = {(p["tensor"], p["axis"]): p["indices"] for p in entry["places"]}
    assert places["w0", 0] == places["a", 1] == places["b0", 0] == [1, 2, 4, 7]
    (kernel,) = entry["by_head"]
    assert {k: kernel[k] for k in ("tensor", "axis", "along", "constant")} == {
        "tensor": "w1",
        "axis": 1,
        "along": 0,
        "constant": True,
    }
    assert kernel["heads"] == [0, 0, 0, 1, 1, 1]
    assert kernel["indices"] == [[1, 2], [0, 3]]
    assert difference(model, result, removed, normal(1, 3, 6, 6)) < 1e-5


def test_same_indices_in_all_groups_would_lose_more() -> None:
    model, x = grouped_model(), normal(1, 3, 6, 6)

    _, left, _ = pruned(model, sparsity=0.5, overrides={"grouped": {"sparsity": 0.0}})

    assert x.size
    assert np.abs(left["w0"]).sum() == pytest.approx(4 * 9, rel=1e-5)  # any same two: 2 * (9 + 1)


ATTENTION = """attention (float[1, 5, 6] x) => (float[1, 5, 6] y) {
    [queries] q0 = MatMul (x, wq)  q1 = Add (q0, bq)  q2 = Reshape (q1, split)
    k0 = MatMul (x, wk)  k2 = Reshape (k0, split)
    v0 = MatMul (x, wv)  v2 = Reshape (v0, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k = Transpose <perm = [0, 2, 3, 1]> (k2)
    v = Transpose <perm = [0, 2, 1, 3]> (v2)
    NORM
    d = MatMul (n, k)  e = Softmax (d)  f = MatMul (e, v)
    g = Transpose <perm = [0, 2, 1, 3]> (f)  h = Reshape (g, flat)
    y = MatMul (h, wo) }"""
PLAIN, SHARED = "n = Relu (q)", "n = Mul (q, scale)"


def attention(norm: str) -> tuple[str, dict[str, Values]]:
    constants = {
        **{name: normal(6, 8) for name in ("wq", "wk", "wv")},
        **{"bq": normal(8), "wo": normal(8, 6), "scale": normal(4)},
        **{"split": np.asarray([1, 5, 2, 4]), "flat": np.asarray([1, 5, 8])},
    }
    if norm != SHARED:
        del constants["scale"]
    return ATTENTION.replace("NORM", norm), constants


def test_each_head_keeps_its_own_width() -> None:
    text, constants = attention(PLAIN)
    constants["wq"] = scaled([9, 1, 9, 1, 1, 9, 1, 9], 6).T.copy()
    constants["wk"] = np.ones((6, 8), np.float32)
    model = model_of(text, **constants)

    result, left, removed = pruned(model, sparsity=0.5, granularity="head_dim")

    assert np.array_equal(left["wq"], constants["wq"][:, [0, 2, 5, 7]])
    assert np.array_equal(left["bq"], constants["bq"][[0, 2, 5, 7]])
    queries = next(e for e in removed if e["group"] == "queries")
    found = {(p["tensor"], p["axis"]): p for p in queries["by_head"]}
    assert found["q", 3]["along"] == 1
    assert found["q", 3]["indices"] == found["k", 2]["indices"] == [[1, 3], [0, 2]]
    assert pruned_shapes(model, removed)["k"] == (1, 2, 2, 5)
    assert difference(model, result, removed, normal(1, 5, 6)) < 1e-5


@pytest.mark.parametrize(
    ("norm", "heads"),
    [
        (PLAIN, [2, 2]),
        (SHARED, [1, 2]),  # one scale for all heads
        ("n = Sigmoid (q)", [2, 2]),  # the keys are zero where their weights are
        ("n = Exp (q)  o = Exp (k)", [1, 2]),  # neither is
        ("o = Softmax <axis = 1> (q)  n = Mul (o, q)", [1, 2]),  # heads meet
        ("n = Neg (q)  m = ReduceSum <keepdims = 1> (q, three)  n2 = Mul (n, m)", [2, 2]),
    ],
)
def test_what_ties_heads_together(norm: str, heads: list[int]) -> None:
    text, constants = attention(norm)
    if "three" in norm:
        constants["three"] = np.asarray([3])
        text = text.replace("MatMul (n, k)", "MatMul (n2, k)")
    elif "Exp" in norm:
        text = text.replace("MatMul (n, k)", "MatMul (n, o)")

    found = groups(text, **constants)

    assert [(group.size, group.heads) for group in found] == [(4, count) for count in heads]


def test_attention_between_the_heads_of_an_axis_ties_their_widths() -> None:
    """Two tensors with the same axes, of which one head meets every other."""
    text = """net (float[2, 6] x) => (float[2, 3, 3] y) {
        a = MatMul (x, w)  b = Reshape (a, split)
        t = Transpose <perm = [0, 2, 1]> (b)  y = MatMul (b, t) }"""

    (group,) = groups(text, w=normal(6, 12), split=np.asarray([2, 3, 4]))

    assert (group.size, group.heads) == (4, 1)


def test_groups_that_cross_each_other_couple_their_channels() -> None:
    """As in ShuffleNet: a channel's place in its group is another before the shuffle."""
    text = """net (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) {
        [stem] a = Conv (x, w0) b = Conv <group = 2> (a, w1) c = Reshape (b, apart)
        d = Transpose <perm = [0, 2, 1, 3, 4]> (c) e = Reshape (d, joined)
        f = Conv <group = 2> (e, w2) y = Conv (f, w3) }"""
    constants = {
        **{"w0": normal(8, 3, 1, 1), "w1": normal(8, 4, 1, 1), "w2": normal(8, 4, 1, 1)},
        **{"w3": normal(2, 8, 1, 1), "apart": np.asarray([1, 2, 4, 4, 4])},
        "joined": np.asarray([1, 8, 4, 4]),
    }
    model = model_of(text, **constants)

    found = {group.name: (group.size, group.heads) for group in groups(text, **constants)}
    result, _, removed = pruned(model, sparsity=0.5)

    assert found["stem"] == (4, 2)
    assert difference(model, result, removed, normal(1, 3, 4, 4)) < 1e-5


def test_a_stream_of_many_grouped_convs_is_analysed_in_linear_memory() -> None:
    def peak_bytes(count: int) -> int:
        steps = [
            f"b{i} = Conv <group = 8> (a{i}, g{i}) a{i + 1} = Add (a{i}, b{i})"
            for i in range(count)
        ]
        weights = {f"g{i}": np.zeros((48, 6, 1, 1), np.float32) for i in range(count)}
        ends = {"w": np.zeros((48, 3, 1, 1), np.float32), "v": np.zeros((2, 48, 1, 1), np.float32)}
        text = " ".join(["a0 = Conv (x, w)", *steps, f"y = Conv (a{count}, v)"])
        graph = graph_of(
            f"m (float[1,3,8,8] x) => (float[1,2,8,8] y) {{ {text} }}", **ends, **weights
        )
        infer_shapes(graph)
        tracemalloc.start()
        found = find_channels(graph)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [group.size for group in found.groups] == [6]
        return peak

    assert peak_bytes(160) < 6 * peak_bytes(40)
