"""How a layer with constant weights can be written with thinner ones; which is best is not asked.

All nodes that read a weight are rewritten together and share its factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.factorable_weights import (
    constant_of,
    is_in_first,
    is_transposed,
    place_of,
    readers_of,
    reason_against,
    use_of,
    weight_index,
)
from onnxcomp.factored_axes import LARGEST_CP, Cp, Spatial
from onnxcomp.factored_convolutions import KernelFactors, Svd, SvdInput, SvdOutput, Tucker2
from onnxcomp.factored_matrices import MatrixFactors, TiedTable
from onnxcomp.foretold_work import work_of
from onnxcomp.gram import Array
from onnxcomp.graph import Names, is_constant
from onnxcomp.layer_latency import Layer
from onnxcomp.lowrank import Outputs
from onnxcomp.row_writing import write_rows
from onnxcomp.thin_layers import Factors, Rank, Shape, ThinLayer, thinned
from onnxcomp.tied_factors import Tied

AUTO = "auto"
METHODS = {  # what a recipe may ask for
    AUTO: ("svd", "svd_input", "svd_output", "tucker2", "spatial", "cp"),
    "svd": ("svd", "svd_input", "svd_output"),
    "tucker2": ("tucker2",),
    "spatial": ("spatial",),
    "cp": ("cp",),
}
PLACES = 16  # of a layer's output along each axis where its size is not known

Shapes = Mapping[str, Sequence[int]]
Sizes = tuple[Shape, Shape]  # of what a node reads and makes
Evidence = Array | Outputs | Tied  # what samples show of what a weight is multiplied with


@dataclass(frozen=True, eq=False, kw_only=True)
class Form:
    """One way to write a layer with thinner weights.

    A rank is a number or, of "tucker2", a pair: channels behind the kernel and before it. Any rank
    up to the full one may be asked for, not only those in ``ranks``.

    Attributes:
        method: "svd", of a Conv "svd_input" (kernel to rank, then 1 x 1), "svd_output" (1 x 1 to
            rank, then kernel), "tucker2", "spatial" or "cp".
        ranks: what is offered: fewer parameters than the layer and no more MACs, but for lookups,
            which have none to save; fewer parameters first.
        nodes: all that read the weight, in the order of its readers.
        weight: the constant.
    """

    method: str
    ranks: tuple[Rank, ...]
    nodes: tuple[gs.Node, ...]
    weight: gs.Constant
    _factors: Factors
    _now: tuple[ThinLayer, ...]
    _sizes: tuple[Sizes | None, ...]
    _scale: float

    @property
    def layer_parameters(self) -> int:
        """Elements of the weight; biases, which stay, are not counted."""
        return math.prod(int(size) for size in self.weight.shape)

    @property
    def layer_macs(self) -> int:
        """Multiply-accumulates of the nodes as they are; see `macs`."""
        pairs = zip(self._now, self._known(), strict=True)
        return sum(_macs([now], *sizes) for now, sizes in pairs)

    def layer_layers(self) -> list[Layer]:
        """The nodes as they are, to be timed; see `layers`."""
        return [layer for at, now in enumerate(self._now) for layer in self._timed(at, [now])]

    def parameters(self, rank: Rank) -> int:
        """Elements of all factors."""
        return sum(math.prod(layer.weights) for layer in self._factors.row(self.nodes[0], rank))

    def macs(self, rank: Rank) -> int:
        """Multiply-accumulates of one run of all nodes.

        Where sizes are not known, of one row or of 16 places along each spatial axis.
        """
        pairs = zip(self.nodes, self._known(), strict=True)
        return sum(_macs(self._factors.row(node, rank), *sizes) for node, sizes in pairs)

    def layer_work(self, blocks: Mapping[str, int]) -> int:
        """Of the nodes as they are; see `work`."""
        pairs = zip(self._now, self._known(), strict=True)
        return sum(work_of([now], *sizes, blocks) for now, sizes in pairs)

    def work(self, rank: Rank, blocks: Mapping[str, int]) -> int:
        """About the time of one run of all nodes, in multiply-accumulates.

        Channels count in whole blocks that kernels make at once, ``blocks`` by operator type, and
        numbers that are read and written, which thin layers do more of, count as well.
        """
        pairs = zip(self.nodes, self._known(), strict=True)
        return sum(work_of(self._factors.row(node, rank), *sizes, blocks) for node, sizes in pairs)

    def layers(self, rank: Rank) -> list[Layer]:
        """What is to be timed: one after the other they take about as long as the form.

        Without lookups, which take next to no time; none of nodes whose sizes are not known.
        """
        rows = [self._factors.row(node, rank) for node in self.nodes]
        return [layer for at, row in enumerate(rows) for layer in self._timed(at, row)]

    def estimate(self, rank: Rank) -> float:
        """About `error`, of any rank, 0 too; exactly that of "svd", "svd_input" and "cp".

        Asked for the first time it takes as long as one or two exact errors of a kernel under
        the G of its patches, else no time but for "cp", whose ranks are all computed.
        """
        return self._scale * self._factors.estimate(rank)

    def error(self, rank: Rank) -> float:
        """E|dy|^2 of a row or place of the output: tr dW G dWT, with a Gemm's alpha.

        Computes the factors, which takes seconds for a large kernel and not "svd"; they are kept.
        """
        return self._scale * self._factors.error(rank)

    def write(self, graph: gs.Graph, names: Names, rank: Rank) -> None:
        """Puts the row in the place of every node that reads the weight.

        The last of a row takes over the node: its name, its output and its bias.

        Args:
            graph: the outermost one, in which or in whose bodies the nodes are.
            names: of ``graph``.
            rank: not necessarily one of ``ranks``.
        """
        rows = [self._factors.row(node, rank) for node in self.nodes]
        write_rows(graph, names, self.weight, self.nodes, rows, self._factors.arrays(rank))

    def _known(self) -> Iterator[Sizes]:
        for node, now, sizes in zip(self.nodes, self._now, self._sizes, strict=True):
            yield sizes or _assumed(node, now)

    def _timed(self, at: int, row: Sequence[ThinLayer]) -> Iterator[Layer]:
        sizes = self._sizes[at]
        if sizes is None:
            return
        shape: Sequence[int] = sizes[0]
        node = self.nodes[at]
        for layer in row:
            if layer.op != "Gather":
                shapes = [tuple(shape), layer.weights]
                fed = 0 if layer.index else 1
                shapes = shapes if layer.index else shapes[::-1]
                if not layer.part and node.op != "Gather":
                    shapes += [tuple(map(int, t.shape)) for t in node.inputs[2:] if is_constant(t)]
                yield Layer(
                    op=layer.op, attributes=layer.attributes, shapes=tuple(shapes), fed=(fed,)
                )
            shape = layer.made(*sizes) or ()


def forms(
    node: gs.Node,
    gram: Evidence | None = None,
    *,
    method: str = AUTO,
    shapes: Shapes | None = None,
) -> list[Form] | str:
    """The ways of `possible_forms` with ranks that pay, or the reason why there is none.

    Arguments and errors as there.
    """
    found = possible_forms(node, gram, method=method, shapes=shapes)
    if isinstance(found, str):
        return found
    return [form for form in found if form.ranks] or "no rank has fewer parameters and MACs"


def possible_forms(
    node: gs.Node,
    gram: Evidence | None = None,
    *,
    method: str = AUTO,
    shapes: Shapes | None = None,
) -> list[Form] | str:
    """The ways to write a node with thinner weights, or the reason why there is none.

    Args:
        node: of an outermost graph or a body.
        gram: G = E[x xT] of what the weight is multiplied with, [in, in], of a Conv that of its
            patches, [in * s, in * s], or of its channels, [in, in]; of a Gather how often each row
            is looked up, [rows]; of a table that is looked up in and multiplied with both.
            Averaged over all readers of the weight, damped as wanted. None for |dW|^2.
        method: "auto" for all, "svd", "tucker2", "spatial" or "cp".
        shapes: of activations by name, all sizes known, for MACs and times; those of the graph
            stand in for missing ones.

    Raises:
        ValueError: an unknown method, or a Gram matrix that does not fit.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is none of {', '.join(METHODS)}")
    index = weight_index(node)
    if isinstance(index, str):
        return index
    weight = constant_of(node, index)
    assert weight is not None
    readers = readers_of(weight)
    reason = reason_against(node, index, readers)
    if reason:
        return reason
    if isinstance(gram, np.ndarray) and gram.ndim == 3 and len(gram) == 1:
        gram = gram[0]
    offered = list(_offered(readers[0], weight, gram))
    chosen = [factors for factors in offered if factors.method in METHODS[method]]
    if not chosen:
        fitting = ", ".join(dict.fromkeys(factors.method for factors in offered))
        return f"{method} does not apply: {_shape_in_words(node, weight)} allows {fitting}"
    found = [_form(factors, readers, weight, shapes or {}) for factors in chosen]
    return found


def _offered(node: gs.Node, weight: gs.Constant, gram: Evidence | None) -> Iterator[Factors]:
    if isinstance(gram, Tied):
        yield TiedTable(weight, gram)
        return
    if node.op != "Conv":
        in_first = is_in_first(node, place_of(node, weight))
        yield MatrixFactors(weight, in_first=in_first, gram=gram)
        return
    assert not isinstance(gram, Outputs)  # of a kernel that is not known
    kernel = tuple(int(size) for size in weight.shape[2:])
    kinds: list[type[KernelFactors]] = [Svd]
    if math.prod(kernel) > 1:
        kinds = [SvdInput, SvdOutput, Tucker2]
    if len(kernel) == 2 and min(kernel) > 1:
        kinds.append(Spatial)
        if math.prod(map(int, weight.shape)) <= LARGEST_CP:
            kinds.append(Cp)
    for kind in kinds:
        yield kind(weight, gram)


def _shape_in_words(node: gs.Node, weight: gs.Constant) -> str:
    shape = [int(size) for size in weight.shape]
    kernel = shape[2:] if node.op == "Conv" else shape
    what = "a kernel of" if node.op == "Conv" else "a matrix of"
    return f"{what} {' x '.join(map(str, kernel))}"


def _form(
    factors: Factors, readers: Sequence[gs.Node], weight: gs.Constant, shapes: Shapes
) -> Form:
    sizes = [_sizes(node, place_of(node, weight), shapes) for node in readers]
    alpha = use_of(readers[0], weight)[-1] if readers[0].op != "Conv" else 1.0
    form = Form(
        method=factors.method,
        ranks=tuple(factors.ranks),
        nodes=tuple(readers),
        weight=weight,
        _factors=factors,
        _now=tuple(_as_it_is(node, place_of(node, weight)) for node in readers),
        _sizes=tuple(sizes),
        _scale=float(alpha) ** 2,
    )
    lookups = all(node.op == "Gather" for node in readers)
    paying = [
        rank
        for rank in form.ranks
        if form.parameters(rank) < form.layer_parameters
        and (lookups or form.macs(rank) <= form.layer_macs)
    ]
    offered = sorted(thinned(paying, factors.most_ranks), key=form.parameters)
    return replace(form, ranks=tuple(offered))


def _as_it_is(node: gs.Node, index: int) -> ThinLayer:
    """A node as a row of one."""
    tensor = constant_of(node, index) if is_transposed(node, index) else node.inputs[index]
    assert tensor is not None
    weights = tuple(int(size) for size in tensor.shape)
    if tensor is not node.inputs[index]:
        weights = weights[::-1]
    axis, channels = -1, weights[-1]
    if node.op == "Conv":
        axis, channels = 1, weights[0]
    elif tensor is node.inputs[index] and not is_in_first(node, index):
        axis, channels = (-1 if node.op == "Gemm" else -2), weights[-2]
    return ThinLayer(
        part="",
        op=node.op,
        attributes=dict(node.attrs),
        weights=weights,
        index=index,
        channels=channels,
        axis=axis,
    )


def _sizes(node: gs.Node, index: int, shapes: Shapes) -> Sizes | None:
    """Shapes of the activation that a node reads and of the one that it makes, if known."""
    found = []
    for tensor in (node.inputs[1 - index], node.outputs[0]):
        shape = shapes.get(tensor.name, tensor.shape)
        if shape is None or not all(isinstance(size, (int, np.integer)) for size in shape):
            return None
        found.append(tuple(int(size) for size in shape))
    return found[0], found[1]


def _assumed(node: gs.Node, now: ThinLayer) -> Sizes:
    if node.op == "Conv":
        count = len(now.weights) - 2
        strides = node.attrs.get("strides") or [1] * count
        read = (1, now.weights[1], *(PLACES * int(stride) for stride in strides))
        return read, (1, now.channels, *[PLACES] * count)
    made = [1, 1]
    made[now.axis] = now.channels
    return (1, 1), (made[0], made[1])


def _macs(row: Sequence[ThinLayer], read: Shape, made: Shape) -> int:
    return sum(layer.products * math.prod(layer.made(read, made) or ()) for layer in row)
