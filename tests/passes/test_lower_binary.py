"""lower_binary: the answers of the float graph, to the bit, and what is left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxcomp
from onnxcomp.importing import from_proto
from onnxcomp.kernels.reference_binary import unpack_signs
from onnxcomp.model import check_graph, graph_bytes
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.lower_binary import LowerBinary
from onnxcomp.quantization import Array
from onnxcomp.recipe import Recipe
from onnxcomp.runtime import open_file, open_session
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

MODELS = Path(__file__).resolve().parent.parent.parent / "models"


def signs(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), shape)


def lower(graph: gs.Graph, **options: Any) -> PassReport:
    report = PassReport()
    context = PassContext(target=resolve_target("auto"))
    LowerBinary(**options).rewrite(graph, context, report)
    check_graph(graph)
    return report


def operators(graph: gs.Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes)


def assert_same(before: gs.Graph, after: gs.Graph, x: Array) -> None:
    feed = {before.inputs[0].name: x}
    one, other = open_session(before, threads=1), open_session(after, threads=1)
    for expected, found in zip(one.run(feed), other.run(feed), strict=True):
        np.testing.assert_array_equal(found, expected)


# Conv, norm, a sign by comparing, pooling, another Conv, and a classifier, in one chain.
CHAIN = """chain (float[N, 3, 12, 12] x) => (float[N, 10] y) {{
    [stem] a = Conv <pads = [1, 1, 1, 1]> (x, stem_w)
    [above] a_up = {compare} (a, stem_t)
    [stem_sign] a_sign = Where (a_up, {high}, {low})
    [first] b = Conv <pads = [1, 1, 1, 1], strides = [1, 2]> (a_sign, first_w)
    [norm] b_norm = BatchNormalization (b, scale, shift, mean, variance)
    [norm_up] b_up = GreaterOrEqual (b_norm, zero)
    [norm_sign] b_sign = Where (b_up, one, minus)
    [pool] c = MaxPool <kernel_shape = [2, 2], strides = [2, 1]> (b_sign)
    [second] d = Conv (c, second_w)
    [shifted] d_shift = Sub (d, middle)
    [second_sign] d_sign = Sign (d_shift)
    [flat] e = Flatten (d_sign)
    [third] f = MatMul (e, third_w)
    [third_up] f_up = Less (third_t, f)
    [third_sign] f_sign = Where (f_up, one, minus)
    [classify] y = Gemm <transB = 1> (f_sign, class_w, class_b)
}}"""


def chain(compare: str = "Greater", high: str = "one", low: str = "minus") -> gs.Graph:
    rng = np.random.default_rng(3)
    return graph_of(
        CHAIN.format(compare=compare, high=high, low=low),
        stem_w=rng.standard_normal((70, 3, 3, 3)).astype(np.float32),
        stem_t=rng.standard_normal((1, 70, 1, 1)).astype(np.float32),
        first_w=signs(40, 70, 3, 3),
        scale=rng.standard_normal(40).astype(np.float32),  # of either sign
        shift=rng.standard_normal(40).astype(np.float32),
        mean=4 * rng.standard_normal(40).astype(np.float32),
        variance=np.abs(rng.standard_normal(40)).astype(np.float32) + 1,
        second_w=0.25 * signs(65, 40, 3, 3, seed=1),
        middle=rng.standard_normal((65, 1, 1)).astype(np.float32) / 7,
        third_w=signs(65 * 4 * 3, 33, seed=2),
        third_t=rng.integers(-9, 9, 33).astype(np.float32),
        class_w=2 * signs(10, 33, seed=3),
        class_b=np.arange(10, dtype=np.float32),
        zero=np.float32(0),
        one=np.float32(1),
        minus=np.float32(-1),
    )


@pytest.mark.parametrize("compare", ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
@pytest.mark.parametrize(("high", "low"), [("one", "minus"), ("minus", "one")])
def test_a_whole_chain_passes_bits(compare: str, high: str, low: str) -> None:
    before, graph = chain(compare, high, low), chain(compare, high, low)
    report = lower(graph)
    assert report.changed == ["first", "second", "third", "classify"]
    assert report.skipped == {}
    assert operators(graph) == {
        "Conv": 1,
        "PackSigns": 1,
        "BinaryConvSigns": 2,
        "BinaryMaxPool": 1,
        "Flatten": 1,
        "BinaryGemmSigns": 1,
        "BinaryGemm": 1,
    }
    assert report.numbers == {"layers_that_give_bits": 3}
    x = np.random.default_rng(5).standard_normal((3, 3, 12, 12)).astype(np.float32)
    assert_same(before, graph, x)


TWO = """two (float[N, 64, 6, 6] x) => (float[N, 8, H, W] y, float[N, 64, 6, 6] z) {
    up = GreaterOrEqual (x, zero)
    s = Where (up, one, minus)
    [first] a = Conv <pads = [1, 1, 1, 1]> (s, w)
    [bias] b = Add (a, shift)
    b_up = Greater (b, zero)
    b_sign = Where (b_up, one, minus)
    [second] y = Conv <auto_pad = "%s", pads = [0, 1, 0, 1]> (b_sign, v)
    [residual] z = Add (%s, x)
}"""


def two(read: str, auto_pad: str = "NOTSET") -> gs.Graph:
    text = TWO % (auto_pad, read)
    if auto_pad != "NOTSET":
        text = text.replace(", pads = [0, 1, 0, 1]", "")
    return graph_of(
        text,
        w=signs(64, 64, 3, 3),
        v=signs(8, 64, 3, 3, seed=1),
        shift=np.arange(-32, 32, dtype=np.float32).reshape(64, 1, 1) + np.float32(0.5),
        zero=np.float32(0),
        one=np.float32(1),
        minus=np.float32(-1),
    )


@pytest.mark.parametrize(
    ("read", "first"),
    [
        ("x", "BinaryConvSigns"),
        ("a", "BinaryConv"),  # the sums themselves
        ("b", "BinaryConv"),
        ("b_sign", "BinaryConv"),  # signs, as floats
    ],
)
def test_what_others_read_too_stays_float(read: str, first: str) -> None:
    before, graph = two(read), two(read)
    report = lower(graph)
    assert report.changed == ["first", "second"]
    assert next(node for node in graph.nodes if node.name == "first").op == first
    assert operators(graph)["PackSigns"] == (1 if first == "BinaryConvSigns" else 2)
    x = np.random.default_rng(5).standard_normal((2, 64, 6, 6)).astype(np.float32)
    assert_same(before, graph, x)


def test_layers_left_alone_have_a_reason() -> None:
    graph = two("x", auto_pad="SAME_UPPER")
    report = lower(graph, overrides={"first": {"skip": True}})
    assert report.skipped == {
        "first": "the recipe says so",
        "second": "auto_pad is SAME_UPPER: pads have to be written out",
    }
    assert "Conv" in operators(graph)
    assert not [node for node in graph.nodes if node.domain == "onnxcomp"]

    floats = graph_of(
        "m (float[N, 9] x) => (float[N, 4] y) { [one] r = Relu (x) [layer] y = MatMul (r, w) }",
        w=signs(9, 4),
    )
    assert lower(floats).skipped == {"layer": "its input is not made of signs"}


@pytest.mark.parametrize("zero", ["refuse", "positive", "negative"])
def test_sign_of_floats_is_taken_as_told(zero: str) -> None:
    def model() -> gs.Graph:
        return graph_of(
            "m (float[N, 9] x) => (float[N, 4] y) { [s] r = Sign (x) [layer] y = MatMul (r, w) }",
            w=signs(9, 4),
        )

    graph = model()
    report = lower(graph, sign_of_zero=zero)
    if zero == "refuse":
        assert report.skipped == {
            "layer": "s makes 0 of a 0, which no bit stands for: it reads floats"
        }
        return
    x = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
    assert_same(model(), graph, x)
    zeros = open_session(graph).run({"x": np.zeros((1, 9), np.float32)})[0]
    sign = 1 if zero == "positive" else -1
    np.testing.assert_array_equal(zeros, sign * signs(9, 4).sum(axis=0, keepdims=True))


def test_sign_of_sums_that_can_be_zero_is_refused() -> None:
    graph = graph_of(
        """m (float[N, 8] x) => (float[N, 2] y) {
            up = Greater (x, t) s = Where (up, t, minus)
            [first] a = MatMul (s, w) [sign] b = Sign (a) [second] y = MatMul (b, v) }""",
        w=signs(8, 4),
        v=signs(4, 2),
        t=np.float32(1),
        minus=np.float32(-1),
    )
    report = lower(graph)
    assert report.changed == ["first"]
    assert "a sum can be 0, which has no sign" in report.skipped["second"]


@given(
    seed=st.integers(0, 2**32),
    channels=st.sampled_from([3, 64, 65]),
    middle=st.sampled_from([1, 64, 70]),
    pad=st.integers(0, 1),
    size=st.integers(3, 6),
    scale=st.sampled_from([1.0, 0.5]),
    with_bias=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_two_convolutions_of_any_shape_answer_alike(
    seed: int, channels: int, middle: int, pad: int, size: int, scale: float, with_bias: bool
) -> None:
    rng = np.random.default_rng(seed)
    bias = rng.integers(-9, 9, middle).astype(np.float32) / 2
    constants = {
        "w": scale * signs(middle, channels, 3, 3, seed=seed),
        "v": signs(5, middle, 1, 1, seed=seed + 1),
        "t": rng.integers(-5, 5, (middle, 1, 1)).astype(np.float32) + np.float32(0.26),
        "zero": np.float32(0),
        "one": np.float32(1),
        "minus": np.float32(-1),
    }
    if with_bias:
        constants["bias"] = bias
    text = f"""m (float[N, {channels}, H, W] x) => (float[N, 5, H, W] y) {{
        up = GreaterOrEqual (x, zero) s = Where (up, one, minus)
        a = Conv <pads = [{pad}, 0, 0, {pad}]> (s, w{", bias" if with_bias else ""})
        b = Greater (a, t) c = Where (b, one, minus)
        [last] y = Conv <pads = [1, 1, 1, 1]> (c, v) }}"""
    before, graph = graph_of(text, **constants), graph_of(text, **constants)
    lower(graph)
    assert operators(graph) == {"PackSigns": 1, "BinaryConvSigns": 1, "BinaryConv": 1}
    x = rng.standard_normal((2, channels, size, size + 1)).astype(np.float32)
    assert_same(before, graph, x)


def test_thresholds_and_weights_are_stored_as_documented() -> None:
    graph = chain()
    lower(graph)
    first = next(node for node in graph.nodes if node.name == "first")
    assert first.inputs[1].name == "first_w.bits"
    assert first.inputs[2].name == "first_w.thresholds"
    stored = unpack_signs(first.inputs[1].values.transpose(0, 2, 1), 70)
    negated = chain().tensors()["scale"].values < 0
    expected = np.where(negated[:, None, None, None], -1, 1) * signs(40, 70, 3, 3)
    np.testing.assert_array_equal(stored, expected.reshape(40, 70, 9))


@pytest.mark.parametrize(("zero", "layers"), [("refuse", 2), ("positive", 3)])
def test_digits_answer_alike_and_pay(zero: Any, layers: int, tmp_path: Path) -> None:
    recipe = Recipe(passes=(LowerBinary(sign_of_zero=zero),))
    output = tmp_path / "bits.onnx"
    result = onnxcomp.optimize(MODELS / "digits_bnn.onnx", recipe, output=output)
    (outcome,) = result.report.passes
    assert outcome.status == "kept"
    assert len(outcome.changed) == layers
    images = np.load(MODELS / "digits_test.npz")["input"]
    expected = open_file(MODELS / "digits_bnn.onnx").run({"input": images})[0]
    np.testing.assert_array_equal(open_file(output).run({"input": images})[0], expected)
    if zero == "positive":
        assert 20 * output.stat().st_size < (MODELS / "digits_bnn.onnx").stat().st_size


@pytest.mark.parametrize(("name", "layers"), [("CNV_1W1A_cifar10", 8), ("TFC_1W1A", 4)])
def test_trained_networks_give_every_image_its_class(
    shared: Path, kit: ModuleType, name: str, layers: int
) -> None:
    path = shared / "kit" / "models" / f"{name}.onnx"
    graph = from_proto(onnx.load(path))
    assert len(lower(graph).changed) == layers
    assert 20 * graph_bytes(graph) < path.stat().st_size
    one, other = open_file(path, threads=1), open_session(graph, threads=1)
    assert kit.agreement(one.inner, other.inner, name)["value"] == 100.0
