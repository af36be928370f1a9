"""Pruned graphs are repaired: layers equal closed forms, outputs come near the original's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp import side_by_side
from onnxcomp.calibration import Calibration
from onnxcomp.gram import Window
from onnxcomp.graph import Names, constants
from onnxcomp.layer_inputs import sampled_rows
from onnxcomp.linear_layers import LinearLayer
from onnxcomp.model import check_graph
from onnxcomp.recovery import recover
from onnxcomp.runtime import Feed, open_session
from onnxcomp.side_by_side import Kept
from onnxcomp.testing import graph_of

Array = np.ndarray[Any, np.dtype[Any]]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def mixed(seed: int, count: int, *shape: int) -> list[Feed]:
    """Samples x [1, *shape] whose elements are correlated."""
    mix = normal(seed, shape[0], shape[0]) / np.sqrt(shape[0])
    values = normal(seed + 1, count, 1, *shape)
    mixed_values = np.einsum("ij,snj...->sni...", mix, values) + 0.3
    return [{"x": v.astype(np.float32)} for v in mixed_values]


def narrowed(graph: gs.Graph, kept: Kept) -> gs.Graph:
    """A copy without what ``kept`` leaves out of constants and activations."""
    twin = graph.copy()
    tensors = twin.tensors() | constants(twin)
    for name, axes in kept.items():
        tensor = tensors[name]
        for axis, indices in enumerate(axes):
            if indices is None:
                continue
            if isinstance(tensor, gs.Constant):
                tensor.values = np.take(tensor.values, indices, axis)
                tensor.name = f"{name}.pruned"
            elif tensor.shape is not None:
                tensor.shape[axis] = len(indices)
    return twin


def lost(original: gs.Graph, pruned: gs.Graph, feeds: list[Feed]) -> float:
    """The error of the outputs as a share of their variance."""
    pairs = [[open_session(g).run(feed)[0] for feed in feeds] for g in (original, pruned)]
    wanted, got = (np.stack(side) for side in pairs)
    return float(np.sum((wanted - got) ** 2) / np.sum((wanted - wanted.mean(axis=0)) ** 2))


def calibration(graph: gs.Graph, feeds: list[Feed]) -> Calibration:
    return Calibration.from_source(feeds, graph)


def convnet() -> tuple[gs.Graph, Kept]:
    graph = graph_of(
        """net (float[N, 6, 9, 9] x) => (float[N, 5] y) {
            [one] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
            [act] r = Relu (a)
            [two] b = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r, w2)
            [act2] s = Relu (b)
            [deep] c = Conv <kernel_shape = [3, 3], group = 8> (s, w3, b3)
            [pool] p = GlobalAveragePool (c)
            [flat] f = Flatten (p)
            [head] y = Gemm <transB = 1> (f, w4, b4)
        }""",
        w1=0.3 * normal(0, 12, 6, 3, 3),
        b1=normal(1, 12),
        w2=0.2 * normal(2, 8, 12, 3, 3),
        w3=normal(3, 8, 1, 3, 3),
        b3=normal(4, 8),
        w4=normal(5, 5, 8),
        b4=normal(6, 5),
    )
    keep = np.array([0, 1, 3, 4, 6, 7, 9, 10])
    kept = {
        "w1": (keep, None, None, None), "b1": (keep,), "a": (None, keep, None, None),
        "r": (None, keep, None, None), "w2": (None, keep, None, None),
    }  # fmt: skip
    return graph, kept


def test_convolutions_are_repaired_in_order() -> None:
    graph, kept = convnet()
    feeds = mixed(0, 60, 6, 9, 9)
    pruned = narrowed(graph, kept)
    before = lost(graph, pruned, feeds[40:])
    recovered = recover(graph, pruned, kept, calibration(graph, feeds[:40]))
    check_graph(pruned)
    assert recovered.refitted[0] == "two"
    assert "one" not in recovered.refitted + list(recovered.skipped)  # reads what it did
    assert {*recovered.refitted, *recovered.skipped} == {"two", "deep", "head"}
    assert lost(graph, pruned, feeds[40:]) < 0.3 * before
    for first, last in recovered.errors.values():
        assert last <= first


def test_one_layer_is_least_squares_on_its_activations() -> None:
    graph, kept = convnet()
    feeds = mixed(1, 40, 6, 9, 9)
    pruned = narrowed(graph, kept)
    recover(graph, pruned, kept, calibration(graph, feeds))
    two = next(node for node in pruned.nodes if node.name == "two")
    assert len(two.inputs) == 3  # it got a bias
    window = Window.of_conv(two.attrs, two.inputs[1].shape)
    x = [open_session(graph, extra_outputs=["r"]).run(f, ["r"])[0] for f in feeds]
    y = [open_session(graph, extra_outputs=["b"]).run(f, ["b"])[0] for f in feeds]
    values = np.concatenate(x)[:, kept["r"][1]]
    rows = np.concatenate(list(sampled_rows(values, window, 10**6, [0])[:, 0]), axis=1)
    goal = np.concatenate([v[0].reshape(8, -1) for v in y], axis=1)
    columns = np.concatenate([rows, np.ones((1, rows.shape[1]))]).T.astype(np.float64)
    wanted, rest = np.linalg.lstsq(columns, goal.T, rcond=None)[:2]
    weights = two.inputs[1].values.reshape(8, -1)
    got = columns @ np.c_[weights, two.inputs[2].values].T
    assert np.sum((goal.T - got) ** 2) < 1.001 * rest.sum()
    assert np.abs(weights - wanted[:-1].T).max() < 0.05 * np.abs(wanted).max()


def mlp() -> tuple[gs.Graph, Kept]:
    graph = graph_of(
        """net (float[1, L, 10] x) => (float[1, L, 4] y) {
            [up] h = MatMul (x, w1)  [upb] hb = Add (b1, h)  [act] r = Relu (hb)
            [mid] m = MatMul (r, w2)  [midb] mb = Add (m, b2)  [act2] t = Tanh (mb)
            [out] y = MatMul (t, w3)
        }""",
        w1=0.4 * normal(0, 10, 24),
        b1=normal(1, 24),
        w2=0.3 * normal(2, 24, 12),
        b2=normal(3, 1, 12),
        w3=normal(4, 12, 4),
    )
    keep = np.arange(0, 24, 2)
    axes = (None, None, keep)
    kept = {"w1": (None, keep), "b1": (keep,), "h": axes, "hb": axes, "r": axes, "w2": (keep, None)}
    return graph, kept


def test_products_of_matrices_are_repaired_and_so_are_their_biases() -> None:
    graph, kept = mlp()
    feeds = [{"x": normal(n, 1, 20 + n % 3, 10)} for n in range(60)]
    pruned = narrowed(graph, kept)
    held = [f for f in feeds[40:] if f["x"].shape[1] == 21]
    before = lost(graph, pruned, held)
    recovered = recover(graph, pruned, kept, calibration(graph, feeds[:40]))
    check_graph(pruned)
    assert recovered.refitted == ["mid", "out"]
    assert lost(graph, pruned, held) < 0.15 * before
    added = next(node for node in pruned.nodes if node.name == "midb").inputs[1]
    assert added.values.shape == (1, 12)
    assert not np.array_equal(added.values, constants(graph)["b2"].values)
    assert constants(graph)["b2"].values[0, 0] == normal(3, 1, 12)[0, 0]  # the original's stay


def residual() -> tuple[gs.Graph, Kept]:
    """Two blocks on a stream of 8 channels; the first also projects the stream."""
    text = """net (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {
        [a1] p = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, wa1, ba1) [r1] q = Relu (p)
        [a2] u = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (q, wa2, ba2)
        [skip] v = Conv <kernel_shape = [1, 1]> (q, ws, bs)
        [s1] s = Add (u, v)
        [b1] i = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s, wb1, bb1) [r2] j = Relu (i)
        [b2] k = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (j, wb2, bb2)
        [s2] y = Add (k, s)
    }"""
    shapes = {"wa1": (16, 8, 3, 3), "wa2": (8, 16, 3, 3), "wb1": (16, 8, 3, 3)}
    shapes |= {"wb2": (8, 16, 3, 3), "ws": (8, 16, 1, 1)}
    sizes = {"ba1": 16, "ba2": 8, "bb1": 16, "bb2": 8, "bs": 8}
    weights = {name: 0.15 * normal(n, *shape) for n, (name, shape) in enumerate(shapes.items())}
    biases = {name: normal(20 + n, size) for n, (name, size) in enumerate(sizes.items())}
    keep = np.array([0, 1, 2, 4, 5, 7, 8, 9, 11, 12, 14])
    made, read, active = (
        (keep, None, None, None),
        (None, keep, None, None),
        (None, keep, None, None),
    )
    kept = {
        "wa1": made, "ba1": (keep,), "p": active, "q": active, "wa2": read, "ws": read,
        "wb1": made, "bb1": (keep,), "i": active, "j": active, "wb2": read,
    }  # fmt: skip
    return graph_of(text, **weights, **biases), kept


def test_the_last_branch_makes_up_for_the_error_of_its_stream() -> None:
    graph, kept = residual()
    feeds = mixed(2, 60, 8, 6, 6)
    pruned = narrowed(graph, kept)
    before = lost(graph, pruned, feeds[40:])
    recovered = recover(graph, pruned, kept, calibration(graph, feeds[:40]))
    assert recovered.refitted[:2] == ["a2", "skip"]
    assert "b2" in recovered.refitted
    assert lost(graph, pruned, feeds[40:]) < 0.35 * before
    # both branches of the first sum cannot beat what one of them fits to the sum's error
    got, wanted = (
        np.concatenate([open_session(g, extra_outputs=["s"]).run(f, ["s"])[0] for f in feeds[:40]])
        for g in (pruned, graph)
    )
    rest = (wanted - got).mean(axis=(0, 2, 3))
    assert np.abs(rest).max() < 0.02 * wanted.std()


def test_layers_that_cannot_be_refitted_are_named() -> None:
    graph = graph_of(
        """net (float[1, 4, 5, 5] x) => (float[1, 3, 5, 5] y, float[1, 3, 5, 5] d, float[5, 5] z) {
            [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
            [up] y = ConvTranspose <kernel_shape = [1, 1], auto_pad = "SAME_UPPER"> (a, w2)
            [mute] b = Mul (a, zero)
            [dead] d = Conv <kernel_shape = [1, 1]> (b, w3)
            [left] l = Conv <kernel_shape = [1, 1]> (a, w4)
            [right] r = Conv <kernel_shape = [1, 1]> (a, w4)
            [sum] t0 = Add (l, r) [mean] n = ReduceMean <keepdims = 0> (w4) t = Add (t0, n)
            [flat] f = Squeeze (t)
            [scaled] z = Gemm <alpha = 0.5> (f, w5)
        }""",
        w1=normal(0, 4, 4, 1, 1),
        w2=normal(1, 4, 3, 1, 1),
        w3=normal(2, 3, 4, 1, 1),
        w4=normal(3, 1, 4, 1, 1),
        w5=normal(4, 5, 5),
        zero=np.zeros(1, np.float32),
    )
    keep = np.array([0, 2, 3])
    kept: Kept = {"w1": (keep, None, None, None), "w2": (keep, None, None, None)}
    kept |= dict.fromkeys(("a", "b", "w3", "w4"), (None, keep, None, None))
    pruned = narrowed(graph, kept)
    feeds = mixed(3, 8, 4, 5, 5)
    recovered = recover(graph, pruned, kept, calibration(graph, feeds))
    assert recovered.refitted == []
    assert recovered.skipped == {
        "up": "its padding follows from the size of its output",
        "dead": "its inputs are all zero",
        "left": "its weights are shared with mean, which is another kind of layer",
        "right": "its weights are shared with mean, which is another kind of layer",
        "scaled": "its products are scaled",
    }


def test_more_samples_are_taken_once_tensors_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, kept = convnet()
    monkeypatch.setattr(side_by_side, "HELD_VALUES", 8 * 12 * 9 * 9)  # eight of the first Conv's
    feeds = mixed(4, 80, 6, 9, 9)
    found = [narrowed(graph, kept) for _ in range(2)]
    recover(graph, found[0], kept, calibration(graph, feeds[:8]))
    recover(graph, found[1], kept, calibration(graph, feeds[:60]))
    weights = [{n.name: n.inputs[1].values for n in g.nodes if n.op == "Conv"} for g in found]
    np.testing.assert_array_equal(weights[0]["two"], weights[1]["two"])  # there was no room yet
    assert not np.array_equal(weights[0]["deep"], weights[1]["deep"])
    assert lost(graph, found[1], feeds[60:]) < lost(graph, found[0], feeds[60:])


def test_too_few_samples_change_nothing() -> None:
    graph, kept = mlp()
    feeds = [{"x": normal(0, 1, 2, 10)}]
    pruned = narrowed(graph, kept)
    recovered = recover(graph, pruned, kept, calibration(graph, feeds))
    assert recovered.refitted == []
    assert recovered.skipped == {
        "mid": "2 rows of samples are too few for 12 inputs",
        "out": "2 rows of samples are too few for 12 inputs",
    }


def test_a_graph_that_lost_nothing_stays() -> None:
    graph, _ = mlp()
    feeds = [{"x": normal(n, 1, 8, 10)} for n in range(4)]
    recovered = recover(graph, graph.copy(), {}, calibration(graph, feeds))
    assert recovered.refitted == []
    assert recovered.skipped == {}


def test_what_a_normalization_reads_is_brought_back_to_its_scale() -> None:
    graph = graph_of(
        """net (float[N, 8, 6, 6] x) => (float[N, 5, 6, 6] y) {
            [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
            [sum] s = ReduceSum <keepdims = 1> (a, axes)
            [join] t = Add (x, s)
            [norm] y0 = BatchNormalization <epsilon = 0.5> (t, scale, shift, mean, variance)
            [relu] r = Relu (y0)
            [out] y = Conv <kernel_shape = [1, 1]> (r, w2)
        }""",
        w1=0.4 * normal(0, 8, 8, 1, 1),
        w2=normal(1, 5, 8, 1, 1),
        axes=np.array([1]),
        scale=normal(2, 8),
        shift=normal(3, 8),
        mean=normal(4, 8),
        variance=np.abs(normal(5, 8)),
    )
    keep = np.array([0, 1, 2, 4, 6, 7])
    kept: Kept = {"w1": (keep, None, None, None), "a": (None, keep, None, None)}
    feeds = mixed(6, 40, 8, 6, 6)
    pruned = narrowed(graph, kept)
    before = lost(graph, pruned, feeds[30:])
    recovered = recover(graph, pruned, kept, calibration(graph, feeds[:30]))
    check_graph(pruned)
    assert recovered.refitted == ["norm", "out"]
    assert lost(graph, pruned, feeds[30:]) < 0.6 * before
    # what it makes of x' has the mean that it had of x, as far as a Relu lets it through
    made, wanted = (
        np.concatenate([open_session(g, extra_outputs=["r"]).run(f, ["r"])[0] for f in feeds[:30]])
        for g in (pruned, graph)
    )
    shift = np.abs(made.mean(axis=(0, 2, 3)) - wanted.mean(axis=(0, 2, 3)))
    assert (shift < 0.05 * wanted.std() + 1e-6).all()


def test_a_normalization_is_the_layer_it_is_said_to_be() -> None:
    graph = graph_of(
        """net (float[N, 4, 3] x) => (float[N, 4, 3] y) {
            [norm] y = BatchNormalization <epsilon = 0.1> (x, scale, shift, mean, variance) }""",
        scale=normal(0, 4),
        shift=normal(1, 4),
        mean=normal(2, 4),
        variance=np.abs(normal(3, 4)),
    )
    x = normal(4, 2, 4, 3)
    wanted = open_session(graph).run({"x": x})[0]
    layer = LinearLayer.of(graph.nodes[0])
    made = layer.weights[..., 0] * x + layer.bias
    np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-6)
    layer.write(2 * layer.weights, layer.bias - 1, Names(graph))
    twice = open_session(graph).run({"x": x})[0]
    np.testing.assert_allclose(
        twice, wanted + layer.weights[..., 0] / 2 * x - 1, rtol=1e-4, atol=1e-5
    )


def test_layers_behind_a_branch_that_left_make_up_for_it() -> None:
    graph, _ = residual()
    feeds = mixed(7, 60, 8, 6, 6)
    pruned = graph.copy()
    total = next(node for node in pruned.nodes if node.name == "s1")
    branch = next(node for node in pruned.nodes if node.name == "b1")
    last = next(node for node in pruned.nodes if node.name == "s2")
    for node in (branch, last):  # they read the projection alone, without a2
        node.inputs = [total.inputs[1] if t.name == "s" else t for t in node.inputs]
    total.outputs.clear()
    pruned.cleanup().toposort()
    before = lost(graph, pruned, feeds[40:])
    recovered = recover(graph, pruned, {}, calibration(graph, feeds[:40]))
    check_graph(pruned)
    assert {*recovered.refitted, *recovered.skipped} == {"b1", "b2"}  # "skip" reads what it did
    assert "b2" in recovered.refitted
    assert lost(graph, pruned, feeds[40:]) < 0.7 * before
