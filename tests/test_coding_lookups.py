"""How rows and columns of a table matter: against counts and a layer that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp import coding_plan, output_noise
from onnxcomp.calibration import Calibration
from onnxcomp.coding_lookups import column_products, row_multiples, samples_for
from onnxcomp.coding_plan import CodingPlan
from onnxcomp.coding_quantizer import quantize_weight
from onnxcomp.output_noise import OutputNoise
from onnxcomp.row_counts import RowCounts
from onnxcomp.testing import graph_of
from onnxcomp.weight_sites import Layout

RNG = np.random.default_rng(5)
TABLE = RNG.standard_normal((600, 24)).astype(np.float32)
DOWN = (RNG.standard_normal((24, 6)) + RNG.standard_normal(6) * 2).astype(np.float32)


def lookups(table: np.ndarray[Any, Any] = TABLE) -> gs.Graph:
    return graph_of(
        """
        <ir_version: 8, opset_import: ["" : 13]>
        net (int64[7] x) => (float[7,6] y) { r = Gather(table, x)  y = MatMul(r, w) }
        """,
        table=table,
        w=DOWN,
    )


def texts(count: int, rows: int = 600) -> list[dict[str, np.ndarray[Any, Any]]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.integers(0, rows, 7)} for _ in range(count)]


def test_products_are_those_of_what_reads_the_rows() -> None:
    feeds = texts(4)
    noise = OutputNoise(lookups(), ["table"], feeds)
    found = column_products(noise, "table", TABLE, 4)
    assert found is not None
    energy = sum(float(np.sum((TABLE[feed["x"]] @ DOWN) ** 2)) for feed in feeds)
    wanted = 2 * 7 * (DOWN.astype(np.float64) @ DOWN.T) / energy  # of two samples with seven each
    for half in found:
        np.testing.assert_allclose(half, wanted, rtol=1e-2, atol=2e-3 * wanted.max())


def test_outputs_that_are_not_finite_tell_nothing() -> None:
    noise = OutputNoise(lookups(), ["table"], [{"x": np.arange(10, 17)}] * 2)
    table = np.where(np.arange(600)[:, None] == 12, np.float32(3e38), TABLE)
    assert column_products(noise, "table", table, 2) is None


def test_outputs_that_are_compared_fit_in_memory(monkeypatch: Any) -> None:
    monkeypatch.setattr(output_noise, "MOST_BYTES", 3 * 7 * 6 * 4)
    noise = OutputNoise(lookups(), ["table"], texts(9))
    assert noise.samples == 3
    assert len(noise.shares({"table": TABLE * np.float32(1.1)})) == 1
    monkeypatch.setattr(output_noise, "MOST_BYTES", 1)
    assert OutputNoise(lookups(), ["table"], texts(9)).samples == 1


def test_wide_tables_take_fewer_samples() -> None:
    assert [samples_for(n) for n in (24, 384, 768, 1024, 1536, 4096)] == [8, 8, 4, 2, 2, 0]


def test_a_table_that_is_much_of_a_model_is_fitted_to_what_reads_it() -> None:
    graph = lookups()
    plan = CodingPlan(graph, Calibration.from_source(texts(64), graph))
    table = next(weight for weight in plan.weights if weight.name == "table")
    assert "table" not in plan.rounded
    layout, step = Layout(TABLE.shape, (0, 1), 1), 0.5 * float(TABLE.std())
    fitted = plan.noise.shares({"table": table.at(step).values})[0]
    nearest = quantize_weight(TABLE, layout, None, step, multiples=table.multiples)
    assert fitted < 0.5 * plan.noise.shares({"table": nearest.values})[0]


def test_a_small_table_is_not_looked_at(monkeypatch: Any) -> None:
    monkeypatch.setattr(coding_plan, "MUCH", 1.1)
    graph = lookups()
    plan = CodingPlan(graph, Calibration.from_source(texts(16), graph))
    assert plan.rounded["table"] == "its rows are looked up"


def test_rows_looked_up_often_are_coded_more_finely() -> None:
    counts = RowCounts(1000)
    counts.update(np.repeat(np.arange(40), 1))
    counts.update(np.repeat(np.arange(100, 110), 4))
    counts.update(np.repeat([200, 201], [64, 10000]))
    shares = counts.result().matrix
    multiples = row_multiples(shares)
    np.testing.assert_array_equal(multiples[:40], np.ones(40))
    np.testing.assert_array_equal(multiples[100:110], np.full(10, 1 / 2))
    assert multiples[200] == 1 / 8
    assert multiples[201] == 1 / 16  # no finer, though 1 / 100 would be in proportion
    assert shares[500] < shares[0] / 16  # four times as coarse, in proportion
    assert (np.delete(multiples, [*range(40), *range(100, 110), 200, 201]) == 2).all()
    even = RowCounts(8)
    even.update(np.arange(8))
    np.testing.assert_array_equal(row_multiples(even.result().matrix), np.ones(8))
