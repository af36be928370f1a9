"""Static INT8: weights and activations as codes, with ranges measured on samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import onnx_graphsurgeon as gs

from onnxcomp.body_graphs import body_graphs, read_codes_from_outside
from onnxcomp.body_samples import samples_inside
from onnxcomp.equalizing import equalize
from onnxcomp.graph import QUANTIZERS, Names, consumers, is_constant, label, volume
from onnxcomp.input_codes import CodedInput, code_inputs, coded_scales
from onnxcomp.integer_forms import write_integer_forms
from onnxcomp.lookups import write_lookups
from onnxcomp.measured_plan import Calibrator, MeasuredPlan, Measuring
from onnxcomp.packing import pack_codes
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.placement import Plan, plan_static
from onnxcomp.qdq import Writer
from onnxcomp.quantization import Affine, Array
from onnxcomp.refining import layer_bits, refinable, refine
from onnxcomp.shapes import infer_shapes
from onnxcomp.targets import Target, resolve_target
from onnxcomp.uncoded_layers import maker_of

OLD_OPSET = "opset {} has no per-channel DequantizeLinear: convert the model to 13 first"


@dataclass(frozen=True, kw_only=True)
class QuantizeStatic(Pass):
    """Runs the model in 8-bit integers, with ranges measured on samples (static INT8).

    Attributes:
        calibrator: how ranges follow from the samples: "minmax" takes the extremes,
            "moving_average" the average of each sample's, "percentile" leaves out rare values,
            "entropy" loses least information and "mse" least in mean squared error; "auto"
            measures that error where the layers that read a tensor feel it.
        power_of_two: widen ranges until every scale of an activation is a power of two.
        keep_drowned: leave a layer in float where one scale for its input would drown its output,
            if few of the model's multiplications are lost.
        percentile: central share of all values, in %, that "percentile" keeps.
        equalize: move the scales of channels between layers first; see `equalize_channels`.
        exact_inputs: code images of 256 levels a channel without any error.
        weight_bits: of the weights' codes, 2 to 8; up to 4 are packed in the file.
        exposed_bits: at least so many for the first layer, the last, and depthwise Convs.
        rounding: "nearest" takes the nearest code of each weight, "gptq" the codes that change the
            layers' outputs least on the samples.
        refining_samples: so many samples decide that, eight times as many at up to 6 bits.
        correct_bias: let biases make up for what rounding the weights adds to the mean of each
            output channel.
        per_channel: one scale for each output channel of a weight, not one for all.
        operators: operator types to quantize; empty for all that the target runs in integers.
        exclude: operator types to leave in float.
        smallest_weight: layers with fewer weights than this stay in float.
        embeddings: store tables that Gather reads as codes too, with one scale a row.
        attention: multiply activations by activations in integers even where that does not pay.
        made_up: which inputs may stand in for samples that are not given: "any", or "suited" ones
            only, images that suit the weights; otherwise the model stays as it is.
    """

    needs_calibration: ClassVar[bool] = True
    trades_precision: ClassVar[bool] = True
    draft_options: ClassVar[Mapping[str, Any]] = {"rounding": "nearest"}

    calibrator: Calibrator = "auto"
    percentile: float = 99.99
    power_of_two: bool = False
    keep_drowned: bool = True
    equalize: bool = True
    exact_inputs: bool = True
    weight_bits: int = 8
    exposed_bits: int = 8
    rounding: Literal["nearest", "gptq"] = "gptq"
    refining_samples: int = 32
    correct_bias: bool = True
    per_channel: bool = True
    operators: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    smallest_weight: int = 0
    embeddings: bool = True
    attention: bool = False
    made_up: Literal["any", "suited"] = "any"

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not 50 <= self.percentile <= 100:
            raise ValueError(f"percentile must be in 50..100, not {self.percentile}")
        if self.smallest_weight < 0:
            raise ValueError(f"smallest_weight must not be negative, not {self.smallest_weight}")
        for name in ("weight_bits", "exposed_bits"):
            if not 2 <= getattr(self, name) <= 8:
                raise ValueError(f"{name} must be in 2..8, not {getattr(self, name)}")
        if self.refining_samples < 1:
            raise ValueError(f"refining_samples must be at least 1, not {self.refining_samples}")

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the nodes that would run in integers on this machine's target."""
        if graph.opset < self.minimum_opset:
            return []
        return self._foreseen(graph.copy(), resolve_target())[0]

    def _foreseen(self, twin: gs.Graph, target: Target) -> tuple[list[str], dict[str, str]]:
        """What will change, and label -> reason of what will not, in a graph that may be taken to
        pieces, and in the bodies in it."""
        self._prepare(twin, target)
        plan = plan_static(twin, target, self._refuse, products=self.attention)
        found = [label(node) for node in [*(unit.node for unit in plan.units), *plan.lookups]]
        for inside in body_graphs(twin):
            changed, skipped = self._foreseen(inside.graph, target)
            found += changed
            plan.skipped |= skipped
        return found, plan.skipped

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Plans, measures the ranges in one go over the samples, and writes the QDQ pairs: first of
        the graph, then of each body of If, Loop or Scan as a graph of its own."""
        if graph.opset < self.minimum_opset:
            for node in graph.nodes:
                if node.op in context.target.operators:
                    report.skip(node, OLD_OPSET.format(graph.opset))
            return
        unsuited = context.samples().unsuited
        if unsuited:
            report.notes.append(f"{unsuited}: give samples with --calibration")
            if self.made_up == "suited":
                foreseen, _ = self._foreseen(graph.copy(), context.target)
                report.skipped |= dict.fromkeys(foreseen, unsuited)
                return
        self._rewrite_nodes(graph, context, report, {})
        names = Names(graph)
        self._rewrite_bodies(graph, context, report, {}, names)
        read_codes_from_outside(graph)

    def _rewrite_bodies(
        self,
        graph: gs.Graph,
        context: PassContext,
        report: PassReport,
        coded: Mapping[str, Affine],
        names: Names,
    ) -> None:
        """``coded`` are the parameters of inputs of ``graph`` that have been codes before."""
        for inside in body_graphs(graph):
            concerned, left = self._foreseen(inside.graph.copy(), context.target)
            samples = samples_inside(context.samples(), graph, inside) if concerned else ""
            if isinstance(samples, str):
                report.skipped |= left | dict.fromkeys(concerned, samples)
            else:
                known = inside.coded(coded, context.target.activation_dtype)
                there = dataclasses.replace(context, calibration=samples)
                body_pass = dataclasses.replace(self, exact_inputs=False)
                body_pass._rewrite_nodes(inside.graph, there, report, known)
                body_pass._rewrite_bodies(inside.graph, there, report, known, names)
            inside.put_back(names)

    def _rewrite_nodes(
        self,
        graph: gs.Graph,
        context: PassContext,
        report: PassReport,
        coded: Mapping[str, Affine],
    ) -> None:
        self._prepare(graph, context.target)
        inputs = self._rescale(graph, context, report)
        found = self._measured(graph, context)
        plan = found.plan
        scales = {n: context.target.activation_parameters(seen) for n, seen in found.ranges.items()}
        scales |= coded_scales(inputs, plan.shared, context.target.activation_dtype)
        scales |= {plan.shared[n]: known for n, known in coded.items() if _alone(plan, n)}
        for name, reason in plan.skipped.items():
            report.skip(name, reason)
        for node in [*(unit.node for unit in plan.units), *plan.lookups]:
            report.change(node)
        write_lookups(graph, plan.lookups)
        self._write(graph, plan, scales, found.means, context, report)
        for image in inputs:
            image.fold(graph, Names(graph))

    def _write(
        self,
        graph: gs.Graph,
        plan: Plan,
        scales: Mapping[str, Affine],
        means: Mapping[tuple[str, int], Array],
        context: PassContext,
        report: PassReport,
    ) -> None:
        bits = layer_bits(plan, context.target, self._layer_options)
        before, layers = graph.copy(), refinable(plan, bits, self._layer_options)
        if context.calibration is not None and context.calibration.synthetic:
            layers = [layer for layer in layers if layer.bits < 8]  # nearest codes do as well
        Writer(
            graph=graph,
            plan=plan,
            scales=scales,
            target=context.target,
            per_channel=self._per_channel,
            means=means,
            weight_bits=lambda unit: bits[id(unit)],
        ).write()
        if layers:
            feeds, count = context.samples().feeds, self.refining_samples
            left = refine(before, graph, layers, feeds, count, context.seed)
            report.count("refined_layers", len(layers) - len(left))
            report.notes += [f"{name}: {reason}" for name, reason in left.items()]
        pack_codes(graph, plan, bits, context.target)

    def _layer_options(self, node: gs.Node) -> Self:
        return self.options_for(node) or self

    def _prepare(self, graph: gs.Graph, target: Target) -> None:
        infer_shapes(graph)
        write_integer_forms(graph, target, lambda node: self.options_for(node) is not None)

    def _rescale(
        self, graph: gs.Graph, context: PassContext, report: PassReport
    ) -> list[CodedInput]:
        """Changes scales of channels where that loses less; exact in float."""
        plan = plan_static(graph, context.target, self._refuse, products=self.attention)
        if self.equalize:
            taken = {id(n) for n in graph.nodes if getattr(self.options_for(n), "equalize", False)}
            outcome = equalize(
                graph, set(plan.shared), context.samples(), wanted=lambda node: id(node) in taken
            )
            report.count("equalized_groups", outcome.equalized)
        if not self.exact_inputs or context.target.symmetric:
            return []
        return code_inputs(graph, {id(unit.node) for unit in plan.units}, context.samples())

    def _per_channel(self, node: gs.Node) -> bool:
        options = self.options_for(node)
        return options is None or options.per_channel

    def _refuse(self, node: gs.Node) -> str | None:
        """Why the options or an earlier quantization exclude ``node``."""
        options = self.options_for(node)
        if options is None:
            return "skipped by an override"
        if node.op in options.exclude or (options.operators and node.op not in options.operators):
            return f"{node.op} is excluded by the options"
        if node.op == "Gather" and is_constant(node.inputs[0]) and not options.embeddings:
            return "embeddings are left alone"
        makers = [maker_of(t) for t in node.inputs]
        readers = [n for t in node.outputs for n in consumers(t)]
        if any(n is not None and n.op in QUANTIZERS for n in [*makers, *readers]):
            return "already quantized"
        if options.smallest_weight and len(node.inputs) > 1:
            count = volume(node.inputs[1].shape) or 0
            if node.op in ("Conv", "Gemm", "MatMul") and count < options.smallest_weight:
                return f"its {count} weights are fewer than smallest_weight"
        return None

    def _measured(self, graph: gs.Graph, context: PassContext) -> MeasuredPlan:
        def planned(barred: Mapping[str, str]) -> Plan:
            def refuse(node: gs.Node) -> str | None:
                return self._refuse(node) or barred.get(label(node))

            return plan_static(graph, context.target, refuse, products=self.attention)

        return Measuring(
            graph=graph,
            samples=context.samples(),
            target=context.target,
            planned=planned,
            options=self._layer_options,
            defaults=self,
            advance=context.advance,
        ).result()


def _alone(plan: Plan, name: str) -> bool:
    """Whether a tensor has a scale that follows from its values only."""
    return name in plan.shared and plan.observed[plan.shared[name]] == [name]
