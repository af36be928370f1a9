"""Turns are fair: alike models take alike, slower ones longer."""

from __future__ import annotations

import time

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.errors import UnsupportedModel
from onnxcomp.runtime import open_session
from onnxcomp.testing import graph_of
from onnxcomp.timing import clock_for, interleaved, model_times

SIZE = 300
FEED = {"x": np.ones((SIZE, SIZE), np.float32)}


def graph_with(products: int) -> gs.Graph:
    """As many products, one after the other, and a Relu."""
    shape = f"float[{SIZE}, {SIZE}]"
    steps = " ".join(f"t{i + 1} = MatMul (t{i}, w)" for i in range(products))
    text = f"m ({shape} t0) => ({shape} y) {{ {steps} y = Relu (t{products}) }}"
    weights = {"w": np.eye(SIZE, dtype=np.float32)} if products else {}
    return graph_of(text.replace("t0", "x"), **weights)


def test_models_take_turns_and_slower_ones_show() -> None:
    slow, fast = graph_with(12), graph_with(0)
    sessions = [open_session(graph) for graph in (slow, slow, fast)]
    timing = interleaved(sessions, FEED, rounds=5, round_ms=1)
    assert timing.ratios[0] == timing.fastest_ratios[0] == 1
    assert timing.ratios[2] < 0.5 < timing.ratios[1]
    assert timing.milliseconds[2] < timing.milliseconds[0]
    assert all(f <= m for f, m in zip(timing.fastest_ms, timing.milliseconds, strict=True))


def test_graphs_are_timed_in_the_order_given() -> None:
    timing = model_times((graph_with(products) for products in (0, 12)), FEED, threads=1, rounds=3)
    assert timing.ratios[1] > 2


def test_what_onnxruntime_does_not_take_says_so() -> None:
    unknown = graph_with(0)
    unknown.nodes[0].op = "Relu7"
    with pytest.raises(UnsupportedModel, match="Relu7"):
        model_times([graph_with(0), unknown], FEED, threads=1)


@pytest.mark.parametrize(
    ("threads", "clock"), [(1, time.thread_time), (2, time.perf_counter), (None, time.perf_counter)]
)
def test_processor_time_counts_where_one_thread_runs(threads: int | None, clock: object) -> None:
    assert clock_for(threads) is clock
