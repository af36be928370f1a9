"""A resource as arrays: what many plans use up, and what each choice alone would change.

Products of sizes that a choice takes part in are polynomials in the fraction it keeps: they are
summed up once and then evaluated at all levels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.resources import Product, Resource, Size, Table, rounded_up

Array = npt.NDArray[Any]

ONE = Size(parts={}, constant=1.0)


class Usage:
    """The value of a resource for choices in a fixed order.

    Attributes:
        neighbours: for each choice the indices of those that share a term with it, itself included.
    """

    def __init__(self, resource: Resource, names: Sequence[str]) -> None:
        self._constant = resource.constant
        products = [term for term in resource.terms if isinstance(term, Product)]
        tables = [term for term in resource.terms if isinstance(term, Table)]
        sizes = _Sizes(names)
        self._coefficients = np.asarray([term.coefficient for term in products], np.float64)
        self._factors = sizes.indices(term.sizes for term in products)
        self._axes = sizes.indices(term.sizes for term in tables)
        self._base, self._slopes = np.asarray(sizes.constants), np.stack(sizes.rows)
        self._tables = _Tables(tables)
        moved = self._slopes != 0
        self._products_of = _Members(moved[self._factors].any(axis=1))
        axes = moved[self._axes].sum(axis=1)
        self._lines_of, self._crossed_of = _Members(axes == 1), _Members(axes > 1)
        touched = np.concatenate((moved[self._factors].any(axis=1), axes > 0))
        self.neighbours = [
            np.union1d(np.flatnonzero(touched[touched[:, at]].any(axis=0)), [at])
            for at in range(len(names))
        ]

    def sizes(self, kept: Array) -> Array:
        """Lengths of all axes when these fractions are kept, [choices] -> [sizes]."""
        found: Array = self._base + self._slopes @ kept
        return found

    def value(self, kept: Array) -> float:
        """What is used when these fractions are kept, [choices]."""
        sizes = self.sizes(kept)
        total = self._coefficients @ sizes[self._factors].prod(axis=1)
        return float(self._constant + total + self._tables.at(sizes[self._axes]).sum())

    def changes(self, kept: Array, choices: Array, candidates: Array) -> Array:
        """By how much the value changes when one choice alone keeps another fraction.

        Args:
            kept: fractions that all keep before, [choices].
            choices: indices, [n].
            candidates: fractions for each of them to keep instead, [n, candidates].
        """
        sizes = self.sizes(kept)
        steps = candidates - kept[choices][:, None]
        values = self._product_changes(sizes, choices, steps)
        if not len(self._axes):
            return values
        with_now = np.pad(steps, ((0, 0), (0, 1)))
        tabled = np.zeros(with_now.shape)
        self._add_lines(tabled, sizes, choices, with_now)
        self._add_crossed(tabled, sizes, choices, with_now)
        return values + tabled[:, :-1] - tabled[:, -1:]

    def _product_changes(self, sizes: Array, choices: Array, steps: Array) -> Array:
        segments, terms = self._products_of.of(choices)
        factors = self._factors[terms]
        each = _polynomials(
            self._coefficients[terms],
            sizes[factors],
            self._slopes[factors, choices[segments][:, None]],
        )
        summed = np.zeros((len(choices), each.shape[1]))
        np.add.at(summed, segments, each)
        values = np.zeros(steps.shape)
        for factor in summed.T[:0:-1]:  # without the constant: that is what there is already
            values = (values + factor[:, None]) * steps
        return values

    def _add_lines(self, total: Array, sizes: Array, choices: Array, steps: Array) -> None:
        """Adds the tables of which one axis moves: only that has to be interpolated."""
        segments, terms = self._lines_of.of(choices)
        if not terms.size:
            return
        axes, rows = self._axes[terms], np.arange(len(terms))
        slopes = self._slopes[axes, choices[segments][:, None]]
        moving = (slopes != 0).argmax(axis=1)
        moved = steps[segments] * slopes[rows, moving][:, None]
        moved += sizes[axes[rows, moving]][:, None]
        lines = self._tables.along(terms, sizes[axes], moving, moved)
        for row, line in zip(segments, lines, strict=True):
            total[row] += line

    def _add_crossed(self, total: Array, sizes: Array, choices: Array, steps: Array) -> None:
        """Adds the tables of which several axes move at once, choice by choice: they are large."""
        segments, terms = self._crossed_of.of(choices)
        for row, term in zip(segments, terms, strict=True):
            axes = self._axes[term]
            moved = sizes[axes] + self._slopes[axes, choices[row]] * steps[row][:, None]
            total[row] += self._tables.at(moved, term)


class _Sizes:
    """Each different size once: its constant part, and how many indices belong to each choice."""

    def __init__(self, names: Sequence[str]) -> None:
        self._place = {name: at for at, name in enumerate(names)}
        self._known: dict[Any, int] = {}
        self.constants: list[float] = []
        self.rows: list[Array] = []
        self._index(ONE)

    def indices(self, terms: Iterable[Sequence[Size]]) -> Array:
        """Indices of the sizes of each term, [terms, most sizes], filled up with that of 1."""
        rows = [[self._index(size) for size in sizes] for sizes in terms]
        found = np.full((len(rows), max(map(len, rows), default=0)), self._index(ONE))
        for row, known in zip(found, rows, strict=True):
            row[: len(known)] = known
        return found

    def _index(self, size: Size) -> int:
        key = (size.constant, frozenset(size.parts.items()))
        if key not in self._known:
            self._known[key] = len(self.rows)
            row, constant = np.zeros(len(self._place)), size.constant
            for name, count in size.parts.items():
                if name in self._place:
                    row[self._place[name]] += count
                else:
                    constant += count
            self.rows.append(row)
            self.constants.append(constant)
        return self._known[key]


class _Members:
    """The terms that each choice takes part in."""

    def __init__(self, touched: Array) -> None:
        """``touched``: bool [terms, choices]."""
        choices, self._terms = np.nonzero(touched.T)
        self._starts = np.searchsorted(choices, np.arange(touched.shape[1] + 1))

    def of(self, choices: Array) -> tuple[Array, Array]:
        """For each member of each choice: the position in ``choices``, and the term."""
        counts = self._starts[choices + 1] - self._starts[choices]
        segments = np.repeat(np.arange(len(choices)), counts)
        first = np.repeat(self._starts[choices] - (np.cumsum(counts) - counts), counts)
        return segments, self._terms[first + np.arange(len(segments))]


def _polynomials(coefficients: Array, base: Array, slopes: Array) -> Array:
    """Coefficients, lowest first, of c_t prod_f (base_tf + slopes_tf x): [t, f] -> [t, f + 1]."""
    found = np.zeros((len(coefficients), base.shape[1] + 1))
    found[:, 0] = coefficients
    for column in range(base.shape[1]):
        shifted = found[:, :-1] * slopes[:, column : column + 1]
        found *= base[:, column : column + 1]
        found[:, 1:] += shifted
    return found


class _Tables:
    """Tables as padded arrays, so that all of them are interpolated at once."""

    def __init__(self, tables: Sequence[Table]) -> None:
        axes = max((len(table.knots) for table in tables), default=0)
        longest = max((len(k) for table in tables for k in table.knots), default=1)
        self._knots = np.full((len(tables), axes, longest), math.inf)
        self._last, self._strides = (np.zeros((len(tables), axes), np.int64) for _ in range(2))
        self._steps = np.asarray([table.step for table in tables], np.int64)
        values = [np.ravel(table.values).astype(np.float64) for table in tables]
        self._values = np.concatenate([*values, np.zeros(1)])
        self._starts = np.cumsum([0, *map(len, values)], dtype=np.int64)[:-1]
        for row, table in enumerate(tables):
            for axis, knots in enumerate(table.knots):
                self._knots[row, axis, : len(knots)] = knots
                self._last[row, axis] = len(knots) - 1
                self._strides[row, axis] = math.prod(map(len, table.knots[axis + 1 :]))

    def along(self, rows: Array, sizes: Array, moving: Array, moved: Array) -> Iterator[Array]:
        """Values of tables along one axis of each, [n].

        Args:
            rows: indices of tables.
            sizes: of the other axes, [rows, axes].
            moving: the axis, [rows].
            moved: its sizes, [rows, n].
        """
        each, knots = np.arange(len(rows)), self._knots[rows, moving]
        steps = self._steps[rows][:, None]
        points = np.repeat(rounded_up(sizes, steps)[:, None], knots.shape[1], 1)
        points[each, :, moving] = np.where(np.isfinite(knots), knots, 0.0)
        values = self._between(points, rows[:, None])
        stops = self._last[rows, moving] + 1
        lines = zip(rounded_up(moved, steps), knots, values, stops, strict=True)
        return (np.interp(x, at[:stop], known[:stop]) for x, at, known, stop in lines)

    def at(self, sizes: Array, rows: Any = None) -> Array:
        """Values at sizes [..., axes] of the tables ``rows``, which broadcast; None for all."""
        steps = self._steps if rows is None else self._steps[rows]
        return self._between(rounded_up(sizes, steps[..., None]), rows)

    def _between(self, sizes: Array, rows: Any) -> Array:
        """`at`, of sizes that need no rounding up."""
        which: Any = slice(None) if rows is None else rows
        knots, last = self._knots[which], self._last[which]
        low = (knots[..., 1:] <= sizes[..., None]).sum(axis=-1)
        low = np.minimum(low, np.maximum(last - 1, 0))
        high = np.minimum(low + 1, last)
        shape = (*low.shape, knots.shape[-1])
        start, stop = (
            np.take_along_axis(np.broadcast_to(knots, shape), at[..., None], -1)[..., 0]
            for at in (low, high)
        )
        several = high > low  # an axis may have a single knot, or be none of this table's
        length = np.subtract(stop, start, out=np.ones(low.shape), where=several)
        share = np.zeros(low.shape)
        np.divide(sizes - np.where(several, start, 0.0), length, out=share, where=several)
        share = np.clip(share, 0.0, 1.0)
        total = np.zeros(low.shape[:-1])
        for corner in itertools.product((False, True), repeat=low.shape[-1]):
            weight = np.where(corner, share, 1.0 - share).prod(axis=-1)
            place = (np.where(corner, high, low) * self._strides[which]).sum(axis=-1)
            total += weight * self._values[self._starts[which] + place]
        return total
