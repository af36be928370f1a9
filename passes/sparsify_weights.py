"""Sets weights to zero, in the pattern a sparse kernel wants, and fits those that stay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.graph import Names, label, replace_constants
from onnxcomp.output_noise import OutputNoise
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.quantization import Array
from onnxcomp.sparse_layers import SparseLayer, shared_sparsity
from onnxcomp.sparsity import Pattern
from onnxcomp.weight_grams import observed_grams
from onnxcomp.weight_sites import WEIGHTS, Weight, find_weights, refused_nodes

MOST = 0.95  # sparsity of a layer where they share it out
JUDGED = 32  # samples that layers are weighed by


@dataclass(frozen=True, kw_only=True)
class SparsifyWeights(Pass):
    """Sets weights to zero, and fits those that stay to what the layer made before.

    Attributes:
        sparsity: the fraction of zeros in all weights taken together, 0 to 1; of n:m patterns the
            pattern says it.
        pattern: ``unstructured``; blocks that are zero as a whole, outputs x inputs, such as
            ``4x4``, ``1x4`` or ``16x1``; or ``2:4``, two of four neighbouring inputs stay.
        method: ``magnitude`` removes small weights; ``wanda`` those with little effect on the
            layer; ``sparsegpt`` moves the others to make up for it; ``alternate`` looks for both
            at once, with the least loss. ``auto`` is alternate with samples, else magnitude.
        allocation: ``uniform`` the same sparsity everywhere; ``global`` more where the outputs lose
            less, measured.
        steps: times the sparsity grows (by a cubic law) with inputs of layers observed anew.
        operators: operator types to take; empty for all that multiply with weights.
        smallest_weight: weights with fewer elements than this stay dense.
        samples: how many to look at.
    """

    sparsity: float = 0.5
    pattern: str = "unstructured"
    method: Literal["auto", "magnitude", "wanda", "sparsegpt", "alternate"] = "auto"
    allocation: Literal["uniform", "global"] = "uniform"
    steps: int = 1
    operators: tuple[str, ...] = ()
    smallest_weight: int = 1024
    samples: int = 256

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be from 0 to below 1, not {self.sparsity}")
        pattern = Pattern.named(self.pattern)
        if pattern.of and self.allocation == "global":
            raise ValueError(f"pattern {self.pattern} leaves nothing to allocate")
        if pattern.of and self.steps > 1:
            raise ValueError(f"pattern {self.pattern} cannot grow in steps")
        for name in ("steps", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for op in self.operators:
            if op not in WEIGHTS or op == "Gather":
                raise ValueError(f"operators: {op!r} does not multiply with weights")

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the layers that would get zeros."""
        nodes = [site.layer for w, _ in self._chosen(graph, PassReport()) for site in w.sites]
        return list(dict.fromkeys(label(node) for node in nodes))

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Removes weights of all layers, step by step; see `Pass.rewrite`."""
        chosen = {weight.constant.name: mine for weight, mine in self._chosen(graph, report)}
        if not chosen:
            return
        samples = context.calibration if context.has_real_samples else None
        if self.method in ("wanda", "sparsegpt", "alternate"):
            samples = context.samples()
        names = Names(graph)
        for step in range(1, self.steps + 1):
            weights = [w for w in find_weights(graph) if w.constant.name in chosen]
            observed = observed_grams(graph, weights, samples, self.samples, context.advance)
            layers: Iterable[SparseLayer] = (
                SparseLayer.of(weight, gram, chosen[weight.constant.name]._zeros)
                for weight, gram in observed
            )
            share = 1 - (1 - step / self.steps) ** 3
            wanted = {name: share * mine.sparsity for name, mine in chosen.items()}
            if self.allocation == "global":  # all have to be known; else each is let go
                layers = list(layers)
                wanted = self._shared_out(graph, layers, share * self.sparsity, samples)
            made, blind = dict[str, Array](), 0
            for layer in layers:
                report.current = label(layer.weight.sites[0].layer)
                made[layer.name] = layer.sparse(chosen[layer.name].method, wanted[layer.name])
                blind += layer.grams is None
            report.current = ""
            new = {old: names.fresh(f"{old}.sparse") if step == 1 else old for old in made}
            replace_constants(graph, {o: gs.Constant(n, made[o]) for o, n in new.items()})
            chosen = {n: chosen[o] for o, n in new.items()}
        self._tell(weights, made, blind, report)

    def _shared_out(
        self,
        graph: gs.Graph,
        layers: Sequence[SparseLayer],
        sparsity: float,
        samples: Calibration | None,
    ) -> dict[str, float]:
        """The sparsity of each layer, by what the outputs lose with that of all in one alone."""
        prices = [1.0] * len(layers)
        if samples is not None:
            names = [layer.name for layer in layers]
            noise = OutputNoise(graph, names, list(samples.feeds(JUDGED)))
            for at, layer in enumerate(layers):
                sparse = layer.sparse("sparsegpt", sparsity)
                alone = layer.scores[: round(sparsity * len(layer.scores))].sum()
                effect = float(noise.shares({layer.name: sparse}).mean())
                prices[at] = effect / alone if alone > 0 else 0.0
        found = shared_sparsity(layers, sparsity, prices, MOST)
        return {layer.name: part for layer, part in zip(layers, found, strict=True)}

    def _tell(
        self, weights: Sequence[Weight], made: Mapping[str, Array], blind: int, report: PassReport
    ) -> None:
        zeros = sum(int(np.count_nonzero(values == 0)) for values in made.values())
        report.numbers["sparsity"] = round(zeros / sum(v.size for v in made.values()), 4)
        report.numbers["sparse_weights"] = len(weights)
        for weight in weights:
            for site in weight.sites:
                report.change(site.layer)
        if blind:
            report.notes.append(
                f"{blind} weights became zero by their own size alone: no samples were given, or "
                "what they are multiplied with is inside a body, too wide, or was not seen"
            )

    def _chosen(self, graph: gs.Graph, report: PassReport) -> list[tuple[Weight, SparsifyWeights]]:
        """Weights that get zeros, with their options; reasons for others go to ``report``."""
        chosen = []
        for node, reason in refused_nodes(graph):
            report.skip(node, reason)
        for weight in find_weights(graph):
            mine = self.options_for(weight.sites[0].layer)
            reason = "the recipe says so" if mine is None else mine._refusal(weight)
            if reason or mine is None:
                for site in weight.sites:
                    if site.layer.op != "Gather":
                        report.skip(site.layer, reason)
            else:
                chosen.append((weight, mine))
        return chosen

    @property
    def _zeros(self) -> Pattern:
        return Pattern.named(self.pattern)

    def _refusal(self, weight: Weight) -> str:
        """Why a weight stays dense; empty if it does not."""
        nodes = [site.layer for site in weight.sites]
        if any(node.op == "Gather" for node in nodes):
            return "its rows are looked up, not multiplied with"
        others = [n.op for n in nodes if self.operators and n.op not in self.operators]
        if others:
            return f"{others[0]} is excluded by the options"
        count = math.prod(weight.layout.shape)
        if count < self.smallest_weight:
            return f"only {count:,} weights"
        if any(
            n.op == "Conv" and n.attrs.get("group", 1) > 1 == n.inputs[1].shape[1] for n in nodes
        ):
            return "depthwise: runs faster dense"
        if weight.others:
            return "its weight is read in another way, too"
        return "" if np.isfinite(weight.constant.values).all() else "its weights are not finite"
