"""Weights become thin ones: what is lost is what is said, and budgets hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnxcomp import optimize
from onnxcomp.errors import OnnxcompError
from onnxcomp.layer_latency import Layer, LayerLatency
from onnxcomp.optimize import Result
from onnxcomp.recipe import compose, parse_pass
from onnxcomp.report import PassResult
from onnxcomp.testing import model_of

Feeds = list[dict[str, np.ndarray[Any, Any]]]
RNG = np.random.default_rng(11)


@pytest.fixture(autouse=True)
def _the_same_numbers_whatever_ran_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(11))


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def mixed(count: int, width: int, shape: Sequence[int] = ()) -> np.ndarray[Any, Any]:
    """Inputs in few directions, some of them larger than others."""
    turned = np.linalg.qr(np.random.default_rng(width).standard_normal((width, width)))[0]
    basis = turned * 0.8 ** np.arange(width)
    values = RNG.standard_normal((count, *shape, width)) @ basis.T
    return np.moveaxis(values, -1, 1).astype(np.float32)


def mlp(path: Path) -> tuple[Path, Feeds]:
    weights = {"w1": normal(48, 64), "w2": normal(64, 32), "w3": normal(32, 4), "b": normal(64)}
    model = model_of(
        """mlp (float[N, 48] x) => (float[N, 4] y) {
            [first] a = Gemm (x, w1, b)  r = Relu (a)
            [second] c = MatMul (r, w2)  d = Tanh (c)
            [third] y = MatMul (d, w3) }""",
        **weights,
    )
    onnx.save(model, path / "mlp.onnx")
    return path / "mlp.onnx", [{"x": mixed(8, 48)} for _ in range(64)]


def convnet(path: Path) -> tuple[Path, Feeds]:
    weights = {"k1": normal(32, 16, 3, 3), "k2": normal(32, 32, 3, 3), "k3": normal(8, 32, 1, 1)}
    model = model_of(
        """net (float[N, 16, 9, 9] x) => (float[N, 8, 5, 5] y) {
            [first] a = Conv <pads = [1, 1, 1, 1]> (x, k1)  b = Relu (a)
            [second] c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (b, k2)  d = Relu (c)
            [third] y = Conv (d, k3) }""",
        **weights,
    )
    onnx.save(model, path / "net.onnx")
    return path / "net.onnx", [{"x": mixed(2, 16, (9, 9))} for _ in range(32)]


def factorized(source: Path, options: str, feeds: Feeds | None, *more: str) -> tuple[Result, Path]:
    steps = [parse_pass(step) for step in (f"factorize_weights:{options}", *more)]
    path = source.parent / "out.onnx"
    return optimize(source, compose(steps), calibration=feeds, output=path, verify="off"), path


def first(result: Result) -> PassResult:
    found = result.report.passes[0]
    assert found.status == "kept", (found.status, found.reason, found.skipped)
    return found


def outputs(path: Path, feeds: Feeds) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = [session.run(None, feed)[0] for feed in feeds]
    return np.concatenate(found).astype(np.float64)


def error(path: Path, source: Path, feeds: Feeds) -> float:
    wanted = outputs(source, feeds)
    return float(np.square(outputs(path, feeds) - wanted).sum() / np.square(wanted).sum())


def test_what_is_lost_is_what_the_report_says(tmp_path: Path) -> None:
    """Of one layer the loss on the samples themselves, counted at its output."""
    model = model_of(
        "one (float[N, 48] x) => (float[N, 40] y) { [layer] y = MatMul (x, w) }", w=normal(48, 40)
    )
    source = tmp_path / "one.onnx"
    onnx.save(model, source)
    feeds = [{"x": mixed(40, 48)} for _ in range(64)]
    result, path = factorized(source, "energy=0.97,refine=false", feeds)
    (entry,) = first(result).factorized
    assert 0.003 < entry["lost_energy"] <= 0.03
    assert entry["lost_energy"] == pytest.approx(error(path, source, feeds), rel=0.05)
    shapes = {t.name: tuple(t.dims) for t in onnx.load(path).graph.initializer}
    assert shapes == {"w.factor0": (48, entry["rank"]), "w.factor1": (entry["rank"], 40)}
    assert entry["parameters"] == 88 * entry["rank"] < entry["parameters_before"] == 48 * 40


def test_looking_at_samples_beats_the_weights_alone(tmp_path: Path) -> None:
    source, feeds = mlp(tmp_path)
    errors = {}
    for name, seen in (("seen", feeds), ("plain", None)):
        _, path = factorized(source, "max_parameters=0.6,refine=false", seen)
        errors[name] = error(path, source, feeds)
    assert errors["seen"] < 0.5 * errors["plain"]


@pytest.mark.parametrize("model", [mlp, convnet])
@pytest.mark.parametrize("option", ["max_macs", "max_parameters", "max_bytes"])
def test_a_budget_is_kept_and_used(tmp_path: Path, model: Any, option: str) -> None:
    source, feeds = model(tmp_path)
    result, _ = factorized(source, f"{option}=0.7,refine=false", feeds)
    assert len(first(result).factorized) > 0
    before, after = result.report.before, result.report.after
    if option == "max_bytes":
        share = result.report.after.bytes / result.report.before.bytes
    elif option == "max_macs":
        assert before.macs is not None
        assert after.macs is not None
        share = after.macs / before.macs
    else:
        share = after.parameters / before.parameters
    assert 0.55 < share <= 0.7


def test_a_smaller_budget_loses_more(tmp_path: Path) -> None:
    source, feeds = convnet(tmp_path)
    errors = []
    for share in (0.9, 0.7, 0.5):
        _, path = factorized(source, f"max_macs={share},refine=false", feeds)
        errors.append(error(path, source, feeds))
    assert 0 < errors[0] < errors[1] < errors[2] < 0.5


def test_refining_brings_outputs_nearer(tmp_path: Path) -> None:
    source, feeds = mlp(tmp_path)
    errors = {}
    for refine in ("true", "false"):
        result, path = factorized(source, f"max_parameters=0.25,refine={refine}", feeds)
        errors[refine] = error(path, source, feeds)
    assert errors["true"] < 0.9 * errors["false"]
    assert "refitted_layers" not in first(result).numbers


def test_first_factors_are_refined_as_well(tmp_path: Path) -> None:
    source, feeds = mlp(tmp_path)
    _, path = factorized(source, "max_parameters=0.25", feeds)
    names = {t.name for t in onnx.load(path).graph.initializer}
    assert {"w2.factor0.refitted", "w2.factor1.refitted"} <= names


def test_inputs_outputs_and_names_stay(tmp_path: Path) -> None:
    source, feeds = mlp(tmp_path)
    result, path = factorized(source, "max_macs=0.6", feeds)
    first(result)
    before, after = onnx.load(source).graph, onnx.load(path).graph
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)
    made = {name for node in after.node for name in node.output}
    assert {name for node in before.node for name in node.output} <= made
    assert {node.name for node in before.node if node.name} <= {node.name for node in after.node}


@pytest.mark.parametrize("refine", ["true", "false"])
def test_weights_that_layers_share_are_stored_once(tmp_path: Path, refine: str) -> None:
    weight = mixed(32, 32)
    model = model_of(
        """twice (float[N, 32] x) => (float[N, 32] y) {
            [one] a = MatMul (x, w)  b = Tanh (a)  [two] y = MatMul (b, w) }""",
        w=weight,
    )
    source = tmp_path / "twice.onnx"
    onnx.save(model, source)
    feeds = [{"x": normal(4, 32)} for _ in range(32)]
    result, path = factorized(source, f"energy=0.9,refine={refine}", feeds)
    (entry,) = first(result).factorized
    assert entry["nodes"] == ["one", "two"]
    graph = onnx.load(path).graph
    assert sorted(t.name for t in graph.initializer) == ["w.factor0", "w.factor1"]
    assert [node.op_type for node in graph.node].count("MatMul") == 4


def test_the_smallest_rank_that_keeps_the_energy_is_taken(tmp_path: Path) -> None:
    left, right = np.linalg.qr(normal(30, 30))[0], np.linalg.qr(normal(30, 30))[0]
    energies = np.asarray([4, 3, 2, 0.5, 0.3, 0.2] + [0] * 24)  # of 10
    model = model_of(
        "one (float[N, 30] x) => (float[N, 30] y) { [layer] y = MatMul (x, w) }",
        w=(left * np.sqrt(energies) @ right).astype(np.float32),
    )
    onnx.save(model, tmp_path / "one.onnx")
    for energy, rank in ((0.85, 3), (0.94, 4), (0.97, 5)):
        result, _ = factorized(tmp_path / "one.onnx", f"energy={energy}", None)
        (entry,) = first(result).factorized
        assert entry["rank"] == rank
        lost = 1 - energies[:rank].sum() / 10
        assert entry["lost_energy"] == pytest.approx(lost, rel=1e-4)
        assert "plain SVD" in first(result).notes[0]


def test_evbmf_finds_the_rank_that_noise_hides(tmp_path: Path) -> None:
    weight = normal(60, 5) @ normal(5, 50) + 0.1 * normal(60, 50)
    model = model_of(
        "one (float[N, 60] x) => (float[N, 50] y) { [layer] y = MatMul (x, w) }", w=weight
    )
    onnx.save(model, tmp_path / "one.onnx")
    for option, rank in (("rule=evbmf", 5), ("rule=evbmf,multiple=4", 8)):
        result, _ = factorized(tmp_path / "one.onnx", option, None)
        assert [entry["rank"] for entry in first(result).factorized] == [rank]


def test_evbmf_keeps_the_energy_that_is_asked_for(tmp_path: Path) -> None:
    weight = normal(60, 5) @ normal(5, 50) + 0.8 * normal(60, 50)
    model = model_of("one (float[N, 60] x) => (float[N, 50] y) { y = MatMul (x, w) }", w=weight)
    onnx.save(model, tmp_path / "one.onnx")
    lost = {}
    for option in ("rule=evbmf", "rule=evbmf,energy=0.5", "rule=evbmf,energy=0.92", "energy=0.92"):
        result, _ = factorized(tmp_path / "one.onnx", option, None)
        (entry,) = first(result).factorized
        lost[option] = entry["rank"], entry["lost_energy"]
    alone, less, more, rule = lost.values()
    assert alone == less
    assert alone[0] == 5
    assert 0.08 < alone[1] < 0.5
    assert more == rule
    assert more[0] > 5
    assert more[1] <= 0.08


def test_evbmf_leaves_weights_alone_that_look_like_noise(tmp_path: Path) -> None:
    model = model_of(
        """two (float[1, 16, 8, 8] x) => (float[1, 24, 8, 8] y) {
            [noise] a = Conv <pads = [1, 1, 1, 1]> (x, k)  [low] y = Conv (a, w) }""",
        k=normal(24, 16, 3, 3),
        w=(normal(24, 3) @ normal(3, 24)).reshape(24, 24, 1, 1),
    )
    onnx.save(model, tmp_path / "two.onnx")
    for option in ("rule=evbmf", "rule=evbmf,method=svd"):
        result, _ = factorized(tmp_path / "two.onnx", option, None)
        assert [(e["nodes"], e["rank"]) for e in first(result).factorized] == [(["low"], 3)]
        assert first(result).skipped == {"noise": "nothing stands out of the noise in its weights"}
    result, _ = factorized(tmp_path / "two.onnx", "rule=evbmf,method=cp", None)
    assert result.report.passes[0].skipped["noise"] == "EVBMF tells no ranks of cp"


def test_layers_that_stay_say_why(tmp_path: Path) -> None:
    source, feeds = mlp(tmp_path)
    result, _ = factorized(source, "energy=1", feeds)
    found = result.report.passes[0]
    assert found.status == "unchanged"
    assert set(found.skipped) == {"first", "second", "third"}
    assert "no rank that keeps 100.0%" in found.skipped["first"]


def test_overrides_are_of_single_layers(tmp_path: Path) -> None:
    source, feeds = convnet(tmp_path)
    step = parse_pass("factorize_weights:energy=0.8,refine=false")
    overrides = {"first": {"skip": True}, "second": {"method": "tucker2"}}
    step = type(step)(**step.settings(), overrides=overrides)
    report = optimize(source, compose([step]), calibration=feeds, verify="off").report.passes[0]
    assert report.skipped["first"] == "skipped by the recipe"
    assert {e["method"] for e in report.factorized if e["nodes"] == ["second"]} == {"tucker2"}


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    source, feeds = mlp(tmp_path)
    optimize(
        source,
        compose([parse_pass("quantize_static")]),
        calibration=feeds,
        output=tmp_path / "codes.onnx",
        verify="off",
    )
    result, _ = factorized(tmp_path / "codes.onnx", "energy=0.5", feeds)
    reasons = result.report.passes[0].skipped.values()
    assert any("factorize before quantizing" in reason for reason in reasons)
    assert not result.report.passes[0].factorized


def test_thin_weights_are_quantized_afterwards(tmp_path: Path) -> None:
    source, feeds = convnet(tmp_path)
    result, path = factorized(source, "max_macs=0.8", feeds, "quantize_static")
    assert [p.status for p in result.report.passes] == ["kept", "kept"]
    assert error(path, source, feeds) < 0.1
    stored = [t for t in onnx.load(path).graph.initializer if "factor" in t.name]
    assert any(numpy_helper.to_array(t).dtype in (np.int8, np.uint8) for t in stored)


def test_embeddings_are_taken_apart_when_asked(tmp_path: Path) -> None:
    table = normal(200, 6) @ normal(6, 32)
    model = model_of(
        """lookup (int64[N, 3] ids) => (float[N, 3, 16] y) {
            [rows] a = Gather (table, ids)  [layer] y = MatMul (a, w) }""",
        table=table,
        w=normal(32, 16),
    )
    source = tmp_path / "lookup.onnx"
    onnx.save(model, source)
    feeds = [{"ids": RNG.integers(0, 200, (2, 3))} for _ in range(16)]
    left, _ = factorized(source, "energy=0.999", feeds)
    assert left.report.passes[0].skipped["rows"].startswith("embeddings are left alone")
    result, path = factorized(source, "energy=0.999,embeddings=true", feeds)
    entry = next(e for e in first(result).factorized if e["nodes"] == ["rows"])
    assert entry["rank"] == 8
    assert error(path, source, feeds) < 1e-3


def test_embeddings_lose_least_on_what_is_looked_up(tmp_path: Path) -> None:
    model = model_of(
        "lookup (int64[N, 3] ids) => (float[N, 3, 16] y) { [rows] y = Gather (table, ids) }",
        table=normal(200, 16),
    )
    source = tmp_path / "lookup.onnx"
    onnx.save(model, source)
    feeds = [{"ids": RNG.zipf(1.5, (8, 3)).clip(max=200) - 1} for _ in range(64)]
    fresh = [{"ids": RNG.zipf(1.5, (8, 3)).clip(max=200) - 1} for _ in range(64)]
    errors = {}
    for name, seen in (("counts", feeds), ("plain", None)):
        result, path = factorized(source, "max_parameters=0.6,embeddings=true", seen)
        (entry,) = first(result).factorized
        assert entry["seen"] is (seen is not None)
        errors[name] = error(path, source, fresh)
        if seen is not None:
            assert entry["lost_energy"] == pytest.approx(errors[name], rel=0.5)
    assert errors["counts"] < 0.5 * errors["plain"]


def test_a_table_that_is_the_head_as_well_is_stored_once(tmp_path: Path) -> None:
    """Its factors serve both, and lose less at the head than those of lookups alone would."""
    model = model_of(
        """tied (int64[N, 4] ids) => (float[N, 4, 120] y) {
            [rows] a = Gather (table, ids)  [mix] b = MatMul (a, w)
            [turn] t = Transpose <perm = [1, 0]> (table)  [head] y = MatMul (b, t) }""",
        table=normal(120, 24),
        w=mixed(24, 24),
    )
    source = tmp_path / "tied.onnx"
    onnx.save(model, source)
    feeds = [{"ids": RNG.zipf(1.5, (4, 4)).clip(max=120) - 1} for _ in range(64)]
    left, _ = factorized(source, "energy=0.8", feeds)
    assert left.report.passes[0].skipped["head"].startswith("embeddings are left alone")
    step = parse_pass("factorize_weights:energy=0.8,embeddings=true,refine=false")
    step = type(step)(**step.settings(), overrides={"mix": {"skip": True}})
    path = tmp_path / "out.onnx"
    result = optimize(source, compose([step]), calibration=feeds, output=path, verify="off")
    (entry,) = first(result).factorized
    assert (entry["nodes"], entry["seen"]) == (["rows", "head"], True)
    assert 0.02 < entry["lost_energy"] <= 0.2
    graph = onnx.load(path).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    assert {name for name in stored if "factor" in name} == {"table.factor0", "table.factor1"}
    assert "table" not in stored
    table = stored["table.factor0"] @ stored["table.factor1"]
    ids = feeds[0]["ids"]
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, feeds[0])[0]
    np.testing.assert_allclose(found, table[ids] @ stored["w"] @ table.T, atol=1e-3)


class OfOutputs(LayerLatency):
    """A clock that counts: a product takes as many ms as it writes elements."""

    def measure(self, layers: Sequence[Layer]) -> list[float]:
        return [math.prod((*x[:-1], w[-1])) for x, w in (layer.shapes for layer in layers)]


def test_without_speed_to_gain_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a narrow layer takes is writing its output, which its last factor does as well."""
    monkeypatch.setattr("onnxcomp.passes.factorize_weights.LayerLatency", OfOutputs)
    model = model_of(
        "one (float[9999, 8] x) => (float[9999, 8] y) { [layer] y = MatMul (x, w) }",
        w=mixed(8, 8),
    )
    onnx.save(model, tmp_path / "one.onnx")
    feeds = [{"x": normal(9999, 8)} for _ in range(8)]
    result, _ = factorized(tmp_path / "one.onnx", "min_speedup=1,energy=0.5", feeds)
    found = result.report.passes[0]
    assert found.status == "unchanged"
    assert "thinner weights save no time" in found.skipped["layer"]


def test_time_is_saved_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = model_of(
        """wide (float[64, 512] x) => (float[64, 512] y) {
            [one] a = MatMul (x, w1)  b = Tanh (a)  [two] y = MatMul (b, w2) }""",
        w1=normal(512, 512),
        w2=normal(512, 512),
    )
    onnx.save(model, tmp_path / "wide.onnx")
    feeds = [{"x": normal(64, 512)} for _ in range(4)]
    result, _ = factorized(tmp_path / "wide.onnx", "min_speedup=1.3,refine=false", feeds)
    assert first(result).factorized
    assert result.report.before.macs is not None
    assert result.report.after.macs is not None
    assert result.report.after.macs < 0.85 * result.report.before.macs


@pytest.mark.parametrize("method", ["auto", "tucker2", "spatial", "cp"])
def test_every_form_keeps_the_energy_it_was_asked_for(tmp_path: Path, method: str) -> None:
    source, feeds = convnet(tmp_path)
    result, _ = factorized(source, f"energy=0.8,refine=false,method={method}", feeds)
    entries = first(result).factorized
    assert entries
    for entry in entries:
        assert 0 < entry["lost_energy"] <= 0.2
        assert entry["parameters"] < entry["parameters_before"]
        assert entry["macs"] <= entry["macs_before"]


def test_weights_of_constant_nodes_are_taken_apart_those_a_caller_may_replace_are_not(
    tmp_path: Path,
) -> None:
    model = model_of(
        """both (float[N, 32] x, float[32, 32] v) => (float[N, 32] y) {
            [one] a = MatMul (x, w)  [two] y = Gemm (a, v) }""",
        w=mixed(32, 32),
    )
    graph = model.graph
    (weight,) = graph.initializer
    constant = onnx.helper.make_node("Constant", [], ["w"], value=weight)
    replaceable = numpy_helper.from_array(mixed(32, 32), "v")
    graph.initializer.remove(graph.initializer[0])
    graph.initializer.append(replaceable)
    graph.node.insert(0, constant)
    onnx.save(model, tmp_path / "both.onnx")
    result, path = factorized(tmp_path / "both.onnx", "energy=0.9", None)
    (entry,) = first(result).factorized
    assert entry["nodes"] == ["one"]
    assert "a caller may replace" in first(result).skipped["two"]
    kept = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    np.testing.assert_array_equal(kept["v"], numpy_helper.to_array(replaceable))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_taken_apart_on_samples(tmp_path: Path, dtype: type) -> None:
    kind = "float16" if dtype is np.float16 else "double"
    model = model_of(
        f"one ({kind}[N, 48] x) => ({kind}[N, 40] y) {{ [layer] y = MatMul (x, w) }}",
        w=normal(48, 40).astype(dtype),
    )
    source = tmp_path / "one.onnx"
    onnx.save(model, source)
    feeds = [{"x": mixed(40, 48).astype(dtype)} for _ in range(32)]
    result, path = factorized(source, "energy=0.97,refine=false", feeds)
    (entry,) = first(result).factorized
    assert entry["seen"]
    assert entry["lost_energy"] == pytest.approx(error(path, source, feeds), rel=0.1)
    assert {t.data_type for t in onnx.load(path).graph.initializer} == {
        onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    }


def test_layers_without_a_thin_form_are_named(tmp_path: Path) -> None:
    model = model_of(
        "up (float[N, 8, 4, 4] x) => (float[N, 8, 6, 6] y) { [layer] y = ConvTranspose (x, w) }",
        w=normal(8, 8, 3, 3),
    )
    onnx.save(model, tmp_path / "up.onnx")
    result, _ = factorized(tmp_path / "up.onnx", "energy=0.5", None)
    assert "ConvTranspose" in result.report.passes[0].skipped["layer"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("energy=1.5", "energy must be from 0 to 1"),
        ("max_macs=0", "max_macs must be above 0"),
        ("max_macs=0.5,max_bytes=0.5", "give one of"),
        ("multiple=0", "multiple must be at least 1"),
        ("method=qr", "method"),
    ],
)
def test_bad_options_are_one_line(options: str, said: str) -> None:
    with pytest.raises(OnnxcompError, match=said):
        parse_pass(f"factorize_weights:{options}")


def test_a_budget_that_cannot_be_met_says_what_can(tmp_path: Path) -> None:
    source, feeds = mlp(tmp_path)
    result, _ = factorized(source, "max_macs=0.01", feeds)
    assert result.report.passes[0].status == "failed"
    assert "cannot be met" in result.report.passes[0].reason
