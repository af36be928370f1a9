"""simplify_graph as a whole; its rules have test files of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper, numpy_helper

from onnxcomp.exporting import to_proto
from onnxcomp.graph import Graph, all_nodes
from onnxcomp.importing import from_proto
from onnxcomp.model import check_graph, graph_bytes, load_model, save_model
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.runtime import Feed, open_session
from onnxcomp.stored import StoredValues
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

SHARED = Path(os.environ.get("ONNXCOMP_SHARED", Path(__file__).parents[3] / "shared"))
FEW_ARCHITECTURES = {
    *("albert", "dscnn_kws", "gpt2", "gru_speech", "hgnetv2_b0", "lstm_text", "mobilenet_v3_small"),
    *("shufflenet_v2_x1_0", "t5_encoder", "yolo_head"),
}


def simplify(graph: gs.Graph, **options: Any) -> PassReport:
    report = PassReport()
    SimplifyGraph(**options).rewrite(graph, PassContext(target=resolve_target()), report)
    check_graph(graph)
    return report


def operators(graph: gs.Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def signature(graph: gs.Graph) -> list[bytes]:
    proto = to_proto(graph).graph
    return [value.SerializeToString() for value in (*proto.input, *proto.output)]


def written(graph: gs.Graph) -> bytes:
    return to_proto(graph).SerializeToString(deterministic=True)


def assert_simplifies(graph: Graph, feed: Feed | None) -> PassReport:
    """Everything the pass promises of any model."""
    before = signature(graph), len(list(all_nodes(graph))), graph_bytes(graph)
    domains = {node.domain for node in all_nodes(graph)}
    expected = None if feed is None else open_session(graph, threads=1).run(feed)
    report = simplify(graph)
    assert signature(graph) == before[0]
    assert len(list(all_nodes(graph))) <= before[1]
    assert graph_bytes(graph) <= before[2]
    assert {node.domain for node in all_nodes(graph)} <= domains
    once = written(graph)
    again = from_proto(onnx.ModelProto.FromString(once))
    assert simplify(again).changed == []
    assert written(again) == once
    if feed is not None and expected is not None:
        for ours, theirs in zip(open_session(graph, threads=1).run(feed), expected, strict=True):
            if isinstance(theirs, np.ndarray) and theirs.dtype.kind == "f":
                scale = max(1e-2, float(np.abs(theirs).max(initial=0)))
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5 * scale)
            else:
                assert np.array_equal(ours, theirs)
    return report


CLASSIFIER = """classifier (float[N, 3, 8, 8] x) => (float[N, 4] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    b = BatchNormalization (c, gamma, beta, mean, var)
    r = Relu (b)
    i = Identity (r)
    p = GlobalAveragePool (i)
    shape = Shape (p)
    zero = Constant <value = int64 {0}> ()
    n = Gather (shape, zero)
    axis = Constant <value = int64[1] {0}> ()
    n1 = Unsqueeze (n, axis)
    rest = Constant <value = int64[1] {-1}> ()
    target = Concat <axis = 0> (n1, rest)
    f = Reshape (p, target)
    y = Gemm (f, v)
}"""


def classifier(seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    names = ("gamma", "beta", "mean")
    parameters = {name: rng.normal(size=6).astype(np.float32) for name in names}
    graph = graph_of(
        CLASSIFIER,
        w=rng.normal(size=(6, 3, 3, 3)).astype(np.float32),
        v=rng.normal(size=(6, 4)).astype(np.float32),
        var=rng.uniform(0.5, 2, 6).astype(np.float32),
        **parameters,
    )
    assert isinstance(graph, Graph)
    return graph


def images(count: int) -> Feed:
    return {"x": np.random.default_rng(1).normal(size=(count, 3, 8, 8)).astype(np.float32)}


def test_a_classifier_as_exporters_write_it_keeps_what_computes() -> None:
    graph = classifier()
    report = assert_simplifies(graph, images(3))
    assert operators(graph) == ["Conv", "Relu", "GlobalAveragePool", "Reshape", "Gemm"]
    assert report.numbers == {"nodes_before": 11, "nodes_after": 5}
    assert report.skipped == {}
    assert sorted(report.notes[0].removeprefix("fewer nodes: ").split(", ")) == [
        *("1 BatchNormalization", "1 Concat", "1 Gather", "1 Identity", "1 Shape", "1 Unsqueeze"),
    ]


def test_any_batch_still_runs() -> None:
    reference, graph = classifier(), classifier()
    simplify(graph)
    for count in (1, 5):
        expected = open_session(reference).run(images(count))[0]
        np.testing.assert_allclose(
            open_session(graph).run(images(count))[0], expected, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(
    ("option", "kept"),
    [
        ("fuse_batch_norm", "BatchNormalization"),
        ("remove_redundant", "Identity"),
        ("fold_constants", "Gather"),
    ],
)
def test_every_option_switches_its_rules_off(option: str, kept: str) -> None:
    graph = classifier()
    simplify(graph, **{option: False})
    assert kept in operators(graph)


def test_nodes_that_overrides_skip_stay() -> None:
    graph = graph_of(
        """g (float[N, 4] x) => (float[N, 4] y) {
            [first] a = Identity (x)
            [second] b = Identity (a)
            [gemm] c = MatMul (b, w)
            [bias] d = Add (c, bias)
            y = Relu (d)
        }""",
        w=np.eye(4, dtype=np.float32),
        bias=np.arange(4, dtype=np.float32),
    )
    simplify(graph, overrides={"sec*": {"skip": True}, "bias": {"fuse_affine": False}})
    assert [node.name for node in graph.nodes][:3] == ["second", "gemm", "bias"]


def test_candidates_are_what_would_change_and_nothing_does() -> None:
    graph = classifier()
    before = written(graph)
    candidates = SimplifyGraph().candidates(graph)
    assert written(graph) == before
    assert candidates == simplify(graph).changed
    assert len(candidates) == 8  # six go, and Conv and Reshape change


def test_what_a_file_says_beside_its_nodes_stays() -> None:
    model = to_proto(classifier())
    helper.set_model_props(model, {"labels": "a,b"})
    model.doc_string, model.graph.doc_string = "model", "graph"
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.doc_string = "activation"
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(helper.make_node("Identity", ["scores"], ["y"]))
    model.graph.node[-2].doc_string = "the last layer"
    graph = from_proto(model)
    undo = graph.copy()
    simplify(graph)
    result = to_proto(graph)
    assert {p.key: p.value for p in result.metadata_props} == {"labels": "a,b"}
    assert (result.doc_string, result.graph.doc_string) == ("model", "graph")
    documents = {node.op_type: node.doc_string for node in result.graph.node}
    assert documents["Relu"] == "activation"
    assert documents["Gemm"] == "the last layer"
    assert to_proto(undo).graph.node[-2].doc_string == "the last layer"


def test_unused_imports_go_and_functions_keep_theirs() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1, "unused": 3, "inner": 2]>
        g (float[2] x) => (float[2] y) { y = local.twice (x) }
        <opset_import: ["": 17, "inner": 2], domain: "local">
        twice (a) => (b) { b = Add (a, a) }"""
    )
    graph = from_proto(model)
    simplify(graph)
    result = to_proto(graph)
    assert {o.domain: o.version for o in result.opset_import} == {"": 17, "local": 1, "inner": 2}
    assert [f.name for f in result.functions] == ["twice"]
    np.testing.assert_array_equal(
        open_session(graph).run({"x": np.ones(2, np.float32)})[0], np.full(2, 2, np.float32)
    )


def test_rules_reach_into_bodies() -> None:
    graph = graph_of(
        """g (bool c, float[2, 3] x) => (float[2, 3] y) {
            scale = Constant <value = float[1] {2.0}> ()
            y = If (c) <
                then_branch = t () => (float[2, 3] a) {
                    i = Identity (x)
                    three = Constant <value = float[1] {3.0}> ()
                    six = Mul (scale, three)
                    j = Identity (i)
                    a = Mul (j, six)
                },
                else_branch = e () => (float[2, 3] b) {
                    k = Relu (x)
                    b = Identity (k)
                }
            >
        }"""
    )
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    results = [open_session(graph).run({"c": np.array(c), "x": x})[0] for c in (True, False)]
    assert isinstance(graph, Graph)
    assert_simplifies(graph, {"c": np.array(True), "x": x})
    bodies = [graph.nodes[0].attrs[name] for name in ("then_branch", "else_branch")]
    assert [operators(body) for body in bodies] == [["Mul"], ["Relu"]]
    for c, expected in zip((True, False), results, strict=True):
        np.testing.assert_array_equal(
            open_session(graph).run({"c": np.array(c), "x": x})[0], expected
        )


def test_weights_that_no_rule_fits_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w1": (128, 256), "w2": (256, 128), "w3": (128, 256)}
    graph = graph_of(
        """g (float[N, 128] x) => (float[N, 256] y) {
            h = MatMul (x, w1)
            r = Relu (h)
            i = Identity (r)
            k = MatMul (i, w2)
            s = Sigmoid (k)
            y = MatMul (s, w3)
        }""",
        **{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
    )
    save_model(graph, tmp_path / "model.onnx", external=True)
    large = load_model(tmp_path / "model.onnx").graph
    read: list[int] = []
    load = StoredValues.load

    def spy(values: StoredValues) -> np.ndarray[Any, Any]:
        array = load(values)
        if values.nbytes > 4096:
            read.append(values.nbytes)
            array = array.reshape(-1).view(Watched).reshape(array.shape)
        return array

    monkeypatch.setattr(StoredValues, "load", spy)
    Watched.bytes_copied = 0
    simplify(large)
    assert operators(large) == ["MatMul", "Relu", "MatMul", "Sigmoid", "MatMul"]
    assert Watched.bytes_copied <= 2 * 4096  # a sample of the two that have one shape
    assert all(not isinstance(t, gs.Constant) or isinstance(t._values, StoredValues)
               for t in large.tensors().values())  # fmt: skip


class Watched(np.ndarray[Any, Any]):
    """An array that counts what is copied out of it."""

    bytes_copied = 0

    def tobytes(self, *args: Any, **kwargs: Any) -> bytes:
        Watched.bytes_copied += self.nbytes
        return super().tobytes(*args, **kwargs)


def quantized_convolution() -> Graph:
    rng = np.random.default_rng(0)
    graph = graph_of(
        """g (float[1, 4, 8, 8] x) => (float[1, 6, 8, 8] y) {
            q = QuantizeLinear (x, xs, xz)
            d = DequantizeLinear (q, xs, xz)
            w = DequantizeLinear <axis = 0> (codes, ws, wz)
            c = Conv <pads = [1, 1, 1, 1]> (d, w)
            [norm] b = BatchNormalization (c, gamma, beta, mean, var)
            y = Relu (b)
        }""",
        codes=rng.integers(-127, 128, (6, 4, 3, 3)).astype(np.int8),
        xs=np.float32(0.05),
        xz=np.uint8(128),
        ws=rng.uniform(0.01, 0.02, 6).astype(np.float32),
        wz=np.zeros(6, np.int8),
        **{name: np.ones(6, np.float32) for name in ("gamma", "beta", "mean", "var")},
    )
    assert isinstance(graph, Graph)
    return graph


def test_quantized_weights_stay_quantized() -> None:
    graph = quantized_convolution()
    before = operators(graph)
    x = np.random.default_rng(1).normal(size=(1, 4, 8, 8)).astype(np.float32)
    report = assert_simplifies(graph, {"x": x})
    assert operators(graph) == before
    assert "is not a dense constant" in report.skipped["norm"]


def test_sparse_weights_stay_sparse() -> None:
    model = to_proto(
        graph_of(
            """g (float[N, 4] x) => (float[N, 3] y) {
                t = Transpose (w)
                a = MatMul (x, t)
                b = MatMul (x, v)
                c = Mul (b, k)
                y = Add (a, c)
            }""",
            k=np.array([1, 2, 3], np.float32),
        )
    )
    for name, dims in (("w", [3, 4]), ("v", [4, 3])):
        sparse = model.graph.sparse_initializer.add(dims=dims)
        sparse.values.CopyFrom(numpy_helper.from_array(np.array([2, 5], np.float32), name))
        sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1, 7])))
    graph = from_proto(model)
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    assert_simplifies(graph, {"x": x})
    assert operators(graph) == ["Transpose", "MatMul", "MatMul", "Mul", "Add"]
    assert len(to_proto(graph).graph.sparse_initializer) == 2


def architectures() -> list[Any]:
    names = sorted(path.stem for path in (SHARED / "archzoo").glob("*.onnx"))
    few = [n for n in names if n in FEW_ARCHITECTURES]
    rest = [pytest.param(n, marks=pytest.mark.slow) for n in names if n not in few]
    return [*few, *rest] or ["no shared models"]


def corpus() -> list[Any]:
    index = SHARED / "kit" / "corpus" / "index.json"
    entries = json.loads(index.read_text()) if index.is_file() else [{"file": "none"}]
    return [pytest.param(e, id=e["file"][:-5]) for e in entries if e.get("runs", True)]


@pytest.mark.parametrize("name", architectures())
def test_exported_architectures(name: str, hydrate: ModuleType) -> None:
    model = hydrate.load(name)
    feed = hydrate.feeds(model)
    assert_simplifies(from_proto(model), feed)


@pytest.mark.parametrize("entry", corpus())
def test_models_from_public_repositories(entry: dict[str, Any], shared: Path) -> None:
    rng = np.random.default_rng(0)
    feed = {
        name: rng.uniform(spec["low"], spec["high"], spec["shape"]).astype(spec["dtype"])
        for name, spec in entry["feeds"].items()
    }
    graph = load_model(shared / "kit" / "corpus" / entry["file"]).graph
    assert_simplifies(graph, feed)


def test_fewer_nodes_than_the_basic_level_of_onnxruntime(shared: Path, tmp_path: Path) -> None:
    """It expands HardSwish and biases of MatMul; folding also makes its files larger."""
    import onnxruntime as ort

    for path in sorted((shared / "kit" / "models").glob("*.onnx")):
        if "skeleton" in path.name or path.stem in ("TFC_1W1A", "silero_vad_16k_op15"):
            continue  # stays binary; folding would add half a megabyte
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / "basic.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        basic = onnx.load(tmp_path / "basic.onnx")
        graph = load_model(path).graph
        simplify(graph)
        assert len(graph.nodes) <= len(basic.graph.node), path.name


@pytest.mark.slow
def test_three_gigabytes_pass_without_being_loaded(tmp_path: Path) -> None:
    import resource

    rows, columns, layers = 8192, 8192, 12  # 256 MB each
    weight = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    nodes, initializers, last = [], [], "x"
    with open(tmp_path / "big.data", "wb") as file:
        for index in range(layers):
            tensor = numpy_helper.from_array(np.zeros(0, np.float32), f"w{index}")
            tensor.ClearField("raw_data")
            tensor.dims[:] = [rows, columns]
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", "big.data"), ("offset", str(file.tell()))):
                tensor.external_data.add(key=key, value=value)
            weight[0, 0] = index
            file.write(weight.data)
            initializers.append(tensor)
            nodes += [
                helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"]),
                helper.make_node("Identity", [f"m{index}"], [f"i{index}"]),
                helper.make_node("Relu", [f"i{index}"], [f"r{index}"]),
            ]
            last = f"r{index}"
    info = [helper.make_tensor_value_info(n, 1, [1, rows]) for n in ("x", last)]
    model = helper.make_model(
        helper.make_graph(nodes, "big", info[:1], info[1:], initializers),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "big.onnx")
    del weight
    graph = load_model(tmp_path / "big.onnx").graph
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    simplify(graph)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert len(graph.nodes) == 2 * layers
    assert grown < rows * columns * 4
