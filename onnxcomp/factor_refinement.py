"""All factors of a layer fitted at once to what the original makes of the samples.

A layer of the original makes y. The row of thin layers in its place reads x', which carries the
errors of all before it, and makes W' x' + b with W' of what form and rank its method has. With
M the ridge regression from x' to y and G = E[x' x'T], E|y - W' x' - b|^2 is, but for a constant,
tr (M - W') G (M - W')T: so the best W' are the factors of M under G. Of matrices that is a closed
form, reduced-rank regression (Izenman, "Reduced-rank regression for the multivariate linear
model", 1975; with a ridge Mukherjee and Zhu, 2011). The ridge draws M towards the original's
weights, which M is where x' is what the original reads. At last the last factor is fitted alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.factored_layers import FactoredLayer
from onnxcomp.gram import Array
from onnxcomp.graph import Names, label
from onnxcomp.recovery_targets import Target
from onnxcomp.refitting import NO_BETTER, Recovered, Walk, fitted
from onnxcomp.regression import Fit, Moments
from onnxcomp.shared_layers import Evidence

DAMPING = 1e-2  # of the mean diagonal of G: what few samples say of rare directions is not exact
RIDGES = (0.1, 1.0, 10.0)  # of the regression, as shares of that


def refit_factors(
    layer: FactoredLayer, target: Target, walk: Walk, names: Names, recovered: Recovered
) -> None:
    """Gives all of a row new weights, or the last one, or a reason why not.

    The factors there are have seen the samples held back, which favours them. So all are fitted
    where factors made without those do better than these with a new last one; or, of a regression
    of what the original makes, better than factors of the original's weights made likewise.
    """
    name, with_bias = label(layer.last.node), layer.last.takes_bias
    evidence = walk.evidence(layer, target)
    if isinstance(evidence, str):
        recovered.skipped[name] = evidence
        return
    expansion, head = layer.parts(layer.arrays)
    start = Fit(head, layer.last.bias)
    fit, before, after = fitted(evidence.through(expansion), start, with_bias=with_bias)
    anew = _anew(layer, evidence, min(before, after), with_bias=with_bias)
    if anew is not None and anew.after < before:
        fit, after = anew.last, anew.after
        layer.write(anew.arrays, names)
    recovered.errors[name] = before, min(before, after)
    if not after < before:
        recovered.skipped[name] = NO_BETTER
        return
    layer.last.write(fit.weights, fit.bias if with_bias else None, names)
    recovered.refitted.append(name)


@dataclass(frozen=True)
class _Row:
    """Weights for a row, the last of them fitted, and their error on samples held back."""

    arrays: list[Array]
    last: Fit
    after: float


def _anew(
    layer: FactoredLayer, evidence: Evidence, error: float, *, with_bias: bool
) -> _Row | None:
    """All factors made from all samples; None where they are no better than an ``error``."""
    shown, held = evidence.moments
    prior = Fit(layer.whole.weights, layer.last.bias)
    tried = list(zip(RIDGES, shown.fits(prior, RIDGES, with_bias=with_bias), strict=False))
    ridge, regression = min(tried, key=lambda pair: held.error(pair[1]))
    plain, fresh = (
        _row(layer, evidence, shown, fit, with_bias=with_bias)[0] for fit in (prior, regression)
    )
    if fresh.after < plain.after:
        whole = next((shown + held).fits(prior, [ridge], with_bias=with_bias))
    elif plain.after < error:
        whole = prior
    else:
        return None
    row, expansion = _row(layer, evidence, shown + held, whole, with_bias=with_bias)
    return replace(row, after=evidence.through(expansion).error(row.last))


def _row(
    layer: FactoredLayer, evidence: Evidence, moments: Moments, fit: Fit, *, with_bias: bool
) -> tuple[_Row, Array]:
    """The row nearest to W of ``fit`` under the G of ``moments``, and its E."""
    gram = moments.metric(centred=with_bias)[0]
    mean = float(np.trace(gram)) / len(gram)
    damping = DAMPING * mean if mean > 0 else 1.0
    arrays = layer.factorized(fit.weights[0], gram + damping * np.eye(len(gram)))
    expansion, head = layer.parts(arrays)
    bias = moments.level(head @ expansion) if with_bias else fit.bias
    last, _, after = fitted(evidence.through(expansion), Fit(head, bias), with_bias=with_bias)
    return _Row(arrays, last, after), expansion
