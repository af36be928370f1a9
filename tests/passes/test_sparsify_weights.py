"""sparsify_weights: patterns in the stored weights, and the outputs that are left."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationRequired
from onnxcomp.graph import constants
from onnxcomp.model import check_graph
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.sparsify_weights import SparsifyWeights
from onnxcomp.quantization import Array
from onnxcomp.runtime import Feed, open_session
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

CONVS = """<ir_version: 8, opset_import: ["" : 17]>
convs (float[N, 6, 8, 8] x) => (float[N, 16, 8, 8] z) {
    a = Conv <pads = [1, 1, 1, 1]> (x, W)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1], group = 2> (b, V)
    d = Conv <pads = [1, 1, 1, 1], group = 16> (c, D)
    e = Add (c, d)
    z = Conv (e, P)
}"""
PRODUCTS = """<ir_version: 8, opset_import: ["" : 17]>
products (float[N, 32] x) => (float[N, 8] z) {
    a = MatMul (x, W)
    b = Relu (a)
    c = Gemm <transB = 1> (b, V)
    d = Relu (c)
    z = MatMul (d, U)
}"""


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def convs() -> gs.Graph:
    weights = {"W": normal(16, 6, 3, 3), "V": normal(16, 8, 3, 3, seed=1) / 8}
    weights |= {"D": normal(16, 1, 3, 3, seed=2), "P": normal(16, 16, 1, 1, seed=3)}
    return graph_of(CONVS, **weights)


def products() -> gs.Graph:
    weights = {"W": normal(32, 48), "V": normal(40, 48, seed=1), "U": normal(40, 8, seed=2)}
    return graph_of(PRODUCTS, **weights)


def feeds(graph: gs.Graph, count: int = 16) -> list[Feed]:
    """Inputs that correlate, of sizes that differ."""
    rng = np.random.default_rng(7)
    size = int(np.prod(graph.inputs[0].shape[1:]))
    mix = rng.standard_normal((size, size)) * rng.exponential(1.0, size) / np.sqrt(size)
    shape = (4, *graph.inputs[0].shape[1:])
    return [
        {"x": (rng.standard_normal((4, size)) @ mix).reshape(shape).astype(np.float32)}
        for _ in range(count)
    ]


def sparsify(graph: gs.Graph, given: list[Feed] | None = None, **options: Any) -> PassReport:
    report = PassReport()
    calibration = None if given is None else Calibration.from_source(given, graph)
    context = PassContext(target=resolve_target("auto"), calibration=calibration)
    SparsifyWeights(**{"smallest_weight": 64, **options}).rewrite(graph, context, report)
    check_graph(graph)
    return report


def answers(graph: gs.Graph, given: list[Feed]) -> Array:
    session = open_session(graph, threads=1)
    return np.concatenate([session.run(feed)[0] for feed in given])


def sparse_of(graph: gs.Graph) -> dict[str, Array]:
    found = {name: np.asarray(c.values) for name, c in constants(graph).items()}
    return {n.removesuffix(".sparse"): v for n, v in found.items() if n.endswith(".sparse")}


def test_blocks_are_outputs_by_inputs_whatever_the_layout() -> None:
    graph = products()
    sparsify(graph, pattern="4x4", sparsity=0.5)
    sparse = sparse_of(graph)
    assert set(sparse) == {"W", "V", "U"}
    for name, values in sparse.items():
        matrix = values if name == "V" else values.T  # [out, in]
        blocks = (matrix.reshape(len(matrix) // 4, 4, -1, 4) != 0).any((1, 3))
        assert blocks.mean() == 0.5
        assert (matrix != 0).mean() == 0.5


def test_blocks_of_a_conv_are_channels_at_one_position() -> None:
    """Six channels are a block of four and one of two; a block never reaches another position."""
    graph = convs()
    report = sparsify(graph, feeds(graph), pattern="1x4", sparsity=0.5)
    sparse = sparse_of(graph)
    assert set(sparse) == {"W", "V", "P"}
    kept = sparse["W"] != 0
    for part in (kept[:, :4], kept[:, 4:]):
        assert (part.all(1) | ~part.any(1)).all()
    assert 0 < kept[:, 4:].mean() < 1
    groups = sparse["V"].reshape(16, 2, 4, 9) != 0
    assert (groups.all(2) | ~groups.any(2)).all()
    assert groups[:8].any(2).mean() == groups[8:].any(2).mean() == 0.5  # each group of the Conv
    assert "depthwise" in next(iter(report.skipped.values()))


def test_n_of_m_counts_neighbouring_inputs() -> None:
    graph = products()
    report = sparsify(graph, feeds(graph), pattern="2:4")
    for name, values in sparse_of(graph).items():
        matrix = values if name == "V" else values.T
        assert ((matrix.reshape(len(matrix), -1, 4) != 0).sum(-1) == 2).all()
    assert report.numbers["sparsity"] == 0.5


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x4"])
@pytest.mark.parametrize("build", [products, convs])
def test_what_knows_more_loses_less(build: Any, pattern: str) -> None:
    given = feeds(build())
    exact = answers(build(), given)
    lost = {}
    for method in ("magnitude", "sparsegpt", "auto"):
        graph = build()
        sparsify(graph, given, pattern=pattern, method=method)
        lost[method] = float(np.square(answers(graph, given) - exact).sum())
    assert lost["auto"] < lost["magnitude"] / 1.3
    assert lost["auto"] < 1.1 * lost["sparsegpt"]
    assert lost["sparsegpt"] < lost["magnitude"]


def test_global_sparsity_goes_where_outputs_lose_least() -> None:
    """A layer whose output is multiplied by almost nothing takes the zeros."""
    graph = products()
    first = next(n for n in graph.nodes if n.op == "MatMul")
    loud = np.asarray(first.inputs[1].values).copy()
    loud[16:] *= 1e-3
    first.inputs[1] = gs.Constant("W", loud)
    given = feeds(graph)
    exact = answers(graph, given)
    lost = {}
    for allocation in ("uniform", "global"):
        twin = graph.copy()
        report = sparsify(twin, given, sparsity=0.6, allocation=allocation)
        lost[allocation] = float(np.square(answers(twin, given) - exact).sum())
        np.testing.assert_allclose(report.numbers["sparsity"], 0.6, atol=0.002)
        shares = {name: (values == 0).mean() for name, values in sparse_of(twin).items()}
        spread = max(shares.values()) - min(shares.values())
        assert spread < 0.01 if allocation == "uniform" else spread > 0.05
    assert lost["global"] < lost["uniform"]


def test_macs_count_where_weights_are_multiplied_often() -> None:
    """The small weight is read at 64 positions, the large one at one: the small one decides."""
    graph = graph_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        pooled (float[N, 8, 8, 8] x) => (float[N, 64] z) {
            a = Conv <pads = [1, 1, 1, 1]> (x, W)
            b = Relu (a)
            p = GlobalAveragePool (b)
            f = Flatten (p)
            z = MatMul (f, V)
        }""",
        W=normal(16, 8, 3, 3),
        V=normal(16, 64, seed=1),
    )
    rng = np.random.default_rng(5)
    given = [{"x": rng.standard_normal((1, 8, 8, 8)).astype(np.float32)} for _ in range(16)]
    report = sparsify(graph, given, sparsity=0.6, allocation="macs")
    sparse = sparse_of(graph)
    work = {"W": 64 * sparse["W"].size, "V": sparse["V"].size}
    zeros = {name: (values == 0).mean() for name, values in sparse.items()}
    saved = sum(work[name] * zeros[name] for name in work) / sum(work.values())
    assert report.numbers["sparsity_by_macs"] == pytest.approx(saved, abs=0.01)
    assert 0.6 <= saved < 0.62
    assert zeros["V"] < 0.2
    assert report.numbers["sparsity"] < 0.4  # of the weights themselves


def test_macs_want_samples() -> None:
    with pytest.raises(CalibrationRequired, match="--calibration"):
        sparsify(products(), allocation="macs")


def test_blocks_lose_less_where_like_channels_are_neighbours() -> None:
    """Every other channel between the layers is loud; without zeros nothing changes."""
    graph = products()
    first = next(n for n in graph.nodes if n.op == "MatMul")
    loud = np.where(np.arange(48) % 2, 0.05, 1.0) * np.asarray(first.inputs[1].values)
    first.inputs[1] = gs.Constant("W", loud.astype(np.float32))
    given = feeds(graph)
    exact = answers(graph, given)
    lost = {}
    for reorder in (False, True):
        twin = graph.copy()
        report = sparsify(twin, given, sparsity=0.5, pattern="4x4", reorder=reorder)
        lost[reorder] = float(np.square(answers(twin, given) - exact).sum())
        assert report.numbers.get("reordered_weights", 0) == (3 if reorder else 0)
        assert report.numbers["sparsity"] == 0.5
    assert lost[True] < 0.7 * lost[False]
    twin = graph.copy()
    sparsify(twin, given, sparsity=0.0, pattern="4x4", refine=False)
    assert {"W.ordered.sparse", "V.ordered.sparse"} <= constants(twin).keys()
    np.testing.assert_allclose(answers(twin, given), exact, rtol=1e-3, atol=1e-3)


def test_steps_end_at_the_sparsity() -> None:
    graph = products()
    report = sparsify(graph, feeds(graph), sparsity=0.75, steps=3)
    np.testing.assert_allclose(report.numbers["sparsity"], 0.75, atol=0.002)
    assert set(sparse_of(graph)) == {"W", "V", "U"}
    assert len(report.changed) == 3


def test_weights_of_the_caller_stay_as_they_were() -> None:
    graph = products()
    before = {name: np.array(c.values) for name, c in constants(graph).items()}
    held = dict(constants(graph))
    sparsify(graph, feeds(graph))
    for name, constant in held.items():
        np.testing.assert_array_equal(constant.values, before[name])


def test_what_stays_dense_says_why() -> None:
    graph = products()
    labels = {node.inputs[1].name: node for node in graph.nodes if len(node.inputs) > 1}
    report = sparsify(graph, smallest_weight=1000, operators=("MatMul",))
    assert sorted(report.skipped.values()) == [
        "Gemm is excluded by the options",
        "only 320 weights",
    ]
    assert labels["W"].inputs[1].name == "W.sparse"
    assert "no samples" in report.notes[0]


def test_methods_that_look_at_inputs_want_samples() -> None:
    with pytest.raises(CalibrationRequired, match="--calibration"):
        sparsify(products(), method="sparsegpt")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsity": 1.0}, "sparsity"),
        ({"pattern": "3x"}, "pattern"),
        ({"pattern": "2:4", "allocation": "global"}, "nothing to allocate"),
        ({"pattern": "2:4", "allocation": "macs"}, "nothing to allocate"),
        ({"pattern": "2:4", "steps": 2}, "steps"),
        ({"samples": 0}, "samples"),
        ({"operators": ("Gather",)}, "Gather"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SparsifyWeights(**options)
