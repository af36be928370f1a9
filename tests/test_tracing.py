"""What left, in names of the model before anything rewrote it."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.shapes import infer_shapes
from onnxcomp.testing import graph_of
from onnxcomp.tracing import Losses, trace

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def traced(text: str, losses: Losses, **constants: Any) -> dict[tuple[str, int], list[int]]:
    (places,) = (left.places for left in trace(graph_of(text, **constants), [losses]))
    return {(place.tensor, place.axis): place.indices.tolist() for place in places}


def test_constants_are_found_from_the_activations_that_lost_channels() -> None:
    """A folded BatchNormalization is not in the pruned graph; its vectors are in the original."""
    found = traced(
        """m (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) {
            c = Conv (x, w) n = BatchNormalization (c, s, t, m, v) y = Conv (n, w2) }""",
        {("n", 1): np.array([1, 3])},
        **{name: normal(5) for name in "stm"},
        **{"v": np.ones(5, np.float32), "w": normal(5, 3, 1, 1), "w2": normal(2, 5, 1, 1)},
    )

    assert found == {
        **{(name, 0): [1, 3] for name in ("w", "s", "t", "m", "v")},
        **{(name, 1): [1, 3] for name in ("c", "n", "w2")},
    }


def test_flat_axes_are_found_from_their_factors() -> None:
    found = traced(
        """m (float[2, 3] x) => (float[2, 2] y) {
            a = MatMul (x, w) h = Reshape (a, heads) r = Relu (h) f = Reshape (r, flat)
            y = MatMul (f, w2) }""",
        {("r", 1): np.array([1])},
        **{"w": normal(3, 6), "w2": normal(6, 2)},
        **{"heads": np.array([2, 3, 2]), "flat": np.array([2, 6])},
    )

    assert found == {
        **{(name, 1): [2, 3] for name in ("w", "a", "f")},
        **{(name, 1): [1] for name in ("h", "r")},
        ("w2", 0): [2, 3],
    }


def test_a_weight_that_an_operator_without_a_rule_computes_does_not_blur_the_indices() -> None:
    found = traced(
        """m (float[2, 6] x) => (float[2, 3] y) {
            w = Bernoulli (raw) h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }""",
        {("h", 1): np.array([0, 5])},
        raw=normal(6, 8),
        v=normal(8, 3),
    )

    assert found == {("w", 1): [0, 5], ("h", 1): [0, 5], ("r", 1): [0, 5], ("v", 0): [0, 5]}


def test_lengths_that_the_original_computes_are_known_from_what_was_made_of_it() -> None:
    """The padding is computed, so the original says nothing of the channels behind it."""
    text = """m (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) {
        c = Conv (x, w) p = Pad (c, pads) a = Relu (p) y = Conv (a, w2) }"""
    computed = text.replace("p = Pad", "pads = Expand (zero, eight) p = Pad")
    weights = {"w": normal(5, 3, 1, 1), "w2": normal(2, 5, 1, 1)}
    original = graph_of(computed, **weights, zero=np.array([0]), eight=np.array([8]))
    simpler = graph_of(text, **weights, pads=np.zeros(8, np.int64))
    infer_shapes(simpler)
    losses = {(name, 1): np.array([1]) for name in "cpa"}

    (places,) = (left.places for left in trace(original, [losses], simpler))

    found = {(place.tensor, place.axis): place.indices.tolist() for place in places}
    assert found == {(name, 1): [1] for name in ("c", "p", "a", "w2")} | {("w", 0): [1]}


def test_weights_that_were_normalized_first_are_listed_as_normalized() -> None:
    """The norm counts what left, too: with its direction zeroed, the rest would be longer."""
    text = """m (float[2, 6] x) => (float[2, 3] y) {
        h = MatMul (x, u) n = ReduceL2 <axes = [0]> (v) s = Div (g, n) w = Mul (v, s)
        a = MatMul (h, w) y = MatMul (a, z) }"""
    weights = {"u": normal(6, 8), "z": normal(4, 3)}
    original = graph_of(text, **weights, v=normal(8, 4), g=normal(1, 4))
    folded = graph_of(
        """m (float[2, 6] x) => (float[2, 3] y) {
            h = MatMul (x, u) a = MatMul (h, w) y = MatMul (a, z) }""",
        **weights,
        w=normal(8, 4),
    )
    losses: list[Losses] = [{("h", 1): np.array([5])}, {("a", 1): np.array([2])}]

    found = [
        {(place.tensor, place.axis): place.indices.tolist() for place in places}
        for places in (left.places for left in trace(original, losses, folded))
    ]

    assert found[0] == {("u", 1): [5], ("h", 1): [5], ("w", 0): [5]}
    scales = {(name, 1): [2] for name in ("n", "s", "g")}
    assert found[1] == scales | {("w", 1): [2], ("a", 1): [2], ("z", 0): [2]}


def two_layers(add: str, **constants: Any) -> tuple[Any, list[dict[tuple[str, int], list[int]]]]:
    """What is traced of two layers that add a tensor which simplification took away."""
    layers = """a = MatMul (x, u) b = MatMul (x, v) {} c = Relu ({}) d = Relu ({})
        e = MatMul (c, s) f = MatMul (d, t) y = Add (e, f)"""
    weights = {name: normal(6, 4) for name in "uv"} | {name: normal(4, 3) for name in "st"}
    head = "m (float[2, 6] x) => (float[2, 3] y) {"
    added = layers.format(f"{add} p = Add (a, z) q = Add (b, z)", "p", "q")
    original = graph_of(head + added + "}", **weights, **constants)
    simpler = graph_of(head + layers.format("", "a", "b") + "}", **weights)
    infer_shapes(simpler)
    losses: list[Losses] = [
        {("a", 1): np.array([0, 1]), ("c", 1): np.array([0, 1])},
        {("b", 1): np.array([1, 3]), ("d", 1): np.array([1, 3])},
    ]
    found = [
        {(place.tensor, place.axis): place.indices.tolist() for place in left.places}
        for left in trace(original, losses, simpler)
    ]
    return original, found


SEPARATE = [
    {("u", 1): [0, 1], ("s", 0): [0, 1], **{(name, 1): [0, 1] for name in "apc"}},
    {("v", 1): [1, 3], ("t", 0): [1, 3], **{(name, 1): [1, 3] for name in "bqd"}},
]


def test_zeros_that_were_added_to_two_layers_do_not_tie_them() -> None:
    """Layers of T5 share a bias of heads that is all zeros: the original adds it to each."""
    _, found = two_layers("z = ConstantOfShape (two_by_four)", two_by_four=np.array([2, 4]))

    assert found == SEPARATE


def test_views_of_such_zeros_do_not_tie_layers_either() -> None:
    add = "n = ConstantOfShape (four) r = Unsqueeze (n, first) z = Abs (r)"
    _, found = two_layers(add, four=np.array([4]), first=np.array([0]))

    assert found == SEPARATE
