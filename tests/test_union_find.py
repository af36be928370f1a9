"""Union-find on arrays against the textbook's, one pair at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.union_find import components


def by_the_book(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The least label of every class, joined pair by pair."""
    root = list(range(count))
    for one, other in pairs:
        low, high = sorted((root[one], root[other]))
        root = [low if label == high else label for label in root]
    return root


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_as_the_textbook_joins(pairs: list[tuple[int, int]]) -> None:
    edges = np.asarray(pairs, np.int64).reshape(-1, 2)
    found = components(np.arange(31), edges[:, 0], edges[:, 1])
    assert found.tolist() == by_the_book(31, pairs)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=30), st.integers(0, 30))
def test_equations_may_come_in_parts(pairs: list[tuple[int, int]], cut: int) -> None:
    root = np.arange(21)
    for part in (pairs[:cut], pairs[cut:]):
        edges = np.asarray(part, np.int64).reshape(-1, 2)
        root = components(root, edges[:, 0], edges[:, 1])
    assert root.tolist() == by_the_book(21, pairs)


def test_a_long_chain_is_one_class() -> None:
    count = 100_000
    order = np.random.default_rng(0).permutation(count)
    assert not components(np.arange(count), order[:-1], order[1:]).any()
