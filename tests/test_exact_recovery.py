"""Of two equal channels one can go: whatever reads them is refitted to what it made before."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.channels import find_channels
from onnxcomp.cutting import Kept, cut
from onnxcomp.model import check_graph
from onnxcomp.recovery import Recovered, recover
from onnxcomp.runtime import Feed, open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.testing import graph_of

ROWS = "float[1, 9, 6]"
IMAGE = "float[1, 6, 7, 7]"
LAYERS: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {
    "Conv": (IMAGE, "[read] y = Conv <kernel_shape = [3, 3], strides = [2, 2]> (r, w)",
             {"w": (4, 8, 3, 3)}),
    "biased": (IMAGE, "[read] y = Conv <kernel_shape = [2, 2]> (r, w, b)",
               {"w": (4, 8, 2, 2), "b": (4,)}),
    "ConvTranspose": (IMAGE, "[read] y = ConvTranspose <strides = [2, 2], pads = [1, 0, 0, 1]>"
                      " (r, w, b)", {"w": (8, 4, 3, 3), "b": (4,)}),
    "MatMul": (ROWS, "[read] y = MatMul (r, w)", {"w": (8, 4)}),
    "added": (ROWS, "[read] m = MatMul (r, w) y = Add (m, b)", {"w": (8, 4), "b": (4,)}),
    "shared": (IMAGE, "[read] a = Conv (r, w, b) e = Elu (r) [too] t = Conv (e, w, b2)"
               " y = Concat <axis = 1> (a, t)", {"w": (4, 8, 3, 3), "b": (4,), "b2": (4,)}),
    "shared in a row": (ROWS, "[read] m = MatMul (r, w) a = Add (m, b) k = Relu (a)"
                        " u = MatMul (k, up) [too] n = MatMul (u, w) y = Add (n, b)",
                        {"w": (8, 4), "b": (4,), "up": (4, 8)}),
    "one of a batch": (ROWS, "[read] m = MatMul (r, w) y = Add (m, b)",
                       {"w": (1, 8, 4), "b": (4,)}),
    "batch": (ROWS, "[read] y = MatMul (r, w)", {"w": (3, 8, 4)}),
    "batch in a batch": ("float[2, 3, 9, 6]", "[read] y = MatMul (r, w)", {"w": (3, 8, 4)}),
    "Gemm": ("float[9, 6]", "[read] y = Gemm <transB = 1> (r, w, b)", {"w": (4, 8), "b": (4,)}),
}  # fmt: skip


def normal(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def pruned_twin(kind: str) -> tuple[gs.Graph, gs.Graph, Kept]:
    """A layer whose eight channels are four twins, what reads them, and both without the twins."""
    given, reader, shapes = LAYERS[kind]
    weights = {name: normal(3 + n, *shape) for n, (name, shape) in enumerate(shapes.items())}
    four = normal(0, 4, 6)
    eight = np.concatenate([four, four])
    if given == IMAGE:
        maker, weights["w0"] = "Conv (x, w0)", eight[:, :, None, None]
    else:
        maker, weights["w0"] = "MatMul (x, w0)", np.ascontiguousarray(eight.T)
    if "up" in weights:  # its channels are twins too
        weights["up"][:, 4:] = weights["up"][:, :4]
    rank = given.count(",") + 1
    sizes = ", ".join("ABCD"[:rank])
    graph = graph_of(
        f"net ({given} x) => (float[{sizes}] y) {{ [make] m0 = {maker} r = Relu (m0) {reader} }}",
        **weights,
    )
    infer_shapes(graph)
    pruned = graph.copy()
    channels = find_channels(pruned)
    (group,) = channels.groups
    assert group.size == 8
    kept = cut(pruned, channels, {group.name: np.array([1, 4, 6, 7])})
    return graph, pruned, kept


def refitted(kind: str, count: int = 40) -> tuple[gs.Graph, gs.Graph, Recovered, list[Feed]]:
    graph, pruned, kept = pruned_twin(kind)
    shape = graph.inputs[0].shape
    feeds: list[Feed] = [{"x": normal(100 + n, *shape)} for n in range(count)]
    recovered = recover(graph, pruned, kept, Calibration.from_source(feeds, graph))
    check_graph(pruned)
    return graph, pruned, recovered, feeds


def answers(graph: gs.Graph, feeds: list[Feed]) -> np.ndarray[Any, Any]:
    session = open_session(graph)
    return np.stack([session.run(feed)[0] for feed in feeds])


@pytest.mark.parametrize("kind", LAYERS)
def test_twins_are_made_up_for(kind: str) -> None:
    """Samples not seen are answered as before; 1e-3 is what the ridge keeps of the old weights."""
    graph, pruned, recovered, _ = refitted(kind)
    assert "read" in recovered.refitted
    fresh: list[Feed] = [{"x": normal(500 + n, *graph.inputs[0].shape)} for n in range(5)]
    wanted, got = answers(graph, fresh), answers(pruned, fresh)
    assert wanted.shape == got.shape
    assert np.abs(wanted - got).max() < 1e-3 * np.abs(wanted).max()


def test_normalizations_with_one_scale_get_their_own() -> None:
    """Exporters merge equal vectors; what each does to its input is not equal."""
    graph = graph_of(
        """net (float[1, 4, 5, 5] x) => (float[1, 4, 5, 5] y) {
            [one] a = Conv (x, w) [sum] s = Add (x, a)
            [first] b = BatchNormalization (s, scale, shift, mean, wide)
            [second] c = BatchNormalization (s, scale, shift, mean, narrow) y = Mul (b, c) }""",
        w=0.5 * normal(0, 4, 4, 1, 1),
        scale=np.ones(4, np.float32),
        shift=normal(1, 4),
        mean=normal(2, 4),
        wide=np.full(4, 9, np.float32),
        narrow=np.full(4, 0.25, np.float32),
    )
    pruned = graph.copy()
    for node in pruned.nodes[2:4]:  # without the branch
        node.inputs[0] = pruned.inputs[0]
    pruned.cleanup().toposort()
    before = pruned.copy()
    feeds: list[Feed] = [{"x": normal(100 + n, 1, 4, 5, 5)} for n in range(40)]
    recovered = recover(graph, pruned, {}, Calibration.from_source(feeds, graph))
    assert recovered.refitted == ["first", "second"]
    wanted = answers(graph, feeds)
    rest = [float(np.square(wanted - answers(twin, feeds)).sum()) for twin in (before, pruned)]
    assert rest[1] < 0.9 * rest[0]


def test_nodes_without_names_share_weights_too() -> None:
    graph, pruned, kept = pruned_twin("shared in a row")
    for node in (*graph.nodes, *pruned.nodes):
        node.name = ""
    feeds: list[Feed] = [{"x": normal(100 + n, 1, 9, 6)} for n in range(40)]
    recovered = recover(graph, pruned, kept, Calibration.from_source(feeds, graph))
    assert {"MatMul:m", "MatMul:n"} <= set(recovered.refitted)


@pytest.mark.parametrize("kind", ["shared", "shared in a row"])
def test_shared_weights_stay_shared(kind: str) -> None:
    _, pruned, recovered, _ = refitted(kind)
    read, too = (next(n for n in pruned.nodes if n.name == name) for name in ("read", "too"))
    assert {"read", "too"} <= set(recovered.refitted)
    assert read.inputs[1] is too.inputs[1]
    if kind == "shared in a row":  # and so does the bias, which was equal
        added = [next(n for n in pruned.nodes if n.inputs[0].name == x).inputs[1] for x in "mn"]
        assert added[0] is added[1]
    else:
        biases = [node.inputs[2].values for node in (read, too)]
        np.testing.assert_allclose(biases[0] - biases[1], normal(4, 4) - normal(5, 4), atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("count", [2, 5])
def test_no_refit_raises_the_error_on_what_it_was_fitted_to(kind: str, count: int) -> None:
    graph, before, _ = pruned_twin(kind)
    _, pruned, _, feeds = refitted(kind, count)
    wanted = answers(graph, feeds)
    rest = [float(np.square(wanted - answers(twin, feeds)).sum()) for twin in (before, pruned)]
    assert rest[1] <= rest[0] * (1 + 1e-6)
