"""Resources by hand, and their array form against plain evaluation term by term."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.resources import Product, Resource, Size, Table
from onnxcomp.usage import Usage

NAMES = ["a", "b", "c"]
fractions = st.floats(0.01, 1.0)
sizes = st.builds(
    Size,
    parts=st.dictionaries(st.sampled_from([*NAMES, "elsewhere"]), st.integers(1, 64), max_size=3),
    constant=st.sampled_from([0.0, 3.0]),
)
products = st.builds(
    Product,
    coefficient=st.floats(0.1, 100),
    sizes=st.lists(sizes, max_size=3).map(tuple),
)


@st.composite
def tables(draw: Any) -> Table:
    axes = draw(st.lists(sizes, min_size=1, max_size=3))
    lengths = [draw(st.integers(1, 4)) for _ in axes]
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    knots = tuple(np.sort(rng.choice(80, length, replace=False)) + 0.5 for length in lengths)
    return Table(
        sizes=tuple(axes),
        knots=knots,
        values=rng.random(lengths),
        step=draw(st.sampled_from([0, 0, 8])),
    )


resources = st.builds(
    Resource,
    terms=st.lists(products | tables(), max_size=5).map(tuple),
    constant=st.sampled_from([0.0, 7.0]),
)


def layer(values: Any) -> Table:
    return Table(
        sizes=(Size(parts={"a": 64}), Size(parts={"b": 8}, constant=2)),
        knots=(np.asarray([16, 32, 64]), np.asarray([6, 10])),
        values=np.asarray(values),
    )


def test_a_convolution_behind_a_concat_by_hand() -> None:
    """Inputs: 16 of a, 8 of b and 4 that stay; outputs: 32 of c; 10 taps and pixels each."""
    macs = Product(
        coefficient=10, sizes=(Size(parts={"a": 16, "b": 8}, constant=4), Size(parts={"c": 32}))
    )
    resource = Resource(terms=(macs,), constant=5, unit="MACs")
    assert resource.value() == 10 * 28 * 32 + 5
    assert resource.value({"a": 0.5, "c": 0.25}) == 10 * (8 + 8 + 4) * 8 + 5
    assert resource.in_words(8965) == "8,965 MACs"


def test_powers_of_fractions() -> None:
    term = Product.of_powers(80, {"a": 2, "b": 1})
    assert term.value({}) == 80
    assert term.value({"a": 0.5, "b": 0.25}) == 80 * 0.25 * 0.25


def test_a_table_is_exact_at_knots_linear_between_and_constant_outside() -> None:
    table = layer([[1.0, 3.0], [2.0, 6.0], [10.0, 20.0]])
    assert table.value({}) == 20  # sizes 64, 10
    assert table.value({"a": 0.5, "b": 0.5}) == 2  # 32, 6
    assert table.value({"a": 0.75, "b": 0.75}) == pytest.approx((2 + 6 + 10 + 20) / 4)  # 48, 8
    assert table.value({"a": 0.1, "b": 0.1}) == 1  # 6.4, 2.8


def test_a_kernel_that_works_on_blocks_rounds_up() -> None:
    table = dataclasses.replace(layer([[1.0, 3.0], [2.0, 6.0], [10.0, 20.0]]), step=16)
    assert table.value({"a": 17 / 64}) == table.value({"a": 0.5}) == 6  # 32, and 16 for 10
    assert table.value({"a": 33 / 64}) == pytest.approx((6 + 20) / 2)  # 48


@pytest.mark.parametrize(
    ("knots", "shape"),
    [
        ((np.asarray([1, 1]),), (2,)),
        ((np.asarray([1, 2]),), (3,)),
        ((), ()),
        ((np.zeros(0),), (0,)),
    ],
)
def test_a_table_that_does_not_fit_itself_is_refused(knots: Any, shape: Any) -> None:
    with pytest.raises(ValueError, match="knots"):
        Table(sizes=(Size(parts={}),), knots=knots, values=np.zeros(shape))


@settings(deadline=None)
@given(resources, st.tuples(fractions, fractions, fractions))
def test_arrays_give_the_value_of_each_term_summed_up(
    resource: Resource, kept: tuple[float, ...]
) -> None:
    found = Usage(resource, NAMES).value(np.asarray(kept))
    assert found == pytest.approx(resource.value(dict(zip(NAMES, kept, strict=True))), rel=1e-9)


@settings(deadline=None)
@given(resources, st.tuples(fractions, fractions, fractions), st.lists(fractions, min_size=1))
def test_changes_are_differences_of_values(
    resource: Resource, kept: tuple[float, ...], candidates: list[float]
) -> None:
    usage, before = Usage(resource, NAMES), np.asarray(kept)
    choices = np.asarray([2, 0])
    found = usage.changes(before, choices, np.asarray([candidates, candidates[::-1]]))
    scale = 1e-9 * abs(usage.value(np.ones(3)))
    for row, choice, order in zip(found, choices, (candidates, candidates[::-1]), strict=True):
        for change, candidate in zip(row, order, strict=True):
            after = before.copy()
            after[choice] = candidate
            assert change == pytest.approx(usage.value(after) - usage.value(before), abs=scale)


def test_neighbours_share_a_term() -> None:
    terms = (Product.of_powers(1, {"a": 1, "b": 1}), Product.of_powers(1, {"c": 1}))
    table = Table(
        sizes=(Size(parts={"b": 4}), Size(parts={"d": 4})),
        knots=(np.arange(2), np.arange(2)),
        values=np.ones((2, 2)),
    )
    usage = Usage(Resource(terms=(*terms, table)), ["a", "b", "c", "d", "e"])
    assert [list(at) for at in usage.neighbours] == [[0, 1], [0, 1, 3], [2], [1, 3], [4]]
