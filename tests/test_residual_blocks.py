"""What counts as a residual branch, and that a switched session is the model without it."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.branch_switches import SwitchedSession
from onnxcomp.graph import label, remove_unused, sort_nodes
from onnxcomp.residual_blocks import Branch, Shapes, Wiring, drop_branches, find_branches
from onnxcomp.shapes import infer_shapes
from onnxcomp.stand_ins import Layout, StandIn, StandInFit
from onnxcomp.testing import graph_of, open_any, same_bits

C = 8
RNG = np.random.default_rng(0)
SQUARE = {n: RNG.standard_normal((C, C), np.float32) / 3 for n in ("a", "b", "c", "d")}
VECTOR = {n: RNG.standard_normal(C).astype(np.float32) for n in ("gamma", "beta")}


def net(body: str, inputs: str = "") -> gs.Graph:
    text = f"net (float[N, L, {C}] x{inputs}) => (float[N, L, {C}] y) {{ {body} }}"
    used = {n: v for n, v in (SQUARE | VECTOR).items() if f"{n})" in body or f"{n}," in body}
    graph = graph_of(text, **used)
    infer_shapes(graph)
    return graph


def found(graph: gs.Graph) -> tuple[list[Branch], dict[str, str]]:
    shapes = {tensor.name: (2, 5, C) for tensor in graph.inputs}
    return find_branches(graph, Wiring(graph), Shapes(graph, shapes))


def inside(graph: gs.Graph, branch: Branch) -> list[str]:
    return [label(graph.nodes[index]) for index in sorted(branch.nodes)]


CASES = {
    "plain": ("[f] f = MatMul (x, a) [s] y = Add (x, f)", {"s": ["f"]}),
    "swapped": ("[f] f = MatMul (x, a) [s] y = Add (f, x)", {"s": ["f"]}),
    "sum": ("[f] f = MatMul (x, a) [s] y = Sum (f, x)", {"s": ["f"]}),
    "scaled": (
        "[f] f = MatMul (x, a) [g] g = Mul (gamma, f) [s] y = Add (x, g)",
        {"s": ["f", "g"]},
    ),
    "gated": (
        """[f] f = MatMul (x, a) [g] g = MatMul (x, b) [h] h = Sigmoid (g)
           [m] m = Mul (f, h) [s] y = Add (x, m)""",
        {"s": ["f", "g", "h", "m"]},
    ),
    "pre-norm": (
        """[n] n = LayerNormalization <axis = -1> (x, gamma, beta) [f] f = MatMul (n, a)
           [s] y = Add (x, f)""",
        {"s": ["n", "f"]},
    ),
    "post-norm": (
        """[f] f = MatMul (x, a) [s] z = Add (x, f)
           y = LayerNormalization <axis = -1> (z, gamma, beta)""",
        {"s": ["f"]},
    ),
    "parallel, a norm for both": (
        """[n] n = LayerNormalization <axis = -1> (x, gamma, beta) [f] f = MatMul (n, a)
           [g] g = MatMul (n, b) [s] z = Add (f, g) [t] y = Add (z, x)""",
        {"s[0]": ["f"], "s[1]": ["g"], "t": ["n", "f", "g", "s"]},
    ),
    "nested": (
        """[f] f = MatMul (x, a) [g] g = MatMul (f, b) [s] z = Add (f, g)
           [h] h = Relu (z) [t] y = Add (x, h)""",
        {"s": ["g"], "t": ["f", "g", "s", "h"]},
    ),
    "a mask of another input": (
        """[f] f = MatMul (x, a) [m] m = Mul (f, mask) [s] y = Add (x, m)""",
        {"s": ["f", "m"]},
    ),
    "projected": (
        """[p] p = Mul (x, gamma) [f] f = MatMul (x, a) [g] g = Relu (f) [h] h = MatMul (g, b)
           [s] y = Add (p, h)""",
        {"s": ["f", "g", "h"]},
    ),
    "read elsewhere on the way": (
        """[f] f = MatMul (x, a) [g] g = MatMul (f, b) [s] z = Add (x, g) [e] e = Relu (f)
           y = Mul (z, e)""",
        {"s": ["g"]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_branches_and_what_goes_with_them(name: str) -> None:
    body, expected = CASES[name]
    graph = net(body, f", float[N, L, {C}] mask" if "mask" in body else "")
    branches, _ = found(graph)
    assert {branch.name: inside(graph, branch) for branch in branches} == expected


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("[f] f = MatMul (x, a) [g] g = MatMul (x, b) [s] y = Add (f, g)", "computed from another"),
        ("[s] y = Add (x, x)", "to itself"),
        ("[f] f = ReduceMean <axes = [1]> (x) [s] y = Add (x, f)", "broadcasts"),
        ("[f] f = MatMul (x, a) [s] z = Add (x, f) y = Mul (z, f)", "needed elsewhere"),
    ],
)
def test_other_sums_are_named_with_a_reason(body: str, reason: str) -> None:
    branches, refused = found(net(body))
    assert branches == []
    assert reason in refused["s"]


def test_bodies_are_left_alone() -> None:
    graph = net(
        f"""t = ReduceMax <keepdims = 0> (x) zero = Constant <value = float {{0}}> ()
        c = Greater (t, zero) [if] y = If (c) <
        then_branch = g1 () => (float[N, L, {C}] o)
            {{ f = Relu (x) [inner] o = Add (x, f) }},
        else_branch = g2 () => (float[N, L, {C}] p) {{ p = Identity (x) }}>"""
    )
    branches, refused = found(graph)
    assert branches == []
    assert refused["inner"] == "it is in a body of If"


def test_a_branch_that_a_body_reads_is_needed() -> None:
    graph = net(
        f"""[f] f = MatMul (x, a) [s] z = Add (x, f) t = ReduceMax <keepdims = 0> (x)
        zero = Constant <value = float {{0}}> () c = Greater (t, zero) [if] y = If (c) <
        then_branch = g1 () => (float[N, L, {C}] o) {{ o = Mul (z, f) }},
        else_branch = g2 () => (float[N, L, {C}] p) {{ p = Identity (z) }}>"""
    )
    branches, refused = found(graph)
    assert branches == []
    assert "needed elsewhere" in refused["s"]


@pytest.mark.parametrize("name", CASES)
def test_a_switched_session_answers_like_the_graph_without_the_branches(name: str) -> None:
    graph = net(CASES[name][0], f", float[N, L, {C}] mask" if "mask" in CASES[name][0] else "")
    branches, _ = found(graph)
    switched = SwitchedSession(graph, branches, [None] * len(branches), threads=1)
    rng = np.random.default_rng(1)
    feed = {t.name: rng.standard_normal((2, 5, C), np.float32) for t in graph.inputs}
    assert same_bits(switched.run(feed), open_any(graph).run(feed))
    for count in range(1, len(branches) + 1):
        for chosen in itertools.combinations(range(len(branches)), count):
            smaller = graph.copy()
            drop_branches(smaller, [branches[index] for index in chosen])
            sort_nodes(smaller)
            remove_unused(smaller)
            switched.dropped = dict.fromkeys(chosen)
            (one,), (other,) = switched.run(feed), open_any(smaller).run(feed)
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
            assert len(smaller.nodes) < len(graph.nodes)


def test_a_linear_stand_in_is_the_regression_of_the_branch() -> None:
    rng = np.random.default_rng(2)
    matrix, constant = rng.standard_normal((C, C)), rng.standard_normal(C)
    fit = StandInFit(C, linear=True)
    for _ in range(4):
        x = rng.standard_normal((50, C))
        fit.update(x, x @ matrix.T + constant)
    assert fit.is_determined
    found = fit.linear()
    assert found.matrix is not None
    np.testing.assert_allclose(found.matrix, matrix, atol=1e-3)
    np.testing.assert_allclose(found.constant, constant, atol=1e-3)


def test_noise_gives_no_map_and_few_huge_positions_no_constant() -> None:
    rng = np.random.default_rng(3)
    fit = StandInFit(C, linear=True)
    target = 1 + 0.1 * rng.standard_normal((400, C))
    target[:4] = 1e4
    fit.update(rng.standard_normal((400, C)), target)
    found = fit.linear()
    assert found.matrix is not None
    assert np.abs(found.matrix).max() < 0.05
    np.testing.assert_allclose(fit.constant().constant, 1.0, atol=0.05)


def test_stand_ins_of_a_switched_session() -> None:
    graph = net(CASES["plain"][0])
    branches, _ = found(graph)
    switched = SwitchedSession(graph, branches, [Layout(2, 3, C)], threads=1)
    x = RNG.standard_normal((2, 5, C)).astype(np.float32)
    switched.dropped = {0: StandIn(VECTOR["beta"], SQUARE["c"])}
    (y,) = switched.run({"x": x})
    np.testing.assert_allclose(y, x + x @ SQUARE["c"].T + VECTOR["beta"], rtol=1e-4, atol=1e-5)
    switched.dropped = {0: StandIn(VECTOR["beta"])}
    np.testing.assert_allclose(switched.run({"x": x})[0], x + VECTOR["beta"], rtol=1e-5, atol=1e-6)
