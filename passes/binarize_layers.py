"""Approximates layers by sums of scaled binary bases, which run on single bits."""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.basis_fitting import FittedBases, fit_layer
from onnxcomp.basis_writing import layer_alone, write_signs
from onnxcomp.binary_bases import MOST
from onnxcomp.binary_sites import binary_layer
from onnxcomp.blas import one_blas_thread
from onnxcomp.blocked_channels import reorders
from onnxcomp.errors import UnsupportedModel
from onnxcomp.graph import Names, all_nodes, is_constant, label, remove_unused, sort_nodes
from onnxcomp.held_out import is_held
from onnxcomp.layer_latency import LEAST_MS, net_times
from onnxcomp.linear_layers import LinearLayer, reason_against
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.passes.lower_binary import LowerBinary
from onnxcomp.recovery_targets import Target, target_of
from onnxcomp.refitting import Recovered, refit
from onnxcomp.regression import Fit
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.side_by_side import SideBySide
from onnxcomp.sign_inputs import SignReader
from onnxcomp.stepping import can_step
from onnxcomp.timing import model_times
from onnxcomp.weight_forms import FormWriter
from onnxcomp.weight_sites import Site, Weight, layout_of

OPERATORS = ("Conv", "Gemm", "MatMul")
WIDEST = 4608  # signs that an output adds up: more would take minutes a layer


@dataclass(frozen=True, kw_only=True)
class BinarizeLayers(Pass):
    """Approximates layers by sums of a few scaled binary bases, fitted to samples.

    Attributes:
        activations: ``binary`` layers read signs, too, and run on single bits; ``float`` only
            weights are made of signs, which makes files smaller and nothing faster.
        bases: of the weights of a layer, or of its weights for each sign of an input.
        activation_bases: signs in place of an input.
        max_error: of what a layer makes, on samples held back, as a share of its variance; layers
            with more stay float.
        choose: ``measured`` keeps layers of bits that are not slower than float on this machine,
            timed beside them; ``always`` those that hold the error.
        refit: fit the float layers behind to what they made before.
        operators: operator types to take; empty for Conv, Gemm and MatMul.
        smallest_weight: weights with fewer elements than this stay float.
        samples: how many to look at.
        threads: of onnxruntime where layers are timed.
    """

    needs_calibration: ClassVar[bool] = True
    trades_precision: ClassVar[bool] = True
    draft_options: ClassVar[Mapping[str, Any]] = {"choose": "always", "refit": False}

    activations: Literal["binary", "float"] = "binary"
    bases: int = 2
    activation_bases: int = 2
    max_error: float = 0.1
    choose: Literal["measured", "always"] = "measured"
    refit: bool = True
    operators: tuple[str, ...] = ()
    smallest_weight: int = 1024
    samples: int = 64
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        for name in ("bases", "activation_bases"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name} must be from 1 to {MOST}, not {getattr(self, name)}")
        for name in ("samples", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.max_error > 0:
            raise ValueError(f"max_error must be above 0, not {self.max_error}")
        for op in self.operators:
            if op not in OPERATORS:
                raise ValueError(f"operators: {op!r} is none of {', '.join(OPERATORS)}")

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the layers with constant weights."""
        return [label(node) for node in graph.nodes if _is_layer(node)]

    @one_blas_thread()
    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Goes through the layers in their order; see `Pass.rewrite`."""
        infer_shapes(graph)
        sort_nodes(graph)
        chosen = self._chosen(graph, report)
        if not chosen:
            return
        if not can_step(graph):
            for node, _ in chosen.values():
                report.skip(node, "the graph makes lists, or has inputs with defaults")
            return
        work = _Work(graph, context, self, report)
        layers = [LinearLayer.of(n) for n in graph.nodes if _is_layer(n) and not reason_against(n)]
        for done, layer in enumerate(layers):
            context.advance(done, len(layers))
            report.current = label(layer.node)
            reason = "it is not chosen"
            if id(layer.node) in chosen:
                reason = work.binarize(layer, chosen[id(layer.node)][1])
                if reason:
                    report.skip(layer.node, reason)
            if reason and self.refit:
                work.refit(layer)
        report.current = ""
        work.finish()

    def _chosen(
        self, graph: gs.Graph, report: PassReport
    ) -> dict[int, tuple[gs.Node, BinarizeLayers]]:
        """Layers to try with their options, by id; reasons for others go to ``report``."""
        chosen = {}
        outside = {id(node) for node in graph.nodes}
        for node in filter(_is_layer, all_nodes(graph)):
            mine = self.options_for(node)
            reason = "the recipe says so" if mine is None else mine._refusal(node)
            if id(node) not in outside:
                reason = "it is inside a body of If, Loop or Scan"
            if reason or mine is None:
                report.skip(node, reason)
            else:
                chosen[id(node)] = node, mine
        return chosen

    def _refusal(self, node: gs.Node) -> str:
        """Why a layer stays float; empty if that is not known before it is tried."""
        weight = node.inputs[1]
        if self.operators and node.op not in self.operators:
            return f"{node.op} is excluded by the options"
        if (count := math.prod(weight.shape)) < self.smallest_weight:
            return f"only {count:,} weights"
        if weight.dtype != np.float32:
            return f"its weights are {weight.dtype}, not float32"
        reason = reason_against(node)
        if reason is not None:
            return reason
        if node.op == "Conv" and node.attrs.get("group", 1) > 1 == weight.shape[1]:
            return "depthwise: an output adds up too few inputs"
        if not np.isfinite(weight.values).all():
            return "its weights are not finite"
        if self.activations == "binary":
            found = binary_layer(node)
            if isinstance(found, str):
                return found
        terms = LinearLayer.of(node).weights.shape[-1] * self.signs
        return f"an output would add up {terms:,} terms" if terms > WIDEST else ""

    @property
    def signs(self) -> int:
        """In place of an input; 1 where it stays float."""
        return self.activation_bases if self.activations == "binary" else 1


def _is_layer(node: gs.Node) -> bool:
    return node.op in OPERATORS and len(node.inputs) > 1 and is_constant(node.inputs[1])


class _Work:
    """One run of the pass: each layer is fitted to what it reads once those before are written."""

    def __init__(
        self, graph: gs.Graph, context: PassContext, options: BinarizeLayers, report: PassReport
    ) -> None:
        self.graph, self.context, self.report = graph, context, report
        self.names = Names(graph)
        self.options, self.before = options, graph.copy()
        feeds = context.samples().feeds(options.samples)
        self.walk = SideBySide(self.before, graph, {}, feeds, context.seed)
        self.known = self.before.tensors()
        self.waiting = {id(node) for node in graph.nodes if _is_layer(node)}
        self.replaced: list[gs.Node] = []  # kept, so that no new node gets the id of one of them
        self.terms: list[gs.Node] = []
        self.stored: list[tuple[gs.Node, FittedBases]] = []
        self.errors: list[float] = []

    def binarize(self, layer: LinearLayer, options: BinarizeLayers) -> str:
        """Puts bases in the place of a layer; says why not, where it stays."""
        samples = self.walk.read_by(layer)
        reader: LinearLayer | SignReader = layer
        if options.activations == "binary":
            shown = [x for index, x in enumerate(samples) if not is_held(index)]
            reader = SignReader.of(layer, shown, options.signs)
        target = replace(self._target(layer), low=-np.inf, high=np.inf)
        evidence = self.walk.evidence(reader, target)
        if isinstance(evidence, str):
            return evidence
        fitted = fit_layer(
            evidence.moments,
            Fit(reader.weights, layer.bias),
            options.bases,
            blocks=options.signs,
            with_bias=layer.takes_bias or reader is not layer,
        )
        if not fitted.error <= options.max_error:
            return f"its outputs would be off by {fitted.error:.2g} of their variance"
        if isinstance(reader, SignReader):
            slower = self._slower(reader, fitted, samples[0].shape, options)
            if slower:
                return slower
        self.waiting.discard(id(layer.node))
        self.report.change(layer.node)
        self.errors.append(fitted.error)
        self._write(reader, fitted)
        return ""

    def refit(self, layer: LinearLayer) -> None:
        """Fits a layer that stays float to what it made, if layers before it have changed."""
        self.waiting.discard(id(layer.node))
        if self.errors:
            refit(layer, self._target(layer), self.walk, self.names, Recovered())

    def finish(self) -> None:
        """Writes layers of signs as operators of bits, and float weights as bits."""
        if self.terms:
            _lower(self.graph, self.terms, self.context)
        writer = FormWriter(self.graph, self.names)
        for node, fitted in self.stored:
            signs = np.concatenate([part.signs[0] for part in fitted.bases], axis=1)
            scales = np.concatenate([part.scales[0] for part in fitted.bases], axis=1)
            fitted_weight = node.inputs[1]
            name = fitted_weight.name.removesuffix(".refitted")  # of all that is written: be brief
            node.inputs[1] = gs.Constant(name, fitted_weight.values)
            site = Site(self.graph, node, 1, layout_of(node, 1), node)
            writer.bases(Weight(node.inputs[1], [site]), signs, scales)
        remove_unused(self.graph)
        sort_nodes(self.graph)
        if self.errors:
            self.report.numbers["binarized_layers"] = len(self.errors)
            self.report.numbers["mean_error"] = round(float(np.mean(self.errors)), 4)
            self.report.numbers["largest_error"] = round(max(self.errors), 4)
        if self.terms and self.options.choose == "measured":
            self._time_whole()

    def _time_whole(self) -> None:
        """Layers that are faster alone may cost the others: onnxruntime moves tensors between."""
        feed = next(self.context.samples().feeds(1))
        timing = model_times([self.before, self.graph], feed, self.options.threads)
        names = ("float_model_ms", "binary_model_ms")
        self.report.numbers |= dict(zip(names, timing.milliseconds, strict=True))
        if timing.ratios[1] > 1 + timing.errors[1]:
            before, after = timing.milliseconds
            said = f"{after:.3g} instead of {before:.3g} ms"
            self.report.notes.append(f"the whole model is slower than in float: {said}")

    def _target(self, layer: LinearLayer) -> Target:
        return target_of(layer, self.known, self.waiting)

    def _slower(
        self,
        reader: SignReader,
        fitted: FittedBases,
        shape: tuple[int, ...],
        options: BinarizeLayers,
    ) -> str:
        """Why a layer of bits is not worth it; empty if it is, or nobody asked."""
        if options.choose == "always":
            return ""
        try:
            float_ms, bits_ms = _layer_times(reader, fitted, shape, options.threads, self.context)
        except UnsupportedModel as error:
            return str(error)
        if bits_ms > float_ms:
            return f"float is faster: {float_ms:.3g} against {bits_ms:.3g} ms"
        self.report.count("float_layers_ms", float_ms)
        self.report.count("binary_layers_ms", bits_ms)
        return ""

    def _write(self, reader: LinearLayer | SignReader, fitted: FittedBases) -> None:
        if isinstance(reader, SignReader):
            whole = reader.whole
            self.replaced += [node for node in (whole.node, whole.adder) if node is not None]
            self.terms += write_signs(self.graph, reader, fitted, self.names)
        else:
            bias = fitted.bias if reader.takes_bias else None
            reader.write(fitted.values, bias, self.names)
            self.stored.append((reader.node, fitted))


def _lower(graph: gs.Graph, terms: Sequence[gs.Node], context: PassContext) -> None:
    """Operators of bits in the place of layers of signs."""
    overrides: dict[str, dict[str, bool]] = {"*": {"skip": True}}
    overrides |= {glob.escape(label(node)): {"skip": False} for node in terms}
    LowerBinary(overrides=overrides).rewrite(graph, context, PassReport())


def _layer_times(
    reader: SignReader,
    fitted: FittedBases,
    shape: tuple[int, ...],
    threads: int,
    context: PassContext,
) -> tuple[float, float]:
    """Milliseconds of a layer in float, without what is reordered around it, and on bits."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    before, _ = layer_alone(reader.whole, shape)
    after, layer = layer_alone(reader.whole, shape)
    _lower(after, write_signs(after, replace(reader, whole=layer), fitted, Names(after)), context)
    opened = [(open_session(graph, threads=threads), {"x": x}) for graph in (before, after)]
    if layer.reads_channels:
        (y,) = opened[0][0].run({"x": x})
        opened += reorders(reader.whole.node.inputs[1].shape, layer.groups, x, y, threads)
    float_ms, bits_ms, *moved = net_times(opened, threads)
    return max(float_ms - sum(moved), LEAST_MS), bits_ms
