"""What pruning may leave: of MACs, parameters, bytes or measured time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxcomp.allocation import Choice
from onnxcomp.channels import ChannelGroup, Channels
from onnxcomp.graph_latency import latency_of
from onnxcomp.graph_resources import bytes_of, macs_of, parameters_of
from onnxcomp.layer_latency import LayerLatency
from onnxcomp.macs import macs_by_node
from onnxcomp.model import graph_bytes
from onnxcomp.parameters import count_parameters
from onnxcomp.resources import Product, Resource, Size
from onnxcomp.runtime import Feed
from onnxcomp.timing import model_times

Shapes = Mapping[str, Sequence[int]]
BUDGETS = ("max_macs", "max_parameters", "max_bytes", "min_speedup")
MARGIN = 0.98  # of a budget of time that was missed: the next try aims a little lower


@dataclass(frozen=True)
class Budget:
    """What may be left of a resource."""

    resource: Resource
    amount: float

    def missed_by(self, factor: float) -> Budget:
        """A smaller budget, after the result of this one was ``factor`` times too much."""
        return dataclasses.replace(self, amount=self.amount * MARGIN / factor)


def check_budgets(options: object) -> None:
    """Refuses values out of range of what a pass has for ``BUDGETS``.

    Raises:
        ValueError: what is wrong.
    """
    values = {name: getattr(options, name) for name in BUDGETS}
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        if name == "min_speedup" and value < 1:
            raise ValueError(f"min_speedup must be at least 1, not {value}")
        if name != "min_speedup" and not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, not {value}")
    if len(given) > 1:
        raise ValueError(f"give one of {', '.join(BUDGETS)}")


def budget_of(
    option: str, value: float, came: gs.Graph, graph: gs.Graph, channels: Channels, feed: Feed
) -> Budget:
    """The budget of one option of ``BUDGETS``.

    Args:
        option: ``max_...``, the share that may be left, or ``min_speedup``, how many times faster
            the result has to be.
        value: of the option.
        came: the graph of which it is a share.
        graph: the one that ``channels`` were found in.
        channels: its groups.
        feed: inputs at whose shapes things are counted and timed.
    """
    shapes = {name: values.shape for name, values in feed.items()}
    if option == "min_speedup":
        total = milliseconds(came, feed)
        resource = latency_of(graph, channels, shapes, LayerLatency(threads=1), total)
        return Budget(resource, total / value)
    _, left = SHARES[option]
    return Budget(left(graph, channels, shapes), value * used(option, came, feed))


def given_budget(options: object) -> str | None:
    """Which of ``BUDGETS`` is given among the attributes of a pass."""
    return next((name for name in BUDGETS if getattr(options, name) is not None), None)


def used(option: str, graph: gs.Graph, feed: Feed) -> float:
    """What a graph uses of what one of the ``max_...`` options limits."""
    whole, _ = SHARES[option]
    return whole(graph, {name: values.shape for name, values in feed.items()})


def milliseconds(graph: gs.Graph, feed: Feed) -> float:
    """Time of one run, one thread."""
    return model_times([graph], feed, threads=1).milliseconds[0]


def latency_and_macs(graph: gs.Graph, channels: Channels, feed: Feed) -> tuple[Resource, Resource]:
    """What single layers take, in ms with one thread, and the MACs of all."""
    shapes = {name: values.shape for name, values in feed.items()}
    latency = latency_of(graph, channels, shapes, LayerLatency(threads=1))
    return latency, macs_of(graph, channels, shapes)


def time_ratio(came: gs.Graph, graph: gs.Graph, feed: Feed) -> float:
    """Time of ``graph`` / time of ``came``, one thread."""
    return model_times([came, graph], feed, threads=1).ratios[1]


def held_parameters(groups: Sequence[ChannelGroup]) -> Resource:
    """The parameters that units hold, each group by itself."""
    sizes = [Size(parts={group.name: float(group.parameters.sum())}) for group in groups]
    terms = tuple(Product(coefficient=1.0, sizes=(size,)) for size in sizes)
    return Resource(terms=terms, unit="parameters")


def aimed_at(
    groups: Sequence[ChannelGroup], choices: Sequence[Choice], sparsity: float
) -> tuple[Budget, str]:
    """What a sparsity of all groups together leaves; the least that may be left, with a note, where
    that is more.
    """
    resource = held_parameters(groups)
    whole = resource.value()
    least = resource.value({choice.name: choice.levels[0] / choice.size for choice in choices})
    amount = (1 - sparsity) * whole
    if least <= amount:
        return Budget(resource, amount), ""
    note = (
        "less was removed than sparsity asks for, as much as max_sparsity, multiple and options of "
        f"single groups allow: {1 - least / whole:.1%} of the parameters that units hold"
    )
    return Budget(resource, least), note


def known_macs(graph: gs.Graph, shapes: Shapes) -> int:
    """MACs of one run, those of unknown operators left out."""
    return sum(cost.macs for cost in macs_by_node(graph, shapes) if cost.macs is not None)


SHARES: Mapping[
    str,
    tuple[Callable[[gs.Graph, Shapes], float], Callable[[gs.Graph, Channels, Shapes], Resource]],
] = {  # option -> of the whole model, and as a function of what is kept
    "max_macs": (known_macs, macs_of),
    "max_parameters": (
        lambda graph, shapes: count_parameters(graph),
        lambda graph, channels, shapes: parameters_of(graph, channels),
    ),
    "max_bytes": (
        lambda graph, shapes: graph_bytes(graph),
        lambda graph, channels, shapes: bytes_of(graph, channels),
    ),
}
