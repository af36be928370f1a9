"""Times of models that take turns, and of those that run the same kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxcomp.gates import Measured
from onnxcomp.graph import Graph
from onnxcomp.measuring import Measurements
from onnxcomp.model import Model, load_model, save_model
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_dynamic import QuantizeDynamic
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

WEIGHTS = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
TEXT = "g (float[n, 256] x) => (float[n, 256] y) { h = MatMul (x, w) y = Relu (h) }"


@pytest.fixture
def model(tmp_path: Path) -> Model:
    graph = graph_of(TEXT, w=WEIGHTS)
    save_model(graph, tmp_path / "model.onnx")
    return load_model(tmp_path / "model.onnx")


def quantized(graph: Graph, smallest_product: int) -> Graph:
    twin = graph.copy()
    context = PassContext(target=resolve_target("x86-vnni"))
    QuantizeDynamic(smallest_product=smallest_product).rewrite(twin, context, PassReport())
    return twin


def test_stored_weights_do_not_count_as_slower(model: Model) -> None:
    measurements = Measurements(model, None, None)
    before = Measured(bytes=2, latency_ratio=0.5, fastest_ratio=0.25)
    after = Measured(bytes=1, latency_ratio=9.0, fastest_ratio=9.0)
    stored = quantized(model.graph, smallest_product=1 << 30)

    old, new = measurements.timed_again(before, after, model.graph, stored, None)

    assert old == before
    assert new == Measured(bytes=1, latency_ratio=0.5, fastest_ratio=0.25)


def test_other_kernels_are_timed_in_turns(model: Model) -> None:
    measurements = Measurements(model, None, None)
    before = Measured(bytes=2, latency_ratio=-1.0, fastest_ratio=-1.0)
    after = Measured(bytes=1, latency_ratio=-2.0, fastest_ratio=-2.0)
    integer = quantized(model.graph, smallest_product=0)

    old, new = measurements.timed_again(before, after, model.graph, integer, None)

    for known, timed in ((before, old), (after, new)):
        assert timed.bytes == known.bytes
        assert timed.latency_ratio is not None
        assert timed.latency_ratio > 0
        assert timed.fastest_ratio is not None
        assert timed.fastest_ratio > 0
    kept, again = measurements.timed_again(before, after, None, integer, None)
    assert kept is before
    assert again.latency_ratio is not None
    assert again.latency_ratio > 0
