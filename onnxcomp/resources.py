"""What a choice of sizes uses up: MACs, parameters, bytes or time, as sums of products and tables.

A layer multiplies what is left of its input axis with what is left of its output axis, so that its
MACs are a product of two sizes, and those of attention of three. Its time is no formula at all but
a table of measured sizes, interpolated in between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Size:
    """The length of an axis: constant + the sum of parts[name] * the kept fraction of name.

    Attributes:
        parts: how many indices belong to each choice by name; several behind a Concat.
        constant: indices that always stay.
    """

    parts: Mapping[str, float]
    constant: float = 0.0

    def at(self, kept: Mapping[str, float]) -> float:
        """The length when these fractions are kept; a name that is missing keeps all."""
        return self.constant + sum(n * kept.get(name, 1.0) for name, n in self.parts.items())


@dataclass(frozen=True, kw_only=True)
class Product:
    """coefficient * the product of sizes; the same size twice is its square."""

    coefficient: float
    sizes: tuple[Size, ...]

    def value(self, kept: Mapping[str, float]) -> float:
        """The product when these fractions are kept; a name that is missing keeps all."""
        return self.coefficient * math.prod(size.at(kept) for size in self.sizes)

    @classmethod
    def of_powers(cls, coefficient: float, powers: Mapping[str, int]) -> Product:
        """coefficient * the product of fractions, each to its power: 0.5 ** 2 for {"a": 2}."""
        sizes = (Size(parts={name: 1.0}) for name, n in powers.items() for _ in range(n))
        return cls(coefficient=coefficient, sizes=tuple(sizes))


@dataclass(frozen=True, kw_only=True)
class Table:
    """Values at a grid of sizes, linear in between along each axis and constant outside.

    Attributes:
        sizes: one for each axis of the table.
        knots: sizes that were measured, ascending; an array for each axis.
        values: [len(knots[0]), len(knots[1]), ...]
        step: sizes are rounded up to its multiples first, as a kernel does that works on blocks;
            0 for none.

    Raises:
        ValueError: the shapes do not fit, or knots do not ascend.
    """

    sizes: tuple[Size, ...]
    knots: tuple[Array, ...]
    values: Array
    step: int = 0

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.knots):
            raise ValueError(f"a table of {len(self.sizes)} sizes and {len(self.knots)} knots")
        if tuple(len(knots) for knots in self.knots) != np.shape(self.values):
            raise ValueError(f"values of shape {np.shape(self.values)} do not fit the knots")
        if any(not len(knots) or (np.diff(knots) <= 0).any() for knots in self.knots):
            raise ValueError("the knots of a table have to ascend")

    def value(self, kept: Mapping[str, float]) -> float:
        """The value when these fractions are kept; a name that is missing keeps all."""
        values = np.asarray(self.values, np.float64)
        for size, knots in zip(self.sizes, self.knots, strict=True):
            place = np.interp(rounded_up(size.at(kept), self.step), knots, np.arange(len(knots)))
            low = min(int(place), max(len(knots) - 2, 0))
            high = min(low + 1, len(knots) - 1)
            values = values[low] + (place - low) * (values[high] - values[low])
        return float(values)


def rounded_up(sizes: Any, step: Any) -> Any:
    """Sizes as multiples of ``step``, but for rounding errors; as they are where it is 0."""
    if not np.any(step):
        return sizes
    blocks = np.ceil(sizes / np.where(step, step, 1) - 1e-9)
    return np.where(step, blocks * step, sizes)


@dataclass(frozen=True, kw_only=True)
class Resource:
    """The sum of terms and a constant.

    Attributes:
        terms: what the layers use, each once.
        constant: what is used whatever is kept.
        unit: for messages: "MACs", "bytes", "ms".
    """

    terms: tuple[Product | Table, ...]
    constant: float = 0.0
    unit: str = ""

    def value(self, kept: Mapping[str, float] | None = None) -> float:
        """What is used when these fractions are kept; a name that is missing keeps all."""
        return self.constant + sum(term.value(kept or {}) for term in self.terms)

    def __add__(self, other: Resource) -> Resource:
        """What both use, in this one's unit."""
        terms, constant = self.terms + other.terms, self.constant + other.constant
        return replace(self, terms=terms, constant=constant)

    def times(self, factor: float) -> Resource:
        """So many times as much."""
        terms = tuple(
            replace(term, coefficient=factor * term.coefficient)
            if isinstance(term, Product)
            else replace(term, values=factor * term.values)
            for term in self.terms
        )
        return replace(self, terms=terms, constant=factor * self.constant)

    def in_words(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:,.6g} {self.unit}".rstrip()
