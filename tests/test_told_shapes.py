"""A length that only the rewritten model shows is no other promise; one that it settles is."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.runtime import open_session
from onnxcomp.testing import graph_of
from onnxcomp.told_shapes import is_the_same, told

COMPUTED = """m (float[N, 4, 6] x) => (float[P, Q] y) {
    s = Shape (x) n = Gather (s, zero) c = Gather (s, one) d = Gather (s, two) m = Mul (c, d)
    t = Concat <axis = 0> (n, m) r = Reshape (x, t) y = Relu (r) }"""
FOLDED = "m (float[N, 4, 6] x) => (float[P, Q] y) { r = Reshape (x, t) y = Relu (r) }"
PLACES = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}
CASES = {"as before": ([0, 24], True), "a batch of one": ([1, 24], False)}


@pytest.mark.parametrize(("target", "same"), CASES.values(), ids=CASES)
def test_outputs_that_were_open(target: list[int], same: bool) -> None:
    original = open_session(graph_of(COMPUTED, **PLACES))
    successor = open_session(graph_of(FOLDED, t=np.asarray(target)))
    before, after = told(original)[1], told(successor)[1]
    assert before[2] == ["P", "Q"]
    assert after[2][1] == 24

    feed = {"x": np.zeros((1, 4, 6), np.float32)}

    assert is_the_same(before, after, original, feed) is same
    assert not is_the_same(before, after, None, feed)


def test_inputs_and_numbers_stay_as_they_were() -> None:
    session = open_session(graph_of(FOLDED, t=np.asarray([0, 24])))
    feed = {"x": np.zeros((1, 4, 6), np.float32)}
    assert not is_the_same(("x", "t", ["N"]), ("x", "t", [1]), session, feed)
    assert not is_the_same(("y", "t", [1, 24]), ("y", "t", [1, 25]), session, feed)
    assert not is_the_same(("y", "t", [1, 24]), ("y", "t", [1, "Q"]), session, feed)
    assert is_the_same(("y", "t", ["P", 24]), ("y", "t", ["P", 24]), None, feed)
