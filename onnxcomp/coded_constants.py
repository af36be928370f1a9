"""The constants of a graph that get codes, and what is known of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.coding_inputs import NOT_READ
from onnxcomp.coding_quantizer import CodedWeight, quantize_weight
from onnxcomp.coding_refit import Bias
from onnxcomp.graph import all_graphs
from onnxcomp.held_out import HELD_EVERY
from onnxcomp.quantization import Array
from onnxcomp.rewriting import peek
from onnxcomp.shelf import SHELF, Entry
from onnxcomp.weight_sites import Layout, Weight

SMALLEST = 64  # elements; smaller constants stay: a container keeps them within the graph
TRIAL = 0.3  # first trial step, in standard deviations of the weight
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # of products of different inputs that are let go


@dataclass
class Coded:
    """A constant that gets codes.

    Attributes:
        name: of the constant.
        values: float32.
        layout: how it is a matrix.
        rounded: why its codes are the nearest ones; empty where they are fitted to its inputs.
        bias: what its errors' means are taken from, where there is one.
        multiples: of the step, for each row of a table; None for the same step everywhere.
        noise: share of the outputs' energy that a step of 1 costs; 0 where it costs none.
    """

    name: str
    values: Array
    layout: Layout
    rounded: str = NOT_READ
    bias: Bias | None = None
    multiples: Array | None = None
    noise: float = 0.0
    _inputs: Entry | None = None

    @property
    def gram(self) -> Array | None:
        """Of its inputs, float32, where known; not to be kept for longer than it is used."""
        return None if self._inputs is None else self._inputs.arrays[0]

    def at(self, step: float, trellis: bool = False) -> CodedWeight:
        """Its codes with that step."""
        return quantize_weight(
            self.values, self.layout, self.gram, step, multiples=self.multiples, trellis=trellis
        )

    def trust(self, shown: Array, held: Array) -> None:
        """Takes what both of two Gram matrices say, as far as the first foretells the second.

        Codes fitted to few samples make errors that only those samples do not see. So products of
        different inputs count by as much as costs least on samples that the codes were not
        fitted to.

        Args:
            shown: of the samples that are not held back.
            held: of the others.
        """
        step = TRIAL * float(np.std(self.values, dtype=np.float64))
        found = {}
        for share in SHARES if step > 0 else ():
            coded = quantize_weight(self.values, self.layout, shrunk(shown, share), step)
            error = self.layout.matrix(self.values - coded.values).astype(np.float64)
            if held.ndim == 3:
                error = error.reshape(len(held), -1, error.shape[1])
            found[share] = float(np.sum((error @ held) * error))
        best = min(found, key=lambda share: found[share], default=0.0)
        both = shown + (held - shown) / HELD_EVERY
        self._inputs, self.rounded = SHELF.put([shrunk(both, best).astype(np.float32)]), ""

    def take_inputs(self, other: Coded) -> None:
        """Takes what is known of the inputs of another, which has some of its rows."""
        self._inputs, self.rounded = other._inputs, other.rounded


def shrunk(gram: Array, share: float) -> Array:
    """G with ``share`` of all that is off its diagonal let go; [*groups, d, d]."""
    keep = 1 - share + share * np.eye(gram.shape[-1])
    return np.asarray(gram * keep)


def constants_to_code(
    graph: gs.Graph, found: Sequence[Weight], left: Collection[str]
) -> tuple[list[Coded], dict[str, Array]]:
    """The float32 constants that get codes, but those left: matrices, and vectors by name."""
    sites = {weight.constant.name: weight for weight in found}
    weights, vectors = [], dict[str, Array]()
    for name, constant in _once(graph).items():
        if constant.dtype != np.float32 or np.prod(constant.shape, dtype=np.int64) < SMALLEST:
            continue
        if name in left:
            continue
        values = peek(constant)
        if not np.isfinite(values).all() or not values.any():
            continue
        if name in sites:
            weights.append(Coded(name, values, sites[name].layout))
        elif values.size == max(values.shape):
            if len(np.unique(values)) > SMALLEST // 2:
                vectors[name] = values
        elif len(np.unique(values)) > values.size // 16:  # no mask, no table of constants
            axes = tuple(range(values.ndim))
            weights.append(Coded(name, values, Layout(values.shape, axes, 1)))
    return weights, vectors


def _once(graph: gs.Graph) -> dict[str, gs.Constant]:
    """Constants whose name no other tensor of the graph or of its bodies has."""
    found: dict[str, gs.Constant] = {}
    uses: Counter[str] = Counter()
    seen: set[int] = set()
    for body in all_graphs(graph):
        tensors = [*body.inputs, *body.outputs]
        for node in body.nodes:
            tensors += [*node.inputs, *node.outputs]
        for tensor in tensors:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            uses[tensor.name] += 1
            if isinstance(tensor, gs.Constant):
                found[tensor.name] = tensor
        for tensor in body.outputs:  # an output has to be a tensor that a node makes
            uses[tensor.name] += 1
    return {name: constant for name, constant in found.items() if uses[name] == 1}
