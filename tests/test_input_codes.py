"""Images get the codes back that they had before they were normalized."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.calibration import Calibration
from onnxcomp.graph import Names
from onnxcomp.input_codes import Grid, Levels, find_coded_inputs, first_conv, read_codes
from onnxcomp.model import check_graph
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.runtime import Feed, open_session
from onnxcomp.targets import resolve_target
from onnxcomp.testing import assert_same_answers, graph_of

Array = np.ndarray[Any, Any]
MEAN, DEVIATION = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def normalized(codes: Array) -> Array:
    """[N, 3, H, W] uint8 as torchvision's models take them."""
    scaled = codes.astype(np.float32) / np.float32(255)
    return (scaled - MEAN[:, None, None]) / DEVIATION[:, None, None]


def pictures(count: int = 6, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (1, 3, 16, 16)).astype(np.uint8) for _ in range(count)]


def normal(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def network(attributes: str = "", tail: str = "y = Relu (a)") -> gs.Graph:
    return graph_of(
        f"g (float[N, 3, 16, 16] x) => (float[N, 5, h, v] y) {{ [c] a = Conv {attributes} (x, w, b)"
        f" {tail} }}",
        w=normal(5, 3, 3, 3),
        b=normal(5),
    )


def quantize(graph: gs.Graph, feeds: list[Feed], **options: Any) -> gs.Graph:
    twin = graph.copy()
    target = resolve_target(options.pop("target", "x86-vnni"))
    context = PassContext(target=target, calibration=Calibration.from_source(feeds, graph))
    QuantizeStatic(keep_drowned=False, **options).rewrite(twin, context, PassReport())
    check_graph(twin)
    return twin


def input_quantizer(graph: gs.Graph) -> gs.Node:
    return next(node for node in graph.nodes if node.op == "QuantizeLinear")


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 2), st.floats(0.01, 0.99), st.integers(0, 40), st.integers(200, 255))
def test_a_grid_is_found_and_gives_the_codes_back(
    deviation: float, mean: float, low: int, high: int
) -> None:
    codes = np.arange(low, high + 1, dtype=np.uint8).reshape(1, 1, -1)
    x = (codes / np.float32(255) - np.float32(mean)) / np.float32(deviation)
    levels = Levels(1)
    levels.update(x[..., ::2])
    levels.update(x)
    grid = levels.result()
    if not -0.5 < 255 * mean + (255 - high - low) // 2 < 255.5:
        return  # unused codes were put on the wrong side: zero would have no code
    assert grid is not None
    assert grid.step[0] == pytest.approx(1 / 255 / deviation, rel=1e-4)
    found = x[0, 0] / grid.step[0] + grid.origin[0]
    shift = found[0] - low  # where not all codes are used, they may start elsewhere
    assert found == pytest.approx(codes[0, 0] + shift, abs=0.01)
    assert found[0] == pytest.approx(round(found[0]), abs=0.01)
    assert -0.01 < found[0] < found[-1] < 255.01


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).standard_normal((1, 2, 40)).astype(np.float32),
        np.random.default_rng(0).integers(0, 4096, (1, 2, 4000)).astype(np.float32),
        np.arange(8, dtype=np.float32).reshape(1, 1, 8).repeat(2, 1),
        np.append(np.arange(60), np.nan).reshape(1, 1, -1).repeat(2, 1),
        np.append(np.arange(60), 3.37).reshape(1, 1, -1).repeat(2, 1),
        np.append(np.arange(60), 400).reshape(1, 1, -1).repeat(2, 1),
    ],
    ids=["floats", "12 bits", "few levels", "not finite", "one off the grid", "wider than 8 bits"],
)
def test_other_values_are_on_no_grid(values: Array) -> None:
    levels = Levels(2)
    levels.update(values)
    assert levels.result() is None


@pytest.mark.parametrize("attributes", ["", "<pads = [1, 2, 0, 1]>", "<strides = [2, 2]>"])
def test_reading_codes_is_exact_in_float(attributes: str) -> None:
    graph = network(attributes)
    feeds = [{"x": normal(2, 3, 16, 16)}]
    grid = Grid(np.array([0.017, 0.02, 0.5]), np.array([123.675, 0.2, 250.9]))
    twin = graph.copy()
    node = first_conv(twin, twin.inputs[0])
    assert node is not None
    read_codes(twin, node, grid, Names(twin))
    check_graph(twin)
    assert_same_answers(graph, twin, feeds, min_sqnr_db=95)


@pytest.mark.parametrize("attributes", ["", "<pads = [1, 1, 1, 1]>"])
@pytest.mark.parametrize("target", ["x86-vnni", "arm64"])
def test_the_codes_of_an_image_are_those_of_its_file(attributes: str, target: str) -> None:
    images = pictures()
    graph = network(attributes)
    result = quantize(graph, [{"x": normalized(i)} for i in images], target=target)
    assert {n.op for n in result.nodes} <= {"Pad", "QuantizeLinear", "DequantizeLinear", "Conv"}
    node = input_quantizer(result)
    assert node.attrs["axis"] == 1
    session = open_session(result, extra_outputs=[node.outputs[0].name], optimize=False)
    fresh = pictures(1, seed=9)[0]
    codes = session.run({"x": normalized(fresh)}, [node.outputs[0].name])[0].astype(int)
    inside = codes[:, :, 1:-1, 1:-1] if attributes else codes
    assert (inside + (128 if target == "arm64" else 0) == fresh).all()
    if attributes:  # zeros around the image: the code of 0, to half a code
        zero = np.rint(255 * MEAN.astype(np.float64)) - (128 if target == "arm64" else 0)
        assert (codes[0, :, 0, 0] == zero).all()


def test_exact_inputs_lose_less() -> None:
    graph = network("<pads = [1, 1, 1, 1]>", "p = GlobalAveragePool (a)  y = Exp (p)")
    feeds = [{"x": normalized(i)} for i in pictures()]
    noise = {}
    for exact in (True, False):
        result = quantize(graph, feeds, exact_inputs=exact, correct_bias=True)
        layer = next(n for n in result.nodes if n.op == "Conv").outputs[0].name
        one = open_session(graph, extra_outputs=["a"], threads=1)
        two = open_session(result, extra_outputs=[layer], threads=1, optimize=False)
        for node in result.nodes:  # the weights as they were: only the input is rounded
            assert node.op != "FusedConv"
        pairs = [(one.run(f, ["a"])[0], two.run(f, [layer])[0]) for f in feeds]
        noise[exact] = sum(float(np.square(a - b).mean()) for a, b in pairs)
    assert noise[True] < 0.85 * noise[False]


def test_what_is_left_alone() -> None:
    images = pictures()
    feeds = [{"x": normalized(i)} for i in images]

    def found(graph: gs.Graph, given: list[Feed]) -> set[str]:
        return set(find_coded_inputs(graph, Calibration.from_source(given, graph)))

    assert found(network(), feeds) == {"x"}
    half = [{"x": i.astype(np.float32) / np.float32(127.5) - 1} for i in images]
    assert found(network(), half) == set()
    assert found(network(tail="r = Relu (x)  s = Conv (r, w)  y = Add (a, s)"), feeds) == set()
    assert found(network(tail="z = Relu (a)  y = Identity (z)"), [{"x": normal(1, 3, 16, 16)}]) == (
        set()
    )
    for options in ({"exact_inputs": False}, {"target": "qdq-generic"}):
        assert "axis" not in input_quantizer(quantize(network(), feeds, **options)).attrs
    skipped = quantize(network(), feeds, overrides={"c": {"skip": True}})
    assert [n.op for n in skipped.nodes] == ["Conv", "Relu"]
