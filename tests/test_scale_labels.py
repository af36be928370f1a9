"""Classes of labels against a union-find one edge at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.scale_labels import Labels, compact

EDGES = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30)


@given(EDGES)
def test_classes_are_those_of_a_naive_union(edges: list[tuple[int, int]]) -> None:
    labels = Labels()
    given_out = labels.fresh(20)
    sets = [{i} for i in range(20)]
    for one, other in edges:
        labels.same(given_out[[one]], given_out[[other]])
        merged = next(s for s in sets if one in s) | next(s for s in sets if other in s)
        sets = [s for s in sets if not s & merged] + [merged]
    root, reasons = labels.classes()
    assert reasons == {}
    assert root.tolist() == [min(next(s for s in sets if i in s)) for i in range(20)]


def test_long_chains_end_in_one_class() -> None:
    labels = Labels()
    chain = labels.fresh(5000)
    labels.same(chain[::-1][1:], chain[::-1][:-1])
    root, _ = labels.classes()
    assert not root.any()


def test_a_reason_belongs_to_the_whole_class_and_the_first_counts() -> None:
    labels = Labels()
    one, other, free = labels.fresh(2), labels.fresh(2), labels.fresh(1)
    labels.pin(other[:1], "first")
    labels.pin(one[:1], "second")
    labels.same(one[:1], other[:1])
    root, reasons = labels.classes()
    assert reasons == {0: "first"}
    assert root.tolist() == [0, 1, 0, 3, int(free[0])]


def test_broadcast_labels_become_equal() -> None:
    labels = Labels()
    wide, narrow = labels.fresh(1, 3, 1), labels.fresh(1, 1, 2)
    assert labels.same(wide, narrow).shape == (1, 3, 2)
    root, _ = labels.classes()
    assert not root.any()


def test_axes_without_labels_of_their_own_have_length_one() -> None:
    channels = np.broadcast_to(np.arange(3)[:, None, None], (3, 2, 4))
    assert compact(channels).tolist() == [[[0]], [[1]], [[2]]]
    assert compact(np.arange(4).reshape(2, 2)).shape == (2, 2)
