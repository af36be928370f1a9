"""code_weights: weights on grids, as far as options or gates allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxcomp import optimize
from onnxcomp.calibration import Calibration
from onnxcomp.coding_quality import Quality
from onnxcomp.coding_search import pack_quantized
from onnxcomp.container_reader import ContainerReader
from onnxcomp.container_unpacking import unpack
from onnxcomp.errors import GateFailed, PassFailed
from onnxcomp.graph import constants
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.code_weights import CodeWeights
from onnxcomp.recipe import Gates, Recipe, compose
from onnxcomp.representations import Grid
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of, model_of

NET = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[1,4,12,12] x) => (float[1,40] y) {
    a = Conv<pads = [1,1,1,1]>(x, w1, b1)
    b = Relu(a)
    c = Conv<pads = [1,1,1,1], group = 4>(b, w2)
    d = Relu(c)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    y = Gemm(f, w3)
}
"""


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "w1": normal(1, 32, 4, 3, 3) * 0.3,
    "b1": normal(2, 32) * 0.1,
    "w2": normal(3, 64, 8, 3, 3) * 0.1,
    "w3": normal(4, 64, 40) * 0.2,
}


def images(count: int = 32) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {"x": (rng.standard_normal((1, 4, 12, 12)) + rng.standard_normal((1, 4, 1, 1))).astype("f")}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(model_of(NET, **WEIGHTS), path)
    return path


def answers(path: Path, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    session = ort.InferenceSession(path)
    return np.stack([session.run(None, feed)[0].astype(np.float64) for feed in feeds])


def sqnr_db(model: Path, other: Path, feeds: list[dict[str, np.ndarray]]) -> float:
    a, b = answers(model, feeds), answers(other, feeds)
    return float(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))


def rewritten(**options: Any) -> tuple[dict[str, np.ndarray], PassReport]:
    """Constants and report after the pass alone."""
    graph, report = graph_of(NET, **WEIGHTS), PassReport()
    samples = Calibration.from_source(images(), graph)
    context = PassContext(target=resolve_target("auto"), calibration=samples)
    CodeWeights(**options).rewrite(graph, context, report)
    return {name: constant.values for name, constant in constants(graph).items()}, report


def test_weights_are_codes_times_scales_and_small_vectors_stay() -> None:
    values, report = rewritten(bits=3.0)
    assert report.quantized is not None
    codes = report.quantized.codes
    assert set(codes) == {"w1", "w2", "w3"}
    for name, coded in codes.items():
        assert coded.codes.dtype == np.int32
        expected = coded.codes.astype(np.float32) * coded.scales
        np.testing.assert_array_equal(values[name], expected)
        assert len(np.unique(values[name])) < 200
    np.testing.assert_array_equal(values["b1"], WEIGHTS["b1"])
    assert 2.8 < report.numbers["bits_per_weight"] <= 3.0
    assert len(report.changed) == 3
    assert not report.skipped


def test_nodes_that_a_recipe_excludes_keep_their_weights() -> None:
    values, report = rewritten(bits=3.0, overrides={"Gemm*": {"skip": True}})
    np.testing.assert_array_equal(values["w3"], WEIGHTS["w3"])
    assert not np.array_equal(values["w1"], WEIGHTS["w1"])
    assert list(report.skipped.values()) == ["the recipe says so"]


def test_weights_of_two_values_stay_exact() -> None:
    """A bit each as they are; as codes that keep the outputs they would take several."""
    signs = {**WEIGHTS, "w2": np.sign(WEIGHTS["w2"]) * np.float32(0.07)}
    graph, report = graph_of(NET, **signs), PassReport()
    samples = Calibration.from_source(images(), graph)
    context = PassContext(target=resolve_target("auto"), calibration=samples)
    CodeWeights(min_sqnr_db=20.0).rewrite(graph, context, report)
    assert report.quantized is not None
    assert set(report.quantized.codes) == {"w1", "w3"}
    np.testing.assert_array_equal(constants(graph)["w2"].values, signs["w2"])
    assert list(report.skipped.values()) == ["w2 is shorter as it is, or not finite"]


def test_nothing_to_code_is_no_failure() -> None:
    graph, report = graph_of(NET, **WEIGHTS), PassReport()
    context = PassContext(
        target=resolve_target("auto"), calibration=Calibration.from_source(images(2), graph)
    )
    CodeWeights(overrides={"*": {"skip": True}}).rewrite(graph, context, report)
    assert not report.changed
    assert report.quantized is None


@pytest.mark.parametrize(
    "options", [{"bits": 0.0}, {"min_sqnr_db": -1.0}, {"samples": 0}, {"bits": 2, "min_sqnr_db": 9}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"positive|not both"):
        CodeWeights(**options)


def test_the_container_is_that_of_pack(model: Path, tmp_path: Path) -> None:
    recipe = compose([CodeWeights(min_sqnr_db=22.0)])
    result = optimize(model, recipe, calibration=images(), output=tmp_path / "a.oxc")
    packed, quantized = pack_quantized(
        model, tmp_path / "b.oxc", Quality(min_sqnr_db=22.0), calibration=images()
    )
    assert result.report.after.bytes == (tmp_path / "a.oxc").stat().st_size
    assert result.report.after.bytes == pytest.approx(packed.bytes, rel=0.005)
    assert result.coded is not None
    for name, coded in quantized.codes.items():
        np.testing.assert_array_equal(result.coded.codes[name].codes, coded.codes)
    with ContainerReader(tmp_path / "a.oxc") as reader:
        grids = [e for e in reader.directory.entries if isinstance(e.representation, Grid)]
    assert len(grids) == 3
    assert all(entry.error for entry in grids)
    optimize(model, recipe, calibration=images(), output=tmp_path / "c.oxc")
    assert (tmp_path / "a.oxc").read_bytes() == (tmp_path / "c.oxc").read_bytes()


def test_the_smallest_recipe_aims_before_a_softmax_as_pack_does(tmp_path: Path) -> None:
    text = NET.replace("y = Gemm(f, w3)", "g = Gemm<alpha = 9.0>(f, w3)  y = Softmax(g)")
    path = tmp_path / "soft.onnx"
    onnx.save(model_of(text, **WEIGHTS), path)
    packed, _ = pack_quantized(
        path, tmp_path / "b.oxc", Quality(min_sqnr_db=25.0), calibration=images()
    )
    result = optimize(path, "smallest", calibration=images(), output=tmp_path / "a.oxc")
    assert result.report.after.bytes == pytest.approx(packed.bytes, rel=0.005)
    assert result.report.gates["aim_sqnr_db"] == 25.0
    asked = optimize(
        path, "smallest", calibration=images(), output=tmp_path / "c.oxc", min_sqnr_db=25.0
    )
    assert asked.report.fidelity is not None
    assert result.report.fidelity is not None
    assert 10.0 < result.report.fidelity.sqnr_db < 25.0 <= asked.report.fidelity.sqnr_db


def test_figures_are_those_of_the_unpacked_model(model: Path, tmp_path: Path) -> None:
    """The original's answers decide, whatever passes were there before."""
    recipe = Recipe.load("smallest").with_gates(min_sqnr_db=20.0)
    result = optimize(model, recipe, calibration=images(), output=tmp_path / "m.oxc")
    unpack(tmp_path / "m.oxc", tmp_path / "m.onnx")
    found = sqnr_db(model, tmp_path / "m.onnx", images()[3::4])
    assert result.report.fidelity is not None
    assert found == pytest.approx(result.report.fidelity.sqnr_db, abs=0.01)
    assert 20.0 <= found < 21.0
    assert result.report.after.bytes < 0.12 * result.report.before.bytes
    again = tmp_path / "again.oxc"
    assert result.save(again) == again.stat().st_size
    assert again.read_bytes() == (tmp_path / "m.oxc").read_bytes()


def test_gates_say_how_far_to_go(model: Path, tmp_path: Path) -> None:
    fine, coarse = (
        optimize(
            model,
            Recipe(passes=(CodeWeights(),), gates=Gates(min_sqnr_db=db)),
            calibration=images(),
            output=tmp_path / f"{db}.oxc",
        )
        for db in (30.0, 15.0)
    )
    assert [r.report.passes[0].status for r in (fine, coarse)] == ["kept", "kept"]
    for result, least in ((fine, 30.0), (coarse, 15.0)):
        assert result.report.fidelity is not None
        assert least <= result.report.fidelity.sqnr_db < least + 1.5
    assert coarse.report.after.bytes < 0.8 * fine.report.after.bytes


def test_scores_decide_where_there_is_an_evaluator(model: Path, tmp_path: Path) -> None:
    feeds = images()[:8]
    wanted = answers(model, feeds)

    def points(session: ort.InferenceSession) -> float:
        found = np.stack([session.run(None, feed)[0] for feed in feeds])
        return 100 - float(np.square(found - wanted).sum() / np.square(wanted).sum()) * 10

    given = {"calibration": images(), "evaluator": points}
    half = optimize(model, "smallest", output=tmp_path / "half.oxc", **given)
    assert half.report.gates["max_drop"] == 0.5
    assert half.report.gates["min_sqnr_db"] is None
    assert half.report.score_before is not None
    assert half.report.score_after is not None
    assert 0.4 < half.report.score_before - half.report.score_after <= 0.5  # -13 dB
    tenth = optimize(model, "smallest", output=tmp_path / "m.oxc", max_drop=0.1, **given)
    assert tenth.report.score_after is not None
    assert 0.05 < tenth.report.score_before - tenth.report.score_after <= 0.1
    assert tenth.report.after.bytes > half.report.after.bytes
    strict = optimize(model, "smallest", output=tmp_path / "m.oxc", min_sqnr_db=30.0, **given)
    assert strict.report.gates["max_drop"] is None
    assert strict.report.fidelity is not None
    assert strict.report.fidelity.sqnr_db >= 30.0


def test_what_cannot_be_kept_is_packed_without_loss(model: Path, tmp_path: Path) -> None:
    output, back = tmp_path / "m.oxc", tmp_path / "m.onnx"
    result = optimize(model, "smallest", calibration=images(), output=output, min_sqnr_db=300.0)
    assert "no pass was kept" in result.report.notes[-1]
    assert result.report.after.bytes == output.stat().st_size
    assert unpack(output, back) == model.stat().st_size
    assert back.read_bytes() == model.read_bytes()
    output.unlink()
    with pytest.raises((GateFailed, PassFailed)):
        optimize(
            model,
            "smallest",
            calibration=images(),
            output=output,
            min_sqnr_db=300.0,
            strict=True,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
