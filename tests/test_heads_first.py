"""Whole heads and the width of heads share what they were asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.calibration import Calibration
from onnxcomp.channel_preparation import prepare
from onnxcomp.exporting import to_proto
from onnxcomp.heads_first import heads_of
from onnxcomp.importing import from_proto
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.prune_channels import PruneChannels
from onnxcomp.shapes import infer_shapes
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of, model_of

RNG = np.random.default_rng(0)
HEADS, WIDTH, INPUTS, HIDDEN = 4, 16, 24, 64
TEXT = """net (float[1, 5, 24] x) => (float[1, 5, 24] y) {
    [queries] q0 = MatMul (x, wq)  q1 = Reshape (q0, split)
    [keys] k0 = MatMul (x, wk)  k1 = Reshape (k0, split)
    [values] v0 = MatMul (x, wv)  v1 = Reshape (v0, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)  k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)  d = MatMul (q, k)  e = Softmax (d)
    f = MatMul (e, v)  g = Transpose <perm = [0, 2, 1, 3]> (f)  h = Reshape (g, flat)
    [out] o = MatMul (h, wo)  [up] p = MatMul (o, w1)  r = Relu (p)  [down] y = MatMul (r, w2) }"""


def constants() -> dict[str, np.ndarray[Any, Any]]:
    flat = HEADS * WIDTH
    shapes = dict.fromkeys(("wq", "wk", "wv"), (INPUTS, flat))
    shapes |= {"wo": (flat, INPUTS), "w1": (INPUTS, HIDDEN), "w2": (HIDDEN, INPUTS)}
    weights = {
        name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    sizes = {"split": np.asarray([1, 5, HEADS, WIDTH]), "flat": np.asarray([1, 5, flat])}
    return weights | sizes


def pruned(**options: Any) -> tuple[dict[str, tuple[int, ...]], list[dict[str, Any]], PassReport]:
    """The shapes of the weights that are left, what left, and the report."""
    graph, report = from_proto(model_of(TEXT, **constants())), PassReport()
    feeds = [{"x": RNG.standard_normal((1, 5, INPUTS)).astype(np.float32)}]
    context = PassContext(
        target=resolve_target(),
        original=graph.copy(),
        calibration=Calibration.from_source(feeds, graph, seed=0),
    )
    options = {"multiple": 1, "importance": "l1", "recovery": False} | options
    PruneChannels(**options).rewrite(graph, context, report)
    model = to_proto(graph)
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        tensor.name.split(".")[0]: numpy_helper.to_array(tensor).shape
        for tensor in model.graph.initializer
    }
    return shapes, report.removed, report


def test_heads_are_told_from_what_is_a_group_either_way() -> None:
    graph = graph_of(TEXT, **constants())
    infer_shapes(graph)
    prepare(graph)

    channels, heads = heads_of(graph)

    assert heads == {"queries"}
    assert {group.name: group.size for group in channels.groups} == {
        "queries": HEADS,
        "out": INPUTS,
        "up": HIDDEN,
    }


@pytest.mark.parametrize(("sparsity", "heads", "width"), [(0.5, 3, 11), (0.75, 2, 8)])
def test_heads_and_their_width_together_lose_the_sparsity(
    sparsity: float, heads: int, width: int
) -> None:
    """4 heads keep the root of a half or a quarter, their width what remains to be lost."""
    shapes, _, _ = pruned(granularity="both", sparsity=sparsity)

    assert shapes["wq"][1] == shapes["wv"][1] == heads * width
    assert shapes["w1"] == (INPUTS * (1 - sparsity), HIDDEN * (1 - sparsity))  # once, not twice


def test_what_too_few_heads_cannot_lose_their_width_does() -> None:
    shapes, _, _ = pruned(granularity="both", sparsity=0.2)

    assert shapes["wq"][1] == HEADS * 13
    assert shapes["w1"] == (19, 51)


def test_an_even_budget_leaves_something_to_the_widths() -> None:
    shapes, removed, report = pruned(granularity="both", max_parameters=0.3, scope="uniform")

    left = report.numbers["parameters_after"] / report.numbers["parameters_before"]
    assert 0.28 < left <= 0.3
    queries = [entry for entry in removed if entry["group"] == "queries"]
    assert [entry["units"] for entry in queries] == [HEADS, WIDTH]
    heads, width = (entry["units"] - entry["removed_units"] for entry in queries)
    assert 1 < heads < HEADS
    assert shapes["wq"][1] == heads * width


def test_heads_alone_do_not_take_all_of_a_budget() -> None:
    alone, _, _ = pruned(granularity="head", max_parameters=0.5)
    shapes, _, report = pruned(granularity="both", max_parameters=0.5)

    assert shapes["wq"][1] > alone["wq"][1]
    assert report.numbers["parameters_after"] <= 0.5 * report.numbers["parameters_before"]


def test_a_global_sparsity_above_what_may_leave_removes_that_and_says_so() -> None:
    shapes, _, report = pruned(scope="global", sparsity=0.95, granularity="head_dim")

    assert shapes["w1"] == (3, 7)  # max_sparsity is 0.9
    assert shapes["wq"][1] == HEADS * 2
    (note,) = report.notes
    assert note.startswith("less was removed than sparsity asks for")
    assert "87.9%" in note


def test_a_global_sparsity_that_can_be_met_is_not_talked_about() -> None:
    _, _, report = pruned(scope="global", sparsity=0.5)

    assert report.notes == []
