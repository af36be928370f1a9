"""The pipeline's guarantees, whatever a pass does."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.errors import GateFailed, OutputError, PassFailed, RecipeError, UnsupportedModel
from onnxcomp.graph import constants
from onnxcomp.model import load_model
from onnxcomp.optimize import Result, optimize
from onnxcomp.passes import Pass, PassContext, PassReport
from onnxcomp.progress import Progress
from onnxcomp.recipe import Gates, Recipe
from onnxcomp.runtime import Session
from onnxcomp.testing import answers, assert_same_answers, model_of, small_mlp

Edit = Callable[[gs.Graph], None]
FEEDS = [{"x": row[None]} for row in np.random.default_rng(0).standard_normal((4, 16), np.float32)]


@dataclass(frozen=True, kw_only=True)
class Rewrite(Pass):
    """Applies a function to the graph and says that it changed a node.

    Attributes:
        edit: what to do.
        changed: labels of the nodes it says it changed.
    """

    edit: Edit = lambda graph: None
    changed: tuple[str, ...] = ("first",)

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Applies ``edit``; see `Pass.rewrite`."""
        for node in report.visit(graph.nodes[:1]):
            self.edit(graph)
            report.changed += self.changed
            report.skip(node, "only tried")

    def candidates(self, graph: gs.Graph) -> list[str]:
        """None."""
        return []


class NeedsOpset99(Rewrite):
    """A pass for models of the future."""

    minimum_opset: ClassVar[int] = 99


def scaled(factor: float, name: str = "w1") -> Edit:
    """Multiplies a weight under a new name."""

    def edit(graph: gs.Graph) -> None:
        old = constants(graph)[name]
        new = gs.Constant(f"{name}.scaled", (old.values * factor).astype(np.float32))
        node = old.outputs[0]
        node.inputs[[t.name for t in node.inputs].index(name)] = new

    return edit


def larger(graph: gs.Graph) -> None:
    """The same function in more bytes: y + 0."""
    node, output = graph.nodes[-1], graph.outputs[0]
    between = gs.Variable("between", np.dtype(np.float32), output.shape)
    node.outputs[0] = between
    zero = gs.Constant("zero", np.zeros((1, 10), np.float32))
    graph.nodes.append(gs.Node("Add", inputs=[between, zero], outputs=[output]))


def smaller(graph: gs.Graph) -> None:
    """The same function in fewer bytes: without a doc string."""
    graph.doc_string = ""


def transposed(graph: gs.Graph) -> None:
    """Gives [10, N] where [N, 10] was promised."""
    node, output = graph.nodes[-1], graph.outputs[0]
    node.outputs[0] = between = gs.Variable("between", np.dtype(np.float32))
    graph.nodes.append(gs.Node("Transpose", "swap", {"perm": [1, 0]}, [between], [output]))


def raising(graph: gs.Graph) -> None:
    raise ValueError("odd\nthing")


def attribute(graph: gs.Graph) -> None:
    graph.nodes[0].attrs["odd"] = 1


def not_running(graph: gs.Graph) -> None:
    graph.nodes[0].inputs[1] = gs.Constant("w1.cut", np.zeros((26, 15), np.float32))


def cyclic(graph: gs.Graph) -> None:
    graph.nodes[0].inputs[0] = graph.nodes[-1].outputs[0]


def renamed_output(graph: gs.Graph) -> None:
    graph.outputs[0].name = "z"


def reordered(graph: gs.Graph) -> None:
    graph.nodes.reverse()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    model = small_mlp()
    model.graph.doc_string = "a long text " * 200
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def run(source: Path, *edits: Edit | Pass, gates: Gates = Gates(), **options: Any) -> Result:  # noqa: B008
    passes = tuple(e if isinstance(e, Pass) else Rewrite(edit=e) for e in edits)
    recipe = Recipe(passes=passes, gates=gates)
    return optimize(source, recipe, **{"calibration": FEEDS, **options})


def outcomes(result: Result) -> list[tuple[str, str]]:
    return [(p.status, p.reason) for p in result.report.passes]


# --- passes that break something --------------------------------------------------------------

BROKEN: list[tuple[Edit, str, str]] = [
    (raising, "failed", "odd thing (ValueError at node 'first')"),
    (cyclic, "failed", "cycle"),
    (attribute, "undone", "not a valid ONNX model"),
    (not_running, "undone", "onnxruntime cannot"),
    (renamed_output, "undone", "'y' in outputs changed"),
    (transposed, "undone", "onnxruntime tells 'y' as"),
    (lambda g: g.inputs[0].shape.__setitem__(0, 1), "undone", "'x' in inputs changed"),
    (lambda g: g.inputs[0].shape.__setitem__(0, "M"), "undone", "'x' in inputs changed"),
    (lambda g: setattr(g.inputs[0], "dtype", np.dtype(np.float16)), "undone", "'x' in inputs"),
    (lambda g: setattr(g.outputs[0], "shape", None), "undone", "'y' in outputs changed"),
    (lambda g: g.outputs.append(g.nodes[0].outputs[0]), "undone", "number of outputs changed"),
    (lambda g: g.inputs.append(gs.Variable("more", bool, [1])), "undone", "number of inputs"),
    (lambda g: g.nodes.pop(), "undone", "not a valid ONNX model"),
    (lambda g: setattr(g.nodes[0], "op", "Gemmm"), "undone", "Gemmm"),
]


@pytest.mark.parametrize(("edit", "status", "said"), BROKEN)
def test_a_pass_that_breaks_a_guarantee_is_undone_with_the_reason(
    source: Path, edit: Edit, status: str, said: str, tmp_path: Path
) -> None:
    result = run(source, edit, smaller, output=tmp_path / "out.onnx")
    (found, reason), after = outcomes(result)
    assert found == status
    assert said in reason
    assert "\n" not in reason
    assert after == ("kept", ""), "the next pass works on the graph before the broken one"
    assert_same_answers(source, tmp_path / "out.onnx", FEEDS)
    before, written = (onnx.load(path).graph for path in (source, tmp_path / "out.onnx"))
    assert list(written.output) == list(before.output)


@pytest.mark.parametrize(("edit", "status", "said"), BROKEN)
def test_strict_stops_where_a_pass_breaks_a_guarantee(
    source: Path, edit: Edit, status: str, said: str, tmp_path: Path
) -> None:
    error = PassFailed if status == "failed" else GateFailed
    with pytest.raises(error) as caught:
        run(source, edit, output=tmp_path / "out.onnx", strict=True)
    assert str(caught.value).startswith("rewrite: ")
    assert said in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_what_a_pass_said_before_it_raised_is_reported(source: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class HalfWay(Rewrite):
        def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
            report.change("first")
            report.numbers["layers"] = 1
            raise KeyError("w9")

    (outcome,) = run(source, HalfWay()).report.passes
    assert (outcome.name, outcome.status, outcome.changed) == ("half_way", "failed", ["first"])
    assert outcome.numbers == {"layers": 1}
    assert outcome.reason == "'w9' (KeyError)"


def test_ctrl_c_in_a_pass_ends_the_run_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def interrupted(graph: gs.Graph) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, interrupted, output=tmp_path / "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_pass_may_leave_nodes_in_any_order(source: Path, tmp_path: Path) -> None:
    assert outcomes(run(source, reordered, output=tmp_path / "out.onnx")) == [("kept", "")]
    assert_same_answers(source, tmp_path / "out.onnx", FEEDS)


# --- what is reported -------------------------------------------------------------------------


def test_a_pass_that_changes_nothing_is_unchanged(source: Path, tmp_path: Path) -> None:
    idle = Rewrite(edit=scaled(2.0), changed=())
    result = run(source, idle, NeedsOpset99(), output=tmp_path / "out.onnx")
    reasons = ["", "needs opset 99, the model has 17"]
    assert outcomes(result) == [("unchanged", reason) for reason in reasons]
    assert result.report.passes[0].skipped == {"first": "only tried"}
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()
    assert "the output is the original" in " ".join(result.report.notes)


def test_figures_are_those_of_the_files(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    report = run(source, scaled(1.001), smaller, output=output, seed=5).report
    assert report.before.bytes == source.stat().st_size
    assert report.after.bytes == output.stat().st_size
    assert [p.bytes for p in report.passes][-1] == report.after.bytes
    assert report.before.parameters == report.after.parameters == 16 * 26 + 26 + 26 * 10 + 10
    assert report.before.macs == 16 * 26 + 26 * 10
    assert (report.model, report.output, report.seed) == (str(source), str(output), 5)
    assert report.samples.startswith("4 samples")
    assert report.fidelity is not None
    assert (report.fidelity.samples, report.fidelity.synthetic) == (4, False)
    expected = [answers(source, feed)["y"] for feed in FEEDS]
    actual = [answers(output, feed)["y"] for feed in FEEDS]
    noise = np.subtract(expected, actual, dtype=np.float64)
    sqnr = 10 * np.log10(np.square(expected, dtype=np.float64).sum() / np.square(noise).sum())
    assert report.fidelity.sqnr_db == pytest.approx(sqnr, abs=0.01)
    assert json.loads(report.to_json())["passes"][0]["status"] == "kept"


def test_without_samples_the_report_says_so(source: Path) -> None:
    report = run(source, smaller, calibration=None).report
    assert report.fidelity is not None
    assert report.fidelity.synthetic
    assert "synthetic" in " ".join(report.notes)


# --- gates ------------------------------------------------------------------------------------


@pytest.fixture
def any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times, which are those of a busy machine here, undo nothing."""
    monkeypatch.setattr("onnxcomp.measuring.NOISE", 100.0)


@pytest.mark.usefixtures("any_time")
def test_gates_undo_what_breaks_them_and_nothing_else(source: Path, tmp_path: Path) -> None:
    gates = Gates(min_sqnr_db=30, must_pay=True)
    result = run(source, scaled(2.0), larger, smaller, gates=gates, output=tmp_path / "out.onnx")
    (lossy, big, small) = result.report.passes
    assert (lossy.status, big.status, small.status) == ("undone", "undone", "kept")
    assert "not faithful: SQNR" in lossy.reason
    assert lossy.fidelity is not None
    assert lossy.fidelity.sqnr_db < 30
    assert "does not pay" in big.reason
    assert_same_answers(source, tmp_path / "out.onnx", FEEDS)
    with pytest.raises(GateFailed, match="not faithful"):
        run(source, scaled(2.0), gates=gates, strict=True)


@pytest.mark.usefixtures("any_time")
def test_a_pass_pays_against_the_model_before_it(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    result = run(source, smaller, larger, gates=Gates(must_pay=True), output=output)
    assert [p.status for p in result.report.passes] == ["kept", "undone"]
    small, big = (p.bytes for p in result.report.passes)
    assert f"{big:,} bytes, {small:,} before" in result.report.passes[1].reason
    assert output.stat().st_size == small


@pytest.mark.parametrize(
    ("asked", "told"),
    [({}, False), ({"must_pay": True}, True), ({"gates": Gates(must_pay=True)}, True)],
)
def test_passes_are_told_whether_payoff_is_a_gate(
    source: Path, asked: dict[str, Any], told: bool
) -> None:
    seen = []

    class Asks(Rewrite):
        """Asks."""

        def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
            seen.append(context.must_pay)

    recipe = Recipe(passes=(Asks(),), gates=asked.get("gates", Gates()))
    rest = {name: value for name, value in asked.items() if name != "gates"}
    optimize(source, recipe, calibration=FEEDS, **rest)
    optimize(source, recipe, calibration=FEEDS, verify="off", **rest)
    assert seen == [told, False]  # nothing is timed where nothing is to be measured


def test_gates_of_the_call_are_added_to_those_of_the_recipe(source: Path) -> None:
    assert outcomes(run(source, scaled(2.0)))[0][0] == "kept"
    assert outcomes(run(source, scaled(2.0), min_sqnr_db=30))[0][0] == "undone"
    assert outcomes(run(source, larger, must_pay=True))[0][0] == "undone"
    assert run(source, must_pay=True).report.gates["must_pay"] is True


def test_an_evaluator_scores_every_pass(source: Path, tmp_path: Path) -> None:
    def first_weight(session: Any) -> float:
        """Percent of the original's answer."""
        (y,) = session.run(None, FEEDS[0])
        return float(100 * np.abs(y).sum() / np.abs(answers(source, FEEDS[0])["y"]).sum())

    result = run(source, smaller, scaled(0.5), scaled(1.0), evaluator=first_weight, max_drop=5)
    assert [p.status for p in result.report.passes] == ["kept", "undone", "kept"]
    assert "points below the original, the gate is 5" in result.report.passes[1].reason
    assert result.report.score_before == pytest.approx(100)
    assert result.report.score_after == pytest.approx(100)
    with pytest.raises(RecipeError, match=r"max_drop needs an evaluator .* or samples"):
        run(source, smaller, max_drop=5, calibration=None)


# --- when the model is run --------------------------------------------------------------------


@pytest.mark.parametrize("written", [True, False])
def test_verify_final_judges_the_whole_result(source: Path, written: bool, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx" if written else None
    gates = Gates(min_sqnr_db=30)
    kept = run(source, smaller, gates=gates, verify="final", output=output)
    assert outcomes(kept) == [("kept", "")]
    assert kept.report.fidelity is not None
    assert kept.report.passes[0].fidelity is None
    undone = run(source, smaller, scaled(2.0), gates=gates, verify="final", output=output)
    assert [p.status for p in undone.report.passes] == ["undone", "undone"]
    assert "the result as a whole: not faithful" in undone.report.passes[0].reason
    assert constants(undone.graph).keys() == {"w1", "b1", "w2", "b2"}
    if output is not None:
        assert output.read_bytes() == source.read_bytes()
    with pytest.raises(GateFailed):
        run(source, scaled(2.0), gates=gates, verify="final", strict=True, output=output)


def test_verify_off_only_sees_to_it_that_the_result_runs(source: Path, tmp_path: Path) -> None:
    result = run(source, scaled(2.0), verify="off", output=tmp_path / "out.onnx")
    assert outcomes(result) == [("kept", "")]
    assert result.report.fidelity is None
    broken = run(source, not_running, verify="off", output=tmp_path / "out.onnx")
    assert broken.report.passes[0].status == "undone"
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


def test_large_models_are_measured_one_at_a_time(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.measuring.LARGE", 100)
    alive: list[int] = []

    def counting(graph: gs.Graph) -> None:
        alive.append(sum(isinstance(item, Session) for item in gc.get_objects()))
        smaller(graph)

    gc.collect()  # sessions that other tests left in cycles
    before = sum(isinstance(item, Session) for item in gc.get_objects())
    result = run(source, counting, output=tmp_path / "out.onnx")
    assert outcomes(result) == [("kept", "")]
    assert alive == [before], "the session of the original is closed while passes work"
    assert result.report.latency_ratio is not None
    assert "one by one" in " ".join(result.report.notes)


# --- input and output -------------------------------------------------------------------------


def test_the_input_is_never_touched(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    model = load_model(source)
    result = run(source, scaled(2.0))
    assert constants(model.graph).keys() == {"w1", "b1", "w2", "b2"}
    for write in (
        lambda: run(source, smaller, output=source),
        lambda: result.save(source),
        lambda: run(source, smaller, output=tmp_path / "nowhere" / "m.onnx"),
    ):
        with pytest.raises(OutputError):
            write()
    optimize(model, Recipe(passes=(Rewrite(edit=scaled(2.0)),)), calibration=FEEDS)
    assert constants(model.graph).keys() == {"w1", "b1", "w2", "b2"}
    assert source.read_bytes() == before


def test_a_place_that_cannot_be_written_is_refused_before_any_work(source: Path) -> None:
    stages: list[str] = []

    class Stages(Progress):
        def stage(self, name: str) -> None:
            stages.append(name)

    with pytest.raises(OutputError):
        run(source, smaller, output=source, progress=Stages())
    assert stages == ["reading m.onnx"]


def test_a_result_can_be_saved_later(source: Path, tmp_path: Path) -> None:
    result = run(source, scaled(2.0))
    assert result.save(tmp_path / "later.onnx") == result.report.after.bytes
    assert "w1.scaled" in constants(load_model(tmp_path / "later.onnx").graph)


def test_an_old_opset_is_converted_first_and_the_report_says_so(tmp_path: Path) -> None:
    text = "m (float[N, 3] x) => (float[N, 1] y) { y = ReduceSum <axes = [1]> (x) }"
    model = model_of(f'<ir_version: 6, opset_import: ["" : 11]> {text}')
    path = tmp_path / "old.onnx"
    path.write_bytes(model.SerializeToString())
    result = optimize(path, Recipe(passes=(Rewrite(),)), output=tmp_path / "out.onnx")
    assert "opset 11 was converted to 13 first" in result.report.notes
    assert [o.version for o in onnx.load(tmp_path / "out.onnx").opset_import] == [13]
    assert_same_answers(path, tmp_path / "out.onnx")


def test_a_model_that_does_not_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    text = "m (float[N, 4] x) => (float[2, 3] y) { y = Reshape (x, shape) }"
    model = model_of(text, shape=np.array([2, 3]))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModel, match="onnxruntime cannot"):
        optimize(path, "simplify", calibration=[{"x": np.zeros((1, 4), np.float32)}])


@pytest.mark.parametrize("recipe", ["simplify", "static.toml"])
def test_two_processes_write_the_same_bytes(recipe: str, models: Path, tmp_path: Path) -> None:
    text = "[[passes]]\nname = 'simplify_graph'\n[[passes]]\nname = 'quantize_static'\n"
    (tmp_path / "static.toml").write_text(text)
    code = (
        "import sys; from onnxcomp.optimize import optimize; from onnxcomp.recipe import Recipe;"
        "recipe = Recipe.load(sys.argv[2]).with_gates(must_pay=False);"
        "optimize(sys.argv[1], recipe, output=sys.argv[3], calibration=sys.argv[4], seed=3)"
    )
    name = recipe if recipe == "simplify" else str(tmp_path / recipe)
    arguments = [str(models / "digits_resnet.onnx"), name]
    written = []
    for seed in ("1", "2"):
        output = tmp_path / f"{seed}.onnx"
        samples = str(models / "digits_calibration.npz")
        command = [sys.executable, "-c", code, *arguments, str(output), samples]
        subprocess.run(command, check=True, env=dict(os.environ, PYTHONHASHSEED=seed))
        written.append(output.read_bytes())
    assert written[0] == written[1]
    assert written[0] != (models / "digits_resnet.onnx").read_bytes()
