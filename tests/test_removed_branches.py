"""Dropped branches are named by what the original model loses with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcomp import optimize
from onnxcomp.passes.prune_blocks import PruneBlocks
from onnxcomp.passes.prune_channels import PruneChannels
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.recipe import compose
from onnxcomp.removed_branches import trace_branches
from onnxcomp.runtime import Feed
from onnxcomp.testing import assert_same_answers, graph_of, model_of

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


NESTED = """net (float[N, 4] x) => (float[N, 4] y) {
    a = MatMul (x, w0) b = Add (a, shared)
    c = MatMul (b, w1) [inner] d = Add (b, c)
    e = MatMul (d, w2) f = Mul (e, shared) [outer] y = Add (x, f) }"""
WEIGHTS = {"w0": normal(4, 6), "w1": normal(6, 6), "w2": normal(6, 4), "shared": normal(1)}


def test_what_a_branch_takes_along_is_listed_once() -> None:
    graph = graph_of(NESTED, **WEIGHTS)
    inner, outer = trace_branches(graph, [("d", "c"), ("y", "f")])
    assert [(p.tensor, p.axis, p.indices.tolist(), p.constant) for p in inner] == [
        ("c", 1, list(range(6)), False),
        ("w1", 0, list(range(6)), True),
    ]
    assert {(p.tensor, len(p.indices)) for p in outer if p.constant} == {
        ("w0", 4),
        ("w2", 6),
        ("shared", 1),
    }
    assert {p.tensor for p in outer if not p.constant} == {"a", "b", "d", "e", "f"}


def test_a_weight_that_is_read_elsewhere_too_stays() -> None:
    graph = graph_of(NESTED.replace("[outer] y = Add (x, f)", "z = Add (x, f) y = Mul (z, shared)"),
                     **WEIGHTS)  # fmt: skip
    (places,) = trace_branches(graph, [("z", "f")])
    assert "shared" not in {place.tensor for place in places}


def test_a_sum_under_another_name_is_found_by_its_reader() -> None:
    graph = graph_of(NESTED, **WEIGHTS)
    (places,) = trace_branches(graph, [("renamed", "f")])
    assert {p.tensor for p in places if p.constant} == {"w0", "w1", "w2", "shared"}
    assert trace_branches(graph, [("y", "unknown")]) == [()]


def blocks() -> onnx.ModelProto:
    """A stem and three blocks conv, norm, relu, conv, norm; the second adds little."""
    text, stream = "[stem] s0 = Conv (image, w)", "s0"
    weights: dict[str, Any] = {"w": normal(8, 3, 1, 1)}
    for i, size in enumerate((0.5, 0.05, 0.4)):
        for k in (1, 2):
            weights |= {f"{n}{i}{k}": normal(8) for n in "stm"}
            weights[f"s{i}{k}_"] = weights.pop(f"s{i}{k}") * size
            weights[f"v{i}{k}"] = np.abs(normal(8)) + 0.5
            weights[f"w{i}{k}"] = 0.2 * normal(8, 8, 1, 1)
        weights[f"t{i}2"] *= size
        text += f""" a{i} = Conv ({stream}, w{i}1)
            b{i} = BatchNormalization (a{i}, s{i}1_, t{i}1, m{i}1, v{i}1) r{i} = Relu (b{i})
            c{i} = Conv (r{i}, w{i}2) d{i} = BatchNormalization (c{i}, s{i}2_, t{i}2, m{i}2, v{i}2)
            [sum{i}] s{i + 1} = Add ({stream}, d{i})"""
        stream = f"s{i + 1}"
    return model_of(
        f"net (float[N, 3, 5, 5] image) => (float[N, 8, 5, 5] y) {{ {text} y = Tanh ({stream}) }}",
        **weights,
    )


def zeroed(model: onnx.ModelProto, removed: list[dict[str, Any]]) -> onnx.ModelProto:
    """The original with the listed weights zeroed, but for variances; only onnx and numpy."""
    twin = onnx.ModelProto.FromString(model.SerializeToString())
    variances = {n.input[4] for n in twin.graph.node if n.op_type == "BatchNormalization"}
    places = [p for entry in removed for p in entry["places"] if p["constant"]]
    for tensor in twin.graph.initializer:
        mine = [p for p in places if p["tensor"] == tensor.name and p["tensor"] not in variances]
        values = np.array(numpy_helper.to_array(tensor))
        for place in mine:
            np.moveaxis(values, place["axis"], 0)[place["indices"]] = 0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return twin


def test_the_result_is_the_original_with_the_listed_weights_zeroed(tmp_path: Any) -> None:
    """Also where the weights of the original were folded into others before."""
    model = blocks()
    onnx.save(model, tmp_path / "model.onnx")
    samples: list[Feed] = [{"image": normal(1, 3, 5, 5)} for _ in range(12)]
    recipe = compose([SimplifyGraph(), PruneBlocks(count=2, repair="none")])
    result = optimize(
        tmp_path / "model.onnx",
        recipe,
        calibration=samples,
        output=tmp_path / "out.onnx",
        verify="off",
    )
    removed = result.report.passes[-1].removed
    assert removed[0]["group"] == "sum1"
    assert {entry["replaced_by"] for entry in removed} == {"nothing"}
    names = {place["tensor"] for place in removed[0]["places"]}
    assert names == {
        *("a1", "b1", "r1", "c1", "d1"),
        *(f"{kind}1{k}" for kind in "wtmv" for k in (1, 2)),
        *("s11_", "s12_"),
    }
    shallow = onnx.load(tmp_path / "out.onnx")
    assert_same_answers(zeroed(model, removed), shallow, samples[:3], min_sqnr_db=100)


def test_channels_go_after_branches_and_both_are_listed(tmp_path: Any) -> None:
    model = blocks()
    onnx.save(model, tmp_path / "model.onnx")
    samples: list[Feed] = [{"image": normal(1, 3, 5, 5)} for _ in range(12)]
    steps = [
        SimplifyGraph(),
        PruneBlocks(count=1, repair="none", recovery=False),
        PruneChannels(sparsity=0.5, multiple=1, recovery=False),
    ]
    out = tmp_path / "out.onnx"
    result = optimize(
        tmp_path / "model.onnx", compose(steps), calibration=samples, output=out, verify="off"
    )
    removed = [entry for step in result.report.passes for entry in step.removed]
    assert {e["group"] for e in removed[:1]} == {"sum1"}
    assert {e.get("replaced_by") for e in removed[1:]} == {None}
    widths = {p["tensor"]: len(p["indices"]) for e in removed[1:] for p in e["places"]}
    assert (widths["w01"], widths["b0"], widths["w22"]) == (4, 4, 4)
    assert_same_answers(zeroed(model, removed), out, samples[:3], min_sqnr_db=100)
