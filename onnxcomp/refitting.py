"""New weights for one layer, or for several at once, from what samples show of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import onnx_graphsurgeon as gs

from onnxcomp.clipped_regression import best_clipped_fit
from onnxcomp.factored_layers import FactoredLayer
from onnxcomp.graph import Names, label
from onnxcomp.linear_layers import LinearLayer
from onnxcomp.recovery_targets import Target
from onnxcomp.recurrent_layers import RecurrentPart
from onnxcomp.regression import Fit, best_fit
from onnxcomp.shared_layers import Evidence, Halves, SharedLayers

NO_BETTER = "no other weights do better on samples held back"


class Walk(Protocol):
    """Tells what samples show of layers, each asked for once and in the order of the graph."""

    def evidence(self, layer: LinearLayer | FactoredLayer, target: Target) -> Evidence | str:
        """Of one layer, or what is wrong with it."""

    def joint_evidence(self, shared: SharedLayers) -> Halves | str:
        """Of layers with the same weights."""

    def parts_of(self, node: gs.Node) -> Iterator[RecurrentPart | str]:
        """What an LSTM, GRU or RNN multiplies with weights."""

    def recurrent_evidence(self, part: RecurrentPart) -> Evidence | str:
        """Of one of them."""


class Fitter(Protocol):
    """Gives a layer new weights, or a reason why not."""

    def __call__(
        self, layer: LinearLayer, target: Target, walk: Walk, names: Names, recovered: Recovered
    ) -> None:
        """As `refit` does."""


@dataclass
class Recovered:
    """What `recover` did, by label of the node.

    Attributes:
        refitted: the nodes with new weights, in the order of the graph.
        skipped: the nodes that read something else than in the original and stay as they are,
            with the reason.
        errors: of each node that could be refitted, the error of its outputs before and after, on
            samples held back: E|y - y'|^2 as a share of the variance of y.
    """

    refitted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)


def refit(
    layer: LinearLayer, target: Target, walk: Walk, names: Names, recovered: Recovered
) -> None:
    """Gives ``layer`` new weights, or a reason why not."""
    name = label(layer.node)
    start, with_bias = Fit(layer.weights, layer.bias), layer.takes_bias
    evidence = walk.evidence(layer, target)
    if isinstance(evidence, str):
        recovered.skipped[name] = evidence
        return
    fit, before, after = fitted(evidence, start, with_bias=with_bias)
    recovered.errors[name] = before, min(before, after)
    if not after < before:
        recovered.skipped[name] = NO_BETTER
        return
    layer.write(fit.weights, fit.bias if with_bias else None, names)
    recovered.refitted.append(name)


def fitted(evidence: Evidence, start: Fit, *, with_bias: bool) -> tuple[Fit, float, float]:
    """New weights made from all samples; errors of ``start`` and of what is made without the
    samples held back, on these."""
    chosen = best_fit(*evidence.moments, start, with_bias=with_bias)
    if evidence.rows is None:
        return chosen.whole, chosen.before, chosen.after
    plain = chosen.shown, chosen.whole
    return best_clipped_fit(*evidence.rows, start, plain, chosen.ridge, with_bias=with_bias)


def refit_recurrent(node: gs.Node, walk: Walk, names: Names, recovered: Recovered) -> None:
    """Gives an LSTM, GRU or RNN new weights of its input and of its state, or a reason why not."""
    name, found = label(node), list[tuple[float, float]]()
    for part in walk.parts_of(node):
        evidence = part if isinstance(part, str) else walk.recurrent_evidence(part)
        if isinstance(evidence, str) or isinstance(part, str):
            recovered.skipped[name] = str(evidence)
            continue
        start = Fit(part.weights, part.bias)
        chosen = best_fit(*evidence.moments, start, with_bias=part.takes_bias)
        found.append((chosen.before, min(chosen.before, chosen.after)))
        if chosen.after < chosen.before:
            part.write(chosen.whole.weights, chosen.whole.bias if part.takes_bias else None, names)
    if found:
        recovered.errors[name] = max(before for before, _ in found), max(x for _, x in found)
    if any(after < before for before, after in found):
        recovered.refitted.append(name)
    elif found:
        recovered.skipped.setdefault(name, NO_BETTER)


def refit_together(shared: SharedLayers, walk: Walk, names: Names, recovered: Recovered) -> None:
    """Gives layers with the same weights new ones, or a reason why not."""
    labels = [label(layer.node) for layer in shared.layers]
    found = walk.joint_evidence(shared)
    if isinstance(found, str):
        recovered.skipped |= dict.fromkeys(labels, found)
        return
    chosen = shared.fit(found)
    recovered.errors |= dict.fromkeys(labels, (chosen.before, min(chosen.before, chosen.after)))
    if not chosen.after < chosen.before:
        recovered.skipped |= dict.fromkeys(labels, NO_BETTER)
        return
    shared.write(chosen.whole, names)
    recovered.refitted += labels
