"""Stand-ins for residual branches, fitted to what the samples show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx_graphsurgeon as gs

from onnxcomp.branch_switches import SwitchedSession
from onnxcomp.calibration import RUN_BYTES
from onnxcomp.quantization import Array
from onnxcomp.residual_blocks import Branch, Shapes
from onnxcomp.runtime import Feed, Session, open_session
from onnxcomp.stand_ins import WIDEST, Layout, StandIn, StandInFit, layout_of

Tick = Callable[[], None]


def made_by(graph: gs.Graph, branch: Branch) -> str:
    """The name of f(x)."""
    return str(graph.nodes[branch.cut[0]].inputs[branch.cut[1]].name)


def find_layouts(
    graph: gs.Graph, branches: Sequence[Branch], shapes: Shapes, feed: Feed, threads: int
) -> list[Layout | None]:
    """Where the channels of each branch are, told from one sample; None where that is unclear."""
    found: list[Layout | None] = []
    for group in _groups(graph, branches, shapes, range(len(branches))):
        names = [made_by(graph, branches[index]) for index in group]
        session = open_session(graph, extra_outputs=dict.fromkeys(names), threads=threads)
        for name, values in zip(names, session.run(feed, names), strict=True):
            found.append(layout_of(shapes, name, values))
    return found


def fit_stand_ins(
    graph: gs.Graph,
    branches: Sequence[Branch],
    layouts: Mapping[int, Layout],
    shapes: Shapes,
    feeds: Callable[[], Iterator[Feed]],
    *,
    linear: bool,
    threads: int,
) -> dict[int, list[StandIn | None]]:
    """What may stand in for each branch, by index: nothing, a constant and perhaps a linear map.

    Args:
        graph: with all branches.
        branches: of the graph.
        layouts: of those that anything may stand in for.
        shapes: of the graph.
        feeds: samples to fit to, from the start at every call.
        linear: fit linear maps too, of at most WIDEST channels.
        threads: of the sessions.
    """
    found: dict[int, list[StandIn | None]] = {}
    for group in _groups(graph, branches, shapes, layouts):
        fits = {i: new_fit(layouts[i], linear=linear) for i in group}
        pairs = {i: (branches[i].stream, made_by(graph, branches[i])) for i in group}
        names = dict.fromkeys(name for pair in pairs.values() for name in pair)
        inputs = {tensor.name for tensor in graph.inputs}
        tapped = [name for name in names if name not in inputs]
        session = open_session(graph, extra_outputs=tapped, threads=threads)
        for feed in feeds():
            seen = _run(session, feed, tapped)
            for i, (stream, made) in pairs.items():
                fits[i].update(layouts[i].rows(seen[stream]), layouts[i].rows(seen[made]))
        for i, fit in fits.items():
            found[i] = [None, fit.constant()]
            if fit.is_determined:
                found[i].append(fit.linear())
    return found


def new_fit(layout: Layout, *, linear: bool) -> StandInFit:
    """For one branch."""
    return StandInFit(layout.channels, linear=linear and layout.channels <= WIDEST)


def refit(
    session: SwitchedSession,
    sum_name: str,
    branch: Branch,
    index: int,
    layout: Layout,
    dropped: Mapping[int, StandIn | None],
    feeds: Callable[[], Iterator[Feed]],
    *,
    linear: bool,
) -> StandIn:
    """The stand-in of one branch among others that are gone, so that the sum is as it was.

    Where it was fitted to f(x), it now has to make up for the errors of x as well: the target is
    y less what the sum has without it.

    Args:
        session: returns the sum and the stream too.
        sum_name: of y.
        branch: whose stand-in is fitted.
        index: of the branch in ``session``.
        layout: of the branch.
        dropped: stand-ins of all branches that are gone.
        feeds: samples to fit to, from the start at every call.
        linear: fit a linear map, not just a constant.
    """
    fit = new_fit(layout, linear=linear)
    without = {**dropped, index: None}
    for feed in feeds():
        session.dropped = {}
        (whole,) = session.run(feed, [sum_name])
        session.dropped = without
        names = [sum_name] if branch.stream in feed else [sum_name, branch.stream]
        seen = _run(session, feed, names)
        target = layout.rows(whole) - layout.rows(seen[sum_name])
        fit.update(layout.rows(seen[branch.stream]), target)
    return fit.linear() if fit.is_determined else fit.constant()


def _run(session: Session, feed: Feed, names: Sequence[str]) -> dict[str, Array]:
    """Values of the inputs and of some tensors, by name."""
    values: list[Any] = session.run(feed, names)
    return {**feed, **dict(zip(names, values, strict=True))}


def _groups(
    graph: gs.Graph, branches: Sequence[Branch], shapes: Shapes, wanted: Any
) -> Iterator[list[int]]:
    """Cuts ``wanted`` so that what is returned and summed up takes at most RUN_BYTES at a time."""
    group: list[int] = []
    room = RUN_BYTES
    for index in wanted:
        shape = shapes.of(made_by(graph, branches[index])) or (0,)
        widest = min(max(shape), WIDEST)
        size = 8 * math.prod(shape) + 16 * widest * widest
        if group and size > room:
            yield group
            group, room = [], RUN_BYTES
        group.append(index)
        room -= size
    if group:
        yield group
