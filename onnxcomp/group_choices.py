"""Channel groups with the widths they may take, and what a choice of widths removes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxcomp.allocation import Choice, at_sparsity
from onnxcomp.kept_indices import Kept
from onnxcomp.removal_plan import Ranked
from onnxcomp.tracing import Losses
from onnxcomp.union_find import Array

Choices = Mapping[str, tuple[Ranked, Choice]]  # by name of a group
Plan = list[tuple[Ranked, int]]  # a group and how many units it keeps


def choices_of(groups: Choices) -> dict[str, Choice]:
    """The choices alone."""
    return {name: choice for name, (_, choice) in groups.items()}


def with_levels(groups: Choices, choices: Mapping[str, Choice]) -> Choices:
    """The same groups with other levels to choose from."""
    return {name: (item, choices[name]) for name, (item, _) in groups.items()}


def with_own_levels(
    groups: Choices, sparsity: Mapping[str, float]
) -> tuple[dict[str, int], list[Choice]]:
    """Levels of the groups that have a sparsity of their own, and what that leaves to choose."""
    own: dict[str, int] = {}
    for name, share in sparsity.items():
        own |= at_sparsity([groups[name][1]], share)
    free = [
        replace(choice, levels=choice.levels[at], cost=choice.cost[at])
        for name, (_, choice) in groups.items()
        for at in [choice.levels == own.get(name, choice.levels)]
    ]
    return own, free


def plan_of(groups: Choices, counts: Mapping[str, int]) -> Plan:
    """The groups that lose units when these are kept."""
    pairs = [(item, counts[name]) for name, (item, _) in groups.items()]
    return [(item, count) for item, count in pairs if count < item.group.size]


def removed(plan: Plan) -> dict[str, Array]:
    """By name of a group the units that go."""
    return {item.group.name: item.removed(count) for item, count in plan}


def losses_of(plan: Plan, kept: Kept) -> list[tuple[dict[str, Any], Losses]]:
    """For each group what to report, and the indices lost, as the axes were before any cut.

    Args:
        plan: what goes now.
        kept: what earlier cuts left.
    """
    found = []
    for item, count in plan:
        group, units = item.group, item.removed(count)
        lost: Losses = {}
        for place in group.places:
            if place.along not in (-1, place.axis):
                continue  # each head loses others there; those of the flat axis say which
            indices = np.flatnonzero(place.lost(units))
            earlier = kept.get(place.tensor, ())
            left = earlier[place.axis] if earlier else None
            lost[place.tensor, place.axis] = (
                left[indices] if isinstance(left, np.ndarray) else indices
            )
        entry = {
            "group": group.name,
            "units": group.size,
            "removed_units": group.size - count,
            "cost": item.cost(count),
        }
        found.append((entry, lost))
    return found
