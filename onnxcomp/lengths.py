"""Lengths of axes as polynomials of symbols: what is equal whatever the symbols stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Term = tuple[str, ...]  # the symbols of a product, sorted


@dataclass(frozen=True)
class Length:
    """A sum of products of symbols with whole factors; each symbol is at least 0.

    Arithmetic of a Length with an int or a Length gives an int where no symbol is left.
    """

    terms: tuple[tuple[Term, int], ...]

    def __str__(self) -> str:
        """As the name of a dimension."""
        return " + ".join(
            "*".join(([str(factor)] if factor != 1 or not term else []) + list(term))
            for term, factor in self.terms
        )

    @property
    def is_symbol(self) -> bool:
        """Whether it is one symbol and nothing else."""
        return len(self.terms) == 1 and len(self.terms[0][0]) == 1 and self.terms[0][1] == 1

    def __add__(self, other: Size) -> Size:
        """The sum."""
        total = dict(self.terms)
        for term, factor in _terms(other):
            total[term] = total.get(term, 0) + factor
        return _size(total)

    def __sub__(self, other: Size) -> Size:
        """The difference."""
        return self + -1 * other

    def __rsub__(self, other: int) -> Size:
        """The difference the other way round."""
        return -1 * self + other

    def __mul__(self, other: Size) -> Size:
        """The product."""
        total: dict[Term, int] = {}
        for one, factor in self.terms:
            for two, times in _terms(other):
                term = tuple(sorted(one + two))
                total[term] = total.get(term, 0) + factor * times
        return _size(total)

    __radd__, __rmul__ = __add__, __mul__


Size = int | Length


def symbol(name: str) -> Length:
    """A length that is known by name only."""
    return Length((((name,), 1),))


def parsed(dimension: int | str) -> Size:
    """A dimension as `str` writes it."""
    if not isinstance(dimension, str):
        return dimension
    total: Size = 0
    for term in dimension.split(" + "):
        product: Size = 1
        for factor in term.split("*"):
            product = product * (int(factor) if factor.lstrip("-").isdigit() else symbol(factor))
        total = total + product
    return total


def divided(one: Size, other: Size) -> Size | None:
    """``one / other`` where that is exact for any symbols; None where it may not be."""
    if one == other and one != 0:
        return 1
    divisor = _terms(other)
    if len(divisor) != 1:
        return None
    term, factor = divisor[0]
    total: dict[Term, int] = {}
    for mine, times in _terms(one):
        rest = list(mine)
        for name in term:
            if name not in rest:
                return None
            rest.remove(name)
        if times % factor:
            return None
        total[tuple(rest)] = times // factor
    return _size(total)


def _terms(size: Size) -> tuple[tuple[Term, int], ...]:
    if isinstance(size, Length):
        return size.terms
    return (((), int(size)),) if size else ()


def _size(terms: Mapping[Term, int]) -> Size:
    left = {term: factor for term, factor in terms.items() if factor}
    if not left or list(left) == [()]:
        return left.get((), 0)
    return Length(tuple(sorted(left.items())))
