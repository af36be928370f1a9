"""Which layers lose most: against quantizing them one by one by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

import onnxcomp
from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationError, RecipeError, UnsupportedModel
from onnxcomp.evaluation import Reference
from onnxcomp.model import load_model, save_model
from onnxcomp.passes import PASSES, PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.probing import Probe, affordable, decibel, energy_ratio, keeping, measure_nodes, only
from onnxcomp.runtime import open_session
from onnxcomp.sensitivity import SENSITIVITY_SCHEMA, Layer, Sensitivity, sensitivity
from onnxcomp.targets import resolve_target
from onnxcomp.testing import open_any, small_mlp

GOLDEN = Path(__file__).resolve().parent / "golden" / "sensitivity-1.json"
SAMPLES = 8


@pytest.fixture(scope="module")
def resnet(models: Path) -> Path:
    return models / "digits_resnet.onnx"


@pytest.fixture(scope="module")
def source(models: Path) -> Path:
    return models / "digits_calibration.npz"


@pytest.fixture(scope="module")
def found(resnet: Path, source: Path) -> Sensitivity:
    return sensitivity(resnet, calibration=source, samples=SAMPLES)


def probe_of(resnet: Path, source: Path) -> Probe:
    graph = load_model(resnet).graph
    session = open_any(resnet)
    used, held = Calibration.from_source(source, graph).split()
    context = PassContext(calibration=used, target=resolve_target())
    SimplifyGraph().rewrite(graph, context, PassReport())
    reference = Reference.of(session, held.feeds(SAMPLES), synthetic=False)
    return Probe(graph, QuantizeStatic().draft(), context, reference)


def ranks(values: list[float]) -> np.ndarray:
    return np.argsort(np.argsort(values))


def test_what_is_measured_is_what_quantizing_one_node_does(
    found: Sensitivity, resnet: Path, source: Path
) -> None:
    """By hand: the pass on one node, no remembered statistics, SQNR in numpy."""
    graph = load_model(resnet).graph
    feeds = list(Calibration.from_source(source, graph).feeds())
    used = [feed for index, feed in enumerate(feeds) if index % 4 != 3]
    held = feeds[3::4][:SAMPLES]
    wanted = np.concatenate([open_any(resnet).run(feed)[0] for feed in held]).astype(np.float64)
    context = PassContext(calibration=Calibration.from_source(used, graph), target=resolve_target())
    SimplifyGraph().rewrite(graph, context, PassReport())
    for layer in [found.layers[0], found.layers[1], found.layers[-1]]:
        if layer.op not in ("Conv", "Gemm"):
            continue
        twin = graph.copy()
        overrides = {"*": {"skip": True}, layer.name: {"skip": False}}
        QuantizeStatic(overrides=overrides).draft().rewrite(twin, context, PassReport())
        session = open_session(twin, threads=1)
        got = np.concatenate([session.run(feed)[0] for feed in held])
        sqnr = 10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum())
        assert layer.measured_db == pytest.approx(sqnr, abs=0.1)


def test_the_order_is_that_of_more_samples_and_anew_measured_ranges(
    resnet: Path, source: Path
) -> None:
    """Every node alone on all held-back samples, with nothing remembered from node to node."""
    probe = probe_of(resnet, source)
    noise, measured = measure_nodes(probe, {})
    assert measured <= set(probe.labels) == set(noise)
    graph = load_model(resnet).graph
    used, held = Calibration.from_source(source, graph).split()
    reference = Reference.of(open_any(resnet), held.feeds(), synthetic=False)
    context = PassContext(calibration=used, target=resolve_target())
    brute = {}
    for name in probe.labels:
        twin, report = probe.graph.copy(), PassReport()
        only(probe.step, [name]).rewrite(twin, context, report)
        if report.changed:
            brute[name] = energy_ratio(reference.compare(open_session(twin)).sqnr_db)
    assert len(brute) >= 12
    correlation = np.corrcoef(
        ranks([noise[name] for name in brute]), ranks([brute[name] for name in brute])
    )[0, 1]
    assert correlation > 0.8
    assert sum(noise.values()) == pytest.approx(energy_ratio(probe.full_db), rel=0.6)


def test_a_damaged_layer_ranks_first(
    found: Sensitivity, resnet: Path, source: Path, tmp_path: Path
) -> None:
    """One huge weight in each output channel leaves few codes to all others; they sit in several
    input channels, so that equalization cannot share them out."""
    model = load_model(resnet)
    damaged = "/residual2/first/conv/Conv"
    node = next(node for node in model.graph.nodes if node.name == damaged)
    weights = node.inputs[1].values.copy()
    rows = np.arange(len(weights))
    weights[rows, rows % weights.shape[1], 0, 0] = 60 * np.abs(weights).max()
    node.inputs[1] = gs.Constant("damaged", weights)
    save_model(model.graph, tmp_path / "damaged.onnx")
    whole, found = found, sensitivity(tmp_path / "damaged.onnx", calibration=source)
    first, second = found.layers[:2]
    assert first.name == damaged
    assert first.error_share > 1.5 * second.error_share
    before = next(layer for layer in whole.layers if layer.name == damaged)
    assert None not in (first.measured_db, before.measured_db, first.estimated_db)
    assert first.measured_db < before.measured_db - 10
    assert first.estimated_db < before.estimated_db - 10


def test_figures_of_a_ranking_fit_together(found: Sensitivity) -> None:
    assert [layer.rank for layer in found.layers] == list(range(1, len(found.layers) + 1))
    shares = [layer.error_share for layer in found.layers]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert 0.9 < sum(layer.macs_share or 0 for layer in found.layers) <= 1.000001
    assert 0.9 < sum(layer.bytes_share for layer in found.layers) <= 1.000001
    assert found.measured_on == SAMPLES
    assert found.samples.startswith("128 samples of digits_calibration.npz")
    assert all(db > found.all_db for layer in found.layers if (db := layer.measured_db) is not None)
    assert len({layer.name for layer in found.layers}) == len(found.layers)
    heaviest = max(found.layers, key=lambda layer: layer.bytes_share)
    assert heaviest.op == "Conv"


def test_the_same_call_gives_the_same_figures(
    found: Sensitivity, resnet: Path, source: Path
) -> None:
    again = sensitivity(resnet, calibration=source, samples=SAMPLES)
    assert json.dumps(again.as_dict()) == json.dumps(found.as_dict())


def test_an_evaluator_is_asked_about_the_worst(resnet: Path, source: Path) -> None:
    asked = []

    def answer(session: object) -> float:
        asked.append(session)
        return float(100 - len(asked))

    found = sensitivity(resnet, calibration=source, samples=2, evaluator=answer)
    assert (found.score_float, found.score_all) == (99.0, 98.0)
    assert found.layers[0].score == 97.0
    assert sum(layer.score is not None for layer in found.layers) == len(asked) - 2 <= 10


def test_other_passes_have_sensitive_layers_too(tmp_path: Path) -> None:
    model = tmp_path / "mlp.onnx"
    model.write_bytes(small_mlp().SerializeToString())
    found = sensitivity(model, step="quantize_dynamic:smallest_weight=0")
    assert {layer.name for layer in found.layers} == {"first", "second"}
    assert any("made-up" in note for note in found.notes)
    assert found.step == "quantize_dynamic"
    assert found.options["smallest_weight"] == 0


def test_what_cannot_be_ranked_is_refused(resnet: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="unknown pass 'quantise_static'"):
        sensitivity(resnet, step="quantise_static")
    with pytest.raises(RecipeError, match="changes no node"):
        sensitivity(resnet, calibration=source, step="quantize_static:operators=LSTM")
    with pytest.raises(RecipeError, match="at least 1"):
        sensitivity(resnet, samples=0)
    with pytest.raises(RecipeError, match="target"):
        sensitivity(resnet, target="vax")
    with pytest.raises(CalibrationError, match="no such file"):
        sensitivity(resnet, calibration=tmp_path / "none.npz")
    with pytest.raises(UnsupportedModel):
        sensitivity(tmp_path / "none.onnx")


# --- choosing nodes ---------------------------------------------------------------------------


def test_nodes_are_chosen_by_exact_name_and_what_a_recipe_says_stays() -> None:
    given = {"*": {"calibrator": "minmax"}, "head*": {"percentile": 99.0}}
    step = QuantizeStatic(overrides=given)
    one = only(step, ["a[0]*", "head"])
    assert one.options_for("a0x") is None
    assert one.options_for("other") is None
    head = one.options_for("head")
    assert head is not None
    assert (head.calibrator, head.percentile) == ("minmax", 99.0)
    assert one.options_for("a[0]*") is not None
    rest = keeping(step, ["a[0]*"])
    assert rest.options_for("a[0]*") is None
    assert rest.options_for("a0x") is not None
    assert rest.overrides["*"] == {"calibrator": "minmax"}
    unskipped = only(QuantizeStatic(overrides={"a": {"skip": True}}), ["b"])
    assert unskipped.options_for("a") is None
    assert step.overrides == given


def test_a_node_that_an_override_names_already_keeps_its_options() -> None:
    step = QuantizeStatic(overrides={"conv": {"calibrator": "minmax"}})
    assert keeping(step, ["conv"]).overrides == {"conv": {"calibrator": "minmax", "skip": True}}


def test_nodes_that_run_on_codes_only_among_others_are_measured_there(
    resnet: Path, source: Path
) -> None:
    probe = probe_of(resnet, source)
    adds = [node.name for node in probe.graph.nodes if node.op == "Add"]
    adds = [name for name in adds if name in probe.labels and probe.noise([name]) is None]
    assert adds
    layers = {name for name in probe.labels if probe.noise([name]) is not None}
    around = probe.neighbours(adds[0], layers)
    assert layers & set(around)
    assert adds[0] not in around
    _, measured = measure_nodes(probe, {})
    assert set(adds) & measured


def test_large_models_are_measured_less_by_size_alone() -> None:
    assert affordable(None) == affordable(1000) == (8, 64)
    sizes = [affordable(int(macs)) for macs in np.geomspace(1e6, 1e12, 30)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == (1, 16)


def test_many_nodes_are_measured_by_groups_within_the_budget(resnet: Path, source: Path) -> None:
    probe = probe_of(resnet, source)
    estimates = dict.fromkeys(probe.labels, 30.0)
    exact, _ = measure_nodes(probe, estimates)
    before = probe.tried
    noise, measured = measure_nodes(probe, estimates, budget=12)
    assert probe.tried - before <= 12 + 2 * (12 // 6)
    assert noise.keys() == exact.keys()
    assert 0 < len(measured) < len(probe.labels)
    for name in [n for n in measured if probe.noise([n]) is not None]:
        assert noise[name] == pytest.approx(exact[name], rel=0.2, abs=1e-7)


def test_decibels_and_energies() -> None:
    assert energy_ratio(20.0) == pytest.approx(0.01)
    assert decibel(0.01) == pytest.approx(20.0)
    assert (energy_ratio(math.inf), decibel(0.0)) == (0.0, math.inf)
    assert math.isfinite(energy_ratio(-math.inf))


# --- the document -----------------------------------------------------------------------------


def full() -> Sensitivity:
    """Every field with a value of its own."""
    layers = (
        Layer(
            rank=1,
            name="conv1",
            op="Conv",
            estimated_db=30.5,
            measured_db=25.25,
            error_share=0.75,
            macs_share=0.125,
            bytes_share=0.0625,
            score=70.5,
        ),
        Layer(
            rank=2,
            name="add",
            op="Add",
            estimated_db=None,
            measured_db=math.inf,
            error_share=0.25,
            macs_share=None,
            bytes_share=0.0,
        ),
    )
    return Sensitivity(
        model="model.onnx",
        target="x86-vnni",
        step="quantize_static",
        options={"calibrator": "mse"},
        samples="32 samples of x.npz",
        measured_on=8,
        all_db=24.5,
        score_float=72.0,
        score_all=68.0,
        layers=layers,
        notes=("a note",),
    )


def test_the_format_is_the_promised_one() -> None:
    """A change of this file is a change of format."""
    text = json.dumps(full().as_dict(), indent=1, allow_nan=False) + "\n"
    assert text == GOLDEN.read_text(encoding="utf-8")
    assert json.loads(text)["schema"] == SENSITIVITY_SCHEMA == "onnxcomp.sensitivity/1"


def test_every_key_is_described() -> None:
    page = (GOLDEN.parent.parent.parent / "docs" / "sensitivity.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`([a-z0-9_]+)`", page))
    for kind in (Sensitivity, Layer):
        assert {field.name for field in dataclasses.fields(kind)} <= described
    assert SENSITIVITY_SCHEMA in page


def test_the_function_is_public() -> None:
    assert onnxcomp.sensitivity is sensitivity
    assert {"quantize_static", "quantize_dynamic"} <= {
        kind.name() for kind in PASSES if kind.trades_precision
    }
