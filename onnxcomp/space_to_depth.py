"""Rearranging pixels into channels before a Conv, as one Conv with larger strides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcomp.graph import consumers, input_at, is_constant, is_standard, producer
from onnxcomp.rewriting import Rule, Scope, is_sparse, peek
from onnxcomp.shapes import Dim

ShapeOf = Callable[[gs.Tensor], Sequence[Dim] | None]


@dataclass(frozen=True)
class Blocks:
    """What a rearrangement reads.

    Attributes:
        data: [batch, channels, height, width].
        size: pixels of a block along each spatial axis.
        places: (row, column) within the block, of each group of channels in the result.
    """

    data: gs.Tensor
    size: int
    places: tuple[tuple[int, int], ...]


def convolve_pixels(scope: Scope, node: gs.Node) -> bool:
    """Conv(stacked pixels of x)  ->  Conv'(x), with the stride of the blocks."""
    blocks = stacked_pixels(node, scope.shape)
    stacked = scope.maker(node.inputs[0], "Concat", "SpaceToDepth")
    if blocks is None or stacked is None or not scope.feeds_only(stacked, node):
        return False
    weight, values = node.inputs[1], peek(node.inputs[1])
    if len(consumers(weight)) > 1 and not scope.afford(values.nbytes):
        return scope.decline(node, f"{weight.name} is used elsewhere too")
    spread = scope.constant(f"{weight.name}.pixels", spread_weight(values, blocks))
    convolve_blocks(node, blocks, spread)
    scope.changed(node)
    return True


def stacked_pixels(node: gs.Node, shape_of: ShapeOf) -> Blocks | None:
    """The blocks whose pixels a Conv reads as channels; None where strides could not say that."""
    attrs, weight = node.attrs, input_at(node, 1)
    plain = attrs.get("group", 1) == 1 and attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    if not plain or {1, *attrs.get("dilations", ())} != {1}:
        return None
    if not isinstance(weight, gs.Constant) or is_sparse(weight) or len(weight.shape) != 4:
        return None
    return _blocks(node.inputs[0], shape_of)


def spread_weight(values: npt.NDArray[Any], blocks: Blocks) -> npt.NDArray[Any]:
    """[outputs, places * channels, *kernel] -> [outputs, channels, *(kernel * block)].

    The weight of (c, block * y + row, block * x + column) is that of (place of (row, column) and
    c, y, x).
    """
    size = blocks.size
    outputs, stacked, height, width = values.shape
    channels = stacked // len(blocks.places)
    spread = np.zeros((outputs, channels, height * size, width * size), values.dtype)
    for index, (row, column) in enumerate(blocks.places):
        part = values[:, index * channels : (index + 1) * channels]
        spread[:, :, row::size, column::size] = part
    return spread


def convolve_blocks(node: gs.Node, blocks: Blocks, weight: gs.Constant) -> None:
    """Has a Conv of stacked pixels read the image, with the weight that was spread over it.

    The same products, without the copies: the stem of YOLOv5 and YOLOX ("Focus") and what
    SpaceToDepth is written for.
    """
    size, attrs = blocks.size, node.attrs
    node.inputs = [blocks.data, weight, *node.inputs[2:]]
    attrs["kernel_shape"] = list(weight.shape[2:])
    attrs["strides"] = [size * step for step in attrs.get("strides", (1, 1))]
    attrs["pads"] = [size * pad for pad in attrs.get("pads", (0, 0, 0, 0))]


def _blocks(tensor: gs.Tensor, shape_of: ShapeOf) -> Blocks | None:
    """How ``tensor`` was made of blocks: by SpaceToDepth, or by strided Slices and a Concat."""
    node = producer(tensor)
    if node is None or not is_standard(node):
        return None
    if node.op == "SpaceToDepth":
        size = int(node.attrs["blocksize"])
        return Blocks(node.inputs[0], size, tuple(product(range(size), range(size))))
    if node.op != "Concat" or node.attrs.get("axis") not in (1, -3):
        return None
    parts = [_sliced(part, shape_of) for part in node.inputs]
    data, size = parts[0][0], round(len(parts) ** 0.5)
    whole = _whole(shape_of(data))
    if whole is None or size < 2 or size * size != len(parts):
        return None
    if any(source is not data for source, _ in parts) or any(len(a) % size for a in whole[1:]):
        return None
    places = []
    for _, ranges in parts:
        if ranges is None:
            return None
        row, column = ranges[1].start, ranges[2].start
        wanted = [whole[0], whole[1][row::size], whole[2][column::size]]
        if ranges != wanted or row >= size or column >= size:
            return None
        places.append((row, column))
    return Blocks(data, size, tuple(places)) if len(set(places)) == len(places) else None


def _whole(shape: Sequence[Dim] | None) -> list[range] | None:
    """All indices of axes 1 to 3, where there are four axes and these lengths are known."""
    if shape is None or len(shape) != 4:
        return None
    lengths = [length for length in shape[1:] if isinstance(length, int)]
    return [range(length) for length in lengths] if len(lengths) == 3 else None


def _sliced(tensor: gs.Tensor, shape_of: ShapeOf) -> tuple[gs.Tensor, list[range] | None]:
    """The tensor that Slices cut ``tensor`` out of, and which indices of its axes 1 to 3."""
    node = producer(tensor)
    if node is None or node.op != "Slice" or not is_standard(node):
        return tensor, _whole(shape_of(tensor))
    source, ranges = _sliced(node.inputs[0], shape_of)
    given = node.inputs[1:]
    if ranges is None or not given or not all(is_constant(t) for t in given if t.name):
        return source, None
    starts, ends = (peek(t).tolist() for t in given[:2])
    axes, steps = (
        peek(given[i]).tolist() if len(given) > i and given[i].name else default
        for i, default in ((2, list(range(len(starts)))), (3, [1] * len(starts)))
    )
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis % 4 == 0 or step < 1:
            return source, None
        ranges[axis % 4 - 1] = ranges[axis % 4 - 1][start:end:step]
    return source, ranges


PIXEL_RULES: dict[str, list[Rule]] = {"Conv": [convolve_pixels]}
