"""Channels leave, what reads them is refitted, and the report says what left."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnxcomp import optimize
from onnxcomp.calibration import Calibration
from onnxcomp.channels import find_channels
from onnxcomp.errors import OnnxcompError
from onnxcomp.importing import from_proto
from onnxcomp.optimize import Result
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.pruning_budgets import latency_and_macs
from onnxcomp.recipe import compose, parse_pass
from onnxcomp.shapes import infer_shapes
from onnxcomp.targets import resolve_target
from onnxcomp.testing import model_of

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def saved(path: Path) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    """x [N, 8] -> 16 units that are mixtures of 6 -> 4; two equal biases share one constant."""
    basis = normal(8, 6)
    weights = {
        "w1": basis @ normal(6, 16) * 0.5,
        "w2": normal(16, 16),
        "w3": normal(16, 4),
        "bias": normal(16),
    }
    model = model_of(
        """mlp (float[N, 8] x) => (float[N, 4] y) {
            [first] a = Gemm (x, w1, bias)
            [second] b = Gemm (a, w2, bias)  c = Relu (b)
            [third] y = MatMul (c, w3) }""",
        **weights,
    )
    onnx.save(model, path / "model.onnx")
    return path / "model.onnx", weights


def pruned(path: Path, options: str, samples: int = 512) -> Result:
    source, _ = saved(path)
    feeds = [{"x": normal(4, 8)} for _ in range(samples)]
    step = parse_pass(f"prune_channels:{options}")
    return optimize(source, compose([step]), calibration=feeds, output=path / "out.onnx")


def test_units_that_others_make_up_for_go_first_and_cost_nothing(tmp_path: Path) -> None:
    result = pruned(tmp_path, "sparsity=0.5,multiple=1")
    removed = {entry["group"]: entry for entry in result.report.passes[0].removed}
    assert removed["first"]["removed_units"] == removed["second"]["removed_units"] == 8
    assert removed["first"]["cost"] < 1e-2 < removed["second"]["cost"]
    assert [tuple(t.dims) for t in onnx.load(tmp_path / "out.onnx").graph.initializer][:1]


def test_the_report_names_every_place_in_the_original(tmp_path: Path) -> None:
    result = pruned(tmp_path, "sparsity=0.25,multiple=1,importance=l2,recovery=false")
    entry = next(e for e in result.report.passes[0].removed if e["group"] == "second")
    places = {(p["tensor"], p["axis"]): (p["indices"], p["constant"]) for p in entry["places"]}
    indices = places["w2", 1][0]
    assert len(indices) == 4
    assert places == {
        ("w2", 1): (indices, True),
        ("bias", 0): (indices, True),
        ("b", 1): (indices, False),
        ("c", 1): (indices, False),
        ("w3", 0): (indices, True),
    }


def test_the_answer_is_that_of_the_masked_original(tmp_path: Path) -> None:
    result = pruned(tmp_path, "sparsity=0.5,multiple=1,importance=l1,recovery=false")
    _, weights = saved_weights(tmp_path)
    first, second = (mask_of(result, name) for name in ("first", "second"))
    x = normal(5, 8)
    hidden = (x @ weights["w1"] + weights["bias"]) * first
    expected = np.maximum(hidden @ weights["w2"] + weights["bias"], 0) * second @ weights["w3"]
    (found,) = ort.InferenceSession(tmp_path / "out.onnx").run(None, {"x": x})
    assert np.allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def saved_weights(path: Path) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    model = onnx.load(path / "model.onnx")
    return path, {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def mask_of(result: Result, group: str) -> np.ndarray[Any, Any]:
    entry = next(e for e in result.report.passes[0].removed if e["group"] == group)
    mask = np.ones(entry["units"], np.float32)
    mask[entry["places"][0]["indices"]] = 0
    return mask


def test_recovery_repairs_most_of_the_damage(tmp_path: Path) -> None:
    errors = {}
    for options in ("recovery=true", "recovery=false"):
        result = pruned(tmp_path, f"sparsity=0.25,multiple=1,{options}")
        assert result.report.fidelity is not None
        errors[options] = result.report.fidelity.sqnr_db
    assert errors["recovery=true"] > errors["recovery=false"] + 3


@pytest.mark.parametrize("name", ["max_macs", "max_parameters"])
def test_a_budget_is_met(tmp_path: Path, name: str) -> None:
    report = pruned(tmp_path, f"{name}=0.6,multiple=1").report
    before, after = (
        (report.before.macs, report.after.macs)
        if name == "max_macs"
        else (report.before.parameters, report.after.parameters)
    )
    assert before is not None
    assert after is not None
    assert 0.5 * before < after <= 0.6 * before
    counts = {e["group"]: e["removed_units"] for e in report.passes[0].removed}
    assert counts["first"] > counts.get("second", 0)  # it costs less


def test_a_budget_of_time_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers large enough that half the width is clearly faster."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = {"w1": normal(256, 512), "w2": normal(512, 512), "w3": normal(512, 4)}
    model = model_of(
        """mlp (float[64, 256] x) => (float[64, 4] y) {
            [first] a = MatMul (x, w1)  b = Relu (a)  [second] c = MatMul (b, w2)  d = Relu (c)
            [third] y = MatMul (d, w3) }""",
        **weights,
    )
    onnx.save(model, tmp_path / "wide.onnx")
    feeds = [{"x": normal(64, 256)} for _ in range(4)]
    step = parse_pass("prune_channels:min_speedup=2,importance=l2,recovery=false")
    report = optimize(tmp_path / "wide.onnx", compose([step]), calibration=feeds).report
    assert report.passes[0].status == "kept", report.passes[0].reason
    assert report.before.macs is not None
    assert report.after.macs is not None
    assert 0.2 < report.after.macs / report.before.macs < 0.65


def test_widths_stay_multiples(tmp_path: Path) -> None:
    result = pruned(tmp_path, "sparsity=0.4")
    assert {e["removed_units"] for e in result.report.passes[0].removed} == {8}
    result = pruned(tmp_path, "sparsity=0.1")
    assert result.report.passes[0].status == "unchanged"
    assert "all" in result.report.passes[0].skipped["first"]


SIZES = {"first": 64, "second": 64, "third": 16}


def convolutions(path: Path) -> Path:
    """3 -> 64 -> 64 -> 16 -> 2 channels; those that are made last are one block of 16."""
    weights = {"w1": normal(64, 3, 1, 1), "w2": normal(64, 64, 1, 1)}
    weights |= {"w3": normal(16, 64, 1, 1), "w4": normal(2, 16, 1, 1)}
    model = model_of(
        """net (float[1, 3, 6, 6] x) => (float[1, 2, 6, 6] y) {
            [first] a = Conv (x, w1)  b = Relu (a)  [second] c = Conv (b, w2)  d = Relu (c)
            [third] e = Conv (d, w3)  f = Relu (e)  [fourth] y = Conv (f, w4) }""",
        **weights,
    )
    onnx.save(model, path / "convolutions.onnx")
    return path / "convolutions.onnx"


def work(left: dict[str, int], block: int = 1) -> int:
    """Multiplications of a pixel of `convolutions`, channels counted in whole blocks."""
    a, b, c = (-(-left.get(name, n) // block) * block for name, n in SIZES.items())
    return 3 * a + a * b + b * c + c * 2


@pytest.mark.parametrize(
    ("options", "target", "saves_time"),
    [
        ("max_macs=0.9", "x86-vnni", True),
        ("max_macs=0.6", "x86-vnni", True),
        ("max_bytes=0.7", "x86-vnni", True),
        ("max_macs=0.9,whole_blocks=false", "x86-vnni", False),
        ("max_macs=0.9", "x86-avx2", False),
        ("sparsity=0.125", "x86-vnni", False),
    ],
)
def test_budgets_save_time_by_whole_blocks_of_the_targets_kernels(
    tmp_path: Path, options: str, target: str, saves_time: bool
) -> None:
    recipe = compose([parse_pass(f"prune_channels:importance=l2,{options}")])
    source = convolutions(tmp_path)

    (report,) = optimize(source, recipe, target=target, verify="off").report.passes

    left = {entry["group"]: entry["units"] - entry["removed_units"] for entry in report.removed}
    assert left
    assert all(count % 8 == 0 for count in left.values())
    saved, saved_in_blocks = (work({}, block) - work(left, block) for block in (1, 16))
    assert (saved_in_blocks >= 0.8 * saved) == saves_time
    assert report.notes == []


def test_a_budget_that_whole_blocks_cannot_meet_is_met_by_parts_and_a_note_says_so(
    tmp_path: Path,
) -> None:
    source, _ = saved(tmp_path)  # 16 units everywhere
    recipe = compose([parse_pass("prune_channels:max_macs=0.8,importance=l2")])

    (report,) = optimize(source, recipe, target="x86-vnni", verify="off").report.passes

    assert [entry["removed_units"] for entry in report.removed] == [8]
    (note,) = report.notes
    assert "cannot be met by whole blocks" in note
    assert "little of the MACs saved" in note


@pytest.mark.parametrize("options", ["sparsity=0.5", "max_macs=0.5,whole_blocks=false"])
def test_where_payoff_is_a_gate_widths_that_save_no_time_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    """Latencies come from the file that keeps them: what "first" makes has become free."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = convolutions(tmp_path)
    graph = from_proto(onnx.load(source))
    infer_shapes(graph)
    feed = {"x": normal(1, 3, 6, 6)}
    latency_and_macs(graph, find_channels(graph), feed)
    (path,) = (tmp_path / "onnxcomp").iterdir()
    stored = json.loads(path.read_text(encoding="utf-8"))
    for key in stored["milliseconds"]:
        made, read, *kernel = json.loads(key)[2][1]
        if kernel != [1, 1]:
            continue  # the probe for blocks
        free = read == 3 or (made == 64 and read <= 64)  # the layers that "first" touches
        stored["milliseconds"][key] = 10.0 + read / 1e3 if free else made * read / 100
    path.write_text(json.dumps(stored), encoding="utf-8")
    step = parse_pass(f"prune_channels:importance=l2,{options}")
    context = PassContext(
        target=resolve_target(), calibration=Calibration.from_source([feed], graph)
    )
    told, ungated = PassReport(), PassReport()

    step.rewrite(graph.copy(), context, ungated)
    step.rewrite(graph.copy(), dataclasses.replace(context, must_pay=True), told)

    assert {entry["group"] for entry in ungated.removed} >= {"first"}
    assert "first" not in {entry["group"] for entry in told.removed}
    assert (
        "of 64 saves no time on this target: 0 % of what its layers take" in told.skipped["first"]
    )


def test_first_and_last_layers_can_be_kept(tmp_path: Path) -> None:
    result = pruned(tmp_path, "sparsity=0.5,keep_first=true,keep_last=true")
    assert result.report.passes[0].skipped == {
        "first": "made by the first layer",
        "second": "read by the last layer",
    }


def test_an_override_goes_by_the_name_of_the_group(tmp_path: Path) -> None:
    source, _ = saved(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[[passes]]\nname = "prune_channels"\nsparsity = 0.5\nmultiple = 1\n'
        "[passes.overrides.second]\nsparsity = 0.25\n"
    )
    feeds = [{"x": normal(4, 8)} for _ in range(64)]
    report = optimize(source, str(recipe), calibration=feeds).report
    counts = {e["group"]: e["removed_units"] for e in report.passes[0].removed}
    assert counts == {"first": 8, "second": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sparsity=1.5", "sparsity must be at least 0 and below 1, not 1.5"),
        ("max_macs=2", "max_macs must be above 0 and at most 1, not 2"),
        ("min_speedup=0.5", "min_speedup must be at least 1, not 0.5"),
        ("max_macs=0.5,max_bytes=0.5", "give one of max_macs, max_parameters, max_bytes"),
        ("multiple=0", "multiple must be at least 1, not 0"),
    ],
)
def test_bad_options_are_refused(options: str, message: str) -> None:
    with pytest.raises(OnnxcompError, match=message):
        parse_pass(f"prune_channels:{options}")


def test_a_budget_that_cannot_be_met_says_what_can(tmp_path: Path) -> None:
    result = pruned(tmp_path, "max_macs=0.01,multiple=8")
    assert result.report.passes[0].status == "failed"
    assert "cannot be met" in result.report.passes[0].reason


@pytest.mark.parametrize("option", ["max_macs", "max_parameters", "max_bytes"])
def test_a_budget_is_not_forgotten_where_nothing_may_be_removed(
    tmp_path: Path, option: str
) -> None:
    model = model_of(
        "one (float[N, 8] x) => (float[N, 4] y) { [only] y = MatMul (x, w) }", w=normal(8, 4)
    )
    onnx.save(model, tmp_path / "model.onnx")
    for share, status in (("0.9", "failed"), ("1", "unchanged")):
        recipe = compose([parse_pass(f"prune_channels:{option}={share}")])
        feeds = [{"x": normal(2, 8)}]
        report = optimize(tmp_path / "model.onnx", recipe, calibration=feeds, verify="off").report
        assert report.passes[0].status == status
        assert ("cannot be met" in report.passes[0].reason) == (status == "failed")


def test_layers_that_cannot_lose_anything_are_named_with_the_reason(tmp_path: Path) -> None:
    model = model_of(
        "one (float[N, 8] x) => (float[N, 4] y) { [only] y = MatMul (x, w) }", w=normal(8, 4)
    )
    onnx.save(model, tmp_path / "model.onnx")

    recipe = compose([parse_pass("prune_channels")])
    (result,) = optimize(tmp_path / "model.onnx", recipe, verify="off").report.passes

    assert result.status == "unchanged"
    assert result.skipped == {"only": "its channels stay: an output of the model"}


def test_weights_that_a_caller_may_override_stay_and_are_counted(tmp_path: Path) -> None:
    source, _ = saved(tmp_path)
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    onnx.save(model, source)

    recipe = compose([parse_pass("prune_channels")])
    (result,) = optimize(source, recipe, verify="off").report.passes

    assert (result.status, result.removed) == ("unchanged", [])
    assert result.notes == ["4 weights are inputs that a caller may override, and stay"]


def test_what_leaves_later_is_reported_in_indices_of_the_original_too(tmp_path: Path) -> None:
    source, weights = saved(tmp_path)
    step = parse_pass("prune_channels:sparsity=0.5,multiple=1,importance=l1")

    report = optimize(
        source, compose([step, step]), output=tmp_path / "out.onnx", verify="off"
    ).report

    places = [p for each in report.passes for entry in each.removed for p in entry["places"]]
    first, later = [p for p in places if (p["tensor"], p["axis"]) == ("w1", 1)]
    assert not set(first["indices"]) & set(later["indices"])
    left = np.setdiff1d(np.arange(16), [*first["indices"], *later["indices"]])
    columns = [numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer]
    assert any(np.array_equal(c, weights["w1"][:, left]) for c in columns)
