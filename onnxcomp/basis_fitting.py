"""Binary bases of a whole layer: what samples show of it in, bases and their error out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.binary_bases import BinaryBases, fit_bases
from onnxcomp.quantization import Array
from onnxcomp.regression import Fit, best_fit
from onnxcomp.shared_layers import Halves


@dataclass(frozen=True)
class FittedBases:
    """y = V x + b with V of binary bases.

    Attributes:
        bases: V of each group.
        bias: b, float64 [groups, out].
        error: E|y - V x - b|^2 on samples held back, as a share of the variance of y.
    """

    bases: Sequence[BinaryBases]
    bias: Array
    error: float

    @property
    def values(self) -> Array:
        """V, float64 [groups, out, d]."""
        return np.stack([part.values for part in self.bases])


def fit_layer(
    halves: Halves, start: Fit, count: int, *, blocks: int = 1, with_bias: bool
) -> FittedBases:
    """Regression of y on x, then the bases nearest to it in its own metric, then a new bias.

    With W the ridge regression, E|y - V x - b|^2 and its ridge together are their least value and
    tr (W - V) G (W - V)T, with G = E[x xT] about the mean of x and the ridge on its diagonal.

    Args:
        halves: of the samples to fit, and of those to judge by, which choose the ridge, too.
        start: what the ridge draws to, and the bias that stays without ``with_bias``.
        count: bases of each block.
        blocks: of inputs with bases of their own.
        with_bias: whether the bias may change.
    """
    shown, held = halves
    choice = best_fit(shown, held, start, with_bias=with_bias)
    metric = shown.metric(centred=with_bias)
    bases = []
    for weights, gram in zip(choice.shown.weights, metric, strict=True):
        mean = float(np.trace(gram)) / len(gram)
        damped = gram + choice.ridge * (mean if mean > 0 else 1.0) * np.eye(len(gram))
        bases.append(fit_bases(weights, damped, count, blocks=blocks))
    values = np.stack([part.values for part in bases])
    bias = shown.level(values) if with_bias else start.bias
    return FittedBases(bases, bias, held.error(Fit(values, bias)))
