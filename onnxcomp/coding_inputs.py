"""What is known of the inputs of each weight when it gets codes, and why where nothing is.

Moments are those of two parts of the samples: one that codes may be fitted to, one to judge by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.gram import GramResult
from onnxcomp.held_out import HELD_EVERY
from onnxcomp.quantization import Array
from onnxcomp.weight_grams import WIDEST, Advance, observed_inputs
from onnxcomp.weight_sites import Layout, Weight

RECURRENT = ("GRU", "LSTM", "RNN")
NOT_GIVEN = "no samples were given"
NOT_READ = "no layer multiplies with it"
ROWS_LOOKED_UP = "its rows are looked up"


@dataclass(frozen=True)
class Inputs:
    """Of one weight.

    Attributes:
        layout: of the weight, its columns those that the moments are about.
        shown: moments of the samples to fit.
        held: of the samples to judge by.
    """

    layout: Layout
    shown: GramResult
    held: GramResult

    @property
    def mean(self) -> Array:
        """E[x] over all samples, [d] or [groups, d]."""
        return np.asarray(self.shown.mean + (self.held.mean - self.shown.mean) / HELD_EVERY)


def observed(
    graph: gs.Graph,
    weights: Sequence[Weight],
    parts: tuple[Calibration, Calibration],
    advance: Advance,
) -> Iterator[tuple[str, Inputs | str]]:
    """The name of each weight with its inputs, or why it has none to go by."""
    laid = [_by_channels(weight) for weight in weights]
    pairs = zip(
        *(observed_inputs(graph, laid, part, len(part), advance) for part in parts), strict=True
    )
    for (weight, shown), (_, held) in pairs:
        layout = weight.layout
        if _fits(shown, weight) and _fits(held, weight) and shown is not None and held is not None:
            yield weight.constant.name, Inputs(layout, shown, held)
        else:
            yield weight.constant.name, why_not(weight)


def why_not(weight: Weight) -> str:
    """Why nothing is known of a weight's inputs though there are samples."""
    if weight.is_table:
        return ROWS_LOOKED_UP
    nodes = [site.node for site in weight.sites]
    columns = weight.layout.columns
    if columns > WIDEST:
        return f"products of its {columns} inputs are too many to keep"
    if any(node.op == "ConvTranspose" for node in nodes):
        return "it is the kernel of a grouped ConvTranspose"
    if any(node.op in RECURRENT for node in nodes):
        return "the states that it is multiplied with are no output, or those of two directions"
    if any(site.layout != weight.layout for site in weight.sites):
        return "several layers read it in different ways"
    return "the samples do not show its inputs: they are inside a body, constant or not finite"


def _fits(found: GramResult | None, weight: Weight) -> bool:
    """Whether all readers of a weight agree on what they know of its inputs."""
    layout = weight.layout
    if found is None or any(site.layout != layout for site in weight.sites):
        return False
    gram = found.matrix
    groups = len(gram) if gram.ndim == 3 else 1
    return gram.shape[-1] == layout.columns and layout.rows % groups == 0


def _by_channels(weight: Weight) -> Weight:
    """A weight with a row for each position of its kernel, where patches cannot be looked at.

    Those are patches of a Conv that are too wide, and what a ConvTranspose makes of one input.
    """
    operators = {site.node.op for site in weight.sites}
    layout = weight.layout
    grouped = any(site.node.attrs.get("group", 1) != 1 for site in weight.sites)
    if grouped or weight.others:
        return weight
    axes = range(2, len(layout.shape))
    if operators == {"ConvTranspose"}:
        laid = Layout(layout.shape, (1, *axes, 0), len(layout.shape) - 1)
    elif operators == {"Conv"} and layout.columns > WIDEST >= layout.shape[1]:
        laid = Layout(layout.shape, (0, *axes, 1), len(layout.shape) - 1)
    else:
        return weight
    return replace(weight, sites=[replace(site, layout=laid) for site in weight.sites])
