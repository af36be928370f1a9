"""Layers that get zeros, fitted to what the original makes of what sparse layers before them make.

A layer of the original makes y. In its place V x' + b, V with zeros, reads x', which carries the
errors of all layers before it. With M the ridge regression from x' to y and G = E[x' x'T] with
the same ridge, E|y - V x' - b|^2 and the ridge together are tr (M - V) G (M - V)T but for a
constant: so V is what `sparse_fitting` makes of M and G.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.graph import Names, label
from onnxcomp.linear_layers import LinearLayer
from onnxcomp.quantization import Array
from onnxcomp.recovery_targets import Target
from onnxcomp.refitting import Recovered, Walk
from onnxcomp.regression import Fit
from onnxcomp.sparse_fitting import refit
from onnxcomp.sparse_layers import SparseLayer, Zeros
from onnxcomp.weight_sites import Weight

DAMPING = 1e-2  # of the mean diagonal of G, at least: V uses what samples say of rare directions
ROWS = 1 << 15  # of samples, for a layer
STEPS, REFITS = 4, 8  # towards what a Relu lets through, and of conjugate gradients in each
PRODUCTS = ("Conv", "Gemm", "MatMul")


def is_fitted_alone(weight: Weight, outside: set[int]) -> bool:
    """Whether a weight is that of one layer among the nodes with ids ``outside`` of bodies."""
    if len(weight.sites) != 1 or weight.others:
        return False
    (site,) = weight.sites
    is_product = site.node is site.layer and site.index == 1 and site.node.op in PRODUCTS
    is_matrix = site.node.op == "Conv" or len(site.layout.shape) == 2
    return is_product and is_matrix and id(site.node) in outside


@dataclass(frozen=True)
class SparseFitter:
    """Gives a layer weights with zeros, as `recover` comes to it.

    Attributes:
        weight: of the layer.
        zeros: that it gets.
    """

    weight: Weight
    zeros: Zeros

    def __call__(
        self, layer: LinearLayer, target: Target, walk: Walk, names: Names, recovered: Recovered
    ) -> None:
        """Writes weights under the name that those of the layer have, and a bias where it may."""
        name = label(layer.node)
        evidence = walk.evidence(layer, target)
        if isinstance(evidence, str):
            recovered.skipped[name] = evidence
            return
        shown, held = evidence.moments
        start, with_bias = Fit(layer.weights, layer.bias), layer.takes_bias
        moments = shown + held
        ridge = max(DAMPING, moments.width / moments.count)
        wanted = next(moments.fits(start, [ridge], with_bias=with_bias))
        values = self._sparse(wanted.weights, moments.metric(centred=with_bias), ridge)
        fit = Fit(values, moments.level(values) if with_bias else start.bias)
        if evidence.rows is not None:
            rows = evidence.rows[0] + evidence.rows[1]
            fit = rows.fit(fit, start, ridge, with_bias=with_bias, steps=STEPS, nearest=_with_zeros)
        constant = layer.node.inputs[1]
        layer.write(fit.weights, fit.bias if with_bias else None, names)
        layer.node.inputs[1].name = constant.name
        recovered.refitted.append(name)

    def _sparse(self, wanted: Array, gram: Array, ridge: float) -> Array:
        """V [groups, out, d] near M under G, both of all groups."""
        layer = SparseLayer.of(self.weight, gram, self.zeros.pattern, values=wanted)
        return replace(layer, damping=ridge).sparse_matrix(self.zeros).reshape(wanted.shape)


def _with_zeros(wanted: Array, gram: Array, sparse: Array) -> Array:
    """The weights nearest to M under G with the zeros of ``sparse``, of each group."""
    groups = zip(wanted, gram, sparse, strict=True)
    return np.stack([refit(*group, damping=0.0, steps=REFITS) for group in groups])
