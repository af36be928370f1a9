"""Which units of a group to remove: how important each is, and what the layers that read it lose.

Pure numpy. A layer y = W x that loses the inputs P and refits its weights for those it keeps, K,
is wrong by tr W_P (G_PP - G_PK G_KK^-1 G_KP) W_PT over samples with G = E[x xT] (optimal brain
surgeon, Hassibi and Stork 1993, in blocks). G always stands for G + damping * its mean diagonal:
that bounds what chance in few samples can explain, and makes every cost grow as more is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from onnxcomp.gram import Array
from onnxcomp.held_out import SplitGram, counts_to_judge

DAMPING = 1e-3  # of the mean diagonal
T = TypeVar("T")
LEAST_DAMPING = 1e-9
ROUNDS = 256  # in which units are scored again, at most about so many for a group


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one layer's weights hold of the units of a group.

    Attributes:
        weights: [out, d], a column for each element that the layer reads; for a layer that makes
            the units, transposed: [in, d].
        units: the unit that each column belongs to, -1 for none, int64 [d].
        gram: E[x xT] of what the columns are multiplied with, [d, d]. Less the product of the
            means where the layer has a bias to make up for them (see `centred`).
        share: weight of this layer among the parts of a group.
        split: the same of the samples to fit and of those to judge by, where there are enough.
        constant, index: name of the layer's weights, and which of its groups this is.
    """

    weights: Array
    units: Array
    gram: Array | None = None
    share: float = 1.0
    split: SplitGram | None = None
    constant: str = ""
    index: int = 0

    @cached_property
    def energy(self) -> float:
        """E|W x|^2; 0 without a Gram matrix."""
        if self.gram is None:
            return 0.0
        weights = self.weights.astype(np.float64)
        return float(np.sum((weights @ self.gram) * weights))


@dataclass(frozen=True)
class Removal:
    """An order in which units may go, and what is lost on the way.

    Attributes:
        order: all units, the first to go first, int64 [units].
        costs: of removing the first n, for n from 0, float64 [units + 1]: the share of the layers'
            output energy that is lost, 0 to about 1; never falls.
    """

    order: Array
    costs: Array


def centred(gram: Array, mean: Array) -> Array:
    """E[(x - mean)(x - mean)T] from E[x xT], [..., d, d], and E[x], [..., d]."""
    mean = mean.astype(np.float64)
    return np.asarray(gram - mean[..., :, None] * mean[..., None, :])


def importance(kind: str, parts: Sequence[Part], units: int) -> Array:
    """Scores of the units of a group, [units]; low ones matter least.

    A unit's score in a layer is the sum of |w| ("l1"), the root of the sum of w^2 ("l2") or of
    w^2 E[x^2], the energy that it adds to the outputs ("activation"; Sun et al., "A simple and
    effective pruning approach for large language models", 2023), as a multiple of the layer's mean
    over its units: layers of a group count alike, whatever the scale of their weights.

    Raises:
        ValueError: an unknown kind, or no part has the Gram matrix that "activation" needs.
    """
    if kind not in ("l1", "l2", "activation"):
        raise ValueError(f"unknown importance {kind!r}: choose l1, l2 or activation")
    if kind == "activation":
        parts = [part for part in parts if part.gram is not None]
        if not parts:
            raise ValueError("importance 'activation' needs a Gram matrix of a layer's inputs")
    scores = np.zeros(units)
    for part in parts:
        weights = np.abs(part.weights.astype(np.float64))
        columns = weights.sum(axis=0) if kind == "l1" else np.square(weights).sum(axis=0)
        if kind == "activation" and part.gram is not None:
            columns *= np.diagonal(part.gram).clip(min=0)
        owned = part.units >= 0
        score = np.bincount(part.units[owned], columns[owned], units)
        if kind != "l1":
            score = np.sqrt(score)
        mean = score.sum() / max(1, len(np.unique(part.units[owned])))
        scores += part.share * score / mean if mean > 0 else 0.0
    return scores


def lowest(scores: Array, count: int, sets: Array | None = None) -> Array:
    """The ``count`` units with the lowest scores, in ascending order of their number, int64 [n].

    Args:
        scores: [units]; of a `Removal`, the inverse permutation of its order.
        count: how many to take; with ``sets``, rounded down to the same number from each set.
        sets: the set (a head, a group of a Conv) that each unit belongs to, [units].
    """
    order = np.argsort(scores, kind="stable")
    if sets is None:
        return np.sort(order[:count])
    order = order[np.argsort(sets[order], kind="stable")]
    _, first, sizes = np.unique(sets[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, sizes)
    return np.sort(order[rank < count // max(1, len(sizes))])


def ranks(order: Array) -> Array:
    """The place of each unit in an order, [units]: scores for `lowest`."""
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order))
    return found


def cheapest_first(
    parts: Sequence[Part], units: int, *, damping: float = DAMPING, rounds: int = ROUNDS
) -> Removal:
    """Removes the unit that costs least given all that went before, until none is left.

    Costs of several layers are added, each as a share of its output's energy, by `Part.share`.
    Where all have a `Part.split` the costs are those on the samples held back, or no less than of
    fewer units; the order follows from all samples.
    Parts without a Gram matrix, with one that is not finite, or without output do not count. The
    work is O(d^3) a part (20 s of one core for 4608 columns): a Cholesky factorization of G^-1
    whose pivots, blocks of a unit's columns, are chosen on the way.

    Args:
        parts: the layers that read the units.
        units: how many the group has.
        damping: share of the mean diagonal added to each Gram matrix; with less than the
            arithmetic can bear, ten times as much until it can.
        rounds: with more units than that, those cheapest at the moment go together, as long as
            each is, after the ones before it, still no dearer than any other seemed. The costs
            are exact for the order found; the order may differ a little from one by one.

    Raises:
        LinAlgError: a Gram matrix is not positive semidefinite.
    """
    removal = _damped(lambda raised: _eliminate_all(parts, units, raised, rounds), damping)
    return Removal(removal.order, _judged(removal.order, removal.costs, parts))


def costs_along(order: Array, parts: Sequence[Part], *, damping: float = DAMPING) -> Array:
    """The costs of removing units in a given order, as in `Removal`: float64 [units + 1]."""

    def costs(raised: float) -> Array:
        total = np.zeros(len(order))
        for elimination in _eliminations(parts, raised):
            total += elimination.increments(order)
        return np.concatenate([[0.0], np.cumsum(total)]) / _total_share(parts)

    return _judged(order, _damped(costs, damping), parts)


def _judged(order: Array, costs: Array, parts: Sequence[Part]) -> Array:
    """The costs on samples held back: as many times higher as where they are computed."""
    counts = counts_to_judge(len(order))
    losses = np.zeros(len(counts))
    place = np.append(ranks(order), len(order))  # what is of no unit stays
    for part in parts:
        if part.energy <= 0:
            continue
        if part.split is None:
            return costs
        weights = _short(part.weights.astype(np.float64))
        at = place[part.units]
        found = [part.split.loss(weights, at >= count) for count in counts]
        losses += part.share / part.energy * np.asarray(found)
    known = costs[counts]
    ratios = np.divide(losses / _total_share(parts), known, np.ones_like(known), where=known > 0)
    return np.maximum.accumulate(costs * np.interp(np.arange(len(costs)), counts, ratios))


def _short(weights: Array) -> Array:
    """Weights with the same WT W, [out, d], of no more outputs than inputs."""
    return weights if len(weights) <= weights.shape[1] else np.asarray(np.linalg.qr(weights)[1])


def _damped(solve: Callable[[float], T], damping: float) -> T:
    """With as little damping as rounding errors allow, ``damping`` or more."""
    while True:
        try:
            return solve(damping)
        except np.linalg.LinAlgError:
            if damping >= 1:
                raise
            damping = max(10 * damping, LEAST_DAMPING)


def _eliminate_all(parts: Sequence[Part], units: int, damping: float, rounds: int) -> Removal:
    eliminations = list(_eliminations(parts, damping))
    together = -(-units // rounds)
    order: list[int] = []
    costs = [0.0]
    alive = np.ones(units, bool)
    while len(order) < units:
        scores = np.zeros(units)
        for elimination in eliminations:
            elimination.add_scores(scores, alive)
        scores[~alive] = np.inf
        ranking = np.argsort(scores, kind="stable")
        left = units - len(order)
        candidates = ranking[: min(together, -(-left // 2))]
        increments = sum(
            (e.increments(candidates) for e in eliminations), np.zeros(len(candidates))
        )
        bound = scores[ranking[len(candidates)]] if len(candidates) < left else np.inf
        dearer = np.flatnonzero(increments[1:] > bound)
        taken = 1 + (int(dearer[0]) if len(dearer) else len(candidates) - 1)
        for elimination in eliminations:
            elimination.remove(candidates[:taken])
        alive[candidates[:taken]] = False
        order += candidates[:taken].tolist()
        costs += (costs[-1] + np.cumsum(increments[:taken])).tolist()
    return Removal(np.asarray(order, np.int64), np.asarray(costs) / _total_share(parts))


def _total_share(parts: Sequence[Part]) -> float:
    return sum(part.share for part in parts if part.energy > 0) or 1.0


def _eliminations(parts: Sequence[Part], damping: float) -> Iterator[_Elimination]:
    for part in parts:
        energy = part.energy
        if part.gram is not None and energy > 0:
            yield _Elimination(part, part.share / energy, damping)


class _Elimination:
    """One layer's weights and the inverse of its Gram matrix while units leave.

    H = G^-1 of the elements still there is ``_inverse - L LT``: the factor L gains the columns
    of each unit that leaves, and only what is asked for of H is ever computed.
    """

    def __init__(self, part: Part, share: float, damping: float) -> None:
        assert part.gram is not None
        weights = _short(part.weights.astype(np.float64))
        self._weights, self._share = weights, share
        width = len(part.units)
        gram = part.gram.astype(np.float64)
        ridge = damping * float(np.trace(gram)) / width
        self._inverse = np.linalg.inv(gram + ridge * np.eye(width))
        self._columns = _columns(part.units)
        self._factor = np.empty((width, sum(map(len, self._columns.values()))))
        self._rank = 0
        # units with equally many columns are scored at once
        sizes: dict[int, list[int]] = {}
        for unit, columns in self._columns.items():
            sizes.setdefault(len(columns), []).append(unit)
        self._tables = [
            (np.asarray(units), np.stack([self._columns[unit] for unit in units]))
            for units in sizes.values()
        ]
        self._blocks = [self._inverse[c[:, :, None], c[:, None, :]] for _, c in self._tables]

    def add_scores(self, scores: Array, alive: Array) -> None:
        """Adds what removing each unit next would cost, tr W_u H_uu^-1 W_uT."""
        for (units, columns), blocks in zip(self._tables, self._blocks, strict=True):
            here = alive[units]
            units, columns, blocks = units[here], columns[here], blocks[here]
            if columns.shape[1] == 1:
                energy = np.square(self._weights[:, columns[:, 0]]).sum(axis=0)
                scores[units] += self._share * energy / blocks[:, 0, 0]
                continue
            held = self._weights[:, columns].transpose(1, 2, 0)
            solved = np.linalg.solve(blocks, held @ held.transpose(0, 2, 1))
            scores[units] += self._share * np.trace(solved, axis1=1, axis2=2)

    def increments(self, units: Array) -> Array:
        """What each of ``units`` costs when all of them leave in that order, [n]."""
        columns, owner = self._of(units)
        loss = self._loss(columns, self._root(columns))
        return np.bincount(owner, self._share * np.square(loss).sum(axis=0), len(units))

    def remove(self, units: Array) -> None:
        """Takes ``units`` out: the weights that stay are those refitted without them."""
        columns, _ = self._of(units)
        if not len(columns):
            return
        root = self._root(columns)
        loss = self._loss(columns, root)
        factor = self._factor[:, : self._rank]
        ahead = self._inverse[:, columns] - factor @ factor[columns].T
        added = np.linalg.solve(root, ahead.T).T
        self._factor[:, self._rank : self._rank + len(columns)] = added
        self._rank += len(columns)
        self._weights = self._weights - loss @ added.T
        for (_, table), blocks in zip(self._tables, self._blocks, strict=True):
            blocks -= added[table] @ added[table].transpose(0, 2, 1)

    def _of(self, units: Array) -> tuple[Array, Array]:
        """The columns of ``units`` in that order, and the position of the unit of each."""
        nothing = np.empty(0, np.int64)
        found = [self._columns.get(int(unit), nothing) for unit in units]
        return np.concatenate(found), np.repeat(np.arange(len(units)), [len(c) for c in found])

    def _root(self, columns: Array) -> Array:
        """The Cholesky factor of H between ``columns``."""
        factor = self._factor[columns, : self._rank]
        return np.linalg.cholesky(self._inverse[np.ix_(columns, columns)] - factor @ factor.T)

    def _loss(self, columns: Array, root: Array) -> Array:
        """A with |A|^2 = tr W_P H_PP^-1 W_PT, a column for each that leaves."""
        return np.asarray(np.linalg.solve(root, self._weights[:, columns].T).T)


def _columns(units: Array) -> dict[int, Array]:
    """The columns of each unit, ascending."""
    order = np.argsort(units, kind="stable")
    found, first = np.unique(units[order], return_index=True)
    pieces = np.split(order, first[1:])
    return {int(u): piece for u, piece in zip(found, pieces, strict=True) if u >= 0}
