"""Static INT8 inside If, Loop and Scan, against integers in numpy and models without bodies."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from quantized_values import constant, sqnr_db

from onnxcomp.calibration import Calibration
from onnxcomp.exporting import to_proto
from onnxcomp.graph import all_graphs, all_nodes, sort_nodes, subgraphs
from onnxcomp.model import check_graph
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.runtime import Feed, open_session
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

Array = np.ndarray[Any, Any]
SAME = "pads = [1, 1, 1, 1]"


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


WEIGHTS = {
    "w": normal(8, 3, 3, 3),
    "v": normal(8, 8, 3, 3, seed=1) / 8,
    "u": normal(8, 8, 3, 3, seed=2) / 4,
    "b": normal(8, seed=3),
}


def quantize(graph: gs.Graph, feeds: list[Feed], **options: Any) -> PassReport:
    report = PassReport()
    calibration = Calibration.from_source(feeds, graph)
    context = PassContext(target=resolve_target("x86-vnni"), calibration=calibration)
    QuantizeStatic(**options).rewrite(graph, context, report)
    for body in all_graphs(graph):
        sort_nodes(body)
    check_graph(graph)
    names = [node.name for node in all_nodes(graph) if node.name]
    assert len(names) == len(set(names))
    return report


def body_of(graph: gs.Graph, attribute: str) -> gs.Graph:
    return next(b for node in graph.nodes for name, b in subgraphs(node) if name == attribute)


# --- If -------------------------------------------------------------------------------------------

BRANCH = f"""[first_{{0}}] h_{{0}} = Conv <{SAME}> (x, w, b)  r_{{0}} = Relu (h_{{0}})
    [second_{{0}}] m_{{0}} = Conv <{SAME}> (r_{{0}}, {{1}})  y_{{0}} = Add (m_{{0}}, r_{{0}})
    [last_{{0}}] z_{{0}} = Conv (y_{{0}}, {{1}}) """
BOTH = f"""g (bool c, float[1, 3, 8, 8] x) => (float[1, 8, 6, 6] z) {{
    z = If (c) <
        then_branch = yes () => (float[1, 8, 6, 6] z_p) {{ {BRANCH.format("p", "v")} }},
        else_branch = no () => (float[1, 8, 6, 6] z_q) {{ {BRANCH.format("q", "u")} }}
    > }}"""


def choices(count: int = 12) -> list[Feed]:
    """Samples of two kinds: the branches see other ranges."""
    return [
        {"c": np.array(k % 3 > 0), "x": normal(1, 3, 8, 8, seed=50 + k) * (1 + 3 * (k % 3 > 0))}
        for k in range(count)
    ]


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize(("taken", "letter", "weight"), [(True, "p", "v"), (False, "q", "u")])
def test_a_branch_is_the_model_that_has_nothing_else(
    taken: bool, letter: str, weight: str, rounding: str
) -> None:
    graph = graph_of(BOTH, **WEIGHTS)
    report = quantize(graph, choices(), rounding=rounding)
    assert {f"first_{x}" for x in "pq"} | {f"last_{x}" for x in "pq"} <= set(report.changed)
    text = f"g (float[1, 3, 8, 8] x) => (float[1, 8, 6, 6] z_{letter}) {{ {BRANCH} }}"
    used = {n: WEIGHTS[n] for n in ("w", "b", weight)}
    flat = graph_of(text.replace("{0}", letter).replace("{1}", weight), **used)
    mine = [{"x": f["x"]} for f in choices() if bool(f["c"]) is taken]
    quantize(flat, mine, rounding=rounding, exact_inputs=False)
    scale = constant(flat, f"z_{letter}.scale")
    for k in range(4):
        x = normal(1, 3, 8, 8, seed=90 + k) * (4 if taken else 1)
        want = open_session(flat, threads=1).run({"x": x})[0]
        got = open_session(graph, threads=1).run({"x": x, "c": np.array(taken)})[0]
        assert np.abs(want - got).max() <= scale * 1.001
        assert np.unique(np.rint(want / scale)).size > 50


def test_a_branch_that_no_sample_takes_stays_float_and_says_so() -> None:
    graph = graph_of(BOTH, **WEIGHTS)
    before = to_proto(graph)
    report = quantize(graph, [f for f in choices() if f["c"]])
    assert {"first_p", "second_p", "last_p"} <= set(report.changed)
    for name in ("first_q", "second_q", "last_q"):
        assert "no sample reaches it" in report.skipped[name]
    attributes = {a.name: a.g for node in before.graph.node for a in node.attribute}
    kept = body_of(graph, "else_branch")
    assert [n.op for n in kept.nodes] == [n.op_type for n in attributes["else_branch"].node]


SHARED = f"""g (bool c, float[1, 3, 8, 8] x) => (float[1, 8, 8, 8] y) {{
    [stem] s = Conv <{SAME}> (x, w, b)  r = Relu (s)
    y = If (c) <
        then_branch = yes () => (float[1, 8, 8, 8] p) {{ [one] p = Conv <{SAME}> (r, v) }},
        else_branch = no () => (float[1, 8, 8, 8] q) {{ [two] q = Conv <{SAME}> (r, u) }}
    > }}"""


def test_codes_made_outside_are_read_inside_without_rounding_again() -> None:
    graph = graph_of(SHARED, **WEIGHTS)
    quantize(graph, choices())
    codes = graph.tensors()["r.codes"]
    for name, want in (("then_branch", "p"), ("else_branch", "q")):
        body = body_of(graph, name)
        (conv,) = [node for node in body.nodes if node.op == "Conv"]
        reader = conv.inputs[0].inputs[0]
        assert reader.op == "DequantizeLinear"
        assert reader.inputs[0] is codes
        assert reader.inputs[1].values == constant(graph, "r.scale")
        assert Counter(n.op for n in body.nodes)["QuantizeLinear"] == 1  # of its own output
        assert body.outputs[0].name == want
    assert "r.dequantized" not in graph.tensors()  # nobody reads it any more


def test_a_layer_inside_is_the_integer_layer_on_the_codes_from_outside() -> None:
    graph = graph_of(SHARED, **WEIGHTS)
    quantize(graph, choices(), rounding="nearest", equalize=False)
    body = body_of(graph, "then_branch")
    for feed in [f for f in choices() if f["c"]][:3]:
        session = open_session(graph, extra_outputs=["r.codes"], threads=1)
        got, codes = session.run(feed, ["y", "r.codes"])
        scale, zero = constant(body, "p.scale"), int(constant(body, "p.zero_point"))
        want = integer_conv(codes, graph, body, "r", "v", "p")
        assert np.abs(np.rint(got / scale) + zero - want).max() <= 1
        assert np.unique(want).size > 100


def integer_conv(
    codes: Array, outer: gs.Graph, body: gs.Graph, read: str, weight: str, made: str
) -> Array:
    """Codes of a 3x3 Conv with pads of 1 by the definitions, from codes of its input."""
    sx, zx = constant(outer, f"{read}.scale"), int(constant(outer, f"{read}.zero_point"))
    sy, zy = constant(body, f"{made}.scale"), int(constant(body, f"{made}.zero_point"))
    w, sw = constant(body, f"{weight}.codes").astype(np.int64), constant(body, f"{weight}.scale")
    bias = next(n for n in body.tensors() if n.endswith("bias.codes") or n == "b.codes")
    data = np.pad(codes.astype(np.int64) - zx, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(data, (3, 3), (2, 3))
    sums = np.einsum("ncyxij,ocij->noyx", windows, w)
    sums = sums + constant(body, bias).astype(np.int64)[:, None, None]
    scale = (sx.astype(np.float64) * sw / sy)[:, None, None]
    return np.asarray(np.clip(np.rint(sums * scale) + zy, 0, 255))


def test_recurrent_layers_inside_keep_their_reason() -> None:
    graph = graph_of(
        """g (bool c, float[5, 1, 4] x) => (float[5, 1, 1, 4] y) {
            y = If (c) <
                then_branch = yes () => (float[5, 1, 1, 4] p) {
                    [memory] p = LSTM <hidden_size = 4> (x, w, r) },
                else_branch = no () => (float[5, 1, 1, 4] q) { q = Unsqueeze (x, one) }
            > }""",
        w=normal(1, 16, 4),
        r=normal(1, 16, 4),
        one=np.array([1]),
    )
    report = quantize(graph, [{"c": np.array(True), "x": normal(5, 1, 4)}])
    assert "recurrent" in report.skipped["memory"]
    assert report.changed == []


# --- Loop and Scan --------------------------------------------------------------------------------

LOOP = f"""g (float[1, 8, 6, 6] x, int64 trips)
    => (float[1, 8, 6, 6] y, float[k, 1, 8, 6, 6] all) {{
    y, all = Loop (trips, , x) <body = step (int64 i, bool go, float[1, 8, 6, 6] state)
        => (bool on, float[1, 8, 6, 6] next, float[1, 8, 6, 6] seen) {{
            on = Identity (go)
            [turn] next = Conv <{SAME}> (state, u, b)
            seen = Identity (next)
        }}>
    }}"""


def loop_feeds() -> list[Feed]:
    return [{"x": normal(1, 8, 6, 6, seed=k), "trips": np.array(1 + k % 4)} for k in range(8)]


def test_each_turn_of_a_loop_is_the_integer_layer_within_one_code() -> None:
    graph = graph_of(LOOP, u=WEIGHTS["u"], b=WEIGHTS["b"])
    report = quantize(graph, loop_feeds())
    assert report.changed == ["turn"]
    body = body_of(graph, "body")
    (reader,) = (n for n in body.nodes if n.op == "QuantizeLinear" and n.inputs[0].name == "state")
    scale, zero = (t.values for t in reader.inputs[1:3])
    for feed in loop_feeds():
        turns = open_session(graph, threads=1).run(feed)[1]
        assert len(turns) == feed["trips"]
        for before, after in zip([feed["x"], *turns], turns, strict=False):
            codes = np.clip(np.rint(before / scale) + zero, 0, 255)
            want = integer_conv(codes, body, body, "state", "u", "next")
            made = np.rint(after / constant(body, "next.scale")) + constant(body, "next.zero_point")
            assert np.abs(made - want).max() <= 1


def test_ranges_of_a_loop_are_those_of_all_its_turns() -> None:
    graph = graph_of(LOOP, u=WEIGHTS["u"], b=WEIGHTS["b"])
    session = open_session(graph, threads=1)
    answers = [session.run(feed)[1] for feed in loop_feeds()]
    turns = np.concatenate(answers)
    states = np.concatenate([[f["x"], *a[:-1]] for f, a in zip(loop_feeds(), answers, strict=True)])
    quantize(graph, loop_feeds(), calibrator="minmax", equalize=False)
    body = body_of(graph, "body")
    for name, values in (("next", turns), ("state", states)):
        width = float(values.max()) - float(values.min())
        np.testing.assert_allclose(constant(body, f"{name}.scale"), width / 255, rtol=1e-5)
    assert np.abs(turns).max() > 2 * np.abs([f["x"] for f in loop_feeds()]).max()


def test_a_loop_is_its_turns_written_one_after_the_other() -> None:
    text = f"""g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) {{
        a = Conv <{SAME}> (x, v)  b = Relu (a)  c = Conv <{SAME}> (b, v)  y = Relu (c) }}"""
    flat = graph_of(text, v=WEIGHTS["v"])
    graph = graph_of(
        f"""g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) {{
            y = Loop (two, , x) <body = step (int64 i, bool go, float[1, 8, 6, 6] state)
                => (bool on, float[1, 8, 6, 6] next) {{
                    on = Identity (go)  h = Conv <{SAME}> (state, v)  next = Relu (h) }}>
        }}""",
        two=np.array(2),
        v=WEIGHTS["v"],
    )
    feeds: list[Feed] = [{"x": normal(1, 8, 6, 6, seed=k)} for k in range(16)]
    want = np.stack([open_session(flat, threads=1).run(f)[0] for f in feeds])
    quantize(flat, feeds)
    quantize(graph, feeds)
    one, other = (
        sqnr_db(want, np.stack([open_session(g, threads=1).run(f)[0] for f in feeds]))
        for g in (flat, graph)
    )
    assert one > 30
    assert other > one - 3  # one scale for both turns, where the flat model has one for each


def test_a_branch_in_a_loop_reads_the_outermost_graph() -> None:
    text = f"""g (float[1, 3, 8, 8] image, float[1, 8, 8, 8] x, int64 trips)
        => (float[1, 8, 8, 8] y) {{
        [stem] s = Conv <{SAME}> (image, w, b)  r = Relu (s)
        y = Loop (trips, , x) <body = step (int64 i, bool go, float[1, 8, 8, 8] state)
            => (bool on, float[1, 8, 8, 8] next) {{
                on = Identity (go)
                bit = Mod (i, two)  odd = Equal (bit, one)
                h = If (odd) <
                    then_branch = g1 () => (float[1, 8, 8, 8] p) {{
                        [fed] p = Conv <{SAME}> (r, v) }},
                    else_branch = g2 () => (float[1, 8, 8, 8] q) {{
                        [back] q = Conv <{SAME}> (state, u) }}
                >
                [turn] next = Conv <{SAME}> (h, v)
            }}> }}"""
    graph = graph_of(text, two=np.array(2), one=np.array(1), **WEIGHTS)
    feeds: list[Feed] = [
        {"image": normal(1, 3, 8, 8, seed=k), "x": normal(1, 8, 8, 8, seed=k), "trips": np.array(3)}
        for k in range(6)
    ]
    want = [open_session(graph, threads=1).run(f)[0] for f in feeds]
    report = quantize(graph, feeds)
    assert set(report.changed) == {"stem", "fed", "back", "turn"}
    got = [open_session(graph, threads=1).run(f)[0] for f in feeds]
    assert sqnr_db(np.stack(want), np.stack(got)) > 25
    (fed,) = [n for n in all_nodes(graph) if n.name == "fed"]
    assert fed.inputs[0].inputs[0].inputs[0] is graph.tensors()["r.codes"]


def test_the_body_of_a_scan_runs_in_integers() -> None:
    graph = graph_of(
        """g (float[1, 16] start, float[5, 16] xs) => (float[1, 16] last, float[5, 1, 16] all) {
            last, all = Scan <num_scan_inputs = 1, body = step (float[1, 16] state, float[16] x)
                => (float[1, 16] next, float[1, 16] seen) {
                    row = Reshape (x, flat)
                    [mix] m = MatMul (state, w)
                    [take] t = MatMul (row, v)
                    sum = Add (m, t)
                    next = Tanh (sum)
                    seen = Identity (next)
                }> (start, xs)
        }""",
        flat=np.array([1, 16]),
        w=normal(16, 16) / 4,
        v=normal(16, 16, seed=1) / 4,
    )
    feeds: list[Feed] = [
        {"start": normal(1, 16, seed=k), "xs": normal(5, 16, seed=20 + k)} for k in range(8)
    ]
    want = np.stack([open_session(graph, threads=1).run(f)[1] for f in feeds])
    report = quantize(graph, feeds)
    assert {"mix", "take"} <= set(report.changed)
    got = np.stack([open_session(graph, threads=1).run(f)[1] for f in feeds])
    assert sqnr_db(want, got) > 30


# --- the whole ------------------------------------------------------------------------------------


def test_a_weight_that_both_branches_and_the_graph_read_is_right_in_all() -> None:
    graph = graph_of(
        SHARED.replace("(r, u)", "(r, v)"), w=WEIGHTS["w"], b=WEIGHTS["b"], v=WEIGHTS["v"]
    )
    feeds = choices()
    want = [open_session(graph, threads=1).run(f)[0] for f in feeds]
    quantize(graph, feeds)
    got = [open_session(graph, threads=1).run(f)[0] for f in feeds]
    assert sqnr_db(np.stack(want), np.stack(got)) > 30
    assert not any(t.name == "v" for body in all_graphs(graph) for t in body.tensors().values())


def test_overrides_reach_into_bodies() -> None:
    graph = graph_of(BOTH, **WEIGHTS)
    report = quantize(graph, choices(), overrides={"*_q": {"skip": True}})
    assert report.skipped["first_q"] == "skipped by an override"
    assert {"first_p", "second_p", "last_p"} <= set(report.changed)
    assert not any(name.endswith("_q") for name in report.changed)


def test_candidates_are_what_changes_and_change_nothing() -> None:
    graph = graph_of(BOTH, **WEIGHTS)
    before = to_proto(graph).SerializeToString()
    found = QuantizeStatic().candidates(graph)
    assert to_proto(graph).SerializeToString() == before
    assert found == quantize(graph, choices()).changed


def test_the_same_samples_give_the_same_bytes_and_twice_is_once() -> None:
    one, other = graph_of(BOTH, **WEIGHTS), graph_of(BOTH, **WEIGHTS)
    quantize(one, choices())
    quantize(other, choices())
    first = to_proto(one).SerializeToString()
    assert first == to_proto(other).SerializeToString()
    assert quantize(one, choices()).changed == []
    assert to_proto(one).SerializeToString() == first
