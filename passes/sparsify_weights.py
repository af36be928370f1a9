"""Sets weights to zero, in the pattern a sparse kernel wants, and fits those that stay."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.blas import one_blas_thread
from onnxcomp.calibration import Calibration
from onnxcomp.channel_order import alike_together, observed_scores
from onnxcomp.channels import find_channels
from onnxcomp.errors import UnsupportedModel
from onnxcomp.graph import Names, constants, label, replace_constants, sort_nodes
from onnxcomp.output_noise import OutputNoise
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.quantization import Array
from onnxcomp.recovery import recover
from onnxcomp.runtime import Feed
from onnxcomp.shapes import infer_shapes
from onnxcomp.sparse_allocation import effects, multiplications, shared_sparsity
from onnxcomp.sparse_layers import SparseLayer, Zeros
from onnxcomp.sparse_recovery import ROWS, SparseFitter, is_fitted_alone
from onnxcomp.sparsity import Pattern
from onnxcomp.stepping import can_step
from onnxcomp.weight_grams import observed_grams
from onnxcomp.weight_sites import WEIGHTS, Weight, find_weights, refused_nodes

MOST = 0.95  # sparsity of a layer where they share it out
JUDGED = 32  # samples that channels are ordered by
WEIGHED = 16  # samples that layers are weighed by
ROUNDING = 1e-6  # of the outputs' energy, where sums were added up in another order


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
            less, measured; ``macs`` likewise, but ``sparsity`` is that of all multiplications with
            these weights, and so nearly that of their time.
        steps: times the sparsity grows (by a cubic law) with inputs of layers observed anew.
        operators: operator types to take; empty for all that multiply with weights.
        smallest_weight: weights with fewer elements than this stay dense.
        refine: sparsegpt and alternate fit a layer to what the original makes of the samples, from
            what sparse layers before it make; so do layers that stay dense. Else each is fitted
            by itself.
        reorder: with samples, channels that are alike become neighbours where nobody outside of
            the model sees it, so that blocks of zeros cost less.
        samples: how many to look at.
    """

    sparsity: float = 0.5
    pattern: str = "unstructured"
    method: Literal["auto", "magnitude", "wanda", "sparsegpt", "alternate"] = "auto"
    allocation: Literal["uniform", "global", "macs"] = "uniform"
    steps: int = 1
    operators: tuple[str, ...] = ()
    smallest_weight: int = 1024
    refine: bool = True
    reorder: bool = True
    samples: int = 256

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be from 0 to below 1, not {self.sparsity}")
        pattern = Pattern.named(self.pattern)
        if pattern.of and self.allocation != "uniform":
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

    @one_blas_thread()
    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Removes weights of all layers, step by step; see `Pass.rewrite`."""
        sort_nodes(graph)
        chosen = {weight.constant.name: mine for weight, mine in self._chosen(graph, report)}
        if not chosen:
            return
        samples = context.calibration if context.has_real_samples else None
        if self.method in ("wanda", "sparsegpt", "alternate"):
            samples = context.samples()
        if self.reorder:
            chosen = self._reordered(graph, chosen, samples, context, report)
        names, original, blind = Names(graph), graph.copy(), 0
        for step in range(1, self.steps + 1):
            share = 1 - (1 - step / self.steps) ** 3
            zeros = {name: mine._zeros(share) for name, mine in chosen.items()}
            later = self._in_order(graph, zeros, context)
            if self.allocation != "uniform":
                wanted = share * self.sparsity
                zeros = self._shared_out(graph, zeros, wanted, later, samples, context, report)
            now = {name: mine for name, mine in zeros.items() if name not in later}
            made = {}
            for layer in self._layers(graph, now, samples, context):
                report.current = label(layer.weight.sites[0].layer)
                made[layer.name] = layer.sparse(now[layer.name])
                blind += layer.grams is None and step == self.steps
            made |= {name: constants(graph)[name].values for name in later}
            new = {old: names.fresh(f"{old}.sparse") if step == 1 else old for old in made}
            replace_constants(graph, {o: gs.Constant(n, made[o]) for o, n in new.items()})
            chosen = {n: chosen[o] for o, n in new.items()}
            if later:
                refined = {new[name]: zeros[name] for name in later}
                settled = {new[name] for name in now}
                blind += self._refined(original, graph, refined, settled, context, report)
        self._tell(graph, chosen, blind, report)

    def _reordered(
        self,
        graph: gs.Graph,
        chosen: Mapping[str, SparsifyWeights],
        samples: Calibration | None,
        context: PassContext,
        report: PassReport,
    ) -> dict[str, SparsifyWeights]:
        """Puts channels that are alike side by side; the weights by their new names."""
        patterns = {name: Pattern.named(mine.pattern) for name, mine in chosen.items()}
        blocks = {
            weight.constant.name: (weight, patterns[weight.constant.name])
            for weight in find_weights(graph)
            if weight.constant.name in chosen and patterns[weight.constant.name].has_blocks
        }
        if samples is None or not blocks:
            return dict(chosen)
        infer_shapes(graph)
        scores = observed_scores(graph, blocks, samples, JUDGED, context.advance)
        made = alike_together(graph, find_channels(graph), scores)
        if not made or not _is_the_same(graph, made, next(iter(samples.feeds(1)))):
            return dict(chosen)
        names = Names(graph)
        fresh = {name: names.fresh(f"{name}.ordered") for name in made}
        replace_constants(graph, {name: gs.Constant(fresh[name], made[name]) for name in made})
        report.numbers["reordered_weights"] = len(made.keys() & chosen.keys())
        return {fresh.get(name, name): mine for name, mine in chosen.items()}

    def _in_order(self, graph: gs.Graph, names: Container[str], context: PassContext) -> set[str]:
        """Which weights are fitted to what layers before them make when those have their zeros."""
        moves = self.refine and self.method in ("auto", "sparsegpt", "alternate")
        if not (moves and context.has_real_samples and can_step(graph)):
            return set()
        outside = {id(node) for node in graph.nodes}
        weights = [w for w in find_weights(graph) if w.constant.name in names]
        return {w.constant.name for w in weights if is_fitted_alone(w, outside)}

    def _refined(
        self,
        original: gs.Graph,
        graph: gs.Graph,
        zeros: Mapping[str, Zeros],
        settled: Container[str],
        context: PassContext,
        report: PassReport,
    ) -> int:
        """Gives weights their zeros in the order of the graph; how many saw no samples.

        Those called ``settled`` have theirs, and keep them.
        """
        known = find_weights(graph)
        weights = [w for w in known if w.constant.name in zeros]
        done = [w for w in known if w.constant.name in settled]
        fitters = {
            label(weight.sites[0].layer): SparseFitter(weight, zeros[weight.constant.name])
            for weight in weights
        }
        found = recover(
            original,
            graph,
            {},
            context.samples(),
            samples=self.samples,
            rows=ROWS,
            seed=context.seed,
            fitters=fitters,
            settled={label(site.layer) for weight in done for site in weight.sites},
            advance=context.advance,
        )
        report.numbers["refitted_layers"] = len(set(found.refitted) - fitters.keys())
        left = {f.weight.constant.name: f for name, f in fitters.items() if name in found.skipped}
        made, blind = {}, 0
        for layer in self._layers(graph, {n: zeros[n] for n in left}, context.samples(), context):
            made[layer.name] = layer.sparse(zeros[layer.name])
            blind += layer.grams is None
        replace_constants(graph, {name: gs.Constant(name, made[name]) for name in made})
        return blind

    def _layers(
        self,
        graph: gs.Graph,
        zeros: Mapping[str, Zeros],
        samples: Calibration | None,
        context: PassContext,
    ) -> Iterator[SparseLayer]:
        """The layers of some weights with what is known of their inputs as they are now."""
        weights = [w for w in find_weights(graph) if w.constant.name in zeros]
        observed = observed_grams(graph, weights, samples, self.samples, context.advance)
        for weight, gram in observed:
            yield SparseLayer.of(weight, gram, zeros[weight.constant.name].pattern)

    def _shared_out(
        self,
        graph: gs.Graph,
        zeros: Mapping[str, Zeros],
        sparsity: float,
        in_order: Container[str],
        samples: Calibration | None,
        context: PassContext,
        report: PassReport,
    ) -> dict[str, Zeros]:
        """With the sparsity of each, by what the outputs lose with each alone."""
        weights = [w for w in find_weights(graph) if w.constant.name in zeros]
        place = {weight.constant.name: at for at, weight in enumerate(weights)}
        layers = sorted(
            self._layers(graph, zeros, samples, context), key=lambda layer: place[layer.name]
        )
        noise = None
        if samples is not None:
            noise = OutputNoise(graph, list(place), list(samples.feeds(WEIGHED)))
        work = {layer.name: float(layer.size) for layer in layers}
        if self.allocation == "macs":
            work = multiplications(graph, weights, next(context.samples().feeds(1)))
        curves = effects(layers, noise, in_order)
        found = shared_sparsity(curves, work, sparsity, MOST)
        if self.allocation == "macs":
            saved = sum(work[name] * part for name, part in found.items())
            report.numbers["sparsity_by_macs"] = round(saved / sum(work.values()), 4)
        return {name: replace(zeros[name], sparsity=part) for name, part in found.items()}

    def _tell(self, graph: gs.Graph, names: Container[str], blind: int, report: PassReport) -> None:
        weights = [weight for weight in find_weights(graph) if weight.constant.name in names]
        values = [np.asarray(weight.constant.values) for weight in weights]
        zeros = sum(int(np.count_nonzero(array == 0)) for array in values)
        report.current = ""
        report.numbers["sparsity"] = round(zeros / sum(array.size for array in values), 4)
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

    def _zeros(self, share: float) -> Zeros:
        return Zeros(Pattern.named(self.pattern), self.method, share * self.sparsity)

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


def _is_the_same(graph: gs.Graph, made: Mapping[str, Array], feed: Feed) -> bool:
    """Whether a model answers as before with other values of its constants."""
    try:
        noise = OutputNoise(graph, list(made), [feed])
    except UnsupportedModel:  # no output is of floats: nothing shows it
        return False
    return float(noise.shares(made).max()) < ROUNDING
