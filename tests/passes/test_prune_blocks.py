"""prune_blocks: what is left computes what the model would without the branches."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp import optimize
from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationRequired
from onnxcomp.importing import from_proto
from onnxcomp.macs import count_macs
from onnxcomp.model import check_graph
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.prune_blocks import PruneBlocks
from onnxcomp.recipe import compose, parse_pass
from onnxcomp.runtime import Feed
from onnxcomp.targets import resolve_target
from onnxcomp.testing import answers, assert_same_answers, graph_of

WIDTH = 16
BLOCKS = 4
SIZES = (0.02, 0.5, 0.1, 0.25)  # of the branches: the order they go in is 0, 2, 3, 1


def chain(sizes: tuple[float, ...] = SIZES, left_out: frozenset[int] = frozenset()) -> gs.Graph:
    """x [N, 16] -> x + s_i relu(x A_i) B_i, block after block -> y [N, 16]."""
    text, stream = "", "x"
    constants: dict[str, Any] = {}
    for i, size in enumerate(sizes):
        rng = np.random.default_rng(i)
        if i in left_out:
            continue
        text += f"""[up{i}] u{i} = MatMul ({stream}, a{i}) [relu{i}] r{i} = Relu (u{i})
            [down{i}] d{i} = MatMul (r{i}, b{i}) [sum{i}] s{i} = Add ({stream}, d{i}) """
        stream = f"s{i}"
        constants[f"a{i}"] = rng.standard_normal((WIDTH, 64), np.float32) / 4
        constants[f"b{i}"] = size * rng.standard_normal((64, WIDTH), np.float32) / 4
    text = (
        f"net (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ {text} y = Identity ({stream}) }}"
    )
    return graph_of(text, **constants)


def feeds(count: int = 24, name: str = "x", shape: tuple[int, ...] = (3, WIDTH)) -> list[Feed]:
    rng = np.random.default_rng(5)
    return [{name: rng.standard_normal(shape, np.float32)} for _ in range(count)]


def run_pass(graph: gs.Graph, given: list[Feed] | None = None, **options: Any) -> PassReport:
    report = PassReport()
    calibration = Calibration.from_source(feeds() if given is None else given, graph)
    context = PassContext(target=resolve_target(), calibration=calibration)
    PruneBlocks(**options).rewrite(graph, context, report)
    check_graph(graph)
    return report


def gone(report: PassReport) -> list[str]:
    return [name for name in report.changed if name.startswith("sum")]


@pytest.mark.parametrize(("count", "left_out"), [(1, {0}), (2, {0, 2}), (3, {0, 2, 3})])
def test_what_is_left_is_the_model_without_the_branches(count: int, left_out: set[int]) -> None:
    graph = chain()
    report = run_pass(graph, count=count, repair="none", recovery=False)
    assert_same_answers(chain(left_out=frozenset(left_out)), graph, feeds(3))
    assert gone(report) == [f"sum{i}" for i in (0, 2, 3) if i in left_out]
    assert {node.name for node in graph.nodes}.isdisjoint(f"up{i}" for i in left_out)
    assert report.numbers["macs_after"] == (BLOCKS - count) / BLOCKS * report.numbers["macs_before"]
    assert report.numbers["parameters_after"] == (BLOCKS - count) * 2 * 64 * WIDTH
    assert report.numbers["branches_dropped"] == count
    assert set(report.skipped) == {f"sum{i}" for i in range(BLOCKS) if i not in left_out}


def error(whole: gs.Graph, other: gs.Graph, samples: list[Feed]) -> float:
    pairs = [(answers(whole, feed)["y"], answers(other, feed)["y"]) for feed in samples]
    return sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in pairs)


def test_branches_go_in_the_order_that_trying_all_of_them_gives() -> None:
    sizes, most = (0.3, 0.31, 0.29, 0.3, 0.32), 3
    whole, given = chain(sizes), feeds()
    wanted: list[int] = []
    before = 0.0
    while len(wanted) < most:
        units = [(i,) for i in range(len(sizes))] + [(i, i + 1) for i in range(len(sizes) - 1)]
        units = [u for u in units if not set(u) & set(wanted) and len(u) + len(wanted) <= most]
        errors = {
            unit: error(whole, chain(sizes, frozenset({*wanted, *unit})), given[3::4])
            for unit in units
        }
        best = min(units, key=lambda unit: (errors[unit] - before) / len(unit))
        before = errors[best]
        wanted += best
    assert gone(run_pass(chain(sizes), given, count=most, repair="none")) == [
        f"sum{i}" for i in wanted
    ]


def test_the_error_in_the_report_is_that_of_the_result() -> None:
    graph, given = chain(), feeds()
    whole = graph.copy()
    report = run_pass(graph, given, count=2)
    signal = noise = 0.0
    for feed in given[3::4]:  # held back to judge by
        want, got = answers(whole, feed)["y"], answers(graph, feed)["y"]
        signal += float(np.square(want).sum())
        noise += float(np.square(want - got).sum())
    assert report.numbers["sqnr_db"] == pytest.approx(10 * np.log10(signal / noise), abs=0.02)


def test_limits_are_kept() -> None:
    graph = chain()
    report = run_pass(graph, max_macs=0.6, repair="none")
    assert gone(report) == ["sum0", "sum2"]
    assert report.numbers["macs_after"] <= 0.6 * report.numbers["macs_before"]
    graph = chain()
    report = run_pass(graph, max_parameters=0.75, repair="none")
    assert gone(report) == ["sum0"]
    report = run_pass(chain(), count=0)
    assert report.changed == []


def test_no_step_goes_below_the_least_sqnr() -> None:
    loose = run_pass(chain(), count=2, repair="none", recovery=False).numbers["sqnr_db"]
    report = run_pass(chain(), count=3, min_sqnr_db=loose - 0.1, repair="none")
    assert gone(report) == ["sum0", "sum2"]
    assert any("limit is not reached" in note for note in report.notes)
    assert gone(run_pass(chain(), count=3, min_sqnr_db=loose + 0.1, repair="none")) == ["sum0"]


def test_without_limits_outputs_keep_15_db() -> None:
    report = run_pass(chain((0.01, 0.01, 5.0)), repair="none")
    assert gone(report) == ["sum0", "sum1"]
    assert report.numbers["sqnr_db"] >= 15


def test_a_node_that_is_skipped_keeps_its_branch() -> None:
    graph = chain()
    report = run_pass(graph, count=1, repair="none", overrides={"*up0": {"skip": True}})
    assert gone(report) == ["sum2"]
    assert report.skipped["sum0"] == "the recipe says so"


def test_linear_branches_become_one_product() -> None:
    rng = np.random.default_rng(0)
    text = f"""net (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{
        u = MatMul (x, a) v = Add (u, c) d = MatMul (v, b) [sum0] m = Add (x, d) y = Tanh (m) }}"""
    graph = graph_of(
        text,
        a=rng.standard_normal((WIDTH, 64), np.float32) / 8,
        b=rng.standard_normal((64, WIDTH), np.float32) / 8,
        c=rng.standard_normal(64, np.float32),
    )
    whole = graph.copy()
    report = run_pass(graph, feeds(64), count=1)
    assert [node.op for node in graph.nodes] == ["MatMul", "Add", "Tanh"]
    assert report.numbers["macs_after"] * 8 == report.numbers["macs_before"]
    assert_same_answers(whole, graph, feeds(2), min_sqnr_db=80)


def linear_chain() -> gs.Graph:
    """x [N, 16] -> two blocks x + (x A_i) B_i, the second behind a layer -> y [N, 16]."""
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape, np.float32) / 4
        for name, shape in {
            **dict.fromkeys(("a0", "a1"), (WIDTH, 64)),
            **dict.fromkeys(("b0", "b1"), (64, WIDTH)),
            "c": (WIDTH,),
        }.items()
    }
    return graph_of(
        f"""net (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{
            u0 = MatMul (x, a0) d0 = MatMul (u0, b0) v0 = Add (d0, c) [sum0] s0 = Add (x, v0)
            u1 = MatMul (s0, a1) d1 = MatMul (u1, b1) [sum1] s1 = Add (s0, d1) y = Tanh (s1) }}""",
        **weights,
    )


def test_maps_in_a_row_become_one() -> None:
    graph = linear_chain()
    whole = graph.copy()
    report = run_pass(graph, feeds(64), count=2)
    assert [node.op for node in graph.nodes] == ["MatMul", "Add", "Tanh"]
    assert report.numbers["macs_after"] * 16 == report.numbers["macs_before"]
    assert_same_answers(whole, graph, feeds(2), min_sqnr_db=80)


def test_a_map_goes_into_the_convolution_before_it() -> None:
    rng = np.random.default_rng(0)
    text = """net (float[1, 3, 6, 6] x) => (float[1, 4, 6, 6] y) {
        [first] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0, b0)
        c = Conv <kernel_shape = [1, 1]> (a, w1) d = Conv <kernel_shape = [1, 1]> (c, w2, b2)
        [sum0] s = Add (d, a) y = Tanh (s) }"""
    shapes = {"w0": (4, 3, 3, 3), "b0": (4,), "w1": (24, 4, 1, 1), "w2": (4, 24, 1, 1), "b2": (4,)}
    graph = graph_of(text, **{n: rng.standard_normal(s, np.float32) / 2 for n, s in shapes.items()})
    whole = graph.copy()
    report = run_pass(graph, feeds(32, shape=(1, 3, 6, 6)), count=1)
    assert graph.nodes[0].name == "first"
    assert [node.op for node in graph.nodes] == ["Conv", "Tanh"]
    assert report.numbers["macs_after"] == 36 * 4 * 27
    assert_same_answers(whole, graph, feeds(2, shape=(1, 3, 6, 6)), min_sqnr_db=80)


def test_a_branch_within_a_branch_goes_first_and_then_the_other() -> None:
    rng = np.random.default_rng(0)
    text = f"""net (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{
        h = MatMul (x, a) u = MatMul (h, b) v = MatMul (u, c) [sum0] i = Add (h, v)
        r = Relu (i) f = MatMul (r, d) [sum1] s = Add (x, f) y = Tanh (s) }}"""
    shapes = {"a": (16, 16), "b": (16, 64), "c": (64, 16), "d": (16, 16)}
    weights = {n: rng.standard_normal(shape, np.float32) / 8 for n, shape in shapes.items()}
    graph = graph_of(text, **weights)
    report = run_pass(graph, feeds(64), count=2, repair="linear")
    assert gone(report) == ["sum0", "sum1"]
    assert report.numbers["macs_after"] <= 3 * 16 * 16
    assert {"MatMul:h", "MatMul:u", "MatMul:f"} <= set(report.changed)


def test_few_positions_determine_no_map() -> None:
    graph = linear_chain()
    report = run_pass(graph, feeds(5), count=2)  # 15 positions, 16 channels
    assert "linear map" not in " ".join(report.notes)
    assert report.numbers["branches_dropped"] == 2


def test_a_constant_stands_in_for_what_does_not_change() -> None:
    rng = np.random.default_rng(0)
    text = """net (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y) {
        c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w, b)
        [sum0] s = Add (c, x) y = Tanh (s) }"""
    weights = {"w": 1e-3 * rng.standard_normal((4, 4, 3, 3), np.float32)}
    weights["b"] = rng.standard_normal(4, np.float32)
    graph = graph_of(text, **weights)
    whole = graph.copy()
    report = run_pass(graph, feeds(32, shape=(1, 4, 6, 6)), count=1, repair="constant")
    assert [node.op for node in graph.nodes] == ["Add", "Tanh"]
    assert np.allclose(graph.nodes[0].inputs[0].values.ravel(), weights["b"], atol=0.01)
    assert report.numbers["macs_after"] == 0
    assert_same_answers(whole, graph, feeds(2, shape=(1, 4, 6, 6)), min_sqnr_db=40)
    graph = whole.copy()
    run_pass(graph, feeds(32, shape=(1, 4, 6, 6)), count=1, repair="none")
    assert [node.op for node in graph.nodes] == ["Tanh"]


def test_repair_loses_less() -> None:
    found = {
        repair: run_pass(chain(), feeds(64), count=2, repair=repair, recovery=False).numbers[
            "sqnr_db"
        ]
        for repair in ("none", "constant", "linear")
    }
    assert found["none"] + 1 < found["constant"] < found["linear"] - 1


def test_layers_behind_a_branch_are_refitted() -> None:
    given, plain, refitted = feeds(64), chain(), chain()
    before = run_pass(plain, given, count=1, repair="none", recovery=False)
    report = run_pass(refitted, given, count=1, repair="none")
    assert before.numbers["sqnr_db"] + 3 < report.numbers["sqnr_db"]
    assert report.numbers["refitted_layers"] > 0
    assert "down1" in report.changed
    assert error(chain(), refitted, feeds(80)[64:]) < error(chain(), plain, feeds(80)[64:]) / 2


def test_refitting_that_helps_no_output_is_undone() -> None:
    """Three samples of two rows settle nothing."""
    given, plain, refitted = feeds(3, shape=(2, WIDTH)), chain(), chain()
    run_pass(plain, given, count=1, repair="none", recovery=False)
    report = run_pass(refitted, given, count=1, repair="none")
    assert "refitted_layers" not in report.numbers
    assert_same_answers(plain, refitted, given)


def test_the_same_samples_give_the_same_bytes() -> None:
    first, second = chain(), chain()
    run_pass(first, count=2)
    run_pass(second, count=2)
    constants = [
        {n: t.values for n, t in g.tensors().items() if isinstance(t, gs.Constant)}
        for g in (first, second)
    ]
    assert constants[0].keys() == constants[1].keys()
    assert all((constants[0][name] == constants[1][name]).all() for name in constants[0])


def test_samples_are_needed_and_progress_is_shown() -> None:
    with pytest.raises(CalibrationRequired, match="--calibration"):
        PruneBlocks().rewrite(chain(), PassContext(target=resolve_target()), PassReport())
    graph, seen = chain(), list[tuple[int, int]]()
    context = PassContext(
        target=resolve_target(),
        calibration=Calibration.from_source(None, graph),
        advance=lambda done, total: seen.append((done, total)),
    )
    PruneBlocks(count=1).rewrite(graph, context, PassReport())
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert all(done <= total for done, total in seen)


@pytest.mark.parametrize(
    "options", [{"max_macs": 1.5}, {"max_parameters": -0.1}, {"count": -1}, {"samples": 0}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PruneBlocks(**options)


def test_a_model_without_branches_is_left_alone() -> None:
    graph = graph_of(
        "net (float[N, 4] x) => (float[N, 4] y) { y = MatMul (x, w) }",
        w=np.eye(4, dtype=np.float32),
    )
    report = run_pass(graph, feeds(2, shape=(1, 4)))
    assert report.changed == []
    assert report.numbers["branches_found"] == 0


def test_candidates_need_no_samples() -> None:
    assert PruneBlocks().candidates(chain()) == [f"sum{i}" for i in range(BLOCKS)]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "gpt_neox", "phi", "albert", "t5_encoder"])
def test_real_architectures_keep_working(hydrate: ModuleType, name: str) -> None:
    model = hydrate.load(name)
    samples = [hydrate.feeds(model, seed) for seed in range(2)]
    graph = from_proto(model)
    shapes = {key: value.shape for key, value in samples[0].items()}
    before = count_macs(graph, shapes)
    report = run_pass(graph, samples, max_macs=0.7, samples=2)
    after = count_macs(graph, shapes)
    assert before is not None
    assert after is not None
    assert after <= 0.7 * before
    assert report.numbers["macs_after"] == after
    assert all(np.isfinite(value).all() for value in answers(graph, samples[1]).values())


def test_pruning_and_the_recipe_around_it(models: Any, tmp_path: Any) -> None:
    recipe = compose([parse_pass("simplify_graph"), parse_pass("prune_blocks:count=1")])
    result = optimize(
        models / "digits_resnet.onnx",
        recipe,
        calibration=models / "digits_calibration.npz",
        output=tmp_path / "small.onnx",
    )
    last = result.report.passes[-1]
    assert last.status == "kept"
    assert last.numbers["branches_dropped"] == 1
    assert result.report.after.macs < result.report.before.macs
