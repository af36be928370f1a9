"""Refined layers against plain arithmetic: rows, regression, biases, and what models answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.fusion import optimized_operators
from onnxcomp.gram import Gram, Window
from onnxcomp.graph import is_constant
from onnxcomp.layer_inputs import rows_and_means
from onnxcomp.model import check_graph
from onnxcomp.paired import Paired
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.refining import output_shift
from onnxcomp.runtime import Feed, open_session
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

Array = np.ndarray[Any, Any]
WINDOWS = [
    Window(kernel=(1, 1)),
    Window(kernel=(3, 3), pads=(1, 1, 1, 1)),
    Window(kernel=(3, 2), strides=(2, 1), pads=(1, 0, 0, 1)),
    Window(kernel=(2, 3), dilations=(2, 1), auto_pad="SAME_UPPER", strides=(2, 2)),
    Window(kernel=(3, 3), pads=(1, 1, 1, 1), group=6),
    Window(kernel=(3,), pads=(2, 0), group=2),
    Window(kernel=(2, 1, 3)),
]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_rows_and_their_mean_are_those_of_the_gram(window: Window) -> None:
    values = normal(2, 6, *(7, 8, 5)[: len(window.kernel)])
    rows, means = rows_and_means(values, window, 10**6, [0])  # all places
    for sample, row, mean in zip(values, rows, means, strict=True):
        statistic = Gram(window=window)
        statistic.update(sample[None])
        wanted = statistic.result()
        assert row.shape[2] == wanted.count
        gram = row @ row.transpose(0, 2, 1) / row.shape[2]
        np.testing.assert_allclose(gram, wanted.matrix, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mean, wanted.mean, rtol=1e-4, atol=1e-5)


def test_few_rows_are_some_of_all_and_the_same_for_every_sample() -> None:
    values, window = normal(1, 4, 9, 9), WINDOWS[1]
    every = {tuple(row) for row in rows_and_means(values, window, 10**6, [0])[0][0, 0].T}
    both, _ = rows_and_means(np.concatenate([values, 2 * values]), window, 20, [3, 1])
    assert both.shape == (2, 1, 36, 20)
    assert {tuple(row) for row in both[0, 0].T} <= every
    assert len({tuple(row) for row in both[0, 0].T}) == 20
    np.testing.assert_array_equal(both[1], 2 * both[0])  # a pair is read at the same places
    other, _ = rows_and_means(values, window, 20, [3, 2])
    assert not np.array_equal(other[0], both[0])


def test_rows_of_a_matrix_are_its_vectors() -> None:
    values = normal(2, 5, 4, 3)
    rows, means = rows_and_means(values, None, 100, [0])
    np.testing.assert_array_equal(rows[1, 0], values[1].reshape(20, 3).T)
    np.testing.assert_allclose(means[:, 0], values.mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("centred", [False, True])
def test_regression_is_least_squares_and_loss_is_its_error(centred: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 5, 400)) + rng.normal(size=(1, 5, 1))
    read = 0.8 * x + 0.3 * rng.normal(size=x.shape) + 0.5
    weights = rng.normal(size=(1, 3, 5))
    parts = [Paired.of(x[..., s], read[..., s]) for s in (slice(100), slice(100, None))]
    paired = parts[0] + parts[1]
    if centred:
        paired = paired.centred()
        x, read = (v - v.mean(axis=2, keepdims=True) for v in (x, read))
    wanted = np.linalg.lstsq(read[0].T, (weights[0] @ x[0]).T, rcond=None)[0].T
    np.testing.assert_allclose(next(paired.regressions(weights, [1e-12]))[0], wanted, rtol=1e-6)
    np.testing.assert_array_equal(next(paired.regressions(weights, [np.inf])), weights)
    left = [np.square(weights[0] @ x[0] - w @ read[0]).sum() for w in (wanted, weights[0])]
    losses = paired.losses(weights, [w[None] for w in (wanted, weights[0])])
    assert losses[1] - losses[0] == pytest.approx(left[1] - left[0])


def test_what_all_samples_lost_is_made_up_for_and_chance_is_not() -> None:
    rng = np.random.default_rng(0)
    weights, rounded = rng.normal(size=(2, 1, 40, 6))
    seen = rng.normal(size=(32, 1, 6))
    own = (weights[0] - rounded[0]) @ seen.mean(axis=0)[0]
    constant = rng.normal(size=(1, 1, 6))
    found = output_shift(weights, rounded, seen, seen - constant)
    np.testing.assert_allclose(found[0], own + rounded[0] @ constant[0, 0], rtol=1e-6)
    found = output_shift(weights, rounded, seen, seen - rng.normal(size=seen.shape))
    noise = rounded[0] @ rng.normal(size=(6, 1000)) / np.sqrt(32)  # of the plain mean
    assert np.square(found[0] - own).mean() < 0.5 * np.square(noise).mean()


# --- in a model -----------------------------------------------------------------------------------


def network() -> gs.Graph:
    """Two Convs, one depthwise, and a Gemm."""
    return graph_of(
        """g (float[N, 3, 12, 12] x) => (float[N, 10] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            r = Relu (a)
            d = Conv <pads = [1, 1, 1, 1], group = 16> (r, w2, b2)
            s = Relu (d)
            e = Conv (s, w3, b3)
            t = Relu (e)
            m = GlobalAveragePool (t)
            f = Flatten (m)
            y = Gemm <transB = 1> (f, w4, b4)
        }""",
        w1=normal(16, 3, 3, 3, seed=1) / 5,
        b1=normal(16, seed=2) / 4,
        w2=normal(16, 1, 3, 3, seed=3) / 3,
        b2=normal(16, seed=4) / 4,
        w3=normal(24, 16, 1, 1, seed=5) / 4,
        b3=normal(24, seed=6) / 4,
        w4=normal(10, 24, seed=7) / 5,
        b4=normal(10, seed=8) / 4,
    )


def pictures(count: int, seed: int) -> list[Feed]:
    """Smooth, so that neighbouring values agree, as in pictures."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 1, 3, 4, 4)).repeat(3, axis=3).repeat(3, axis=4)
    noise = 0.3 * rng.normal(size=coarse.shape)
    return [{"x": x} for x in (coarse + noise + 0.5).astype(np.float32)]


def quantized(**options: Any) -> tuple[gs.Graph, PassReport]:
    graph, report = network(), PassReport()
    calibration = Calibration.from_source(pictures(48, seed=0), graph)
    context = PassContext(target=resolve_target("x86-vnni"), calibration=calibration)
    options = {"equalize": False, "keep_drowned": False, "calibrator": "minmax"} | options
    known = QuantizeStatic.__dataclass_fields__
    QuantizeStatic(**{k: v for k, v in options.items() if k in known}).rewrite(
        graph, context, report
    )
    check_graph(graph)
    return graph, report


def noise(graph: gs.Graph) -> float:
    """The squared error of the answers on samples never seen, as a share of their variance."""
    feeds = pictures(200, seed=1)
    want, got = (
        np.concatenate([open_.run(feed)[0] for feed in feeds])
        for open_ in (open_session(network(), threads=1), open_session(graph, threads=1))
    )
    return float(np.square(want - got).sum() / np.square(want - want.mean(axis=0)).sum())


@pytest.mark.parametrize("bits", [3, 4])
def test_refined_layers_answer_better_on_samples_never_seen(bits: int) -> None:
    options = {"weight_bits": bits, "exposed_bits": bits}
    plain = noise(quantized(rounding="nearest", **options)[0])
    refined = noise(quantized(rounding="gptq", **options)[0])
    assert refined < 0.6 * plain


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_codes_have_the_bits_asked_for_and_exposed_layers_theirs(bits: int) -> None:
    graph, report = quantized(weight_bits=bits, exposed_bits=6)
    assert report.numbers["refined_layers"] == 4
    found = {}
    for name in ("w1", "w2", "w3", "w4"):
        codes = graph.tensors()[f"{name}.codes"].values
        assert codes.dtype == np.int8
        found[name] = int(np.abs(codes.astype(np.int32)).max())
    exposed = 2 ** (max(bits, 6) - 1) - 1
    assert found["w3"] <= 2 ** (bits - 1) - 1
    assert found["w3"] > 2 ** (bits - 1) // 2 - 1
    for name in ("w1", "w2", "w4"):  # the first, a depthwise one, the last
        assert exposed // 2 < found[name] <= exposed


@pytest.mark.parametrize("bits", [3, 4])
def test_the_zeros_of_a_sparse_layer_stay(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = network()
    weight = sparse.tensors()["w3"]
    zeros = np.random.default_rng(9).random(weight.shape) < 0.5
    weight.values = np.where(zeros, np.float32(0), weight.values)
    monkeypatch.setattr(f"{__name__}.network", sparse.copy)
    options = {"weight_bits": bits, "exposed_bits": bits}
    plain, nearest = (quantized(rounding=r, **options)[0] for r in ("gptq", "nearest"))
    codes, others = (graph.tensors()["w3.codes"].values for graph in (plain, nearest))
    assert not codes[zeros].any()
    assert (codes != others)[~zeros].mean() > 0.05
    assert noise(plain) < 0.8 * noise(nearest)


def test_the_runtime_computes_what_the_codes_say() -> None:
    """The first layer in integers, by definition, from the written codes: within one code."""
    graph, _ = quantized(weight_bits=4, exposed_bits=4)
    values = {name: t.values for name, t in graph.tensors().items() if isinstance(t, gs.Constant)}
    feed = pictures(1, seed=5)[0]
    session = open_session(graph, extra_outputs=["x.codes", "r.codes"], threads=1)
    x, got = session.run(feed, ["x.codes", "r.codes"])
    rows = np.pad(
        x.astype(np.int64) - int(values["x.zero_point"]), [(0, 0), (0, 0), (1, 1), (1, 1)]
    )
    view = np.lib.stride_tricks.sliding_window_view(rows, (3, 3), (2, 3))
    sums = np.einsum("ncyxij,ocij->noyx", view, values["w1.codes"].astype(np.int64))
    sums += values["b1.codes"].astype(np.int64)[:, None, None]
    scale = values["x.scale"] * values["w1.scale"] / values["r.scale"]
    codes = np.rint(sums * scale[:, None, None].astype(np.float64)) + int(values["r.zero_point"])
    assert np.abs(np.clip(codes, 0, 255) - got).max() <= 1


def test_the_last_bias_is_the_shift_between_both_models_on_the_samples() -> None:
    feeds = pictures(48, seed=0)[:32]
    graph, _ = quantized()
    values = {name: t.values for name, t in graph.tensors().items() if is_constant(t)}
    (gemm,) = (node for node in graph.nodes if node.op == "Gemm")
    dequantizer = gemm.inputs[0].inputs[0]
    codes, scale, zero_point = dequantizer.inputs
    twin = open_session(graph, extra_outputs=[codes.name], threads=1)
    original = open_session(network(), extra_outputs=["f"], threads=1)
    seen = np.stack([original.run(feed, ["f"])[0] for feed in feeds]).astype(np.float64)
    read = np.stack([twin.run(feed, [codes.name])[0] for feed in feeds]).astype(np.float64)
    read = (read - float(zero_point.values)) * float(scale.values)
    weights = normal(10, 24, seed=7)[None].astype(np.float64) / 5
    rounded = (values["w4.codes"] * values["w4.scale"].astype(np.float64)[:, None])[None]
    wanted = normal(10, seed=8) / 4 + output_shift(weights, rounded, seen, read)[0]
    written = values["b4.codes"] * values["b4.scale"].astype(np.float64)
    np.testing.assert_allclose(written, wanted, atol=values["b4.scale"].max())
    assert np.abs(wanted - normal(10, seed=8) / 4).max() > 20 * values["b4.scale"].max()


def test_biases_stay_where_that_is_asked() -> None:
    graph, _ = quantized(correct_bias=False)
    values = {name: t.values for name, t in graph.tensors().items() if is_constant(t)}
    written = values["b4.codes"] * values["b4.scale"].astype(np.float64)
    np.testing.assert_allclose(written, normal(10, seed=8) / 4, atol=values["b4.scale"].max())


def test_the_same_seed_gives_the_same_codes() -> None:
    first, second = (quantized(weight_bits=4)[0].tensors() for _ in range(2))
    for name in ("w1.codes", "w3.codes", "b3.codes"):
        assert np.array_equal(first[name].values, second[name].values)


def test_layers_that_are_left_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.refining.WIDEST", 20)
    _, report = quantized()
    assert report.numbers["refined_layers"] == 2
    assert any("more than 20 inputs" in note for note in report.notes)


@pytest.mark.parametrize(
    ("option", "value"),
    [("weight_bits", 1), ("weight_bits", 9), ("exposed_bits", 0), ("refining_samples", 0)],
)
def test_options_out_of_range_are_refused(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=option):
        QuantizeStatic(**{option: value})


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_few_bits_are_packed_in_the_file_and_run_as_the_same_kernels(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.packing.UNPACKING_BYTES", 0)
    packed, _ = quantized(weight_bits=bits, exposed_bits=bits)
    monkeypatch.setattr("onnxcomp.packing.UNPACKING_BYTES", 10**9)
    plain, _ = quantized(weight_bits=bits, exposed_bits=bits)
    assert "w3.codes" not in {t.name for t in packed.tensors().values() if is_constant(t)}
    assert optimized_operators(packed) == optimized_operators(plain)
    for feed in pictures(5, seed=3):
        answers = [open_session(graph, threads=1).run(feed)[0] for graph in (packed, plain)]
        np.testing.assert_array_equal(*answers)
    sizes = {t.name: t.values.nbytes for t in packed.tensors().values() if is_constant(t)}
    count = 4 if bits == 2 else 2
    assert sum(v for k, v in sizes.items() if k.startswith("w1.codes")) == 16 * 27 // count
