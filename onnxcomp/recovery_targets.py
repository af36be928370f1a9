"""What a layer is to make when it is repaired: the tensor to compare, and what cuts it off."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import consumers, is_constant, producer
from onnxcomp.linear_layers import LinearLayer


@dataclass(frozen=True)
class Target:
    """What a layer is to make.

    Attributes:
        total: name of the tensor to be as in the original.
        other: what is added to the layer's output to make it, or None.
        low, high: bounds that ``total`` is cut off at before anything reads it.
    """

    total: str
    other: str | None
    low: float
    high: float

    @property
    def is_clipped(self) -> bool:
        """Whether there is a bound."""
        return bool(np.isfinite(self.low) or np.isfinite(self.high))


def plain_target(layer: LinearLayer) -> Target:
    """What ``layer`` made in the original, whatever becomes of it."""
    return Target(layer.made.name, None, -np.inf, np.inf)


def target_of(layer: LinearLayer, known: Container[str], waiting: set[int]) -> Target:
    """What ``layer`` is to make, along with what it is added to.

    Args:
        layer: of the pruned graph.
        known: names of the tensors of the original.
        waiting: ids of layers that are refitted later: nothing is added that they have part in.
    """
    made = layer.made
    plain = Target(made.name, None, *_bounds(made))
    readers = consumers(made)
    if len(readers) != 1 or readers[0].op not in ("Add", "Sum") or len(readers[0].inputs) != 2:
        return plain
    (adder,) = readers
    other, total = adder.inputs[1 if adder.inputs[0] is made else 0], adder.outputs[0]
    if other is made or is_constant(other) or total.name not in known:
        return plain
    if made.shape is not None and total.shape is not None and made.shape != total.shape:
        return plain  # what is added makes it larger
    if depends_on(other, waiting):
        return plain
    return Target(total.name, other.name, *_bounds(total))


def _bounds(tensor: gs.Tensor) -> tuple[float, float]:
    """The bounds that all that reads ``tensor`` sees it clipped to."""
    readers = consumers(tensor)
    if len(readers) != 1 or readers[0].op not in ("Relu", "Clip"):
        return -np.inf, np.inf
    (clip,) = readers
    if clip.op == "Relu":
        return 0.0, np.inf
    bounds = []
    for index, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        given = clip.inputs[index] if len(clip.inputs) > index else None
        if given is None or not given.name:
            bounds.append(float(clip.attrs.get(name, default)))
        else:
            is_number = is_constant(given) and np.size(given.values) == 1  # [1] is seen as well
            bounds.append(float(np.ravel(given.values)[0]) if is_number else default)
    return bounds[0], bounds[1]


def depends_on(tensor: gs.Tensor, nodes: set[int]) -> bool:
    """Whether any of ``nodes``, by id, has part in making ``tensor``."""
    seen: set[int] = set()
    open_tensors = [tensor]
    while open_tensors:
        node = producer(open_tensors.pop())
        if node is None or id(node) in seen:
            continue
        if id(node) in nodes:
            return True
        seen.add(id(node))
        open_tensors.extend(node.inputs)
    return False
