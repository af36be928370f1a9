"""binarize_layers: what bases make of layers, on bits and as weights, and which layers they get."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

import onnxcomp
from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationRequired
from onnxcomp.graph import constants
from onnxcomp.held_out import is_held
from onnxcomp.model import check_graph, graph_bytes
from onnxcomp.passes import binarize_layers
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.binarize_layers import BinarizeLayers
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.quantization import Array
from onnxcomp.recipe import Recipe
from onnxcomp.runtime import Feed, open_file, open_session
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of
from onnxcomp.timing import Timing

MODELS = Path(__file__).resolve().parent.parent.parent / "models"
ANY = 1e9  # of an error

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
ONE = (
    HEADER
    + """one (float[N, 24, 6, 7] x) => (float[N, 20, 6, 7] y) {
    [conv] y = Conv <pads = [1, 1, 1, 1]> (x, W, b)
}"""
)
NET = (
    HEADER
    + """net (float[N, 12, 8, 8] x) => (float[N, 10] y) {
    [first] a = Conv <pads = [1, 1, 1, 1]> (x, W)
    b = Relu (a)
    [second] c = Conv <pads = [1, 1, 1, 1]> (b, V)
    d = Add (b, c)
    e = Relu (d)
    f = GlobalAveragePool (e)
    g = Flatten (f)
    [hidden] h = MatMul (g, U)
    i = Add (h, u)
    j = Relu (i)
    [last] y = Gemm <transB = 1> (j, T, t)
}"""
)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(scale)


def signs(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), shape)


def one() -> gs.Graph:
    return graph_of(ONE, W=normal(20, 24, 3, 3), b=normal(20, seed=1))


def net() -> gs.Graph:
    return graph_of(
        NET,
        W=normal(16, 12, 3, 3, scale=0.1),
        V=normal(16, 16, 3, 3, seed=1, scale=0.1),
        U=normal(16, 40, seed=2, scale=0.5),
        u=normal(40, seed=3),
        T=normal(10, 40, seed=4, scale=0.3),
        t=normal(10, seed=5),
    )


def feeds(graph: gs.Graph, count: int = 16) -> list[Feed]:
    """Inputs that correlate, like those of layers behind a Relu."""
    rng = np.random.default_rng(7)
    channels, *spatial = graph.inputs[0].shape[1:]
    mix = rng.standard_normal((channels, channels)) / 4 + np.eye(channels)
    found = []
    for _ in range(count):
        x = np.tensordot(mix, rng.standard_normal((channels, 2, *spatial)), 1).swapaxes(0, 1)
        found.append({"x": np.maximum(x, -0.3).astype(np.float32)})
    return found


def binarize(graph: gs.Graph, given: list[Feed] | None, **options: Any) -> PassReport:
    report = PassReport()
    calibration = None if given is None else Calibration.from_source(given, graph)
    context = PassContext(target=resolve_target("auto"), calibration=calibration)
    chosen = {"smallest_weight": 0, "choose": "always", "max_error": ANY, **options}
    BinarizeLayers(**chosen).rewrite(graph, context, report)
    check_graph(graph)
    return report


def answers(graph: gs.Graph, given: list[Feed]) -> Array:
    session = open_session(graph, threads=1)
    return np.concatenate([session.run(feed)[0] for feed in given])


def off_by(before: Array, after: Array) -> float:
    """The squared error as a share of the variance of each channel."""
    spread = before - before.mean(axis=(0, *range(2, before.ndim)), keepdims=True)
    return float(np.square(after - before).sum() / np.square(spread).sum())


def operators(graph: gs.Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes)


@pytest.mark.parametrize(("bases", "levels"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_a_layer_becomes_a_sum_of_layers_of_bits(bases: int, levels: int) -> None:
    graph, before = one(), one()
    given = feeds(graph)
    report = binarize(graph, given, bases=bases, activation_bases=levels)
    assert (report.changed, report.skipped) == (["conv"], {})
    expected = {"PackSigns": levels, "BinaryConv": bases * levels}
    if bases * levels > 1:
        expected["Add"] = bases * levels - 1
    assert operators(graph) == expected
    held = [feed for index, feed in enumerate(given) if is_held(index)]
    error = off_by(answers(before, held), answers(graph, held))
    assert report.numbers["largest_error"] == pytest.approx(error, rel=2e-3)
    assert report.numbers["binarized_layers"] == 1


def test_more_bases_of_either_kind_make_the_error_smaller() -> None:
    errors = {}
    for bases, levels in ((1, 1), (1, 3), (3, 1), (3, 3)):
        graph = one()
        report = binarize(graph, feeds(graph, 32), bases=bases, activation_bases=levels)
        errors[bases, levels] = report.numbers["largest_error"]
    assert errors[3, 3] < min(errors[1, 3], errors[3, 1])
    assert max(errors[1, 3], errors[3, 1]) < errors[1, 1]


@pytest.mark.parametrize("low", [-1.0, 0.0])
@pytest.mark.parametrize("operator", ["Conv", "Gemm", "MatMul"])
def test_a_layer_of_two_values_is_found_exactly(operator: str, low: float) -> None:
    """Padding puts a 0 between -c and c, as between signs; between 0 and c nothing does."""
    rng = np.random.default_rng(4)
    scale = rng.uniform(0.5, 2, 20).astype(np.float32)
    if operator == "Conv":
        pads = [1] * 4 if low else [0] * 4
        text = f"y = Conv <pads = {pads}> (x, W, b)"
        weight = signs(20, 24, 3, 3) * scale.reshape(-1, 1, 1, 1)
        shape: tuple[int, ...] = (2, 24, 7, 6)
    elif operator == "Gemm":
        text, weight, shape = "y = Gemm (x, W, b)", signs(50, 20) * scale, (24, 50)
    else:
        text, weight, shape = "p = MatMul (x, W) y = Add (b, p)", signs(50, 20) * scale, (24, 50)
    dims = ", ".join(["N", *map(str, shape[1:])])
    out = "N, 20, H, K" if operator == "Conv" else "N, 20"
    text = f"{HEADER} two (float[{dims}] x) => (float[{out}] y) {{ {text} }}"
    graph, before = (graph_of(text, W=weight, b=normal(20, seed=2)) for _ in range(2))
    given = [
        {"x": np.where(rng.random(shape) < 0.4, 1.5, 1.5 * low).astype(np.float32)}
        for _ in range(16)
    ]
    report = binarize(graph, given, bases=1, activation_bases=1)
    assert len(report.changed) == 1
    assert report.numbers["largest_error"] < 1e-5
    found, expected = answers(graph, given), answers(before, given)
    np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())


def test_layers_that_lose_too_much_stay_as_they_are() -> None:
    graph, before = net(), net()
    given = feeds(graph)
    report = binarize(graph, given, max_error=1e-9)
    assert report.changed == []
    assert report.skipped.keys() == {"first", "second", "hidden", "last"}
    for reason in report.skipped.values():
        assert reason.startswith("its outputs would be off by ")
        assert 1e-9 < float(reason.split()[6]) < 1
    np.testing.assert_array_equal(answers(graph, given), answers(before, given))


@pytest.mark.parametrize("activations", ["binary", "float"])
def test_a_whole_network(activations: str) -> None:
    graph, before = net(), net()
    given = feeds(graph, 64)
    report = binarize(graph, given, activations=activations, bases=3, activation_bases=3)
    assert report.changed == ["first", "second", "hidden", "last"]
    found = operators(graph)
    if activations == "binary":
        assert found["BinaryConv"] == found["BinaryGemm"] == 18
        assert found["Conv"] == found["Gemm"] == found["MatMul"] == 0
    else:
        assert {node.domain for node in graph.nodes} <= {None, ""}
        assert (found["Conv"], found["Gemm"], found["MatMul"]) == (2, 1, 1)
    assert off_by(answers(before, given), answers(graph, given)) < 0.35


def test_float_weights_are_stored_as_bits() -> None:
    graph, before = net(), net()
    whole = graph_bytes(graph)
    report = binarize(graph, feeds(graph), activations="float", bases=2)
    assert report.changed == ["first", "second", "hidden", "last"]
    stored = constants(graph)
    for name, shape in (("W", (16, 12, 3, 3)), ("U", (16, 40))):
        rows = 40 if name == "U" else shape[0]
        assert stored[f"{name}.signs"].values.nbytes == 2 * math.prod(shape) // 8
        assert stored[f"{name}.scale"].values.shape == (2, rows, 1)
    assert graph_bytes(graph) < 0.5 * whole
    made = {node.op: node.inputs[1].name for node in graph.nodes if node.op in ("Conv", "MatMul")}
    kernel = open_session(graph, extra_outputs=made.values()).run(
        feeds(before)[0], [made["MatMul"]]
    )[0]
    assert kernel.shape == (16, 40)
    for column in kernel.T:  # +-a +-b
        values = np.unique(np.abs(column).round(5))
        assert len(values) <= 2


def test_what_is_unpacked_is_what_was_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    original = binarize_layers.fit_layer

    def noted(*arguments: Any, **options: Any) -> Any:
        fits.append(original(*arguments, **options))
        return fits[-1]

    monkeypatch.setattr(binarize_layers, "fit_layer", noted)
    text = (
        HEADER
        + """groups (float[N, 32, 6, 7] x) => (float[N, 20, 4, 5] y) {
        y = Conv <group = 2> (x, W)
    }"""
    )
    graph = graph_of(text, W=normal(20, 16, 3, 3))
    given = feeds(graph)
    binarize(graph, given, activations="float", bases=2)
    (conv,) = (node for node in graph.nodes if node.op == "Conv")
    name = conv.inputs[1].name
    (found,) = open_session(graph, extra_outputs=[name]).run(given[0], [name])
    np.testing.assert_allclose(found, fits[0].values.reshape(20, 16, 3, 3), atol=1e-6)
    np.testing.assert_allclose(conv.inputs[2].values, fits[0].bias.reshape(-1), rtol=1e-6)


def test_float_layers_behind_are_fitted_to_what_they_made() -> None:
    given = feeds(net(), 64)
    expected = answers(net(), given)
    errors = {}
    for refit in (False, True):
        graph = net()
        report = binarize(
            graph,
            given,
            refit=refit,
            bases=1,
            activation_bases=1,
            overrides={"[!f]*": {"skip": True}},
        )
        assert report.changed == ["first"]
        errors[refit] = off_by(expected, answers(graph, given))
        stayed = {"V", "U", "T"} & constants(graph).keys()
        assert stayed < {"V", "U", "T"} if refit else len(stayed) == 3
    assert errors[True] < 0.8 * errors[False]


def test_options_of_single_layers() -> None:
    graph = net()
    overrides = {"first": {"skip": True}, "second": {"bases": 1}, "last": {"max_error": 1e-9}}
    report = binarize(
        graph,
        feeds(graph),
        bases=2,
        activation_bases=1,
        overrides=overrides,
        operators=("Conv", "Gemm"),
    )
    assert report.changed == ["second"]
    assert report.skipped["first"] == "the recipe says so"
    assert report.skipped["hidden"] == "MatMul is excluded by the options"
    assert report.skipped["last"].startswith("its outputs would be off by")
    assert operators(graph)["BinaryConv"] == 1


REFUSED = (
    HEADER
    + """refused (float[N, 8, 6, 6] x, float[8, 8] w) => (float[N, 6, 8, 36] y, float z) {
    [depthwise] a = Conv <group = 8> (x, D)
    [grouped] b = Conv <group = 2> (a, G)
    [automatic] c = Conv <auto_pad = "SAME_UPPER"> (x, A)
    [small] d = Conv (c, S)
    [infinite] e = Conv (c, I)
    f = Transpose <perm = [0, 2, 1, 3]> (x)
    [batched] g = MatMul (f, B)
    [computed] h = MatMul (x2, w)
    [halved] i = Gemm <alpha = 0.5> (h, H)
    j = Concat <axis = 3> (g, g, g, g, g, g)
    y = Identity (j)
    z = ReduceSum <keepdims = 0> (i)
}"""
)


def test_every_layer_left_alone_has_its_reason() -> None:
    text = REFUSED.replace("x2", "w")
    graph = graph_of(
        text,
        D=normal(8, 1, 3, 3),
        G=normal(8, 4, 3, 3),
        A=normal(8, 8, 3, 3),
        S=normal(2, 8, 1, 1),
        I=np.full((8, 8, 3, 3), np.inf, np.float32),
        B=normal(6, 6),
        H=normal(8, 8),
    )
    rng = np.random.default_rng(0)
    given = [
        {"x": normal(2, 8, 6, 6, seed=k), "w": rng.standard_normal((8, 8)).astype(np.float32)}
        for k in range(8)
    ]
    report = binarize(graph, given, smallest_weight=20)
    assert report.changed == []
    assert report.skipped == {
        "depthwise": "depthwise: an output adds up too few inputs",
        "grouped": "groups of 4 channels do not fill words of 64",
        "automatic": "auto_pad is SAME_UPPER: pads have to be written out",
        "small": "only 16 weights",
        "infinite": "its weights are not finite",
        "batched": "its output is not known to have 2 dimensions",
        "halved": "its products are scaled",
    }


@pytest.mark.parametrize(("bits_ms", "changed"), [(0.5, 1), (1.0, 1), (1.5, 0)])
def test_layers_that_are_faster_in_float_stay(
    monkeypatch: pytest.MonkeyPatch, bits_ms: float, changed: int
) -> None:
    timed = []

    def times(opened: list[Any], threads: int) -> list[float]:
        before, after = (session.run(feed)[0] for session, feed in opened[:2])
        timed.append((off_by(before, after), threads))
        moved = [0.25] * len(opened[2:])  # which is not held against the float layer
        return [1.0 + sum(moved), bits_ms, *moved]

    monkeypatch.setattr(binarize_layers, "net_times", times)
    graph = one()
    report = binarize(graph, feeds(graph), choose="measured", threads=2)
    assert len(report.changed) == changed
    ((error, threads),) = timed
    assert error < 0.9  # it is this very layer that is timed
    assert threads == 2
    if changed:
        assert report.numbers["float_layers_ms"] == 1.0
        assert report.numbers["binary_layers_ms"] == bits_ms
        assert report.numbers["float_model_ms"] > 0 < report.numbers["binary_model_ms"]
    else:
        assert report.skipped == {"conv": "float is faster: 1 against 1.5 ms"}


@pytest.mark.parametrize(("ratio", "notes"), [(0.9, 0), (1.0, 0), (1.2, 1)])
def test_a_model_that_is_slower_as_a_whole_says_so(
    monkeypatch: pytest.MonkeyPatch, ratio: float, notes: int
) -> None:
    graph = one()

    def times(graphs: list[gs.Graph], feed: Feed, threads: int) -> Timing:
        assert [operators(g)["Conv"] for g in graphs] == [1, 0]
        return Timing((2.0, 2 * ratio), (1.0, ratio), (1.0, ratio), (0.0, 0.01), (2.0, 2 * ratio))

    monkeypatch.setattr(
        binarize_layers, "net_times", lambda opened, threads: [9.0, *[0.5] * len(opened[1:])]
    )
    monkeypatch.setattr(binarize_layers, "model_times", times)
    report = binarize(graph, feeds(graph), choose="measured", bases=1)
    said = ["the whole model is slower than in float: 2.4 instead of 2 ms"]
    assert report.notes == said[:notes]


def test_the_same_input_gives_the_same_bytes() -> None:
    made = []
    for _ in range(2):
        graph = net()
        binarize(graph, feeds(graph))
        made.append({name: t.values.tobytes() for name, t in constants(graph).items()})
    assert made[0] == made[1]


def test_samples_are_needed() -> None:
    with pytest.raises(CalibrationRequired):
        binarize(one(), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bases": 0}, "bases must be from 1 to 6, not 0"),
        ({"activation_bases": 7}, "activation_bases must be from 1 to 6, not 7"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"max_error": 0.0}, "max_error must be above 0"),
        ({"operators": ("LSTM",)}, "'LSTM' is none of Conv, Gemm, MatMul"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BinarizeLayers(**options)


def test_a_real_model_keeps_its_answers_mostly(tmp_path: Path) -> None:
    path = tmp_path / "bits.onnx"
    step = BinarizeLayers(
        choose="always",
        max_error=0.3,
        bases=2,
        activation_bases=2,
        refit=False,
        overrides={"*": {"skip": True}, "/residual1/*": {"skip": False}},
    )
    recipe = Recipe(passes=(SimplifyGraph(), step))
    samples = MODELS / "digits_calibration.npz"
    result = onnxcomp.optimize(
        MODELS / "digits_resnet.onnx", recipe, calibration=samples, output=path
    )
    last = result.report.passes[-1]
    assert (last.name, last.status, len(last.changed)) == ("binarize_layers", "kept", 2)
    with np.load(MODELS / "digits_test.npz") as data:
        images, labels = data["input"], data["label"]
    made = open_file(path, threads=1).run({"input": images})[0]
    assert (made.argmax(axis=1) == labels).mean() > 0.98
