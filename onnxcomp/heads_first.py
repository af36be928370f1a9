"""Heads and then the width of the heads left: how two cuts share what one was asked for.

Each takes its square root: of the parameters 0.64 may be left, whole heads go until 0.8 would be,
all groups competing, and then the widths of the heads left and everything else to 0.64. What
heads could not lose, two of them at a sparsity of 0.3, is left to their widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import onnx_graphsurgeon as gs

from onnxcomp.channel_equations import Granularity
from onnxcomp.channels import ChannelGroup, Channels, find_channels
from onnxcomp.group_choices import Plan
from onnxcomp.parameters import count_parameters

Shares = Mapping[tuple[str, int], float]  # tensor and axis -> share of its heads that is left


def rounds(
    graph: gs.Graph, granularity: Granularity | Literal["both"]
) -> Iterator[tuple[Channels, frozenset[str], float]]:
    """What can be cut one after the other, ``graph`` being cut in between.

    Yields:
        the channels, the groups of heads where only these are to be cut, else none, and the share
        of the parameters that is left by now.
    """
    whole = count_parameters(graph)
    if granularity == "both":
        channels, heads = heads_of(graph)
        if heads:
            yield channels, heads, 1.0
        granularity = "head_dim"
    yield find_channels(graph, granularity), frozenset(), count_parameters(graph) / (whole or 1)


def heads_of(graph: gs.Graph) -> tuple[Channels, frozenset[str]]:
    """The channels where heads are units, and the groups of which their widths could shrink."""
    channels, others = find_channels(graph, "head"), find_channels(graph, "head_dim")
    same = {_what_leaves(group) for group in others.groups}
    names = (group.name for group in channels.groups if _what_leaves(group) not in same)
    return channels, frozenset(names)


def _what_leaves(group: ChannelGroup) -> frozenset[tuple[str, int, bytes]]:
    return frozenset((p.tensor, p.axis, p.units.tobytes()) for p in group.places)


def shares_left(plan: Plan) -> Shares:
    """What a plan leaves of the axes that its groups are on."""
    return {
        (place.tensor, place.axis): count / item.group.size
        for item, count in plan
        for place in item.group.places
    }


def sparsity_left(sparsity: float, group: ChannelGroup, shares: Shares) -> float:
    """What a group still has to lose where some of its heads have gone."""
    found = [shares[p.tensor, p.axis] for p in group.places if (p.tensor, p.axis) in shares]
    return max(0.0, 1 - (1 - sparsity) / min(found)) if found else sparsity
