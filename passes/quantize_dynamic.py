"""Dynamic INT8: weights as codes, activations quantized at run time; needs no samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.dynamic_forms import DynamicWriter
from onnxcomp.dynamic_planning import (
    RECURRENT,
    Choice,
    Form,
    WeightPlan,
    form_of,
    plan_dynamic,
    rows_of,
)
from onnxcomp.graph import Names, all_graphs, all_nodes, label, own, remove_unused, sort_nodes
from onnxcomp.lookups import look_up
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.quantization import Array, symmetric
from onnxcomp.rounding import gptq, nearest
from onnxcomp.shapes import infer_shapes
from onnxcomp.smoothing import Products, Scales, smooth_inputs
from onnxcomp.stored_codes import LARGEST_CODE, StoredWriter, balanced_scales
from onnxcomp.targets import Target, resolve_target
from onnxcomp.weight_grams import observed_grams
from onnxcomp.weight_sites import Weight

SMALLEST_OPTIONS = ("smallest_weight", "smallest_product")


@dataclass(frozen=True, kw_only=True)
class QuantizeDynamic(Pass):
    """Runs MatMul and LSTM in 8-bit integers with ranges measured at run time (dynamic INT8).

    y = x W becomes scale_x * scale_w * (codes_x - zero_x) codes_w, and a lookup in an embedding a
    lookup of codes and of their scale. Layers that no integer kernel runs faster, such as Conv and
    GRU, keep float arithmetic and store their weights as codes: the file is smaller, time and
    memory stay.

    Attributes:
        activations: one scale for each "row" of an input, such as a token, or for the "tensor";
            "auto" is one for the tensor where samples show that it is nearly as good.
        recurrent: what becomes of LSTM: "integers" runs it so, "weights" stores its weights as
            codes, as for GRU and RNN, which have no integer kernel; "float" leaves all three.
        weight_only: store weights of layers that keep float arithmetic as codes too.
        smooth: divide large channels of inputs by factors that their weights are multiplied with,
            where the product of codes is nearer to the float one then (SmoothQuant).
        rounding: "gptq" rounds weights so that the layer's output on the samples changes least,
            where there are real samples; "nearest" ignores them.
        samples: at most so many are run for "smooth" and "gptq".
        per_channel: one scale for each output channel of a weight, not one for all.
        embeddings: store tables that Gather reads as codes too, with one scale a row.
        smallest_weight: weights with fewer elements than this stay float.
        smallest_product: MatMul and Gemm with fewer weights keep float arithmetic, because
            quantizing their input takes longer than it saves.
    """

    trades_precision: ClassVar[bool] = True
    draft_options: ClassVar[Mapping[str, Any]] = {"rounding": "nearest"}

    activations: Scales = "auto"
    recurrent: Literal["integers", "weights", "float"] = "integers"
    weight_only: bool = True
    smooth: bool = True
    rounding: Literal["gptq", "nearest"] = "gptq"
    samples: int = 128
    per_channel: bool = True
    embeddings: bool = True
    smallest_weight: int = 1024
    smallest_product: int = 1 << 15

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        for name in SMALLEST_OPTIONS:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the nodes whose weights would become codes on this machine's target."""
        twin = graph.copy()
        return _in_order(twin, self._plan(twin, resolve_target())[0])

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Plans, rounds the weights, and writes each in its form; see `Pass.rewrite`."""
        plans, refused = self._plan(graph, context.target)
        samples, names = context.calibration, Names(graph)
        limit, advance = self.samples, context.advance
        groups = self._groups(plans)
        smoothed, by_tensor = smooth_inputs(
            groups, graph, names, samples, limit, advance, context.seed
        )
        if smoothed:
            report.numbers["smoothed_inputs"] = smoothed
            for body in all_graphs(graph):
                sort_nodes(body)
            plans, refused = self._plan(graph, context.target)
        for name, reason in refused.items():
            report.skip(name, reason)
        for name in _in_order(graph, plans):
            report.change(name)
        if self.rounding == "nearest" or (samples is not None and samples.synthetic):
            samples = None
        layers = _Layers(graph, names, context.target, by_tensor)
        by_weight = {id(plan.weight): plan for plan in plans}
        weights = [plan.weight for plan in plans]
        for weight, gram in observed_grams(graph, weights, samples, limit, advance):
            report.current = label(weight.sites[0].layer)
            options = self.options_for(weight.sites[0].layer) or self
            layers.replace(by_weight[id(weight)], gram, options)
        report.current = ""
        layers.finish()
        _summarize(plans, report)

    def _plan(self, graph: gs.Graph, target: Target) -> tuple[list[WeightPlan], dict[str, str]]:
        infer_shapes(graph)
        return plan_dynamic(
            graph,
            lambda node: self._choice(node, target),
            lambda node: (self.options_for(node) or self).smallest_weight,
        )

    def _groups(self, plans: Iterable[WeightPlan]) -> list[Products]:
        """Integer products by their input, those whose weights only they read."""
        groups: dict[tuple[int, str], Products] = {}
        for plan in plans:
            if plan.form is not Form.PRODUCT or len(plan.weight.sites) > 1:
                continue
            (site,) = plan.weight.sites
            mine = self.options_for(site.node) or self
            if mine.smooth:
                key, x = (id(site.body), site.node.inputs[0].name), site.node.inputs[0]
                groups.setdefault(key, Products(site.body, x, [], mine.activations))
                groups[key].nodes.append(site.node)
        return list(groups.values())

    def _choice(self, node: gs.Node, target: Target) -> Choice:
        """The form of a node by its options."""
        mine = self.options_for(node)
        if mine is None:
            return Choice(None, "the recipe says so")
        if node.op in RECURRENT and mine.recurrent == "float":
            return Choice(None, "recurrent layers are left alone")
        choice = form_of(node, mine.smallest_product)
        if choice.form is not None and target.symmetric:
            choice = Choice(Form.STORED, "the target has no dynamic quantization")
        if choice.form is Form.LSTM and mine.recurrent == "weights":
            choice = Choice(Form.STORED, "the options say so")
        if choice.form is Form.LOOKUP and not mine.embeddings:
            return Choice(None, "embeddings are left alone")
        if choice.form is Form.STORED and not mine.weight_only:
            return Choice(None, choice.reason)
        return choice


class _Layers:
    """Rounds the weights of one graph and hands them to the writers of their forms."""

    def __init__(
        self, graph: gs.Graph, names: Names, target: Target, by_tensor: Collection[int]
    ) -> None:
        self.graph, self.bits, self.by_tensor = graph, target.weight_bits, by_tensor
        self.stored, self.dynamic = StoredWriter(graph, names), DynamicWriter(graph, names)
        self.halves: dict[tuple[int, int], tuple[gs.Constant, gs.Constant]] = {}

    def replace(self, plan: WeightPlan, gram: Array | None, options: QuantizeDynamic) -> None:
        """Writes a weight in its form everywhere; LSTMs once both weights are there."""
        weight, layout = plan.weight, plan.weight.layout
        matrix = layout.matrix(weight.constant.values)
        if plan.form is Form.STORED:
            scales = balanced_scales(matrix, options.per_channel)
            codes = _rounded(matrix, scales.product, gram, LARGEST_CODE)
            self.stored.write(weight.constant, layout, codes, scales)
            return
        bits = 8 if plan.form is Form.LOOKUP else self.bits
        by_row = options.per_channel or plan.form is Form.LOOKUP
        scale = symmetric(matrix, 0 if by_row else None, bits=bits).scale.reshape(-1, 1)
        codes = _rounded(matrix, scale, gram, 2 ** (bits - 1) - 1).astype(np.int8)
        if plan.form is Form.LOOKUP:
            pair = self._pair(weight, codes, scale)
            for site in weight.sites:
                look_up(site.body, site.node, *pair, self.dynamic.names)
        elif plan.form is Form.PRODUCT:
            pair = self._pair(weight, codes.T, scale[:, 0] if by_row else scale[0, 0])
            for site in weight.sites:
                one = options.activations == "tensor" or id(site.node) in self.by_tensor
                rows = not one and rows_of(site.node.inputs[0]) != 1
                self.dynamic.product(site.body, site.node, *pair, by_row=rows)
        else:
            directions, hidden, _ = layout.shape
            per_gate = np.broadcast_to(scale, (directions * hidden, 1))
            turned = layout.restored(codes).transpose(0, 2, 1)
            pair = self._pair(weight, turned, per_gate.reshape(directions, hidden))
            for site in weight.sites:
                self.halves[id(site.node), site.index] = pair
                self._recurrent(site.node)

    def _recurrent(self, node: gs.Node) -> None:
        pairs = [self.halves.get((id(node), index)) for index in (1, 2)]
        if pairs[0] is not None and pairs[1] is not None:
            self.dynamic.lstm(node, *zip(pairs[0], pairs[1], strict=True))

    def _pair(self, weight: Weight, codes: Array, scale: Array) -> tuple[gs.Constant, gs.Constant]:
        """Constants of codes and scales, which the outermost graph writes for all bodies."""
        name = weight.constant.name
        pair = (
            self.dynamic.constant(f"{name}.codes", codes),
            self.dynamic.constant(f"{name}.scale", np.asarray(scale, np.float32)),
        )
        own(self.graph, [constant.name for constant in pair])
        return pair

    def finish(self) -> None:
        """Brings the nodes into order and drops what nobody reads any more."""
        for body in all_graphs(self.graph):
            sort_nodes(body)
            remove_unused(body)


def _rounded(matrix: Array, scale: Array, gram: Array | None, largest: int) -> Array:
    """Codes of a matrix [rows, d] for scales that broadcast against it."""
    if gram is None:
        return nearest(matrix, scale, 0, -largest, largest)
    shape = (*gram.shape[:-2], -1, matrix.shape[1])
    scale = np.broadcast_to(scale, matrix.shape)
    codes = gptq(matrix.reshape(shape), gram, scale.reshape(shape), 0, -largest, largest)
    return codes.reshape(matrix.shape)


def _in_order(graph: gs.Graph, plans: Iterable[WeightPlan]) -> list[str]:
    """Labels of the nodes of plans, each once, in the order of the graph."""
    mine = {id(node) for plan in plans for node in plan.nodes}
    return [label(node) for node in all_nodes(graph) if id(node) in mine]


def _summarize(plans: Iterable[WeightPlan], report: PassReport) -> None:
    """Says how many layers got which form, and why some keep float arithmetic."""
    plans = list(plans)
    for form in Form:
        count = sum(plan.form is form for plan in plans)
        if count:
            report.numbers[f"weights_{form.name.lower()}"] = count
    stored = [plan for plan in plans if plan.form is Form.STORED]
    reasons = {id(node): (node.op, plan.reason) for plan in stored for node in plan.nodes}
    why = Counter(reasons.values())
    for (op, reason), count in why.most_common():
        report.notes.append(f"stored as codes, computed in float: {count} {op}: {reason}")
