"""Copies are independent, lookups see into bodies, and edits leave a valid order."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.exporting import to_proto
from onnxcomp.graph import (
    Graph,
    Names,
    all_graphs,
    all_nodes,
    carried_of,
    constants,
    consumers,
    is_constant,
    is_output,
    is_standard,
    label,
    only_reader,
    opsets,
    producer,
    remove_unused,
    replace_uses,
    required_inputs,
    sort_nodes,
    subgraphs,
    volume,
)
from onnxcomp.importing import from_proto
from onnxcomp.testing import assert_same_answers, graph_of, small_convnet

ONES = np.ones(3, np.float32)
BRANCHES = """m (bool c, float[3] x) => (float[3] y) {
    outer = Mul (x, w)
    y = If (c) <
        then_branch = g () => (float[3] a) { t = Add (outer, w) a = Neg (t) },
        else_branch = h () => (float[3] b) { t = Sub (outer, w) b = Abs (t) }
    >
}"""


def branches() -> Graph:
    return graph_of(BRANCHES, w=ONES * 2)


def body(graph: gs.Graph, index: int) -> gs.Graph:
    node = next(node for node in graph.nodes if node.op == "If")
    return [inner for _, inner in subgraphs(node)][index]


# --- copies -----------------------------------------------------------------------------------


def test_a_copy_is_an_independent_undo() -> None:
    graph = from_proto(small_convnet())
    before = to_proto(graph).SerializeToString()
    twin = graph.copy()
    assert to_proto(twin).SerializeToString() == before
    for node in twin.nodes:
        node.name, node.op = f"changed_{node.name}", "Changed"
        for value in node.attrs.values():
            if isinstance(value, list):
                value.append(9)
        node.attrs["more"] = 1
        for tensor in (*node.inputs, *node.outputs):
            tensor.name = f"changed_{tensor.name}"
            if isinstance(tensor, gs.Variable) and tensor.shape:
                tensor.shape[0] = 99
            if isinstance(tensor, gs.Constant):
                tensor.values = np.zeros(1)
    twin.nodes.pop()
    twin.inputs.clear()
    twin.import_domains[0].version = 99
    assert to_proto(graph).SerializeToString() == before


def test_a_copy_shares_the_weights() -> None:
    graph = from_proto(small_convnet())
    one, other = constants(graph), constants(graph.copy())
    assert one.keys() == other.keys()
    assert all(one[name]._values is other[name]._values for name in one)
    assert not any(one[name] is other[name] for name in one)


def test_in_a_copy_bodies_read_the_same_tensors_as_the_graph_around_them() -> None:
    twin = branches().copy()
    weight, outer = twin.nodes[0].inputs[1], twin.nodes[0].outputs[0]
    for index in (0, 1):
        inner = body(twin, index).nodes[0]
        assert inner.inputs[0] is outer
        assert inner.inputs[1] is weight
    assert len(consumers(weight)) == 3
    assert body(twin, 0).nodes[0].outputs[0] is not body(twin, 1).nodes[0].outputs[0]


def test_a_copy_keeps_the_kind_of_a_tensor_in_a_body() -> None:
    twin = graph_of("""m (bool c, seq(float[3]) s) => (seq(float[3]) y) {
        y = If (c) <
            then_branch = g () => (seq(float[3]) a) { a = Identity (s) },
            else_branch = h () => (seq(float[3]) b) { b = Identity (s) }
        >
    }""").copy()
    assert [body(twin, i).outputs[0].type for i in (0, 1)] == ["sequence_type"] * 2


# --- lookups ----------------------------------------------------------------------------------


def test_lookups_see_into_bodies() -> None:
    graph = branches()
    assert [node.op for node in all_nodes(graph)] == ["Mul", "If", "Add", "Neg", "Sub", "Abs"]
    assert [g.name for g in all_graphs(graph)] == ["m", "g", "h"]
    assert list(constants(graph)) == ["w"]
    weight = constants(graph)["w"]
    assert is_constant(weight)
    assert producer(weight) is None
    assert not is_constant(graph.inputs[1])
    assert [node.op for node in consumers(weight)] == ["Mul", "Add", "Sub"]
    assert producer(graph.nodes[0].outputs[0]) is graph.nodes[0]
    assert is_output(graph, graph.outputs[0])
    assert not is_output(graph, graph.inputs[0])
    assert [t.name for t in required_inputs(graph)] == ["c", "x"]


def test_a_reader_that_reads_twice_is_one_consumer() -> None:
    graph = graph_of("m (float[3] x) => (float[3] y) { y = Mul (x, x) }")
    assert len(consumers(graph.inputs[0])) == 1


def test_who_alone_reads_a_tensor() -> None:
    graph = graph_of("""g (float[3] x, float[3] other) => (float[3] y, float[3] a) {
        a = Neg (x)  [square] b = Mul (other, other)  [abs] c = Abs (b)  d = com.none.Abs (c)
        [last] y = Add (a, d) }""")
    tensors = {t.name: t for node in graph.nodes for t in (*node.inputs, *node.outputs)}
    square, abs_node, last = graph.nodes[1], graph.nodes[2], graph.nodes[-1]
    assert only_reader(graph, tensors["other"]) is square
    assert only_reader(graph, tensors["b"], "Neg", "Abs") is abs_node
    assert only_reader(graph, tensors["b"], "Neg") is None
    assert only_reader(graph, tensors["c"]) is None  # of another domain
    assert only_reader(graph, tensors["d"]) is last
    assert only_reader(graph, tensors["a"]) is None  # an output, too
    assert only_reader(graph, tensors["y"]) is None


def test_labels_tell_unnamed_nodes_apart() -> None:
    graph = graph_of("m (float[3] x) => (float[3] y) { z = Neg (x) [named] y = Neg (z) }")
    assert [label(node) for node in graph.nodes] == ["Neg:z", "named"]


def test_a_graph_made_by_hand_has_opsets_and_nothing_carried() -> None:
    graph = gs.Graph(opset=17)
    assert [(o.domain, o.version) for o in opsets(graph)] == [("", 17)]
    assert carried_of(graph).nodes == {}
    assert [is_standard(gs.Node("A", domain=d)) for d in (None, "", "ai.onnx", "ai.onnx.ml")] == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [([2, 3], 6), ([], 1), ([0, 3], 0), (["N", 3], None), ([None], None), (None, None)],
)
def test_volume(shape: Any, wanted: int | None) -> None:
    assert volume(shape) == wanted


def test_fresh_names_are_free_in_bodies_too() -> None:
    names = Names(branches())
    assert [names.fresh(n) for n in ("t", "t", "w", "free", "free", "x", "a")] == [
        "t_1",
        "t_2",
        "w_1",
        "free",
        "free_1",
        "x_1",
        "a_1",
    ]


# --- edits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [False, True])
def test_replacing_a_constant_reaches_every_reader(copied: bool) -> None:
    graph = branches().copy() if copied else branches()
    replace_uses(graph, constants(graph)["w"], gs.Constant("v", ONES * 5))
    assert list(constants(graph)) == ["v"]
    wanted = graph_of(BRANCHES.replace("w)", "v)"), v=ONES * 5)
    feeds = [{"c": np.array(c), "x": ONES} for c in (True, False)]
    assert_same_answers(wanted, graph, feeds)


def test_replacing_in_one_branch_leaves_the_same_name_in_the_other() -> None:
    text = BRANCHES.replace("a)", "z)").replace("b)", "z)").replace("a =", "z =")
    graph = graph_of(text.replace("b =", "z ="), w=ONES * 2)
    then, other = body(graph, 0), body(graph, 1)
    assert then.outputs[0].name == other.outputs[0].name == "z"
    replace_uses(graph, then.outputs[0], then.nodes[0].outputs[0])
    assert then.outputs[0].name == "t"
    assert other.outputs[0].name == "z"


def test_outputs_of_the_graph_are_never_replaced() -> None:
    graph = graph_of("m (float[3] x) => (float[3] z, float[3] y) { z = Neg (x) y = Abs (z) }")
    replace_uses(graph, graph.outputs[0], graph.inputs[0])
    assert [t.name for t in graph.outputs] == ["z", "y"]
    assert graph.nodes[1].inputs[0].name == "x"


def test_unused_nodes_go_and_what_only_they_needed() -> None:
    graph = graph_of(
        BRANCHES.replace("y = If", "dead = Neg (x) deader = Neg (dead) y = If"), w=ONES
    )
    remove_unused(graph)
    assert [node.op for node in graph.nodes] == ["Mul", "If"]
    graph.outputs[:] = [graph.inputs[1]]
    remove_unused(graph)
    assert graph.nodes == [], "the If went, so nobody reads what its branches read"


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(6)))
def test_sorting_puts_producers_first_and_keeps_a_valid_order(order: list[int]) -> None:
    text = """m (bool c, float[3] x) => (float[3] y) {
        n0 = Neg (x) n1 = Neg (x) n2 = Add (n0, n1) n3 = Neg (n2)
        n4 = If (c) <
            then_branch = g () => (float[3] a) { a = Neg (n3) },
            else_branch = h () => (float[3] b) { b = Neg (n0) }
        >
        y = Neg (n4)
    }"""
    graph = graph_of(text)
    nodes = list(graph.nodes)
    graph.nodes[:] = [nodes[i] for i in order]
    shuffled = list(graph.nodes)
    sort_nodes(graph)
    at = {node.outputs[0].name: i for i, node in enumerate(graph.nodes)}
    for first, then in (("n0", "n2"), ("n1", "n2"), ("n2", "n3"), ("n3", "n4"), ("n4", "y")):
        assert at[first] < at[then]
    valid = all(
        order.index(a) < order.index(b) for a, b in ((0, 2), (1, 2), (2, 3), (3, 4), (4, 5))
    )
    assert (graph.nodes == shuffled) is valid
    kept = [node for node in graph.nodes if node in shuffled[:2]]
    assert len(kept) == 2


def test_sorting_refuses_a_cycle() -> None:
    one, other = gs.Variable("one"), gs.Variable("other")
    graph = gs.Graph(
        [gs.Node("A", inputs=[one], outputs=[other]), gs.Node("B", inputs=[other], outputs=[one])]
    )
    with pytest.raises(ValueError, match="cycle through 2 nodes"):
        sort_nodes(graph)
