"""Which channels of a model could be pruned together, what that saves, and why the rest stays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.channel_preparation import prepare
from onnxcomp.channels import ChannelGroup, Channels, find_channels
from onnxcomp.errors import OnnxcompError
from onnxcomp.few_samples import few_samples
from onnxcomp.graph import Graph, carried_of, is_constant, label, sort_nodes
from onnxcomp.graph_resources import macs_of, parameters_of
from onnxcomp.group_picture import picture_of
from onnxcomp.inspection import input_shapes
from onnxcomp.macs import FORMULAS
from onnxcomp.model import Model, load_model
from onnxcomp.opset import convert_opset
from onnxcomp.passes import PASSES
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.progress import Progress
from onnxcomp.removal_plan import Importance, ranked
from onnxcomp.report import plain
from onnxcomp.resources import Resource
from onnxcomp.runtime import one_line
from onnxcomp.shapes import infer_shapes
from onnxcomp.targets import resolve_target
from onnxcomp.usage import Usage

SCHEMA = "onnxcomp.groups/1"
SAMPLES = 128  # for the costs, as many as prune_channels takes
KERNELS = ("Conv", "ConvTranspose", "FusedConv")


@dataclass(frozen=True, kw_only=True)
class PlaceInfo:
    """An axis that loses indices when units leave.

    Attributes:
        tensor: its name in the simplified model.
        axis: as ONNX counts it, at least 0.
        indices: how many of it belong to units of the group.
        length: of the axis.
        constant: whether it is a weight or an activation.
    """

    tensor: str
    axis: int
    indices: int
    length: int
    constant: bool


@dataclass(frozen=True, kw_only=True)
class GroupInfo:
    """Channels that leave together.

    Attributes:
        name: label of the first node that makes them; prune_channels' overrides match it.
        units: how many; each leaves as a whole.
        span: the most indices that one unit takes of any axis: the width of a head, or 1.
        parameters: that leave with a unit, on average, all others staying.
        macs: the same of multiply-accumulates.
        half_cost: share of the output energy of the layers that read the group which removing the
            cheapest half of its units costs; None without samples.
        made_by: labels of the layers that make the channels.
        read_by: labels of the layers that sum over them.
        places: every axis that loses indices, in the order of the graph.
    """

    name: str
    units: int
    span: int
    parameters: float
    macs: float
    half_cost: float | None
    made_by: tuple[str, ...]
    read_by: tuple[str, ...]
    places: tuple[PlaceInfo, ...]


@dataclass(frozen=True, kw_only=True)
class PinnedAxis:
    """An axis of a weight that stays as it is.

    Attributes:
        tensor: name of the weight.
        axis: as ONNX counts it.
        length: of the axis.
        layer: label of the node that reads the weight.
        reason: why it stays.
    """

    tensor: str
    axis: int
    length: int
    layer: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class GroupInspection:
    """The channel groups of a model, after simplification.

    Attributes:
        model: path.
        parameters, least_parameters: as it is, and when each group keeps one unit.
        macs, least_macs: the same, of one run at ``shapes``; unknown operators left out.
        shapes: of the inputs that macs are counted for.
        assumed: sizes that the model leaves open -> what was taken.
        samples: in words, what the costs were measured on; None without.
        groups: in the order of the graph.
        pinned: axes of weights of which no index can leave.
        unknown: label of a node whose tensors stay -> why.
        notes: what else a person should know.
    """

    model: str
    parameters: int
    least_parameters: int
    macs: int
    least_macs: int
    shapes: dict[str, list[int]]
    assumed: dict[str, int]
    samples: str | None
    groups: tuple[GroupInfo, ...]
    pinned: tuple[PinnedAxis, ...]
    unknown: dict[str, str]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the schema's name first; see docs/pruning.md."""
        return {"schema": SCHEMA, **plain(self)}


def inspect_groups(
    model: str | os.PathLike[str] | Model,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    calibration: Any = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> GroupInspection:
    """Finds the groups that `prune_channels` would find after `simplify_graph`.

    Args:
        model: a path or a loaded model, which is not changed.
        shapes: of inputs, for counting MACs; what they leave open is assumed (batch 1).
        calibration: samples that costs are measured on, as `Calibration.from_source` takes them.
        seed: of which samples are taken.
        progress: told how far the work is.

    Raises:
        UnsupportedModel: the model cannot be read, or ``shapes`` do not fit it.
        CalibrationError: the samples do not fit the model.
    """
    progress = progress or Progress()
    model = model if isinstance(model, Model) else load_model(model)
    concrete, assumed = input_shapes(model.graph, shapes or {})
    samples = None
    if calibration is not None:
        samples = Calibration.from_source(calibration, model.graph, seed=seed)
    progress.stage("finding groups")
    graph, notes = prepared(model.graph)
    channels = find_channels(graph)
    macs, weights = macs_of(graph, channels, concrete), parameters_of(graph, channels)
    least = {group.name: 1 / group.size for group in channels.groups}
    few = None if samples is None else few_samples(graph, channels, samples, SAMPLES)
    return GroupInspection(
        model=str(model.path),
        parameters=round(weights.value()),
        least_parameters=round(weights.value(least)),
        macs=round(macs.value()),
        least_macs=round(macs.value(least)),
        shapes=concrete,
        assumed=assumed,
        samples=None if samples is None else samples.description,
        groups=_groups(graph, channels, weights, macs, _costs(graph, channels, samples, progress)),
        pinned=tuple(_pinned(graph, channels)),
        unknown=dict(channels.unknown),
        notes=(*notes, *([few] if few else [])),
    )


def draw_groups(model: Model) -> str:
    """The groups of a model as an SVG; see `picture_of`."""
    graph, _ = prepared(model.graph)
    return picture_of(graph, find_channels(graph))


def prepared(graph: Graph) -> tuple[Graph, list[str]]:
    """A copy as `prune_channels` finds it after `simplify_graph`, and what went wrong before."""
    notes: list[str] = []
    twin = graph.copy()
    overridable = len(carried_of(graph).defaults)
    if overridable:
        notes.append(f"{overridable} weights are inputs that a caller may override, and stay")
    try:
        if twin.opset < Pass.minimum_opset:
            twin = convert_opset(twin, Pass.minimum_opset)
    except OnnxcompError as error:
        notes.append(f"opset {graph.opset} stays: {error}")
    simplify = next(kind for kind in PASSES if kind.name() == "simplify_graph")
    simple = twin.copy()
    try:
        simplify().rewrite(simple, PassContext(target=resolve_target()), PassReport())
        twin = simple
    except Exception as error:  # as the pipeline, which undoes it
        notes.append(f"the model was taken as it is: simplify_graph failed: {one_line(error)}")
    sort_nodes(twin)
    infer_shapes(twin)
    prepare(twin)
    sort_nodes(twin)
    return twin, notes


def _costs(
    graph: gs.Graph, channels: Channels, samples: Calibration | None, progress: Progress
) -> dict[str, float]:
    """Of removing half of each group."""
    if samples is None:
        return {}
    progress.stage("measuring costs")
    kinds: dict[str, Importance] = {g.name: "reconstruction" for g in channels.groups}
    found = ranked(graph, channels, kinds, samples, SAMPLES, progress.advance)
    return {item.group.name: item.cost(item.group.size - item.group.size // 2) for item in found}


def _groups(
    graph: gs.Graph,
    channels: Channels,
    weights: Resource,
    macs: Resource,
    costs: Mapping[str, float],
) -> tuple[GroupInfo, ...]:
    saved = [_saved(resource, channels.groups) for resource in (weights, macs)]
    made, read = _layers(graph, channels)
    return tuple(
        GroupInfo(
            name=group.name,
            units=group.size,
            span=group.span,
            parameters=float(parameters),
            macs=float(products),
            half_cost=costs.get(group.name),
            made_by=tuple(made[group.name]),
            read_by=tuple(read[group.name]),
            places=tuple(_places(group, channels)),
        )
        for group, parameters, products in zip(channels.groups, *saved, strict=True)
    )


def _saved(resource: Resource, groups: Sequence[ChannelGroup]) -> list[float]:
    """What each group saves when it alone loses one unit."""
    usage = Usage(resource, [group.name for group in groups])
    all_but_one = np.asarray([[1 - 1 / group.size] for group in groups])
    if not groups:
        return []
    changes = usage.changes(np.ones(len(groups)), np.arange(len(groups)), all_but_one)
    return [-float(change) for change in changes[:, 0]]


def _layers(
    graph: gs.Graph, channels: Channels
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """By group the layers that make it and those that sum over it."""
    groups_at: dict[str, dict[str, int]] = {}  # tensor -> group -> its axes
    for group in channels.groups:
        for place in group.places:
            at = groups_at.setdefault(place.tensor, {})
            at[group.name] = at.get(group.name, 0) + 1
    made: dict[str, list[str]] = {group.name: [] for group in channels.groups}
    read: dict[str, list[str]] = {group.name: [] for group in channels.groups}
    for node in graph.nodes:
        weights = [t for t in node.inputs if is_constant(t) and len(t.shape) > 1]
        if node.op not in FORMULAS and not weights:
            continue
        data = {
            name for t in node.inputs if not is_constant(t) for name in groups_at.get(t.name, {})
        }
        results = {name for t in node.outputs for name in groups_at.get(t.name, {})}
        both = {n for t in weights for n, axes in groups_at.get(t.name, {}).items() if axes > 1}
        for name in (results - data) | both:
            made[name].append(label(node))
        for name in (data - results) | both:
            read[name].append(label(node))
    return made, read


def _places(group: ChannelGroup, channels: Channels) -> Iterator[PlaceInfo]:
    for place in group.places:
        yield PlaceInfo(
            tensor=place.tensor,
            axis=place.axis,
            indices=int(np.count_nonzero(place.units >= 0)),
            length=int(place.units.size),
            constant=place.tensor in channels.constants,
        )


def _pinned(graph: gs.Graph, channels: Channels) -> Iterator[PinnedAxis]:
    """Axes of weights in the order of the graph, those of kernels apart."""
    readers: dict[str, gs.Node] = {}
    for node in graph.nodes:
        for tensor in node.inputs:
            readers.setdefault(tensor.name, node)
    for (tensor, axis), reason in channels.pinned.items():
        node = readers.get(tensor)
        if node is None or (node.op in KERNELS and axis > 1):
            continue
        length = int(channels.axes[tensor][axis].size)
        yield PinnedAxis(tensor=tensor, axis=axis, length=length, layer=label(node), reason=reason)
