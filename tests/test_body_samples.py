"""What bodies read, against what onnxruntime itself hands them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.body_graphs import body_graphs
from onnxcomp.body_samples import BodySamples, samples_inside
from onnxcomp.calibration import Calibration
from onnxcomp.exporting import to_proto
from onnxcomp.graph import Names
from onnxcomp.runtime import Feed, open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.statistics import MinMax
from onnxcomp.testing import graph_of

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)

LOOP = """g (float[3] x, int64 trips, float limit)
    => (float[3] y, float[k, 3] all, int64[k] turns) {
    out = Neg (x)
    start = Greater (limit, zero)
    y, all, turns = Loop (trips, start, x) <body = b (int64 i, bool go, float[3] state)
        => (bool on, float[3] next, float[3] seen, int64 turn) {
            moved = Add (state, out)
            next = Sub (moved, half)
            size = ReduceMax <keepdims = 0> (next)
            on = Less (size, limit)
            seen = Identity (state)
            turn = Identity (i)
        }>
}"""


def loop() -> gs.Graph:
    graph = graph_of(LOOP, zero=np.float32(0), half=np.full(3, -0.5, np.float32))
    infer_shapes(graph)
    return graph


def inside(graph: gs.Graph, feeds: list[Feed], which: int = 0) -> BodySamples:
    body = list(body_graphs(graph))[which]
    return BodySamples(Calibration.from_source(feeds, graph), graph, body)


def loop_feeds() -> list[Feed]:
    return [
        {
            "x": np.array([0.1, -0.2, k / 10], np.float32),
            "trips": np.array(k),
            "limit": np.array(limit),
        }
        for k, limit in enumerate(np.array([9, 9, -1, 9, 0.7, 9], np.float32))
    ]


def test_a_loop_body_sees_every_iteration_as_the_runtime_runs_it() -> None:
    graph, feeds = loop(), loop_feeds()
    session = open_session(graph)
    ran = [session.run(feed) for feed in feeds]
    found = list(inside(graph, feeds).feeds())
    assert len(found) == sum(len(all) for _, all, _ in ran) == 0 + 1 + 0 + 3 + 2 + 5
    np.testing.assert_array_equal(
        [f["state"] for f in found], np.concatenate([a for _, a, _ in ran])
    )
    np.testing.assert_array_equal([f["i"] for f in found], np.concatenate([t for _, _, t in ran]))
    assert all(f["go"] and f["i"].shape == f["go"].shape == () for f in found)
    outs = np.concatenate(
        [[-f["x"]] * len(a) for f, (_, a, _) in zip(feeds, ran, strict=True) if len(a)]
    )
    np.testing.assert_array_equal([f["out"] for f in found], outs)


def test_few_samples_are_spread_over_all() -> None:
    graph, feeds = loop(), loop_feeds()
    samples = inside(graph, feeds)
    whole = [f["state"].tolist() for f in samples.feeds()]
    assert len(samples) == len(whole) == 11
    assert [f["state"].tolist() for f in samples.feeds(3)] == [whole[0], whole[5], whole[10]]
    assert [f["state"].tolist() for f in samples.feeds(1)] == whole[:1]
    assert [f["state"].tolist() for f in samples.feeds(20)] == whole


def test_statistics_of_a_body_are_those_of_all_its_runs() -> None:
    graph, feeds = loop(), loop_feeds()
    body = next(iter(body_graphs(graph)))
    samples = BodySamples(Calibration.from_source(feeds, graph), graph, body)
    seen = {"state": MinMax(), "next": MinMax()}
    samples.observe(body.graph, seen)
    states = np.concatenate([open_session(loop()).run(feed)[1] for feed in feeds])
    assert seen["state"].result().low == states.min()
    assert seen["next"].result().high > seen["state"].result().high


def test_each_branch_sees_the_samples_that_take_it() -> None:
    graph = graph_of(
        """g (bool c, bool d, float[2] x) => (float[2] y) {
            a = Neg (x)
            y = If (c) <
                then_branch = yes () => (float[2] p) {
                    p = If (d) <
                        then_branch = both () => (float[2] q) { q = Abs (a) },
                        else_branch = one () => (float[2] r) { r = Add (a, x) }
                    >
                },
                else_branch = no () => (float[2] s) { s = Abs (x) }
            >
        }"""
    )
    infer_shapes(graph)
    feeds = [
        {"c": np.array(k % 2 == 0), "d": np.array(k % 3 == 0), "x": np.full(2, k, np.float32)}
        for k in range(12)
    ]
    calibration = Calibration.from_source(feeds, graph)
    yes, no = body_graphs(graph)
    upper = BodySamples(calibration, graph, yes)
    assert [f["x"][0] for f in upper.feeds()] == [0, 2, 4, 6, 8, 10]
    assert [f["x"][0] for f in BodySamples(calibration, graph, no).feeds()] == [1, 3, 5, 7, 9, 11]
    both, one = body_graphs(yes.graph)
    assert [f["a"][0] for f in BodySamples(upper, yes.graph, both).feeds()] == [0, -6]
    read = [(f["a"][0], f["x"][0]) for f in BodySamples(upper, yes.graph, one).feeds()]
    assert read == [(-2, 2), (-4, 4), (-8, 8), (-10, 10)]


@pytest.mark.parametrize(("axis", "backwards"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_scan_body_sees_its_slices_in_order(axis: int, backwards: int) -> None:
    size = "4, 3" if axis == 0 else "3, 4"
    graph = graph_of(
        f"""g (float[3] start, float[{size}] xs) => (float[3] last, float[4, 3] sums) {{
            last, sums = Scan <num_scan_inputs = 1, scan_input_axes = [{axis}],
                scan_input_directions = [{backwards}],
                body = b (float[3] state, float[3] x) => (float[3] next, float[3] before) {{
                    next = Add (state, x)
                    before = Identity (state)
                }}> (start, xs)
        }}"""
    )
    infer_shapes(graph)
    feeds: list[Feed] = [
        {
            "start": RNG.standard_normal(3).astype(np.float32),
            "xs": RNG.standard_normal((4, 3) if axis == 0 else (3, 4)).astype(np.float32),
        }
    ]
    found = list(inside(graph, feeds).feeds())
    np.testing.assert_array_equal([f["state"] for f in found], open_session(graph).run(feeds[0])[1])
    rows = feeds[0]["xs"] if axis == 0 else feeds[0]["xs"].T
    np.testing.assert_array_equal([f["x"] for f in found], rows[::-1] if backwards else rows)


def test_states_may_grow_from_run_to_run() -> None:
    graph = graph_of(
        """g (float[n] x) => (float[m] y) {
            y = Loop (trips, , x) <body = b (int64 i, bool go, float[k] state)
                => (bool on, float[j] next) {
                    on = Identity (go) next = Concat <axis = 0> (state, state) }>
        }""",
        trips=np.array(3),
    )
    infer_shapes(graph)
    found = list(inside(graph, [{"x": np.ones(2, np.float32)}]).feeds())
    assert [len(f["state"]) for f in found] == [2, 4, 8]


def test_bodies_that_nothing_can_be_measured_in_say_why() -> None:
    graph = graph_of(
        """g (float[2] x, int64 trips) => (float[2] y) {
            none = SequenceEmpty ()
            y, all = Loop (trips, , x, none) <body = b
                (int64 i, bool go, float[2] state, seq(float[2]) list)
                => (bool on, float[2] next, seq(float[2]) longer) {
                    on = Identity (go) next = Abs (state) longer = SequenceInsert (list, next) }>
        }"""
    )
    infer_shapes(graph)
    calibration = Calibration.from_source(
        [{"x": np.ones(2, np.float32), "trips": np.array(0)}], graph
    )
    (body,) = body_graphs(graph)
    told = samples_inside(calibration, graph, body)
    assert isinstance(told, str)
    assert "list" in told
    never = loop()
    calibration = Calibration.from_source(loop_feeds()[:1], never)
    (body,) = body_graphs(never)
    assert (
        samples_inside(calibration, never, body) == "no sample reaches it: its ranges are unknown"
    )


def test_a_body_put_back_is_the_body_that_was_taken_out() -> None:
    graph = loop()
    before = to_proto(graph).SerializeToString()
    for body in body_graphs(graph):
        assert [t.name for t in body.graph.inputs] == ["i", "go", "state", "out", "limit"]
        assert not any(node in body.graph.nodes for t in body.outside for node in t.outputs)
        body.put_back(Names(graph))
    assert to_proto(graph).SerializeToString() == before
