"""What samples show of the uses of weights that are to be taken apart: products and lookups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.factorable_weights import is_transposed, place_of, readers_of
from onnxcomp.factored_forms import Evidence
from onnxcomp.gram import Array
from onnxcomp.lowrank import Outputs, damped
from onnxcomp.row_counts import Table, looked_up
from onnxcomp.tied_factors import Tied
from onnxcomp.weight_grams import observed_moments
from onnxcomp.weight_sites import Layout, Site, Weight, layout_of

DAMPING = 1e-3  # of the mean diagonal of G: what few samples say of rare directions is not exact

Advance = Callable[[int, int], None]


def evidence(
    graph: gs.Graph,
    weights: Sequence[gs.Constant],
    samples: Calibration | None,
    limit: int,
    advance: Advance,
) -> Iterator[tuple[gs.Constant, Evidence | None]]:
    """Each weight with what `possible_forms` takes, damped; None where nothing was seen.

    Of products the second moments of `observed_moments`, of lookups the share of each row; of a
    table with both, both or nothing.
    """
    counts = _looked_up(graph, weights, samples, limit)
    with_products = [found for weight in weights if (found := _products(graph, weight)).sites]
    seen = {id(weight.constant) for weight in with_products}
    for weight in weights:
        if id(weight) not in seen:
            yield weight, counts.get(id(weight))
    for found, moments in observed_moments(graph, with_products, samples, limit, advance):
        known = None if moments is None else _damped(moments)
        if len(found.sites) == len(readers_of(found.constant)):
            yield found.constant, known
        elif isinstance(known, np.ndarray) and id(found.constant) in counts:
            yield found.constant, Tied(counts[id(found.constant)], known)
        else:
            yield found.constant, None


def _damped(moments: Array | Outputs) -> Array | Outputs:
    if isinstance(moments, np.ndarray) and moments.ndim == 3:
        moments = moments[0]
    return damped(moments, DAMPING)


def _products(graph: gs.Graph, weight: gs.Constant) -> Weight:
    """A weight with the nodes that multiply with it."""
    found = Weight(weight)
    for node in readers_of(weight):
        if node.op == "Gather":
            continue
        index = place_of(node, weight)
        layout = layout_of(node, index) if not is_transposed(node, index) else _as_stored(weight)
        found.sites.append(Site(graph, node, index, layout, node))
    return found


def _as_stored(weight: gs.Constant) -> Layout:
    return Layout(tuple(int(size) for size in weight.shape), (0, 1), 1)


def _looked_up(
    graph: gs.Graph, weights: Sequence[gs.Constant], samples: Calibration | None, limit: int
) -> Mapping[int, Array]:
    """Shares of the rows of tables, where all lookups in them can be seen."""
    if samples is None:
        return {}
    names = {
        id(weight): [node.inputs[1].name for node in readers_of(weight) if node.op == "Gather"]
        for weight in weights
    }
    tables = [weight for weight in weights if names[id(weight)]]
    wanted = [Table(int(weight.shape[0]), names[id(weight)]) for weight in tables]
    found = zip(tables, looked_up(graph, wanted, samples, limit), strict=True)
    return {id(weight): shares for weight, shares in found if shares is not None}
