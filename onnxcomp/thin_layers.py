"""A layer as several thin ones in a row: what each of them is, and what makes their weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.gram import Array

Rank = int | tuple[int, int]
Shape = tuple[int, ...]
STEP = 8  # ranks are its multiples
SMALL_RANKS = 16  # up to this many all are offered
LOW_RANKS = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class ThinLayer:
    """One node of the row.

    Attributes:
        part: what names add to the layer's; empty for the one that takes the layer's own place.
        op: of the node.
        attributes: of the node.
        weights: shape of its constant.
        index: which of its inputs the constant is.
        channels: how many it makes.
        axis: of its output that those are.
        waiting: axes of its output that are as long as in the layer's input, not its output.
        factor: which of the weights of the row it is; by default that of its own place.
        transposed: whether the weights are stored the other way round.
    """

    part: str
    op: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weights: Shape
    index: int = 1
    channels: int
    axis: int = -1
    waiting: tuple[int, ...] = ()
    factor: int | None = None
    transposed: bool = False

    @property
    def products(self) -> int:
        """Multiply-accumulates of an element of the output."""
        if self.op == "Gather":
            return 0
        if self.op == "Conv":
            return math.prod(self.weights[1:])
        last = self.index == 0 or self.attributes.get("transB", 0)
        return self.weights[-1 if last else -2]

    def made(self, read: Sequence[Any] | None, made: Sequence[Any] | None) -> list[Any] | None:
        """The shape of its output from those of the whole layer's input and output."""
        if made is None or (self.waiting and read is None):
            return None
        shape = list(made)
        shape[max(self.axis, -len(shape))] = self.channels
        for axis in self.waiting:
            shape[axis] = read[axis] if read is not None else None
        return shape


class Factors(ABC):
    """A weight taken apart by one method, at any rank; what is costly is computed when asked for.

    Attributes:
        method: its name.
        most_ranks: how many are worth offering, where each costs as much as all of others.
    """

    method: ClassVar[str]
    most_ranks: ClassVar[int] = 1 << 30

    @property
    @abstractmethod
    def ranks(self) -> list[Rank]:
        """Ranks to choose from, whether they pay or not; the lowest first."""

    @abstractmethod
    def row(self, node: gs.Node, rank: Rank) -> list[ThinLayer]:
        """What stands for a node that reads the weight, in the order in which it runs."""

    @abstractmethod
    def arrays(self, rank: Rank) -> Sequence[Array]:
        """The weights of the row, float64."""

    @abstractmethod
    def estimate(self, rank: Rank) -> float:
        """About what `error` will say, for comparing ranks, without computing their factors."""

    @abstractmethod
    def error(self, rank: Rank) -> float:
        """tr dW G dWT."""


def thinned(ranks: Sequence[Rank], most: int) -> list[Rank]:
    """At most so many of them, evenly spread."""
    count = min(most, len(ranks))
    return [ranks[round(at)] for at in np.linspace(0, len(ranks) - 1, count)] if count else []


def spaced(largest: int) -> list[Rank]:
    """Ranks up to one: a few low ones, multiples of STEP and itself; all if they are few."""
    if largest <= SMALL_RANKS:
        return list(range(1, largest + 1))
    return sorted({*LOW_RANKS, *range(STEP, largest + 1, STEP), largest})
