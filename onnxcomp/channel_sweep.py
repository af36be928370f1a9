"""One walk over a graph that collects the equations between the labels of its axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channel_equations import SINGLE, UNKNOWN, Equations, Unfollowed
from onnxcomp.graph import input_at, is_constant
from onnxcomp.union_find import Array

Axes = list[Array]  # labels of each axis of a tensor
LARGEST = 1 << 22  # indices of one axis


@dataclass
class Sweep:
    """Labels by tensor name, and the equations so far.

    Attributes:
        equations: what was said.
        of: labels of the axes of every tensor that was met and whose rank is known.
        constants: those of ``of`` whose values follow their labels.
    """

    equations: Equations = field(default_factory=Equations)
    of: dict[str, Axes] = field(default_factory=dict)
    constants: dict[str, gs.Constant] = field(default_factory=dict)

    def axes(self, tensor: gs.Tensor) -> Axes:
        """The labels of a tensor's axes; those of a constant are made when it is first met.

        Constants of int64 stay: they hold shapes, axes and indices.

        Raises:
            Unfollowed: its rank is unknown.
        """
        if tensor.name not in self.of:
            if not is_constant(tensor):
                raise Unfollowed(f"the rank of {tensor.name!r} is unknown")
            self.constants[tensor.name] = tensor
            if np.dtype(tensor.dtype) == np.int64:
                self.of[tensor.name] = self.fixed(tensor, "integers")
            else:
                self.of[tensor.name] = [self.equations.fresh(int(size)) for size in tensor.shape]
        return self.of[tensor.name]

    def fixed(self, tensor: gs.Tensor, reason: str) -> Axes:
        """Labels of a tensor that stays as it is."""
        return [self.fixed_axis(size, reason) for size in sizes(tensor)]

    def fixed_axis(self, size: Any, reason: str) -> Array:
        """Labels of an axis that stays as it is; ``size`` as a shape holds it."""
        known = is_size(size) and 0 < size <= LARGEST
        return self.equations.fixed(int(size), reason) if known else UNKNOWN

    def pin(self, tensor: gs.Tensor, reason: str) -> None:
        """Lets all axes of a tensor stay."""
        if tensor.name and (tensor.name in self.of or is_constant(tensor)):
            for labels in self.axes(tensor):
                self.equations.pin(labels, reason)

    def broadcast(self, tensors: Sequence[gs.Tensor]) -> Axes:
        """Labels of the result of an elementwise operator with numpy's broadcasting."""
        return self.aligned([self.axes(tensor) for tensor in tensors])

    def aligned(self, several: Sequence[Axes]) -> Axes:
        """Makes axes equal that meet when shapes are aligned at the back."""
        rank = max(len(axes) for axes in several)
        result: Axes = [SINGLE] * rank
        for axes in several:
            for i, labels in enumerate(axes, rank - len(axes)):
                result[i] = self.equations.same(result[i], labels)
        return result

    def give(self, tensor: gs.Tensor, axes: Axes) -> None:
        """Labels an output.

        Raises:
            Unfollowed: they do not fit its shape, as far as it is known.
        """
        shape = tensor.shape
        if shape is not None:
            fits = len(shape) == len(axes) and all(
                not is_size(size) or labels.size in (0, size)
                for size, labels in zip(shape, axes, strict=True)
            )
            if not fits:
                found = [labels.size for labels in axes]
                raise Unfollowed(f"{tensor.name!r} has the shape {list(shape)}, not {found}")
        self.of[tensor.name] = axes


Rule = Callable[[Sweep, gs.Node], list[Axes]]  # labels of the outputs


def is_size(size: Any) -> bool:
    """Whether an entry of a shape is a number."""
    return isinstance(size, (int, np.integer))


def sizes(tensor: gs.Tensor) -> list[Any]:
    """The dimensions of a tensor.

    Raises:
        Unfollowed: its rank is unknown.
    """
    if tensor.shape is None:
        raise Unfollowed(f"the rank of {tensor.name!r} is unknown")
    return list(tensor.shape)


def integers(node: gs.Node, index: int, attribute: str = "") -> list[int] | None:
    """Integers of a constant input, or of the attribute that older operator sets have; None where
    neither is there.

    Raises:
        Unfollowed: they are computed at run time.
    """
    tensor = input_at(node, index)
    if tensor is None:
        value = node.attrs.get(attribute)
        return None if value is None else [int(v) for v in np.atleast_1d(value)]
    if not is_constant(tensor):
        raise Unfollowed(f"{tensor.name!r} is computed")
    return [int(v) for v in np.asarray(tensor.values).ravel()]
