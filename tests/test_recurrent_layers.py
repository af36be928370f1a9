"""LSTM, GRU and RNN behind pruned channels, or pruned themselves, are refitted gate by gate."""

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
from onnxcomp.recurrent_layers import reason_against
from onnxcomp.runtime import Feed, open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.testing import graph_of

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CASES = [
    ("LSTM", "forward"),
    ("LSTM", "bidirectional"),
    ("LSTM", "reverse"),
    ("GRU", "forward"),
    ("GRU", "bidirectional"),
    ("RNN", "reverse"),
]


def normal(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def network(op: str, direction: str, more: str = "") -> gs.Graph:
    """x [7, 2, 5] -> 8 channels -> 6 states, all twins of the first half -> y [7, 2, 3]."""
    gates, ways = GATES[op], 2 if direction == "bidirectional" else 1
    apart = [
        0.5 * normal(k, ways, gates, 3, width) for k, width in enumerate((8, 6, 1, 1), start=1)
    ]
    weights = [np.concatenate([a, a], axis=2).reshape(ways, gates * 6, -1) for a in apart]
    reset = ", linear_before_reset = 1" if op == "GRU" else ""
    graph = graph_of(
        f"""net (float[7, 2, 5] x) => (float[A, B, C] y) {{
            [make] m = MatMul (x, w0) [act] a = Relu (m)
            [cell] h = {op} <hidden_size = 6, direction = "{direction}"{reset}{more}> (a, w, r, b)
            [turn] t = Transpose <perm = [0, 2, 1, 3]> (h) [flat] f = Reshape (t, flat)
            [read] y = MatMul (f, w1) }}""",
        w0=np.concatenate([normal(0, 5, 4)] * 2, axis=1),
        w=weights[0],
        r=weights[1],
        b=np.concatenate([weights[2][..., 0], weights[3][..., 0]], axis=1),
        flat=np.array([7, 2, 6 * ways]),
        w1=normal(9, 6 * ways, 3),
    )
    infer_shapes(graph)
    return graph


def repaired(
    graph: gs.Graph, removed: dict[str, Any], count: int = 60
) -> tuple[gs.Graph, Recovered]:
    pruned = graph.copy()
    channels = find_channels(pruned)
    assert {group.name: group.size for group in channels.groups} == {"make": 8, "cell": 6}
    kept: Kept = cut(pruned, channels, {name: np.array(units) for name, units in removed.items()})
    feeds: list[Feed] = [{"x": normal(100 + n, 7, 2, 5)} for n in range(count)]
    recovered = recover(graph, pruned, kept, Calibration.from_source(feeds, graph))
    check_graph(pruned)
    return pruned, recovered


def lost(graph: gs.Graph, pruned: gs.Graph) -> float:
    """The largest error on samples not seen, as a share of the largest output."""
    feeds = [{"x": normal(500 + n, 7, 2, 5)} for n in range(4)]
    wanted, got = (
        np.stack([open_session(g).run(feed)[0] for feed in feeds]) for g in (graph, pruned)
    )
    return float(np.abs(wanted - got).max() / np.abs(wanted).max())


@pytest.mark.parametrize(("op", "direction"), CASES)
def test_twins_among_what_a_cell_reads_are_made_up_for(op: str, direction: str) -> None:
    graph = network(op, direction)
    pruned, recovered = repaired(graph, {"make": [1, 4, 6]})
    assert recovered.refitted[0] == "cell"
    assert lost(graph, pruned) < 1e-3


@pytest.mark.parametrize(("op", "direction"), CASES)
def test_twins_among_the_states_are_made_up_for(op: str, direction: str) -> None:
    graph = network(op, direction)
    pruned, recovered = repaired(graph, {"cell": [1, 3]})
    assert recovered.refitted == ["cell", "read"]
    assert lost(graph, pruned) < 1e-3


def test_both_at_once() -> None:
    graph = network("LSTM", "bidirectional")
    pruned, recovered = repaired(graph, {"make": [0, 5, 6], "cell": [4, 5]})
    assert recovered.refitted == ["cell", "read"]
    assert lost(graph, pruned) < 2e-3
    assert recovered.errors["cell"][1] < 1e-4 * recovered.errors["cell"][0]


def test_what_a_reset_gate_scales_before_the_product_stays() -> None:
    graph = network("GRU", "forward")
    cell = next(node for node in graph.nodes if node.op == "GRU")
    del cell.attrs["linear_before_reset"]
    pruned, recovered = repaired(graph, {"make": [1], "cell": [1]})
    reason = "its weights of the state stay: its reset gate comes before the product"
    assert recovered.skipped["cell"] == reason
    assert "cell" in recovered.refitted  # its weights of the input
    new = next(node for node in pruned.nodes if node.op == "GRU")
    assert new.inputs[1].name.endswith(".refitted")
    assert not new.inputs[2].name.endswith(".refitted")


def test_a_batch_before_the_steps_is_refused() -> None:
    graph = network("RNN", "forward")
    cell = next(node for node in graph.nodes if node.op == "RNN")
    cell.attrs["layout"] = 1
    assert reason_against(cell) == "its batch comes first"
