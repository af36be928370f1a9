"""What a graph uses up as a function of what is kept of its channel groups.

The lengths of axes are put into the formulas that count the graph as it is, as numbers that
remember which groups they are made of: what comes out is a `Resource` over the groups' names.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channels import Channels
from onnxcomp.exporting import to_proto, without_data
from onnxcomp.macs import Shape, macs_by_node
from onnxcomp.parameters import parameters, stored_constants
from onnxcomp.resources import Product, Resource, Size
from onnxcomp.stored import constant_bytes

Terms = Mapping[tuple[int, ...], int]  # numbers of the sizes multiplied, () for none -> coefficient


class Length(int):
    """A sum of products of sizes of axes that has the value which it has when all is kept.

    It stays one when added to or multiplied by integers and its like; whatever else is done to it
    gives a plain integer, which keeps all.
    """

    terms: Terms

    def __new__(cls, value: int, terms: Terms) -> Length:
        """The length ``value``, which is the sum of ``terms``."""
        self = super().__new__(cls, value)
        self.terms = terms
        return self

    def __mul__(self, other: int) -> Length:
        """The product of sums, multiplied out."""
        found: Counter[tuple[int, ...]] = Counter()
        for (one, n), (two, m) in itertools.product(self.terms.items(), _terms(other).items()):
            found[tuple(sorted(one + two))] += n * m
        return Length(int(self) * int(other), found)

    def __add__(self, other: int) -> Length:
        """All terms of both."""
        return Length(int(self) + int(other), Counter(self.terms) + Counter(_terms(other)))

    __rmul__, __radd__ = __mul__, __add__


def _terms(number: int) -> Terms:
    return number.terms if isinstance(number, Length) else {(): int(number)}


class Lengths:
    """The lengths of all axes as functions of what is kept.

    Attributes:
        sizes: that differ, by the numbers which `Length.terms` hold.
    """

    def __init__(self, channels: Channels) -> None:
        """Counts the indices of every axis by group.

        Units of a group that take different numbers of indices from an axis count with the mean.
        """
        self.sizes: list[Size] = []
        self._numbers: dict[tuple[int, frozenset[tuple[str, int]]], int] = {}
        self._parts: dict[str, dict[int, dict[str, int]]] = {}
        counts: dict[int, int] = {}  # many places share their units
        for group in channels.groups:
            for place in group.places:
                if id(place.units) not in counts:
                    counts[id(place.units)] = int(np.count_nonzero(place.units >= 0))
                axes = self._parts.setdefault(place.tensor, {})
                axes.setdefault(place.axis, {})[group.name] = counts[id(place.units)]

    def __call__(self, tensor: gs.Tensor, shape: Shape) -> Shape:
        """``shape`` of a tensor, each axis that may shrink as a `Length`."""
        axes = self._parts.get(tensor.name)
        if axes is None:
            return shape
        return tuple(
            self._length(length, axes[i]) if i in axes else length for i, length in enumerate(shape)
        )

    def size(self, tensor: gs.Tensor, axis: int, length: int) -> Size:
        """The size of one axis, whose length is ``length`` when all is kept."""
        parts = self._parts.get(tensor.name, {}).get(axis, {})
        return Size(parts=parts, constant=length - sum(parts.values()))

    def _length(self, length: int, parts: Mapping[str, int]) -> Length:
        key = (length, frozenset(parts.items()))
        number = self._numbers.setdefault(key, len(self.sizes))
        if number == len(self.sizes):
            self.sizes.append(Size(parts=parts, constant=length - sum(parts.values())))
        return Length(length, {(number,): 1})

    def resource(self, lengths: Iterable[int], unit: str) -> Resource:
        """The sum of lengths."""
        total: Counter[tuple[int, ...]] = Counter()
        for length in lengths:
            for key, coefficient in _terms(length).items():
                total[key] += coefficient
        constant = total.pop((), 0)
        products = (
            Product(coefficient=float(n), sizes=tuple(self.sizes[number] for number in key))
            for key, n in total.items()
        )
        return Resource(terms=tuple(products), constant=float(constant), unit=unit)


def macs_of(graph: gs.Graph, channels: Channels, shapes: Mapping[str, Sequence[int]]) -> Resource:
    """Multiply-accumulates of one run, those of unknown operators left out.

    Args:
        graph: the one that ``channels`` were found in.
        channels: its groups.
        shapes: of the inputs, all sizes known.
    """
    lengths = Lengths(channels)
    counts = macs_by_node(graph, shapes, lengths)
    return lengths.resource((cost.macs for cost in counts if cost.macs is not None), "MACs")


def parameters_of(graph: gs.Graph, channels: Channels) -> Resource:
    """Elements of all float and quantized weights, as `count_parameters` counts them."""
    lengths = Lengths(channels)
    counts = (
        _elements(lengths, tensor, parameters(tensor, roles))
        for tensor, roles in stored_constants(graph)
    )
    return lengths.resource(counts, "parameters")


def bytes_of(graph: gs.Graph, channels: Channels) -> Resource:
    """Bytes of the model's file: the values of constants, and all else as it is now."""
    lengths = Lengths(channels)
    stored = [(tensor, constant_bytes(tensor)) for tensor, _ in stored_constants(graph)]
    rest = to_proto(graph, lambda tensor, scope: without_data(tensor, scope, largest=0))
    counts = (_elements(lengths, tensor, size) for tensor, size in stored)
    return lengths.resource(itertools.chain([rest.ByteSize()], counts), "bytes")


def _elements(lengths: Lengths, tensor: gs.Constant, total: int) -> int:
    """``total`` spread evenly over the elements of a constant."""
    count = math.prod(lengths(tensor, tuple(map(int, tensor.shape))))
    each = total // int(count) if count else 0
    return each * count if each * int(count) == total else total
