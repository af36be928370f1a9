"""Levels of channel groups that save time, by measured latencies of the layers they touch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from onnxcomp.allocation import Choice
from onnxcomp.resources import Product, Resource, Table
from onnxcomp.union_find import Array

LEAST_GAIN = 0.25  # of the time that goes along with the MACs: less is no gain


def that_pay(
    choices: Mapping[str, Choice], latency: Resource, macs: Resource
) -> tuple[dict[str, Choice], dict[str, str]]:
    """Choices with the levels that save time when their group alone shrinks, and why others do not.

    A level pays if the layers that hold the group save a quarter at least of the share of their
    time that they save of their MACs, against the next larger level that pays. Groups of which no
    layer was measured keep their levels.

    Args:
        choices: by name.
        latency: of measured layers, of what is kept by name.
        macs: of all layers.

    Returns:
        The choices, each with the level that keeps all; for those that lose levels a sentence.
    """
    found, reasons = {}, {}
    for name, choice in choices.items():
        kept = choice.levels / choice.size
        time, work = (_left(_touched(each, name), name, kept) for each in (latency, macs))
        pays = _gains(time, work)
        found[name] = dataclasses.replace(
            choice, levels=choice.levels[pays], cost=choice.cost[pays]
        )
        if not pays.all():
            gone = choice.size - int(choice.levels[~pays][-1])
            saved = 100 * max(0.0, 1 - float(time[~pays][-1]))
            reasons[name] = (
                f"removing {gone} of {choice.size} saves no time on this target: "
                f"{saved:.0f} % of what its layers take"
            )
    return found, reasons


def _gains(time: Array, work: Array) -> Array:
    """Which levels pay; [n] shares left, levels ascending, the last of them keeps all."""
    pays = np.zeros(len(time), bool)
    above = len(time) - 1
    pays[above] = True
    for at in range(above - 1, -1, -1):
        if time[above] - time[at] >= LEAST_GAIN * (work[above] - work[at]):
            pays[at], above = True, at
    return pays


def _touched(resource: Resource, name: str) -> list[Product | Table]:
    return [term for term in resource.terms if any(name in size.parts for size in term.sizes)]


def _left(terms: list[Product | Table], name: str, kept: Array) -> Array:
    """The share of what terms use that is left when fractions are kept, [n]; of nothing: kept."""
    whole = sum(term.value({}) for term in terms)
    values = [sum(term.value({name: share}) for term in terms) for share in kept.tolist()]
    return np.asarray(values) / whole if whole else kept
