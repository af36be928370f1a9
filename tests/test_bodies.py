"""If, Loop and Scan: what their bodies own, and what they read from outside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcomp.graph import subgraphs
from onnxcomp.importing import from_proto
from onnxcomp.testing import assert_same_answers, model_of, round_trip

ONES = np.ones(3, np.float32)


def bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a graph, outermost first."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
                yield from bodies(attribute.g)


NESTED = """m (bool c, bool d, float[3] x) => (float[3] y) {
    y = If (c) <
        then_branch = g1 () => (float[3] a) {
            k = Constant <value = float[3] {1, 2, 3}> ()
            a = If (d) <
                then_branch = g2 () => (float[3] e) { p = Mul (x, w) e = Add (p, k) },
                else_branch = g3 () => (float[3] f) { f = Mul (x, k) }
            >
        },
        else_branch = g4 () => (float[3] b) {
            k = Constant <value = float[3] {4, 5, 6}> ()
            b = Sub (x, k)
        }
    >
}"""


def nested_feeds() -> list[dict[str, Any]]:
    return [
        {"c": np.array(c), "d": np.array(d), "x": ONES * 7}
        for c in (0 == 0, 0 == 1)
        for d in (True, False)
    ]


def test_bodies_two_deep_read_outer_constants_without_copies_of_them() -> None:
    model = model_of(NESTED, w=ONES * 3)
    after = round_trip(model)
    assert_same_answers(model, after, nested_feeds())
    inside = [[t.name for t in body.initializer] for body in bodies(after.graph)]
    assert inside == [["k"], [], [], ["k"]], "each branch owns its k, nobody copies w"
    assert [t.name for t in after.graph.initializer] == ["w"]
    once_more = round_trip(after)
    assert once_more.SerializeToString() == after.SerializeToString()


def test_equal_names_in_two_branches_stay_two_constants() -> None:
    graph = from_proto(model_of(NESTED, w=ONES)).copy()
    then, other = (body for _, body in subgraphs(graph.nodes[0]))
    inner = next(body for _, body in subgraphs(then.nodes[0]))
    assert inner.nodes[1].inputs[1].values.tolist() == [1, 2, 3]
    assert other.nodes[0].inputs[1].values.tolist() == [4, 5, 6]


def test_a_lifted_constant_of_the_outermost_graph_is_written_once() -> None:
    model = model_of(
        NESTED.replace("y = If (c)", "w = Constant <value = float[3] {2, 2, 2}> () y = If (c)")
    )
    model.graph.node[1].attribute[1].g.node[1].input[1] = "w"
    after = round_trip(model)
    assert [t.name for t in after.graph.initializer] == ["w"]
    assert not any(t.name == "w" for body in bodies(after.graph) for t in body.initializer)
    assert_same_answers(model, after, nested_feeds())


LOOP = """m (float[3] x, int64 trips) => (float[3] y, float[unk, 3] all) {
    keep = Constant <value = bool {1}> ()
    y, all = Loop (trips, keep, x) <body = g (int64 i, bool go, float[3] state)
        => (bool on, float[3] next, float[3] seen) {
            on = Identity (go)
            next = Mul (state, w)
            seen = Add (next, x)
        }>
}"""


def test_a_loop_that_reads_outside_answers_as_before() -> None:
    model = model_of(LOOP, w=ONES * 2)
    feeds = [{"x": ONES, "trips": np.array(n)} for n in (0, 1, 5)]
    after = round_trip(model)
    assert_same_answers(model, after, feeds)
    assert not any(len(body.initializer) for body in bodies(after.graph))


def test_a_scan_that_reads_outside_answers_as_before() -> None:
    model = model_of(
        """m (float[3] start, float[N, 3] xs) => (float[3] last, float[N, 3] sums) {
            last, sums = Scan <num_scan_inputs = 1, body = g (float[3] state, float[3] x)
                => (float[3] next, float[3] sum) {
                    p = Mul (x, w)
                    next = Add (state, p)
                    sum = Identity (next)
                }> (start, xs)
        }""",
        w=ONES * 2,
    )
    after = round_trip(model)
    assert_same_answers(model, after)
    assert not any(len(body.initializer) for body in bodies(after.graph))


def test_a_body_input_with_an_initializer_stays_an_input() -> None:
    for ir_version in (3, 8):
        model = model_of(LOOP, w=ONES * 2)
        model.ir_version = ir_version
        body = model.graph.node[1].attribute[0].g
        body.initializer.append(numpy_helper.from_array(ONES, "state"))
        (after,) = bodies(round_trip(model).graph)
        assert [value.name for value in after.input] == ["i", "go", "state"]
        assert [t.name for t in after.initializer] == ["state"]
