"""Polynomials of symbols against the numbers that the symbols stand for."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.lengths import Length, Size, divided, parsed, symbol

SYMBOLS = {"n": 3, "s": 7, "h": 5}


def number(size: Size) -> int:
    if not isinstance(size, Length):
        return size
    return sum(factor * math.prod(SYMBOLS[s] for s in term) for term, factor in size.terms)


sizes = st.recursive(
    st.integers(-4, 9) | st.sampled_from([symbol(name) for name in SYMBOLS]),
    lambda inner: st.tuples(inner, inner, st.sampled_from("+-*")).map(
        lambda x: x[0] + x[1] if x[2] == "+" else x[0] - x[1] if x[2] == "-" else x[0] * x[1]
    ),
    max_leaves=6,
)


@given(sizes, sizes)
def test_arithmetic_is_that_of_the_numbers(one: Size, other: Size) -> None:
    assert number(one + other) == number(one) + number(other)
    assert number(one - other) == number(one) - number(other)
    assert number(one * other) == number(one) * number(other)
    assert isinstance(one - one, int)


@given(sizes, sizes)
def test_a_product_divided_by_a_factor_is_the_other(one: Size, other: Size) -> None:
    quotient = divided(one * other, other)

    assert quotient is None or number(quotient) * number(other) == number(one) * number(other)
    if isinstance(other, Length) and len(other.terms) == 1:
        assert quotient == one


@given(sizes)
def test_what_is_written_is_read_again(size: Size) -> None:
    assert parsed(str(size)) == size


def test_what_may_leave_a_rest_is_not_divided() -> None:
    n, s = symbol("n"), symbol("s")

    assert divided(n, 2) is None
    assert divided(n * s, s * s) is None
    assert divided(6 * n + 4 * n * s, 2 * n) == 3 + 2 * s


def test_equal_lengths_have_equal_names() -> None:
    n, s = symbol("n"), symbol("s")

    assert str(2 * (n + s) * n) == str(n * n * 2 + s * n * 2) == "2*n*n + 2*n*s"
