"""Budgets that save time: MACs in whole blocks of channels of a target's kernels.

A kernel that computes a block of channels at once takes as long for a part of it: 24 channels as
long as 32 with blocks of 16. Counting channels in whole blocks tells how much of the MACs saved is
time saved. How large blocks are is a fact of the target and the layers, so that nothing has to be
measured and the same input gives the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.allocation import Choice, allocate
from onnxcomp.channels import Channels
from onnxcomp.errors import RecipeError
from onnxcomp.graph import is_standard, label
from onnxcomp.graph_resources import Lengths
from onnxcomp.macs import macs_by_node
from onnxcomp.resources import Product, Resource, Table

LEAST_SHARES = (0.8, 0.5, 0.25)  # of the MACs saved that whole blocks have to save, in turn
ROUNDING = 1e-9
NOTE = (
    "the budget cannot be met by whole blocks of channels of this target's kernels: "
    "{} of the MACs saved will save time"
)
WEIGHTS = (0.25, 0.5, 0.75, 1.0)  # of whole blocks beside the budget, when levels are weighed


@dataclass(frozen=True)
class Blocked:
    """MACs as a function of what is kept, and with channels counted in whole blocks."""

    macs: Resource
    in_blocks: Resource

    def kept_by(self, share: float) -> tuple[Resource, float]:
        """A limit: whole blocks save at least ``share`` of the MACs that are saved."""
        difference = self.in_blocks + self.macs.times(-share)
        return difference, (1 - share) * self.macs.value()


def blocked_macs(
    graph: gs.Graph,
    channels: Channels,
    shapes: Mapping[str, Sequence[int]],
    blocks: Mapping[str, int],
) -> Blocked:
    """MACs of one run, those of unknown operators left out.

    Args:
        graph: the one that ``channels`` were found in.
        channels: its groups.
        shapes: of the inputs, all sizes known.
        blocks: channels that kernels compute at once, by operator type.
    """
    lengths = Lengths(channels)
    block = {label(node): blocks.get(node.op, 0) for node in graph.nodes if is_standard(node)}
    plain, rounded = Resource(terms=(), unit="MACs"), Resource(terms=(), unit="MACs")
    for cost in macs_by_node(graph, shapes, lengths):
        if cost.macs is not None:
            each = lengths.resource([cost.macs], "MACs")
            plain += each
            rounded += _in_steps(each, block.get(cost.name, 0))
    return Blocked(plain, rounded)


def allocate_in_blocks(
    choices: Sequence[Choice],
    resource: Resource,
    budget: float,
    blocked: Blocked,
    shares: Sequence[float] = LEAST_SHARES,
) -> tuple[Mapping[str, int], str]:
    """Levels that meet a budget and save time, and a note where that is little.

    Whole blocks and what the budget counts are weighed together, at a few ratios, and the cheapest
    levels taken of which whole blocks save a share of the MACs that are saved, the first of
    ``shares``; where there are none the next, in the end 0.

    Raises:
        RecipeError: the budget cannot be met.
    """
    free = allocate(choices, resource, budget)
    for share in shares:
        limits = (resource, budget), blocked.kept_by(share)
        plans = [free] if _keeps(free.levels, choices, limits[1]) else []
        for weight in WEIGHTS if not plans else ():
            weighed = resource.times((1 - weight) / resource.value())
            weighed += blocked.in_blocks.times(weight / blocked.in_blocks.value())
            with suppress(RecipeError):
                plans.append(allocate(choices, weighed, weighed.value(), limits))
        if plans:
            note = "" if share == shares[0] else NOTE.format(f"at least {share:.0%}")
            return min(plans, key=lambda plan: plan.cost).levels, note
    return free.levels, NOTE.format("little")


def _keeps(
    levels: Mapping[str, int], choices: Sequence[Choice], limit: tuple[Resource, float]
) -> bool:
    kept = {choice.name: levels[choice.name] / choice.size for choice in choices}
    return limit[0].value(kept) <= limit[1] + ROUNDING * abs(limit[1])


def _in_steps(resource: Resource, block: int) -> Resource:
    """The same with channels rounded up to whole blocks; products are linear in each."""
    if not block:
        return resource
    return replace(resource, terms=tuple(_table(term, block) for term in resource.terms))


def _table(term: Product | Table, block: int) -> Product | Table:
    if isinstance(term, Table):
        return term
    longest = [size.at({}) for size in term.sizes]
    values = np.asarray(term.coefficient)
    for length in longest:
        values = np.multiply.outer(values, np.asarray([0.0, length]))
    knots = tuple(np.asarray([0.0, length]) for length in longest)
    return Table(sizes=term.sizes, knots=knots, values=values, step=block)
