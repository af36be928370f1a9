"""Mixed precision to a target: the fewest nodes in float, repeatable, or undone with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.errors import GateFailed, RecipeError
from onnxcomp.graph import Names, label
from onnxcomp.optimize import Result, optimize
from onnxcomp.passes import Pass, PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.progress import Progress
from onnxcomp.recipe import Gates, Recipe
from onnxcomp.recipe_file import recipe_as_toml
from onnxcomp.testing import model_of

WIDTH, DEPTH = 12, 6
RNG = np.random.default_rng(2)
FEEDS = [{"x": row[None]} for row in RNG.standard_normal((40, WIDTH), np.float32)]


@dataclass(frozen=True, kw_only=True)
class RoundWeights(Pass):
    """Rounds the weights of MatMul to a step, and to a coarse one in nodes whose name says so.

    Attributes:
        step: distance of two neighbouring values.
        coarse: the same in nodes called "bad".
    """

    trades_precision: ClassVar[bool] = True

    step: float = 0.002
    coarse: float = 0.5

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Rounds; see `Pass.rewrite`."""
        names = Names(graph)
        for node in report.visit(graph.nodes):
            mine = self.options_for(node)
            if node.op != "MatMul":
                continue
            if mine is None:
                report.skip(node, "the recipe says so")
                continue
            step = mine.coarse if "bad" in node.name else mine.step
            weight = node.inputs[1]
            values = (np.round(weight.values / step) * step).astype(np.float32)
            node.inputs[1] = gs.Constant(names.fresh(f"{weight.name}.rounded"), values)
            report.change(node)

    def candidates(self, graph: gs.Graph) -> list[str]:
        """All MatMul."""
        return [label(node) for node in graph.nodes if node.op == "MatMul"]


class NoPlans(RoundWeights):
    """The same that leaves nobody out."""

    trades_precision: ClassVar[bool] = False


def chain(tmp_path: Path, *bad: int) -> Path:
    """x -> MatMul, Tanh ... -> y [N, 12]; the nodes at ``bad`` have names that say so."""
    rng = np.random.default_rng(7)
    lines, tensor, weights = [], "x", {}
    for index in range(DEPTH):
        weights[f"w{index}"] = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 3
        name = f"bad{index}" if index in bad else f"fc{index}"
        out = "y" if index == DEPTH - 1 else f"h{index}"
        lines.append(f"[{name}] p{index} = MatMul ({tensor}, w{index}) {out} = Tanh (p{index})")
        tensor = out
    text = f"m (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ {' '.join(lines)} }}"
    path = tmp_path / "chain.onnx"
    path.write_bytes(model_of(text, **weights).SerializeToString())
    return path


def run(source: Path, *steps: Pass, gates: Gates = Gates(), **options: Any) -> Result:  # noqa: B008
    recipe = Recipe(passes=steps or (RoundWeights(),), gates=gates)
    return optimize(source, recipe, **{"calibration": FEEDS, **options})


def kept(result: Result) -> list[str]:
    return [name for name in result.report.passes[-1].skipped if not name.startswith("Tanh")]


@pytest.mark.parametrize("bad", [(0,), (3,), (1, 4), (5,)])
def test_exactly_the_bad_nodes_stay_in_float(bad: tuple[int, ...], tmp_path: Path) -> None:
    source = chain(tmp_path, *bad)
    (all_of_them,) = run(source).report.passes
    assert all_of_them.fidelity is not None
    assert all_of_them.fidelity.sqnr_db < 25
    result = run(source, min_sqnr_db=35)
    (outcome,) = result.report.passes
    names = {f"bad{index}" for index in bad}
    assert outcome.status == "kept"
    assert set(kept(result)) == names
    assert set(outcome.changed) == {f"fc{i}" for i in range(DEPTH)} - {
        n.replace("bad", "fc") for n in names
    }
    assert outcome.options["overrides"] == {name: {"skip": True} for name in sorted(names)}
    assert result.report.fidelity is not None
    assert result.report.fidelity.sqnr_db >= 35
    assert outcome.numbers["kept_in_float"] == len(bad)
    for name in names:
        assert outcome.skipped[name].startswith("kept in float: without it ")
        assert f"instead of {outcome.fidelity.sqnr_db:.1f} dB" in outcome.skipped[name]
    assert f"{len(bad)} of {DEPTH} nodes stay in float" in outcome.notes[-1]
    if len(bad) == 1:
        assert (
            f"without it {all_of_them.fidelity.sqnr_db:.1f} dB" in outcome.skipped[f"bad{bad[0]}"]
        )


def test_the_recipe_as_run_gives_the_same_bytes_without_a_search(tmp_path: Path) -> None:
    source = chain(tmp_path, 2)
    step = RoundWeights(overrides={"fc0": {"step": 0.001}})
    first = run(source, step, min_sqnr_db=35, output=tmp_path / "one.onnx")
    searches = Stages()
    again = optimize(
        source,
        first.recipe,
        calibration=FEEDS,
        output=tmp_path / "two.onnx",
        progress=searches,
    )
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert again.report.passes[0].changed == first.report.passes[0].changed
    assert not [name for name in searches.seen if "fewest" in name]
    assert first.recipe.gates.min_sqnr_db == 35
    assert list(first.recipe.passes[0].overrides) == ["fc0", "bad2"]


class Stages(Progress):
    """Remembers the stages; may stop at one as Ctrl-C does."""

    def __init__(self, stop_at: str = "never") -> None:
        self.seen: list[str] = []
        self.stop_at = stop_at

    def stage(self, name: str) -> None:
        self.seen.append(name)
        if self.stop_at in name:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["measuring each node", "the fewest nodes"])
def test_an_interruption_of_the_search_leaves_nothing(stage: str, tmp_path: Path) -> None:
    source = chain(tmp_path, 2)
    with pytest.raises(KeyboardInterrupt):
        run(source, min_sqnr_db=35, output=tmp_path / "out.onnx", progress=Stages(stage))
    assert [path.name for path in tmp_path.iterdir()] == ["chain.onnx"]


def test_a_target_that_nothing_reaches_is_said_so_and_the_pass_undone(tmp_path: Path) -> None:
    source = chain(tmp_path, 2)
    result = run(source, min_sqnr_db=300, output=tmp_path / "out.onnx")
    (outcome,) = result.report.passes
    assert outcome.status == "undone"
    assert "the gate is 300 dB; no choice of nodes to keep in float helps" in outcome.reason
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()
    assert result.recipe.passes[0].overrides == {}
    with pytest.raises(GateFailed, match="no choice of nodes"):
        run(source, min_sqnr_db=300, strict=True)


def test_what_is_left_has_to_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded floats are as large as before; times, which vary, are to decide nothing here."""
    monkeypatch.setattr("onnxcomp.measuring.NOISE", 100.0)
    source = chain(tmp_path, 2)
    result = run(source, gates=Gates(min_sqnr_db=35, must_pay=True))
    (outcome,) = result.report.passes
    assert outcome.status == "undone"
    assert f"; with 1 of {DEPTH} nodes in float: does not pay" in outcome.reason


def test_passes_that_take_no_part_and_runs_that_do_not_measure_search_nothing(
    tmp_path: Path,
) -> None:
    source = chain(tmp_path, 2)
    (outcome,) = run(source, NoPlans(), min_sqnr_db=35).report.passes
    assert outcome.status == "undone"
    assert "no choice" not in outcome.reason
    stages = Stages()
    run(source, min_sqnr_db=35, verify="final", progress=stages)
    assert not [name for name in stages.seen if "node" in name]


def test_the_evaluator_decides_where_there_is_one(tmp_path: Path) -> None:
    source = chain(tmp_path, 1, 4)
    wanted: list[Any] = []

    def closeness(session: Any) -> float:
        """100 less the largest error; of the original 100."""
        got = np.concatenate([session.run(None, feed)[0] for feed in FEEDS])
        wanted.append(got)
        return float(100 - np.abs(got - wanted[0]).max())

    result = run(source, evaluator=closeness, max_drop=0.1)
    (outcome,) = result.report.passes
    assert outcome.status == "kept"
    assert set(kept(result)) == {"bad1", "bad4"}
    assert "points lost instead of" in outcome.skipped["bad1"]
    assert result.report.score_after is not None
    assert result.report.score_after >= 99.9


def test_without_evaluator_points_are_samples_of_another_class(tmp_path: Path) -> None:
    source = chain(tmp_path, 3)
    (loose,) = run(source, max_drop=100).report.passes
    assert loose.fidelity is not None
    assert loose.fidelity.samples == 10, "one in four of 40"
    agreement = loose.fidelity.top1_agreement
    assert agreement is not None
    assert agreement < 100
    result = run(source, max_drop=0)
    assert result.report.passes[0].status == "kept"
    assert kept(result) == ["bad3"]
    assert result.report.fidelity is not None
    assert result.report.fidelity.top1_agreement == 100
    assert "10 samples" in " ".join(result.report.notes)


def test_agreement_needs_class_scores(tmp_path: Path) -> None:
    text = "m (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y) { y = Relu (x) }"
    path = tmp_path / "image.onnx"
    path.write_bytes(model_of(text).SerializeToString())
    feeds = [{"x": np.ones((1, 3, 4, 4), np.float32)}] * 4
    with pytest.raises(RecipeError, match="no output looks like class scores"):
        optimize(path, Recipe(passes=(SimplifyGraph(),)), calibration=feeds, max_drop=1)


def test_samples_that_judge_are_not_those_that_passes_see(tmp_path: Path) -> None:
    seen: list[float] = []

    @dataclass(frozen=True, kw_only=True)
    class Looking(RoundWeights):
        def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
            seen.extend(float(feed["x"][0, 0]) for feed in context.samples().feeds())

    report = run(chain(tmp_path), Looking()).report
    assert seen == [float(feed["x"][0, 0]) for i, feed in enumerate(FEEDS) if i % 4 != 3]
    assert report.samples == "40 samples of a list of feeds, one in 4 held back to judge by"
    assert report.fidelity is not None
    assert report.fidelity.samples == 10


# --- on a real model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    output = tmp_path_factory.mktemp("mixed") / "mixed.onnx"
    recipe = Recipe(passes=(SimplifyGraph(), QuantizeStatic()))
    source, samples = models / "digits_resnet.onnx", models / "digits_calibration.npz"
    plain = optimize(source, recipe, calibration=samples).report.fidelity
    assert plain is not None
    recipe = recipe.with_gates(min_sqnr_db=plain.sqnr_db + 3)
    return optimize(source, recipe, calibration=samples, output=output), output


def test_static_int8_reaches_a_demanding_target_with_most_layers_in_integers(
    mixed: tuple[Result, Path],
) -> None:
    report = mixed[0].report
    static = report.passes[1]
    assert static.status == "kept"
    assert report.fidelity is not None
    assert report.fidelity.sqnr_db >= report.gates["min_sqnr_db"]
    reasons = [name for name, reason in static.skipped.items() if reason.startswith("kept in")]
    assert 0 < len(reasons) == static.numbers["kept_in_float"] < len(static.changed)
    assert set(static.options["overrides"]) == set(reasons)
    assert report.after.bytes < 0.6 * report.before.bytes


def test_its_recipe_as_a_file_gives_the_same_bytes(
    mixed: tuple[Result, Path], models: Path, tmp_path: Path
) -> None:
    result, output = mixed
    saved = tmp_path / "mixed.toml"
    saved.write_text(recipe_as_toml(result.recipe), encoding="utf-8")
    optimize(
        models / "digits_resnet.onnx",
        saved,
        calibration=models / "digits_calibration.npz",
        output=tmp_path / "again.onnx",
    )
    assert (tmp_path / "again.onnx").read_bytes() == output.read_bytes()
