"""Which units of which channel group to remove: scores within a group, counts across groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.allocation import Choice
from onnxcomp.calibration import Calibration
from onnxcomp.channels import ChannelGroup, Channels
from onnxcomp.pruning import Part, Removal, cheapest_first, importance, lowest, ranks
from onnxcomp.union_find import Array
from onnxcomp.unit_parts import made_parts, read_parts

Importance = Literal["l1", "l2", "activation", "reconstruction"]


@dataclass(frozen=True)
class Ranked:
    """The units of a group in the order in which they may go.

    Attributes:
        group: the group.
        removal: the order, and the cost of removing the first n: the share of the outputs' energy
            of the layers that read them which is lost.
        readers: how many layers that is: what one of them loses, all of them do.
        kind: what the order follows from: an importance, or ``weights`` where nothing with
            weights reads the units.
    """

    group: ChannelGroup
    removal: Removal
    readers: float
    kind: str

    def choice(self, multiple: int, max_sparsity: float) -> Choice:
        """The numbers of units that may be left."""
        units = multiple // math.gcd(multiple, self.group.span)
        costs = self.removal.costs * self.readers
        return Choice.of_removal(self.group.name, costs, multiple=units, max_sparsity=max_sparsity)

    def removed(self, kept: int) -> Array:
        """The units that go when ``kept`` are left, ascending."""
        return lowest(ranks(self.removal.order), self.group.size - kept)

    def cost(self, kept: int) -> float:
        """Of leaving only ``kept`` units."""
        return float(self.removal.costs[self.group.size - kept])


def ranked(
    graph: gs.Graph,
    channels: Channels,
    kind: Mapping[str, Importance],
    samples: Calibration | None,
    limit: int | None,
    advance: Callable[[int, int], None] | None = None,
) -> list[Ranked]:
    """Orders the units of the groups that ``kind`` names, by what it says for each.

    Args:
        graph: the one that ``channels`` were found in.
        channels: its groups.
        kind: of importance, by name of a group.
        samples: for those that need some.
        limit: how many samples to look at.
        advance: called with (done, total).
    """
    makers = made_parts(graph, channels)
    wanted = samples if set(kind.values()) & {"activation", "reconstruction"} else None
    found = []
    for group, readers in read_parts(graph, channels, wanted, limit, advance):
        if group.name in kind:
            found.append(_order(group, kind[group.name], readers, makers.get(group.name, [])))
    return found


def _order(
    group: ChannelGroup, kind: Importance, readers: Sequence[Part], makers: Sequence[Part]
) -> Ranked:
    seen = [part for part in readers if part.gram is not None]
    count = max(1.0, sum(part.share for part in readers))
    if kind == "reconstruction" and seen:
        return Ranked(group, cheapest_first(seen, group.size), count, kind)
    if kind == "activation" and seen:
        return Ranked(group, _by_score(importance("activation", seen, group.size)), count, kind)
    parts = [*readers, *makers]
    if kind in ("l1", "l2"):
        return Ranked(group, _by_score(importance(kind, parts, group.size)), count, kind)
    return Ranked(group, _by_score(importance("l2", parts, group.size)), count, "weights")


def _by_score(scores: Array) -> Removal:
    """Lowest first; what a unit costs is its share of all squared scores."""
    order = np.argsort(scores, kind="stable")
    energy = np.square(scores[order])
    total = float(energy.sum()) or 1.0
    return Removal(order, np.concatenate([[0.0], np.cumsum(energy) / total]))
