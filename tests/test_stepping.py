"""Running a graph in parts gives what running it whole gives."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.graph import Graph
from onnxcomp.runtime import open_session
from onnxcomp.stepping import Steps, can_step, most_held
from onnxcomp.testing import graph_of


def diamond() -> gs.Graph:
    """x -> a -> b -> d(a, c), with c = Relu(a) dequantized from codes on the way."""
    names = ["x", "a", "b", "c", "codes", "d"]
    x, a, b, c, codes, d = (gs.Variable(name, np.float32, [1, 4]) for name in names)
    codes.dtype = np.uint8
    scale, zero_point = (
        gs.Constant("s", np.array(0.1, np.float32)),
        gs.Constant("z", np.array(3, np.uint8)),
    )
    factor = gs.Constant("w", np.array([[1, -2, 3, 4]], np.float32))
    nodes = [
        gs.Node("Mul", "A", inputs=[x, factor], outputs=[a]),
        gs.Node("QuantizeLinear", "Q", inputs=[a, scale, zero_point], outputs=[codes]),
        gs.Node("DequantizeLinear", "DQ", inputs=[codes, scale, zero_point], outputs=[c]),
        gs.Node("Relu", "B", inputs=[c], outputs=[b]),
        gs.Node("Sum", "D", inputs=[a, b, c], outputs=[d]),
    ]
    return Graph(nodes=nodes, inputs=[x], outputs=[d], opset=17)


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(1, 4)).astype(np.float32)} for _ in range(3)]


@pytest.mark.parametrize(
    "order", [["a", "codes", "c", "b", "d"], ["codes", "b"], ["d"], ["x", "d"]]
)
def test_each_tensor_is_what_the_whole_graph_makes_of_it(order: list[str]) -> None:
    graph, steps = diamond(), Steps(diamond(), feeds())
    names = [name for name in order if name != "x"]
    session = open_session(graph, extra_outputs=names)
    for name in order:
        values = steps.advance(name)
        for feed, value in zip(feeds(), values, strict=True):
            wanted = feed["x"] if name == "x" else session.run(feed, [name])[0]
            np.testing.assert_array_equal(value, wanted)


def test_nodes_may_come_in_between_steps() -> None:
    graph = diamond()
    steps = Steps(graph, feeds())
    before = steps.advance("a")
    relu = graph.nodes[3]
    source, made = relu.inputs[0], relu.outputs[0]
    turned = gs.Variable("turned", np.float32, [1, 4])
    one = gs.Constant("one", np.ones(1, np.float32))
    relu.outputs.clear()
    graph.nodes[4:4] = [
        gs.Node("Neg", "N", inputs=[source], outputs=[turned]),
        gs.Node("Add", "P", inputs=[turned, one], outputs=[made]),
    ]
    values = zip(before, steps.advance("c"), steps.advance("b"), steps.advance("d"), strict=True)
    for a, c, b, d in values:
        np.testing.assert_array_equal(b, 1 - c)
        np.testing.assert_allclose(d, a + b + c, rtol=1e-6)


def test_what_lies_ahead_may_change_between_steps() -> None:
    graph = diamond()
    steps = Steps(graph, feeds())
    before = steps.advance("a")
    graph.nodes[1].inputs[1] = gs.Constant("coarse", np.array(10, np.float32))
    graph.nodes[2].inputs[1] = graph.nodes[1].inputs[1]
    for value, original in zip(steps.advance("c"), before, strict=True):
        codes = np.clip(np.rint(original / np.float32(10)) + 3, 0, 255)
        np.testing.assert_array_equal(value, (codes - 3) * np.float32(10))


def test_only_what_is_still_read_is_kept() -> None:
    steps = Steps(diamond(), feeds())
    steps.advance("codes")
    assert set(steps.kept()) == {"a", "codes"}
    steps.advance("d")
    assert set(steps.kept()) == set()


def branching() -> gs.Graph:
    return graph_of(
        """g (bool c, float[2] x) => (float[2] z) {
            a = Neg (x)
            b = Abs (x)
            y = If (c) <
                then_branch = yes () => (float[2] p) {
                    p = If (c) <
                        then_branch = both () => (float[2] q) { q = Mul (a, two) },
                        else_branch = one () => (float[2] r) { r = Identity (x) }
                    >
                },
                else_branch = no () => (float[1, 2] s) { s = Unsqueeze (b, zero) }
            >
            w = Add (y, y)
            z = Reshape (w, flat)
        }""",
        two=np.float32([2, 3]),
        zero=np.array([0]),
        flat=np.array([2]),
    )


@pytest.mark.parametrize("order", ["abywz", "yz", "z", "bz", "wz"])
def test_a_node_with_bodies_is_one_step(order: str) -> None:
    graph = branching()
    given = [{"c": np.array(k % 2 == 0), "x": np.float32([k, -k])} for k in range(4)]
    session = open_session(graph, extra_outputs=list("abywz"))
    steps = Steps(graph, given)
    for name in order:
        for feed, value in zip(given, steps.advance(name), strict=True):
            np.testing.assert_array_equal(value, session.run(feed, [name])[0])
    if order[-1] == "z":
        assert steps.kept() == []


def test_what_bodies_read_is_kept_until_they_have_run() -> None:
    steps = Steps(branching(), [{"c": np.array(True), "x": np.float32([1, 2])}])
    steps.advance("a")
    assert set(steps.kept()) == {"c", "x", "a"}
    steps.advance("b")
    assert set(steps.kept()) == {"c", "x", "a", "b"}
    steps.advance("y")
    assert set(steps.kept()) == {"y"}


def test_how_much_is_held_at_most_is_known_before() -> None:
    """A stream of 100 waits for a sum at the end; four branches of 30 wait for a Concat."""
    branches = " ".join(f"b{i} = MatMul (n, w)" for i in range(4))
    graph = graph_of(
        f"""g (float[1, 50] x) => (float[1, 100] y) {{
            a = MatMul (x, up) n = MatMul (a, down) {branches}
            c = Concat <axis = 1> (b0, b1, b2, b3) d = MatMul (c, out) y = Add (d, a) }}""",
        up=np.ones((50, 100), np.float32),
        down=np.ones((100, 10), np.float32),
        w=np.ones((10, 30), np.float32),
        out=np.ones((120, 100), np.float32),
    )
    sizes = {"x": 50, "a": 100, "n": 10, **{f"b{i}": 30 for i in range(4)}, "c": 120, "d": 100}
    assert most_held(graph.nodes, ["x"], sizes) == (120, 100 + 4 * 30 + 120)
    assert most_held(graph.nodes[-2:], ["a", "c"], sizes) == (120, 100 + 120 + 100)
    steps = Steps(graph, [{"x": np.ones((1, 50), np.float32)}])
    for node in graph.nodes[:-1]:
        steps.advance(node.outputs[0].name)
        assert sum(sizes[name] for name in steps.kept()) <= 340


def test_graphs_of_more_than_tensors_are_told_apart() -> None:
    assert can_step(diamond())
    assert can_step(branching())
    graph = graph_of(
        "g (float[2] x) => (float[1, 2] y) "
        "{ s = SequenceConstruct (x)  y = ConcatFromSequence <axis = 0, new_axis = 1> (s) }"
    )
    assert not can_step(graph)


@pytest.mark.parametrize("sofar", ["a", "codes", "b"])
def test_further_feeds_catch_up(sofar: str) -> None:
    graph = diamond()
    steps = Steps(graph, feeds()[:1])
    steps.advance("a")
    steps.advance(sofar)
    kept = steps.kept()
    steps.extend(feeds()[1:])
    steps.extend([])
    assert steps.kept() == kept
    assert steps.ahead()[-1].name == "D"
    values = steps.advance("d")
    assert len(values) == len(feeds()) == 3
    for feed, value in zip(feeds(), values, strict=True):
        np.testing.assert_array_equal(value, open_session(graph).run(feed)[0])
