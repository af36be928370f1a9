"""What gets through a Relu, against numpy, and what is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.behind_relu import with_passing_terms
from onnxcomp.calibration import Calibration
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def block(body: str) -> gs.Graph:
    graph = graph_of(
        f"g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) {{ {body} }}",
        v=np.abs(normal(4, 3, 1, 1)),
        w=normal(4, 3, 1, 1, seed=1),
        u=normal(4, 4, 1, 1, seed=2),
    )
    infer_shapes(graph)
    return graph


SUM = "a = Conv (x, v) b = Conv (x, w) s = Add (a, b) r = Relu (s) y = Conv (r, u)"


def test_terms_are_kept_where_the_relu_lets_them_through() -> None:
    graph = block(SUM)
    twin, found = with_passing_terms(graph, ["a", "b", "r"])
    assert sorted(found) == ["a", "b"]
    tapped = ["a", "b", found["a"], found["b"]]
    session = open_session(twin, extra_outputs=tapped, threads=1)
    a, b, passing_a, passing_b = session.run({"x": normal(1, 3, 8, 8)}, tapped)
    assert 0 < (a + b > 0).mean() < 1
    assert np.array_equal(passing_a, np.where(a + b > 0, a, 0))
    assert np.array_equal(passing_b, np.where(a + b > 0, b, 0))
    assert "Sign" not in {node.op for node in graph.nodes}


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv (x, v) b = Conv (x, w) s = Add (a, b) y = Conv (s, u)",
        "a = Conv (x, v) b = Conv (x, w) s = Mul (a, b) r = Relu (s) y = Conv (r, u)",
        "a = Conv (x, v) s = Add (a, a) r = Relu (s) t = Conv (r, u) y = Add (a, t)",
        "a = Conv (x, v) b = Conv (x, w) s = Add (a, b) r = Relu (s) y = Add (r, s)",
    ],
)
def test_what_others_read_too_is_left_out(body: str) -> None:
    graph = block(body)
    twin, found = with_passing_terms(graph, [name for name in "abs" if name in graph.tensors()])
    assert twin is graph
    assert not found


def test_a_range_leaves_out_what_no_relu_lets_through() -> None:
    """Term b is very negative where a is small: no code need stand for that."""

    def range_of_b(calibrator: str) -> tuple[float, float]:
        graph = block(SUM)
        first, second = normal(64, 3), np.float32([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 1]])
        graph.tensors()["v"].values = second.reshape(4, 3, 1, 1)
        graph.tensors()["w"].values = (-second * 3).reshape(4, 3, 1, 1)
        graph.tensors()["w"].values[2:] *= -1
        feeds = [{"x": first.T.reshape(1, 3, 8, 8)}]
        context = PassContext(
            target=resolve_target("x86-vnni"), calibration=Calibration.from_source(feeds, graph)
        )
        QuantizeStatic(calibrator=calibrator, equalize=False).rewrite(  # type: ignore[arg-type]
            graph, context, PassReport()
        )
        scale, zero = (graph.tensors()[f"b.{what}"].values for what in ("scale", "zero_point"))
        return -float(scale) * int(zero), float(scale) * (255 - int(zero))

    low, high = range_of_b("auto")
    assert -0.5 < low <= 0
    assert range_of_b("minmax")[0] < -5
    assert high > 4
