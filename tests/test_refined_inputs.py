"""Images made up for a model: statistics of photographs, in the range its weights tell."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.dead_leaves import dead_leaves
from onnxcomp.graph import sort_nodes
from onnxcomp.logits import widened_logits
from onnxcomp.model import load_model
from onnxcomp.optimize import optimize
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.recipe import Gates, Recipe, compose
from onnxcomp.refined_inputs import BLIND, NOISE, RANGES, WORSE, PixelRange, is_image
from onnxcomp.report import PassResult
from onnxcomp.runtime import open_session
from onnxcomp.statistics import Range
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

MODELS = Path(__file__).resolve().parent.parent / "models"


def refined(graph: gs.Graph, **options: Any) -> Calibration:
    return Calibration.from_source(None, graph, refined=True, **options)


def test_the_spectrum_falls_as_that_of_photographs() -> None:
    """Amplitudes as 1 / f: power as f**-2, where white noise has a slope of 0."""
    power = np.zeros((64, 64))
    for seed in range(16):
        image = dead_leaves(np.random.default_rng(seed), 1, 64, 64)[0]
        power += np.abs(np.fft.fft2(image - image.mean())) ** 2
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))
    chosen = (frequency > 0.03) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[chosen]), np.log(power[chosen]), 1)[0]
    assert -2.8 < slope < -1.6


def test_channels_go_together_and_pixels_stay_within_bounds() -> None:
    image = np.concatenate([dead_leaves(np.random.default_rng(i), 3, 48, 40) for i in range(8)], 1)
    assert image.shape == (3, 8 * 48, 40)
    assert image.min() >= 0
    assert image.max() <= 1
    assert np.corrcoef(image.reshape(3, -1))[0, 2] > 0.7
    assert (image[0] != image[2]).mean() > 0.5


def convnet(expected: PixelRange) -> gs.Graph:
    """Whose BatchNormalization has seen dead leaves of other seeds in the range expected."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((16, 3, 3, 3)).astype(np.float32)
    graph = graph_of(
        """agraph (float[1, 3, 32, 32] x) => (float[1, 16, 30, 30] y)
        { c = Conv(x, w)  n = BatchNormalization(c, one, zero, mean, variance)  y = Relu(n) }""",
        w=weights,
        one=np.ones(16, np.float32),
        zero=np.zeros(16, np.float32),
        mean=np.zeros(16, np.float32),
        variance=np.ones(16, np.float32),
    )
    images = [dead_leaves(np.random.default_rng([9, i]), 3, 32, 32) for i in range(16)]
    windows = np.stack(
        [
            np.lib.stride_tricks.sliding_window_view(
                (image - expected.mean) * expected.scale, (3, 3), (1, 2)
            )
            for image in images
        ]
    )
    outputs = np.einsum("ncyxij,ocij->noyx", windows, weights)
    norm = next(node for node in graph.nodes if node.op == "BatchNormalization")
    norm.inputs[3] = gs.Constant("seen.mean", outputs.mean((0, 2, 3)).astype(np.float32))
    norm.inputs[4] = gs.Constant("seen.variance", outputs.var((0, 2, 3)).astype(np.float32))
    return graph


@pytest.mark.parametrize("expected", RANGES, ids=lambda found: found.label)
@pytest.mark.parametrize("folded", [False, True])
def test_the_range_is_the_one_of_training(expected: PixelRange, folded: bool) -> None:
    graph = convnet(expected)
    if folded:
        SimplifyGraph().rewrite(graph, PassContext(target=resolve_target()), PassReport())
        assert [node.op for node in graph.nodes] == ["Conv", "Relu"]
    found = refined(graph)
    assert found.description.endswith(f", {expected.label})")
    assert folded or found.unsuited == ""  # one folded layer alone tells too little to be sure


def test_the_seed_decides_every_byte() -> None:
    graph = convnet(RANGES[1])
    one, two, other = (refined(graph, seed=seed) for seed in (3, 3, 4))
    assert len(one) == 32
    for a, b in zip(one.feeds(), two.feeds(), strict=True):
        assert a["x"].tobytes() == b["x"].tobytes()
    assert not np.array_equal(next(one.feeds())["x"], next(other.feeds())["x"])
    assert one.synthetic


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((1, 3, 224, 224), np.float32, True),
        ((1, 224, 224, 3), np.float16, True),
        ((1, 1, 8, 8), np.float32, True),
        ((1, 3, 224, 224), np.uint8, False),
        ((1, 64, 56, 56), np.float32, False),
        ((1, 3, 1, 400), np.float32, False),
        ((1, 3, 224), np.float32, False),
    ],
)
def test_what_is_an_image(shape: tuple[int, ...], dtype: type, expected: bool) -> None:
    assert is_image(shape, np.dtype(dtype)) is expected


def test_other_inputs_stay_as_they_were() -> None:
    graph = graph_of(
        "agraph (float[1, 16] x) => (float[1, 4] y) { y = MatMul(x, w) }",
        w=np.ones((16, 4), np.float32),
    )
    assert refined(graph).description == "8 synthetic samples (seed 0)"
    assert refined(graph).unsuited == NOISE


def test_images_that_no_range_makes_fit_say_so() -> None:
    """BatchNormalization that has seen noise, and layers that normalize what they read."""
    assert refined(convnet(RANGES[2])).unsuited == ""
    graph, rng = convnet(RANGES[2]), np.random.default_rng(1)
    norm = next(node for node in graph.nodes if node.op == "BatchNormalization")
    weights = next(node for node in graph.nodes if node.op == "Conv").inputs[1].values
    windows = rng.standard_normal((4096, 3, 3, 3))
    outputs = np.einsum("nijk,oijk->no", windows, weights)
    norm.inputs[3] = gs.Constant("noise.mean", outputs.mean(0).astype(np.float32))
    norm.inputs[4] = gs.Constant("noise.variance", outputs.var(0).astype(np.float32))
    assert refined(graph).unsuited == WORSE
    assert refined(load_model(MODELS / "digits_vit.onnx").graph).unsuited == BLIND
    assert (
        "that nothing confirms" in refined(load_model(MODELS / "digits_vit.onnx").graph).description
    )


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered")
def test_a_model_that_overflows_is_looked_at_like_any_other() -> None:
    graph = graph_of(
        """m (float[1, 3, 32, 32] x) => (float[1, 8, 30, 30] y) {
            a = Conv (x, w1) b = Exp (a) c = Sub (b, b) y = Conv (c, w2) }""",
        w1=np.full((8, 3, 3, 3), 1e4, np.float32),
        w2=np.ones((8, 8, 1, 1), np.float32),
    )
    assert len(refined(graph)) == 32


def test_only_logits_get_wider_ranges() -> None:
    graph = graph_of(
        """agraph (float[1, 16] x) => (float[1, 4] y)
        { h = MatMul(x, w)  l = Add(h, b)  y = Softmax(l) }""",
        w=np.ones((16, 4), np.float32),
        b=np.ones(4, np.float32),
    )
    ranges = {name: Range(np.asarray(-1.0), np.asarray(3.0)) for name in "xhly"}
    found = widened_logits(graph, {name: [name] for name in ranges}, ranges)
    assert {n: (float(r.low), float(r.high)) for n, r in found.items()} == {
        "x": (-1, 3),
        "h": (-2, 6),
        "l": (-2, 6),
        "y": (-1, 3),
    }


def test_digits_quantized_without_data_keep_their_accuracy() -> None:
    graph = load_model(MODELS / "digits_resnet.onnx").graph
    samples = refined(graph)
    assert samples.description.endswith("0..1)")
    SimplifyGraph().rewrite(graph, PassContext(target=resolve_target()), PassReport())
    sort_nodes(graph)
    real = Calibration.from_source(MODELS / "digits_calibration.npz", graph)
    assert accuracy(graph, samples) >= accuracy(graph, real) - 0.02


def accuracy(graph: gs.Graph, calibration: Calibration) -> float:
    twin = graph.copy()
    context = PassContext(target=resolve_target(), calibration=calibration)
    QuantizeStatic().rewrite(twin, context, PassReport())
    session = open_session(twin, threads=1)
    with np.load(MODELS / "digits_test.npz") as test:
        images, labels = test["input"], test["label"]
    answers = session.run({session.inputs[0]: images.astype(np.float32)})[0].argmax(-1)
    return float((answers == labels).mean())


def static_of(model: str, recipe: Recipe, **options: Any) -> PassResult:
    """What the static step of a recipe did, whatever it took in time."""
    untimed = dataclasses.replace(recipe, gates=Gates(min_sqnr_db=15.0))
    result = optimize(MODELS / f"{model}.onnx", untimed, **options)
    return next(found for found in result.report.passes if found.name == "quantize_static")


@pytest.mark.parametrize("recipe", ["data_free", "default"])
def test_built_in_recipes_measure_no_ranges_on_what_shows_none(recipe: str) -> None:
    chosen = Recipe.load(recipe)
    refused = static_of("digits_vit", chosen)
    assert (refused.status, refused.changed) == ("unchanged", [])
    assert set(refused.skipped.values()) == {BLIND}
    assert any("--calibration" in note for note in refused.notes)
    assert static_of("digits_resnet", chosen).status == "kept"
    samples = MODELS / "digits_calibration.npz"
    assert static_of("digits_vit", chosen, calibration=samples).status == "kept"


def test_who_asks_for_static_gets_it_with_a_note() -> None:
    asked = static_of("digits_vit", compose([QuantizeStatic()]))
    assert asked.changed
    assert any("nothing tells the range" in note for note in asked.notes)
