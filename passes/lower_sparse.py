"""Sparse layers: what multiplies zeros becomes an operator that skips them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.code_pooling import pool_channels_last
from onnxcomp.concrete_shapes import is_known, with_concrete_shapes
from onnxcomp.errors import UnsupportedModel
from onnxcomp.float_layers import float_layer, has_float_weight
from onnxcomp.graph import Names, all_nodes, label, remove_unused, sort_nodes
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.qdq_layers import has_coded_weight, qdq_layer
from onnxcomp.runtime import Feed
from onnxcomp.shapes import TensorType, infer_shapes
from onnxcomp.sparse_forms import Layer, SparseForm, make_sparse, sparse_forms
from onnxcomp.sparse_operators import layer_times
from onnxcomp.timing import model_times
from onnxcomp.weight_sites import find_weights, refused_nodes

FASTER = 0.95  # of the dense layer's time: what is nearer is not told from it
WORTH = 0.98  # of the dense model's time, for which another library has to be registered
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LowerSparse(Pass):
    """Runs layers with zeros on operators that skip them: those of codes, and of floats.

    Attributes:
        choose: "measured" lowers the layers whose sparse operator is faster on this machine, timed
            beside the dense one; "always" all that have zeros enough.
        min_sparsity: the fraction of blocks that has to be zero: of codes 4 or 1 outputs x 4
            inputs, of floats 16, 4 or 1 outputs x 1 input.
        threads: of onnxruntime where layers are timed.
    """

    choose: Literal["measured", "always"] = "measured"
    min_sparsity: float = 0.3
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not 0 <= self.min_sparsity <= 1:
            raise ValueError(f"min_sparsity must be from 0 to 1, not {self.min_sparsity}")
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the layers with constant weights."""
        return [label(node) for node in graph.nodes if _has_weight(node)]

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Chooses layers one by one, then writes the operators; see `Pass.rewrite`."""
        infer_shapes(graph)
        outside = {id(node) for node in graph.nodes}
        found = [node for node in all_nodes(graph) if _has_weight(node)]
        samples = _FirstSample(graph, context)
        for node, reason in _others(graph, found):
            report.skip(node, reason)
        chosen: list[_Choice] = []
        for done, node in enumerate(report.visit(found)):
            context.advance(done, len(found))
            options = self.options_for(node)
            choice: _Choice | str = "the recipe says so"
            if id(node) not in outside:
                choice = "it is inside a body of If, Loop or Scan"
            elif options is not None:
                layer = _layer_of(graph, node)
                choice = layer if isinstance(layer, str) else options._choice(layer, samples)
            if isinstance(choice, str):
                report.skip(node, choice)
            else:
                chosen.append(choice)
        if samples.feed and any(choice.is_timed for choice in chosen):
            chosen = self._best_together(graph, chosen, samples.feed, report)
        pools = _write(graph, [choice for choice in chosen if choice.told(report)])
        if pools:
            report.notes.append(f"{pools} pools of codes run with channels last, which is faster")

    def _choice(self, layer: Layer, samples: _FirstSample) -> _Choice | str:
        """The weight of a layer that may skip zeros, or why it stays dense."""
        enough, most = sparse_forms(layer, self.min_sparsity)
        if not enough:
            return f"only {math.floor(100 * most)} % of its blocks are zero"
        if self.choose == "always":
            return _Choice(layer, min(enough, key=lambda form: form.work))
        shape = samples.shape_of(layer.x)
        if shape is None:
            return "its input has no shape to time it with: give samples"
        try:
            dense_ms, sparse_ms = layer_times(layer, enough, shape, self.threads)
        except UnsupportedModel as error:
            return str(error)
        best = int(np.argmin(sparse_ms))
        return _Choice(layer, enough[best], dense_ms, sparse_ms[best])

    def _best_together(
        self, graph: gs.Graph, choices: list[_Choice], feed: Feed, report: PassReport
    ) -> list[_Choice]:
        """Those with which the whole model is fastest: of none, those faster alone, and all.

        Between layers with channels last and sparse ones onnxruntime transposes, so it may be
        better to have a few more of either.
        """
        forced = [choice for choice in choices if not choice.is_timed]
        alone = [choice for choice in choices if choice.is_faster]
        graphs = []
        for chosen in (forced, alone, choices):
            twin = graph.copy()
            at = {id(node): index for index, node in enumerate(graph.nodes)}
            nodes = [twin.nodes[at[id(choice.layer.node)]] for choice in chosen]
            _write(twin, [c.of(twin, node) for c, node in zip(chosen, nodes, strict=True)])
            graphs.append(twin)
        timing = model_times(graphs, feed, self.threads)
        (_, some, every), errors = timing.ratios, timing.errors
        dense_ms, some_ms, every_ms = timing.milliseconds
        if min(some + errors[1], every + errors[2]) > WORTH:
            for choice in choices:
                if choice.is_timed:
                    said = f"{dense_ms:.3g} against {min(some_ms, every_ms):.3g} ms"
                    report.skip(choice.layer.node, f"the whole model is not faster: {said}")
            return forced
        if len(alone) == len(choices) or every + errors[2] >= some:
            return choices
        report.notes.append(
            f"{len(choices) - len(alone)} layers that are faster dense are sparse: the model "
            f"takes {every_ms:.3g} instead of {some_ms:.3g} ms, with fewer tensors transposed"
        )
        return [replace(choice, dense_ms=None) for choice in choices]


@dataclass(frozen=True)
class _Choice:
    """A layer that can be sparse, and times of both forms where they were measured."""

    layer: Layer
    form: SparseForm
    dense_ms: float | None = None
    sparse_ms: float = 0.0

    @property
    def is_timed(self) -> bool:
        return self.dense_ms is not None

    @property
    def is_faster(self) -> bool:
        """Whether the sparse form is, or nobody asked."""
        return self.dense_ms is None or self.sparse_ms <= FASTER * self.dense_ms

    def told(self, report: PassReport) -> bool:
        """Puts what becomes of the layer into the report: whether it becomes sparse."""
        if self.is_faster:
            report.change(self.layer.node)
            return True
        assert self.dense_ms is not None
        which = "faster" if self.sparse_ms > self.dense_ms else "as fast"
        said = f"{self.dense_ms:.3g} against {self.sparse_ms:.3g} ms"
        report.skip(self.layer.node, f"dense is {which}: {said}")
        return False

    def of(self, graph: gs.Graph, node: gs.Node) -> _Choice:
        """The same of a copy of the graph."""
        layer = _layer_of(graph, node)
        assert not isinstance(layer, str)
        return replace(self, layer=layer)


def _has_weight(node: gs.Node) -> bool:
    return has_coded_weight(node) or has_float_weight(node)


def _others(graph: gs.Graph, found: list[gs.Node]) -> Iterator[tuple[gs.Node, str]]:
    """Nodes with weights that no sparse operator multiplies with, and why."""
    taken = {id(node) for node in found}
    sites = [site for weight in find_weights(graph) for site in weight.sites]
    for layer in {id(site.layer): site.layer for site in sites}.values():
        if id(layer) not in taken and layer.op != "Gather":
            yield layer, f"no sparse operator does what {layer.op} does with such a weight"
    for node, reason in refused_nodes(graph):
        if id(node) not in taken:
            yield node, reason


def _layer_of(graph: gs.Graph, node: gs.Node) -> Layer | str:
    return qdq_layer(graph, node) if has_coded_weight(node) else float_layer(graph, node)


def _write(graph: gs.Graph, choices: Sequence[_Choice]) -> int:
    """Writes the operators; how many pools between them run with channels last."""
    writer = _Writer(graph)
    for choice in choices:
        writer.write(choice.layer, choice.form)
    pools = pool_channels_last(graph) if choices else 0
    remove_unused(graph)
    sort_nodes(graph)
    return pools


class _FirstSample:
    """The first sample, and the shapes of tensors in a run on it; on one row without any.

    Attributes:
        feed: the sample, empty without any.
    """

    def __init__(self, graph: gs.Graph, context: PassContext) -> None:
        feeds = [] if context.calibration is None else context.calibration.feeds(1)
        self.feed: Feed = next(iter(feeds), {})
        self._graph = graph

    def shape_of(self, tensor: gs.Tensor) -> Shape | None:
        """The shape of a tensor, None where it does not follow."""
        found = self._types.get(tensor.name)
        if found is None or found.shape is None or not is_known(found):
            return None
        return tuple(int(size) for size in found.shape if size is not None)

    @cached_property
    def _types(self) -> dict[str, TensorType]:
        given = {name: np.shape(values) for name, values in self.feed.items()}
        for tensor in self._graph.inputs:
            if tensor.name not in given and tensor.shape:
                first, *others = tensor.shape
                given[tensor.name] = (first if isinstance(first, int) else 1, *others)
        whole = {n: s for n, s in given.items() if all(isinstance(size, int) for size in s)}
        twin, types = with_concrete_shapes(self._graph, whole)
        return types[id(twin)]


class _Writer:
    """Writes sparse operators; layers that share a weight share its packed form."""

    def __init__(self, graph: gs.Graph) -> None:
        self._names = Names(graph)
        self._packed: dict[tuple[str, bool, str, int, str], gs.Constant] = {}

    def write(self, layer: Layer, form: SparseForm) -> None:
        """Puts the operator in the place of a layer's node."""
        node, made = layer.node, layer.made
        by_output = bool(node.attrs.get("transB", 0))

        def constant(role: str, values: Any) -> gs.Constant:
            key = (layer.weight_name, by_output, form.pattern, layer.group, role)
            if role not in form.shared:
                return self._constant(f"{made.name}.{role}", values)
            if key not in self._packed:
                stem = layer.weight_name.removesuffix(".codes")
                self._packed[key] = self._constant(f"{stem}.{role}", values)
            return self._packed[key]

        make_sparse(node, form, layer.x, constant)
        for maker in list(made.inputs):
            maker.outputs.clear()
        node.outputs.clear()
        node.outputs.append(made)

    def _constant(self, name: str, values: Sequence[Any]) -> gs.Constant:
        return gs.Constant(self._names.fresh(name), np.ascontiguousarray(values))
