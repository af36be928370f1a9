"""How many zeros each weight gets, so that the outputs lose least for what zeros save together.

Each weight is made sparse alone, at some sparsities, and the model is run: what its outputs lose is
a curve, and curves add up. Errors of early layers look worse than they are where later ones are
fitted to what sparse layers before them make: those take back some of it.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.allocation import Choice, allocate
from onnxcomp.graph import label
from onnxcomp.macs import macs_by_node
from onnxcomp.output_noise import OutputNoise
from onnxcomp.quantization import Array
from onnxcomp.resources import Product, Resource
from onnxcomp.runtime import Feed
from onnxcomp.sparse_layers import SparseLayer, Zeros
from onnxcomp.weight_sites import Weight

MEASURED = (0.4, 0.6, 0.8, 0.95)  # sparsities of a curve
PARTS = 100  # of a weight that are given out
LEFT = 1 / 3  # of the first layer's effect when all behind it are fitted
LEAST, LARGEST = 1e-12, 1e6  # effects that are told apart


def multiplications(graph: gs.Graph, weights: Sequence[Weight], feed: Feed) -> dict[str, float]:
    """MACs of a run on ``feed`` in the layers that read each weight, by name.

    A layer whose MACs are not known, such as one in a body, counts as if it read one row.
    """
    shapes = {name: np.shape(values) for name, values in feed.items()}
    known = {node.name: node.macs for node in macs_by_node(graph, shapes)}
    found = {}
    for weight in weights:
        macs = [known.get(label(site.layer)) for site in weight.sites]
        size = math.prod(weight.layout.shape)
        found[weight.constant.name] = float(sum(size if m is None else m for m in macs))
    return found


def effects(
    layers: Sequence[SparseLayer], noise: OutputNoise | None, in_order: Container[str]
) -> dict[str, Array]:
    """What a model loses with 0, 1, ... of `PARTS` of each weight gone, [PARTS + 1], by name.

    Args:
        layers: of the weights, in the order of the graph.
        noise: tells what outputs lose; None for what layers lose by themselves.
        in_order: names of those that are fitted to what those before them make.
    """
    found = {}
    for at, layer in enumerate(layers):
        if noise is None:
            ends = np.arange(PARTS + 1) * len(layer.scores) // PARTS
            found[layer.name] = np.append(0.0, np.cumsum(layer.scores))[ends]
            continue
        made = [layer.sparse(Zeros(layer.pattern, "sparsegpt", s)) for s in MEASURED]
        losses = [float(noise.shares({layer.name: values}).mean()) for values in made]
        depth = at / len(layers)
        share = LEFT + (1 - LEFT) * depth if layer.name in in_order else 1.0
        found[layer.name] = share * _between(losses)
    return found


def _between(losses: Sequence[float]) -> Array:
    """A curve through what was measured: quadratic at first, then its logarithm is linear."""
    at = np.linspace(0, 1, PARTS + 1)
    known = np.clip(np.maximum.accumulate(losses), LEAST, LARGEST)
    curve = np.exp(np.interp(at, MEASURED, np.log(known)))
    near = known[0] * np.square(at / MEASURED[0])
    return np.asarray(np.where(at < MEASURED[0], near, curve))


def shared_sparsity(
    curves: Mapping[str, Array], work: Mapping[str, float], sparsity: float, most: float
) -> dict[str, float]:
    """The sparsity of each weight with which all together lose least.

    Args:
        curves: what is lost with 0, 1, ... of `PARTS` gone, by name.
        work: what a whole weight counts for.
        sparsity: the share of all work that is to be saved, at most ``most``.
        most: sparsity of a weight.
    """
    choices = [Choice.of_removal(name, curve, max_sparsity=most) for name, curve in curves.items()]
    terms = tuple(Product.of_powers(work[name], {name: 1}) for name in curves)
    resource = Resource(terms=terms, unit="of work")
    budget = (1 - min(sparsity, most)) * resource.value()
    levels = allocate(choices, resource, budget * (1 + 1e-9)).levels
    return {name: 1 - level / PARTS for name, level in levels.items()}
