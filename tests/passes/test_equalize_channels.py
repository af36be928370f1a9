"""Equalization is exact in float, whatever the factors, and makes quantizing lose less."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.calibration import Calibration
from onnxcomp.equalizing import KEPT_VALUES, ChannelValues
from onnxcomp.graph import Names, label
from onnxcomp.importing import from_proto
from onnxcomp.model import check_graph
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.equalize_channels import EqualizeChannels
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.rescaling import rescale
from onnxcomp.runtime import Feed, open_session
from onnxcomp.scale_groups import ScaleGroups, find_groups
from onnxcomp.shapes import infer_shapes
from onnxcomp.targets import resolve_target
from onnxcomp.testing import assert_same_answers, graph_of

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def groups_of(graph: gs.Graph) -> ScaleGroups:
    infer_shapes(graph)
    return find_groups(graph)


def scaled_at_random(graph: gs.Graph, seed: int = 0) -> tuple[gs.Graph, ScaleGroups]:
    """A copy with a random power of two for every free class."""
    twin = graph.copy()
    groups = groups_of(twin)
    powers = 2.0 ** np.random.default_rng(seed).integers(-3, 4, groups.count)
    free = groups.is_free(np.arange(groups.count))
    rescale(groups.ports, np.where(free, powers, 1.0), Names(twin))
    check_graph(twin)
    return twin, groups


def free_inputs(groups: ScaleGroups) -> list[str]:
    """Labels of the nodes that may read scaled channels."""
    ports = [p for p in groups.ports if p.reads is not None and groups.is_free(p.reads).any()]
    return [label(p.node) for p in ports]


# What a graph computes, its constants, and the nodes whose inputs may be scaled.
CASES: dict[str, tuple[str, dict[str, Array], list[str]]] = {
    "relu": (
        """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
            [one] a = Conv (x, w1, b1)  b = Relu (a)  [two] y = Conv (b, w2) }""",
        {"w1": normal(6, 3, 1, 1), "b1": normal(6), "w2": normal(4, 6, 1, 1)},
        ["two"],
    ),
    "residual": (
        """g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) {
            [stem] a = Conv (x, w1, b1)  b = Relu (a)
            [inner] c = Conv <pads = [1, 1, 1, 1]> (b, w2)  d = Add (c, b)  e = Relu (d)
            [tail] y = Conv (e, w3) }""",
        {
            "w1": normal(6, 3, 1, 1),
            "b1": normal(6),
            "w2": normal(6, 6, 3, 3),
            "w3": normal(2, 6, 1, 1),
        },
        ["inner", "tail"],
    ),
    "concat and split": (
        """g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) {
            [one] a = Conv (x, w1)  b = LeakyRelu (a)  [two] c = Conv (x, w2)
            d = Concat <axis = 1> (b, c)
            e = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (d)
            f, h = Split <axis = 1> (e, cut)  [left] i = Conv (f, w3)  [right] j = Conv (h, w4)
            y = Add (i, j) }""",
        {
            "w1": normal(4, 3, 1, 1),
            "w2": normal(2, 3, 1, 1, seed=1),
            "cut": np.array([3, 3]),
            "w3": normal(2, 3, 1, 1, seed=2),
            "w4": normal(2, 3, 1, 1, seed=3),
        },
        ["left", "right"],
    ),
    "depthwise and grouped": (
        """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
            [one] a = Conv (x, w1)  b = Relu (a)
            [depth] c = Conv <group = 4, pads = [1, 1, 1, 1]> (b, w2, b2)  d = Relu (c)
            [grouped] e = Conv <group = 2> (d, w3)
            [last] y = Conv (e, w4) }""",
        {
            "w1": normal(4, 3, 1, 1),
            "w2": normal(8, 1, 3, 3),
            "b2": normal(8),
            "w3": normal(6, 4, 1, 1),
            "w4": normal(4, 6, 1, 1),
        },
        ["depth", "grouped", "last"],
    ),
    "flatten to Gemm": (
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            [one] a = Conv <strides = [4, 4]> (x, w1, b1)  b = Relu (a)  c = Flatten (b)
            [two] d = Gemm <transB = 1> (c, w2, b2)  e = PRelu (d, slope)
            [three] f = MatMul (e, w3)  [bias] y = Add (f, b3) }""",
        {
            "w1": normal(4, 3, 1, 1),
            "b1": normal(4),
            "w2": normal(7, 16),
            "b2": normal(7),
            "slope": normal(7),
            "w3": normal(7, 5),
            "b3": normal(5),
        },
        ["two", "three"],
    ),
    "pooled, transposed convolution": (
        """g (float[N, 3, 8, 8] x) => (float[N, 2, h, v] y) {
            [one] a = Conv (x, w1)
            b = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (a)
            [up] c = ConvTranspose <strides = [2, 2], group = 2> (b, w2, b2)
            [last] y = Conv (c, w3) }""",
        {
            "w1": normal(4, 3, 1, 1),
            "w2": normal(4, 3, 2, 2),
            "b2": normal(6),
            "w3": normal(2, 6, 1, 1),
        },
        ["up", "last"],
    ),
    "shortcut that pads channels": (
        """g (float[N, 3, 8, 8] x) => (float[N, 2, 4, 4] y) {
            [one] a = Conv (x, w1)  b = Relu (a)
            c = Slice (b, starts, ends, axes, steps)  d = Pad (c, pads, zero)
            [inner] e = Conv <strides = [2, 2]> (b, w2)
            f = Add (d, e)  [last] y = Conv (f, w3) }""",
        {
            "w1": normal(3, 3, 1, 1),
            "w2": normal(5, 3, 1, 1),
            "w3": normal(2, 5, 1, 1),
            "starts": np.array([0, 0]),
            "ends": np.array([99, 99]),
            "axes": np.array([2, 3]),
            "steps": np.array([2, 2]),
            "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0]),
            "zero": np.zeros((), np.float32),
        },
        ["inner", "last"],
    ),
    "normalization before several readers": (
        """g (float[N, 4, 6] x) => (float[N, 4, 6] y) {
            a = LayerNormalization (x, gamma, beta)
            [one] b = MatMul (a, w1)  [two] c = MatMul (a, w2)  d = Mul (b, c)  y = Add (d, x) }""",
        {
            "gamma": normal(6),
            "beta": normal(6, seed=1),
            "w1": normal(6, 6),
            "w2": normal(6, 6, seed=1),
        },
        ["one", "two"],
    ),
    "normalization written out": (
        """g (float[N, 4, 6] x) => (float[N, 4, 5] y) {
            m = ReduceMean <axes = [-1]> (x)  c = Sub (x, m)  s = Mul (c, c)
            v = ReduceMean <axes = [-1]> (s)  r = Sqrt (v)  n = Div (c, r)
            h = Mul (n, gamma)  k = Add (h, beta)  [one] y = MatMul (k, w) }""",
        {"gamma": normal(6), "beta": normal(6, seed=1), "w": normal(6, 5)},
        ["one"],
    ),
    "values of attention": (
        """g (float[N, 4, 6] x) => (float[N, 4, 6] y) {
            [v] a = MatMul (x, wv)  b = Reshape (a, heads)  c = Transpose <perm = [0, 2, 1, 3]> (b)
            [q] q = MatMul (x, wq)  t = Transpose <perm = [0, 2, 1]> (q)
            s = MatMul (q, t)  p = Softmax (s)  u = Unsqueeze (p, at)
            d = MatMul (u, c)  e = Transpose <perm = [0, 2, 1, 3]> (d)  f = Reshape (e, flat)
            [o] y = MatMul (f, wo) }""",
        {
            "wv": normal(6, 6),
            "wq": normal(6, 6, seed=1),
            "wo": normal(6, 6, seed=2),
            "heads": np.array([0, 4, 2, 3]),
            "flat": np.array([0, 4, 6]),
            "at": np.array([1]),
        },
        ["o"],
    ),
    "gates and statistics": (
        """g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) {
            [one] a = Conv (x, w1)
            n = BatchNormalization (a, scale, shift, mean, variance)  b = Relu (n)
            p = GlobalAveragePool (b)  [squeeze] q = Conv (p, w2)  r = Relu (q)
            [excite] s = Conv (r, w3)  t = Sigmoid (s)  u = Mul (t, b)
            [last] y = Conv (u, w4) }""",
        {
            "w1": normal(4, 3, 1, 1),
            "scale": normal(4),
            "shift": normal(4, seed=1),
            "mean": normal(4, seed=2),
            "variance": np.abs(normal(4, seed=3)) + 1,
            "w2": normal(2, 4, 1, 1),
            "w3": normal(4, 2, 1, 1),
            "w4": normal(2, 4, 1, 1),
        },
        ["BatchNormalization:n", "squeeze", "excite", "last"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_any_factors_that_are_powers_of_two_change_no_bit(name: str) -> None:
    text, constants, readers = CASES[name]
    graph = graph_of(text, **constants)
    scaled, groups = scaled_at_random(graph)
    assert free_inputs(groups) == readers
    before, after = (
        {t.name for n in g.nodes for t in n.inputs if isinstance(t, gs.Constant)}
        for g in (graph, scaled)
    )
    assert before != after
    assert_same_answers(graph, scaled)


LAYERS = st.sampled_from(["conv", "depthwise", "grouped", "relu", "pool", "add", "concat", "mul"])


@settings(max_examples=25, deadline=None)
@given(st.lists(LAYERS, min_size=2, max_size=7), st.integers(0, 9))
def test_random_networks_compute_the_same(steps: list[str], seed: int) -> None:
    """Every step reads the last tensor and, where it needs two, an earlier one of equal width."""
    rng = np.random.default_rng(seed)
    lines, constants = ["t0 = Conv (x, w0)"], {"w0": normal(4, 3, 1, 1)}
    widths = [4]
    for index, step in enumerate(steps, 1):
        last, width = f"t{index - 1}", widths[-1]
        alike = [i for i, other in enumerate(widths) if other == width]
        partner, weights = f"t{alike[rng.integers(len(alike))]}", f"w{index}"
        made = width
        if step in ("conv", "depthwise", "grouped"):
            group = {"conv": 1, "depthwise": width, "grouped": 2}[step]
            constants[weights] = normal(width, width // group, 1, 1, seed=index)
            lines.append(f"t{index} = Conv <group = {group}> ({last}, {weights})")
        elif step == "concat" and width < 16:
            made = 2 * width
            lines.append(f"t{index} = Concat <axis = 1> ({last}, {partner})")
        elif step == "mul":
            constants[weights] = normal(width, 1, 1, seed=index)
            lines.append(f"t{index} = Mul ({last}, {weights})")
        elif step == "add":
            lines.append(f"t{index} = Add ({last}, {partner})")
        else:
            operator = "MaxPool <kernel_shape = [1, 1]>" if step == "pool" else "Relu"
            lines.append(f"t{index} = {operator} ({last})")
        widths.append(made)
    constants["tail"] = normal(2, widths[-1], 1, 1)
    body = "\n".join([*lines, f"y = Conv (t{len(steps)}, tail)"])
    graph = graph_of(f"g (float[N, 3, 2, 2] x) => (float[N, 2, 2, 2] y) {{ {body} }}", **constants)
    scaled, groups = scaled_at_random(graph, seed)
    assert groups.members
    assert_same_answers(graph, scaled, min_sqnr_db=120)


# --- what is left alone ---------------------------------------------------------------------------

PAIR = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
    [one] a = Conv (x, w1)  b = %s  [two] y = Conv (b, w2) }"""


def run_pass(graph: gs.Graph, feeds: list[Feed] | None = None, **options: Any) -> PassReport:
    report = PassReport()
    calibration = None if feeds is None else Calibration.from_source(feeds, graph)
    context = PassContext(target=resolve_target("x86-vnni"), calibration=calibration)
    EqualizeChannels(**options).rewrite(graph, context, report)
    check_graph(graph)
    return report


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        ("Clip (a, low, high)", "Clip decides its scale"),
        ("Sigmoid (a)", "Sigmoid decides its scale"),
        ("HardSwish (a)", "HardSwish decides its scale"),
        ("PRelu (a, a)", "it is a parameter of PRelu"),
    ],
)
def test_operators_that_are_not_homogeneous_keep_their_scale(operator: str, reason: str) -> None:
    graph = graph_of(
        PAIR % operator,
        w1=normal(4, 3, 1, 1),
        w2=normal(4, 4, 1, 1),
        low=np.float32(0),
        high=np.float32(6),
    )
    report = run_pass(graph)
    assert report.changed == []
    assert reason in report.skipped["two"]
    assert "it is an input of the model" in report.skipped["one"]


def test_tied_weights_are_left_alone() -> None:
    text = PAIR.replace("w2", "w1").replace("[N, 3,", "[N, 4,")
    report = run_pass(graph_of(text % "Relu (a)", w1=normal(4, 4, 1, 1)))
    assert report.changed == []
    assert "another node reads its weights" in report.skipped["two"]


def test_a_tensor_that_is_also_an_output_keeps_its_scale() -> None:
    text = (PAIR % "Relu (a)").replace("y)", "y, float[N, 4, 8, 8] b)", 1)
    report = run_pass(graph_of(text, w1=normal(4, 3, 1, 1), w2=normal(4, 4, 1, 1)))
    assert report.changed == []
    assert "it is an output of the model" in report.skipped["two"]


def test_a_residual_after_normalization_pins_the_readers_before_it() -> None:
    graph = graph_of(
        """g (float[N, 4, 6] x) => (float[N, 4, 6] y) {
            a = LayerNormalization (x, gamma, beta)  [one] b = MatMul (a, w)
            c = Add (a, b)  y = LayerNormalization (c, gamma, beta) }""",
        gamma=normal(6),
        beta=normal(6, seed=1),
        w=normal(6, 6),
    )
    report = run_pass(graph)
    assert "LayerNormalization" in report.skipped["one"]
    assert report.changed == []


# --- what it is for -------------------------------------------------------------------------------


def uneven(spread: Array) -> gs.Graph:
    """Two layers, between which channels have the ranges ``spread`` and matter equally."""
    count = spread.size
    first = np.eye(3, dtype=np.float32)[np.arange(count) % 3].reshape(count, 3, 1, 1)
    second = normal(8, count, 1, 1)
    return graph_of(
        """g (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y) {
            [one] a = Conv (x, w1)  b = Relu (a)  [two] y = Conv (b, w2) }""",
        w1=first * spread[:, None, None, None],
        w2=second / spread[:, None, None],
    )


def feeds(count: int = 8) -> list[Feed]:
    return [{"x": normal(1, 3, 8, 8, seed=i)} for i in range(count)]


def sqnr_db(graph: gs.Graph, other: gs.Graph) -> float:
    signal = noise = 0.0
    one, two = open_session(graph, threads=1), open_session(other, threads=1)
    for feed in feeds():
        want, got = one.run(feed)[0].astype(np.float64), two.run(feed)[0]
        signal, noise = signal + float((want**2).sum()), noise + float(((want - got) ** 2).sum())
    return 10 * np.log10(signal / noise)


def quantized(graph: gs.Graph, *, equalize: bool = False) -> gs.Graph:
    twin = graph.copy()
    context = PassContext(
        target=resolve_target("x86-vnni"), calibration=Calibration.from_source(feeds(), graph)
    )
    QuantizeStatic(equalize=equalize, keep_drowned=False).rewrite(twin, context, PassReport())
    return twin


@pytest.mark.parametrize("with_samples", [True, False])
def test_uneven_channels_lose_less_when_equalized(with_samples: bool) -> None:
    graph = uneven(np.repeat([1.0, 0.3, 0.1, 0.05], 4).astype(np.float32))
    equal = graph.copy()
    report = run_pass(equal, feeds() if with_samples else None)
    assert report.changed == ["one", "two"]
    assert sqnr_db(graph, equal) > 120
    assert sqnr_db(graph, quantized(equal)) > sqnr_db(graph, quantized(graph)) + 5


def test_quantize_static_equalizes_by_itself() -> None:
    graph = uneven(np.repeat([1.0, 0.3, 0.1, 0.05], 4).astype(np.float32))
    plain, equalized = quantized(graph), quantized(graph, equalize=True)
    assert sqnr_db(graph, equalized) > sqnr_db(graph, plain) + 5


def test_powers_of_two_change_no_bit() -> None:
    graph = uneven(np.repeat([1.0, 0.3, 0.1, 0.05], 4).astype(np.float32))
    equal = graph.copy()
    assert run_pass(equal, feeds(), power_of_two=True).changed == ["one", "two"]
    assert_same_answers(graph, equal)
    assert sqnr_db(graph, quantized(equal)) > sqnr_db(graph, quantized(graph)) + 5


def test_even_channels_are_left_alone_and_arrays_are_never_written_to() -> None:
    graph = uneven(np.ones(16, np.float32))
    report = run_pass(graph, feeds())
    assert report.changed == []
    assert report.numbers["groups_left_alone"] == 1
    other = uneven(np.repeat([1, 0.05], 8).astype(np.float32))
    arrays = [t.values for t in other.tensors().values() if isinstance(t, gs.Constant)]
    copies = [values.copy() for values in arrays]
    run_pass(other, feeds())
    assert all((a == b).all() for a, b in zip(arrays, copies, strict=True))


def test_an_override_keeps_a_layer_and_with_it_its_group() -> None:
    graph = uneven(np.repeat([1, 0.05], 8).astype(np.float32))
    report = run_pass(graph, feeds(), overrides={"two": {"skip": True}})
    assert report.changed == []
    assert report.skipped["two"] == "skipped by an override"


def test_values_that_are_not_finite_leave_a_group_alone() -> None:
    graph = uneven(np.repeat([1, 0.05], 8).astype(np.float32))
    graph.nodes[0].inputs[1] = gs.Constant("huge", np.full((16, 3, 1, 1), 3e38, np.float32))
    assert run_pass(graph, feeds()).changed == []


def test_samples_must_be_positive() -> None:
    with pytest.raises(ValueError, match="samples must be at least 1"):
        EqualizeChannels(samples=0)


def test_kept_values_are_bounded_and_hold_the_extremes() -> None:
    kept = ChannelValues(np.arange(4).reshape(1, 4, 1, 1), samples=40)
    rng = np.random.default_rng(0)
    shown = [rng.standard_normal((2, 4, 31, 17), np.float32) for _ in range(40)]
    for values in shown:
        kept.update(values)
    (values, weights), (held, _) = kept.result()
    everything = np.stack(shown)
    assert values.size + held.size < 2 * KEPT_VALUES
    assert max(values.max(), held.max()) == everything.max()
    first = shown[0].transpose(1, 0, 2, 3).reshape(4, -1)
    picked = np.flatnonzero(weights == 1)[:2]
    assert (values[:, picked] == np.stack([first.min(axis=1), first.max(axis=1)], axis=1)).all()
    assert kept.mean_squares == pytest.approx(
        (everything.astype(np.float64) ** 2).mean((0, 1, 3, 4))
    )
    assert weights.size == values.shape[1]


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "shufflenet_v2_x1_0", "dscnn_kws"])
def test_real_architectures_compute_the_same(hydrate: ModuleType, name: str) -> None:
    model = hydrate.load(name)
    given = [hydrate.feeds(model)]
    graph = from_proto(model)
    scaled, groups = scaled_at_random(graph)
    assert len(free_inputs(groups)) > 8
    assert_same_answers(graph, scaled, given, min_sqnr_db=100)


def test_values_of_unknown_shape_are_joined_without_factors() -> None:
    text = """
        g (float[1, 4, 6, 6] x, float[n] other) => (float[1, 8, 6, 6] y)
        { a = Relu(x) joined = Concat<axis = 1>(a, other) y = Relu(joined) }"""
    graph = graph_of(text)
    tensors = graph.tensors()
    tensors["joined"].shape, tensors["joined"].dtype = (1, 8, 6, 6), np.dtype(np.float32)
    tensors["other"].shape = None  # as in files where inference gets no further
    groups = find_groups(graph)
    assert not groups.is_free(np.arange(groups.count)).any()
