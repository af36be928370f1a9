"""Models with float16 weights against onnxruntime with the rounded weights in float32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from onnxcomp.calibration import Calibration
from onnxcomp.exporting import to_proto
from onnxcomp.fusion import optimized_operators
from onnxcomp.graph import all_nodes, constants
from onnxcomp.importing import from_proto
from onnxcomp.model import check_graph, load_model
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.passes.convert_float16 import ConvertFloat16, loss
from onnxcomp.passes.quantize_dynamic import QuantizeDynamic
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.passes.quantize_weights import QuantizeWeights
from onnxcomp.targets import resolve_target
from onnxcomp.testing import assert_same_answers, graph_of, model_of, round_trip, small_convnet

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def convert(graph: gs.Graph, **options: Any) -> PassReport:
    report = PassReport()
    context = PassContext(target=resolve_target("x86-vnni"))
    ConvertFloat16(**options).rewrite(graph, context, report)
    check_graph(graph)
    return report


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin


def graph_from(model: onnx.ModelProto) -> gs.Graph:
    """The graph of a model that is needed again, as `from_proto` takes it apart."""
    return from_proto(copied(model))


def rounded(model: onnx.ModelProto, smallest: int = 1024) -> onnx.ModelProto:
    """The model with large float32 initializers, bodies included, rounded in place."""
    twin = copied(model)
    graphs = [twin.graph]
    for graph in graphs:
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= smallest:
                values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return twin


def kinds(graph: gs.Graph) -> dict[str, str]:
    return {name: str(c.dtype) for name, c in constants(graph).items() if c.dtype != np.int64}


def rounded_floats(graph: gs.Graph) -> set[bytes]:
    floats = [c.values for c in constants(graph).values() if c.dtype == np.float32]
    return {v.astype(np.float16).tobytes() for v in floats if v.size >= 256}


TWO_LAYERS = """m (float[N, 64] x) => (float[N, 64] y) {
    [a] h = MatMul (x, w) [r] i = Relu (h) [b] j = MatMul (i, v) [c] y = Add (j, bias)
}"""


def test_answers_are_those_of_the_rounded_weights_to_the_bit() -> None:
    model = small_convnet()
    graph = graph_from(model)

    report = convert(graph, smallest_weight=64)

    assert report.changed
    assert not report.skipped
    assert_same_answers(rounded(model, 64), graph)
    assert "Cast" not in optimized_operators(graph), "onnxruntime folds all of them"


def test_the_file_halves_and_small_constants_stay() -> None:
    model = model_of(TWO_LAYERS, w=normal(64, 64), v=normal(64, 64, seed=1), bias=normal(64))
    graph = graph_from(model)

    report = convert(graph)

    assert kinds(graph) == {"w.float16": "float16", "v.float16": "float16", "bias": "float32"}
    assert report.changed == ["a", "b"]
    assert report.notes == ["1 constants are too small to gain and stay float32"]
    assert len(to_proto(graph).SerializeToString()) < 0.53 * model.ByteSize()
    assert_same_answers(rounded(model), graph)


def spoiled(value: float, *rows: int) -> Array:
    w = normal(64, 64)
    w[list(rows)] *= value / np.abs(w[list(rows)]).max()
    return w


@pytest.mark.parametrize(
    ("w", "reason"),
    [
        (spoiled(65505.0, 3), "w: its values reach 6.55e+04, float16 ends at 65504"),
        (spoiled(np.inf, 3), "w: its values are not all finite"),
        (spoiled(np.nan, 3), "w: its values are not all finite"),
        (spoiled(3e-6, *range(64)), "dB in the worst channel"),
        (spoiled(1e-5, 5), "dB in the worst channel"),
        (spoiled(1e-5, 5).T, "dB in the worst channel"),
    ],
)
def test_what_float16_cannot_hold_stays_and_is_named(w: Array, reason: str) -> None:
    graph = graph_of(TWO_LAYERS, w=w, v=normal(64, 64, seed=1), bias=normal(64))

    report = convert(graph)

    assert reason in report.skipped["a"]
    assert report.skipped["a"].startswith("w: ")
    assert report.changed == ["b"]
    assert kinds(graph)["w"] == "float32"


def test_what_float16_holds_is_no_loss() -> None:
    assert not loss(spoiled(65504.0, 3))
    assert not loss(spoiled(1e-12, 5)), "a dead channel"
    assert not loss(np.zeros((64, 64), np.float32))
    assert not loss(np.zeros((0, 64), np.float32))
    assert not loss(spoiled(1e-5, 5)[:, 0]), "one value of a vector"
    assert loss(spoiled(1e-5, 5)[5])
    assert not loss(np.linspace(1, 2, 5000, dtype=np.float32))


def test_loss_in_parts_is_loss_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    w = spoiled(1e-5, 50)
    whole = loss(w), loss(w.T)
    monkeypatch.setattr("onnxcomp.passes.convert_float16.CHUNK", 300)
    assert (loss(w), loss(w.T)) == whole
    assert whole[0]
    assert whole[0] == whole[1]


def test_a_shared_weight_is_stored_once() -> None:
    model = model_of(
        "m (float[N, 64] x) => (float[N, 64] y) { [a] h = MatMul (x, w) [b] y = MatMul (h, w) }",
        w=normal(64, 64) / 8,
    )
    graph = graph_from(model)

    report = convert(graph)

    assert report.changed == ["a", "b"]
    assert Counter(node.op for node in graph.nodes) == {"MatMul": 2, "Cast": 1}
    assert_same_answers(rounded(model), graph)


BRANCHES = """m (bool c, float[2, 32] x) => (float[2, 32] y) {
    y = If (c) <
        then_branch = g1 () => (float[2, 32] a) { [t] p = MatMul (x, w) [u] a = MatMul (p, k) },
        else_branch = g2 () => (float[2, 32] b) { [e] q = MatMul (x, w) [f] b = MatMul (q, k) }
    >
}"""


def test_bodies_read_outer_weights_and_keep_their_own_apart() -> None:
    model = model_of(BRANCHES, w=normal(32, 32))
    for attribute in model.graph.node[0].attribute:
        seed = 1 if attribute.name == "then_branch" else 2
        attribute.g.initializer.append(numpy_helper.from_array(normal(32, 32, seed=seed), "k"))
    graph = graph_from(model)

    report = convert(graph)

    assert sorted(report.changed) == ["e", "f", "t", "u"]
    assert Counter(node.op for node in all_nodes(graph))["Cast"] == 3
    feeds = [{"c": np.array(c), "x": normal(2, 32, seed=9)} for c in (True, False)]
    assert_same_answers(rounded(model), graph, feeds)


def test_outputs_scales_and_excluded_nodes_stay() -> None:
    graph = graph_of(
        """m (float[2, 2048] x) => (float[2, 2048] y, float[2048] o) {
            [q] codes = QuantizeLinear <axis = 1> (x, s, z)
            [d] r = DequantizeLinear <axis = 1> (codes, s, z)
            [m] i = Mul (r, o) [n] y = Add (i, v)
        }""",
        s=np.full(2048, 0.1, np.float32),
        z=np.zeros(2048, np.int8),
        o=normal(2048),
        v=normal(2048),
    )
    candidates = ConvertFloat16(overrides={"n": {"skip": True}}).candidates(graph)

    report = convert(graph, overrides={"n": {"skip": True}})

    assert report.skipped == {
        "q": "s: QuantizeLinear needs it as it is",
        "d": "s: QuantizeLinear needs it as it is",
        "m": "o: it is an output",
        "n": "v: the recipe says so",
    }
    assert report.changed == candidates == []


def test_too_small_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="smallest_weight must be at least 64"):
        ConvertFloat16(smallest_weight=63)


def test_the_same_bytes_twice_and_nothing_left_to_convert() -> None:
    graphs = [graph_from(small_convnet()) for _ in range(2)]
    for graph in graphs:
        convert(graph, smallest_weight=64)
    one, two = (to_proto(graph).SerializeToString(deterministic=True) for graph in graphs)

    assert one == two
    assert ConvertFloat16(smallest_weight=64).candidates(graphs[0]) == []


def test_external_weights(tmp_path: Path) -> None:
    model = model_of(TWO_LAYERS, w=normal(64, 64), v=normal(64, 64, seed=1), bias=normal(64))
    path = tmp_path / "model.onnx"
    want = rounded(model)
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    graph = load_model(path).graph

    report = convert(graph)

    assert report.changed == ["a", "b"]
    assert_same_answers(want, graph)


@pytest.mark.parametrize("before", [QuantizeStatic(), QuantizeDynamic(), QuantizeWeights()])
def test_after_quantizing_the_same_kernels_run(before: Pass, models: Path) -> None:
    graph = load_model(models / "digits_vit.onnx").graph
    samples = Calibration.from_source(models / "digits_calibration.npz", graph, limit=4)
    context = PassContext(target=resolve_target("x86-vnni"), calibration=samples)
    before.rewrite(graph, context, PassReport())
    kernels, size = optimized_operators(graph), to_proto(graph).ByteSize()
    weights = rounded_floats(graph)

    report = convert(graph, smallest_weight=256)

    assert report.changed
    assert optimized_operators(graph) == kernels
    assert to_proto(graph).ByteSize() < size
    assert weights
    stored = [c.values for c in constants(graph).values() if c.dtype == np.float16]
    assert {v.tobytes() for v in stored} <= weights


@pytest.mark.parametrize("name", ["dscnn_kws", "gru_speech", "lstm_text", "mobilenet_v3_small"])
def test_real_architectures(hydrate: ModuleType, name: str) -> None:
    model = hydrate.load(name)
    graph = graph_from(model)
    candidates = ConvertFloat16().candidates(graph)

    report = convert(graph)

    assert sorted(report.changed) == sorted(candidates)
    assert not report.skipped
    sizes = [int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == 1]
    large = [size for size in sizes if size >= 1024]
    casts = 150 * len(large)  # bytes: each has a node and two names
    assert to_proto(graph).ByteSize() < round_trip(model).ByteSize() - 2 * sum(large) + casts
    assert_same_answers(rounded(model), graph)
