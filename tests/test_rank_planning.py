"""What is offered to a planner: forms that pay in time where time counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxcomp.importing import from_proto
from onnxcomp.layer_latency import Layer, LayerLatency
from onnxcomp.rank_planning import Factorable, factorable, timed
from onnxcomp.testing import model_of

RNG = np.random.default_rng(5)


class OfProducts(LayerLatency):
    """A clock that counts: a call takes 1 ms, and each 100 elements of a weight 1 ms more."""

    def measure(self, layers: Sequence[Layer]) -> list[float]:
        return [1 + np.prod(layer.shapes[1]) / 100 for layer in layers]


def item_of(text: str, **weights: Any) -> Factorable:
    graph = from_proto(model_of(text, **weights))
    found = factorable(graph.nodes[0], None, "auto", {}, 1)
    assert not isinstance(found, str)
    return found


@pytest.fixture
def matrix() -> Factorable:
    """5 ms; at rank r its two factors take 2 + 0.4 r."""
    weight = RNG.standard_normal((20, 20)).astype(np.float32)
    text = "one (float[9, 20] x) => (float[9, 20] y) { [layer] y = MatMul (x, w) }"
    return item_of(text, w=weight)


def test_options_have_to_be_faster_where_time_is_asked_for(matrix: Factorable) -> None:
    found = timed(matrix, OfProducts(), faster=True)
    assert not isinstance(found, str)
    assert found.milliseconds == 5
    assert {o.rank: o.milliseconds for o in found.options} == pytest.approx(
        {rank: 2 + 0.4 * rank for rank in (1, 2, 3, 4, 6)}  # of 8 ranks that are tried
    )


def test_options_may_be_as_fast_where_bytes_count(matrix: Factorable) -> None:
    found = timed(matrix, OfProducts(), faster=False)
    assert not isinstance(found, str)
    assert max(o.milliseconds for o in found.options) <= 5
    none = timed(replace(matrix, options=matrix.options[-1:]), OfProducts(), faster=True)
    assert isinstance(none, str)
    assert "5.6 ms at best (svd, rank 9), 5 ms now" in none


def test_lookups_save_bytes_but_no_time() -> None:
    table = RNG.standard_normal((200, 32)).astype(np.float32)
    text = "rows (int64[3] ids) => (float[3, 32] y) { [rows] y = Gather (table, ids) }"
    item = item_of(text, table=table)
    assert timed(item, OfProducts(), faster=False) is item
    assert "a lookup takes next to no time" in str(timed(item, OfProducts(), faster=True))


def test_a_head_that_shares_a_table_with_lookups_saves_time() -> None:
    """11.24 ms; at rank r a product after the lookup and two in the head take 3 + 0.96 r."""
    table = RNG.standard_normal((64, 16)).astype(np.float32)
    text = """tied (int64[3] ids, float[9, 16] x) => (float[3, 16] e, float[9, 64] y) {
        [rows] e = Gather (table, ids)
        [head] y = Gemm <transB = 1> (x, table) }"""
    found = timed(item_of(text, table=table), OfProducts(), faster=True)
    assert not isinstance(found, str), found
    assert found.milliseconds == pytest.approx(11.24)
    assert {o.rank: o.milliseconds for o in found.options} == pytest.approx(
        {rank: 3 + 0.96 * rank for rank in (1, 3, 4, 6, 7)}  # of 8 ranks that are tried
    )
