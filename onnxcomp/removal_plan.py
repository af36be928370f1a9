"""Which units of which channel group to remove: scores within a group, counts across groups."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.allocation import Choice
from onnxcomp.calibration import Calibration
from onnxcomp.channels import ChannelGroup, Channels
from onnxcomp.output_effects import OutputEffects, share_at, weights_of
from onnxcomp.pruning import (
    Part,
    Removal,
    cheapest_first,
    costs_along,
    importance,
    lowest,
    ranks,
)
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
        by_head: where each head has an order of its own, its units, the first to go first, [heads,
            units]. Those that go n-th are one unit to ``removal``, whose order is theirs.
        effect: what the outputs of the model lose for what the readers lose, 1 where that was not
            measured.
    """

    group: ChannelGroup
    removal: Removal
    readers: float
    kind: str
    by_head: Array | None = None
    effect: float = 1.0

    def choice(self, multiple: int, max_sparsity: float) -> Choice:
        """The numbers of units that may be left."""
        units = multiple // math.gcd(multiple, self.group.span)
        costs = self.removal.costs * self.readers * self.effect
        return Choice.of_removal(self.group.name, costs, multiple=units, max_sparsity=max_sparsity)

    def removed(self, kept: int) -> Array:
        """The units that go when ``kept`` are left, ascending, [n], or by head, [heads, n]."""
        if self.by_head is not None:
            return np.sort(self.by_head[:, : self.group.size - kept], axis=1)
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
    *,
    weigh: bool = False,
) -> list[Ranked]:
    """Orders the units of the groups that ``kind`` names, by what it says for each.

    Args:
        graph: the one that ``channels`` were found in.
        channels: its groups.
        kind: of importance, by name of a group.
        samples: for those that need some.
        limit: how many samples to look at.
        advance: called with (done, total).
        weigh: measure what the outputs lose, for groups that are to be compared.
    """
    makers = made_parts(graph, channels)
    wanted = samples if set(kind.values()) & {"activation", "reconstruction"} else None
    found, ratios = [], []
    weighs = weigh and wanted is not None and len(kind) > 1
    effects = OutputEffects(graph, wanted, limit, len(kind)) if weighs and wanted else None
    for group, readers in read_parts(graph, channels, wanted, limit, advance):
        if group.name in kind:
            found.append(_order(group, kind[group.name], readers, makers.get(group.name, [])))
            ratios.append(None if effects is None else _ratio(found[-1], readers, effects))
    if effects is None:
        return found
    return [
        dataclasses.replace(item, effect=ratio)
        for item, ratio in zip(found, weights_of(ratios), strict=True)
    ]


def _ratio(item: Ranked, readers: Sequence[Part], effects: OutputEffects) -> float | None:
    """What the outputs lose for what the readers lose; None where that cannot be measured."""
    costs, count = item.removal.costs, share_at(item.removal.costs)
    if item.kind != "reconstruction" or not count or item.by_head is not None:
        return None
    loss = effects.loss(readers, item.removal.order[:count])
    return None if loss is None else loss / float(costs[count] * item.readers)


def _order(
    group: ChannelGroup, kind: Importance, readers: Sequence[Part], makers: Sequence[Part]
) -> Ranked:
    seen = [part for part in readers if part.gram is not None]
    count = max(1.0, sum(part.share for part in readers))
    units = group.size * group.heads
    if kind == "reconstruction" and seen:
        removal = cheapest_first(seen, units)
        if group.heads == 1:
            return Ranked(group, removal, count, kind)
        by_head, place = _within_heads(group, ranks(removal.order))
        together = [dataclasses.replace(part, units=place[part.units]) for part in seen]
        order = np.arange(group.size)
        return Ranked(group, Removal(order, costs_along(order, together)), count, kind, by_head)
    if kind == "activation" and seen:
        return _by_score(group, importance("activation", seen, units), count, kind)
    parts = [*readers, *makers]
    if kind in ("l1", "l2"):
        return _by_score(group, importance(kind, parts, units), count, kind)
    return _by_score(group, importance("l2", parts, units), count, "weights")


def _within_heads(group: ChannelGroup, scores: Array) -> tuple[Array, Array]:
    """The units of each head, lowest score first; the place of each of [heads * units] in there.

    The last place, -1, is that of what is no unit.
    """
    by_head = np.argsort(scores.reshape(group.heads, group.size), axis=1, kind="stable")
    place = np.argsort(by_head, axis=1)
    return by_head, np.append(place.ravel(), -1)


def _by_score(group: ChannelGroup, scores: Array, readers: float, kind: str) -> Ranked:
    """Lowest first; what a unit costs is its share of all squared scores."""
    order, by_head = np.argsort(scores, kind="stable"), None
    energy = np.square(scores[order])
    if group.heads > 1:
        by_head, _ = _within_heads(group, scores)
        order = np.arange(group.size)
        sorted_scores = np.take_along_axis(scores.reshape(group.heads, -1), by_head, axis=1)
        energy = np.square(sorted_scores).sum(axis=0)
    total = float(energy.sum()) or 1.0
    removal = Removal(order, np.concatenate([[0.0], np.cumsum(energy) / total]))
    return Ranked(group, removal, readers, kind, by_head)
