"""Rearranging pixels into channels before a Conv, as one Conv with larger strides."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import (
    Names,
    consumers,
    is_constant,
    is_output,
    is_standard,
    producer,
    remove_unused,
)
from onnxcomp.targets import Target


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


def convolve_pixels(graph: gs.Graph, node: gs.Node, target: Target, names: Names) -> None:
    """Conv of the pixels of blocks stacked as channels -> Conv of the image, strides times block.

    The same products, without the copies: the stem of YOLOv5 and YOLOX ("Focus") and what
    SpaceToDepth is written for. The weight of (c, block * y + row, block * x + column) is that of
    (place of (row, column) and c, y, x).
    """
    attrs, weights = node.attrs, node.inputs[1]
    plain = attrs.get("group", 1) == 1 and attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    if not plain or {1, *attrs.get("dilations", ())} != {1} or not is_constant(weights):
        return
    if len(weights.shape) != 4 or is_output(graph, node.inputs[0]):
        return
    blocks = _blocks(node.inputs[0])
    if blocks is None or consumers(node.inputs[0]) != [node]:
        return
    values, size = np.asarray(weights.values), blocks.size
    outputs, stacked, height, width = values.shape
    channels = stacked // len(blocks.places)
    spread = np.zeros((outputs, channels, height * size, width * size), values.dtype)
    for index, (row, column) in enumerate(blocks.places):
        part = values[:, index * channels : (index + 1) * channels]
        spread[:, :, row::size, column::size] = part
    name = names.fresh(f"{weights.name}.pixels")
    node.inputs = [blocks.data, gs.Constant(name, spread), *node.inputs[2:]]
    attrs["kernel_shape"] = [height * size, width * size]
    attrs["strides"] = [size * step for step in attrs.get("strides", (1, 1))]
    attrs["pads"] = [size * pad for pad in attrs.get("pads", (0, 0, 0, 0))]
    remove_unused(graph)


def _blocks(tensor: gs.Tensor) -> Blocks | None:
    """How ``tensor`` was made of blocks: by SpaceToDepth, or by strided Slices and a Concat."""
    node = producer(tensor)
    if node is None or not is_standard(node):
        return None
    if node.op == "SpaceToDepth":
        size = int(node.attrs["blocksize"])
        return Blocks(node.inputs[0], size, tuple(product(range(size), range(size))))
    if node.op != "Concat" or node.attrs.get("axis") not in (1, -3):
        return None
    parts = [_sliced(part) for part in node.inputs]
    data, size = parts[0][0], round(len(parts) ** 0.5)
    if data.shape is None or len(data.shape) != 4 or size < 2 or size * size != len(parts):
        return None
    if any(source is not data or ranges is None for source, ranges in parts):
        return None
    whole = [range(length) for length in data.shape[1:]] if _is_fixed(data) else None
    if whole is None or any(len(axis) % size for axis in whole[1:]):
        return None
    places = []
    for _, ranges in parts:
        assert ranges is not None
        row, column = ranges[1].start, ranges[2].start
        wanted = [whole[0], whole[1][row::size], whole[2][column::size]]
        if ranges != wanted or row >= size or column >= size:
            return None
        places.append((row, column))
    return Blocks(data, size, tuple(places)) if len(set(places)) == len(places) else None


def _is_fixed(tensor: gs.Tensor) -> bool:
    return all(isinstance(length, int) for length in tensor.shape[1:])


def _sliced(tensor: gs.Tensor) -> tuple[gs.Tensor, list[range] | None]:
    """The tensor that Slices cut ``tensor`` out of, and which indices of its axes 1 to 3."""
    node = producer(tensor)
    if node is None or node.op != "Slice" or not is_standard(node):
        ranked = tensor.shape is not None and len(tensor.shape) == 4 and _is_fixed(tensor)
        return tensor, [range(length) for length in tensor.shape[1:]] if ranked else None
    source, ranges = _sliced(node.inputs[0])
    given = node.inputs[1:]
    if ranges is None or not given or not all(is_constant(t) for t in given if t.name):
        return source, None
    starts, ends = (np.asarray(t.values).tolist() for t in given[:2])
    axes, steps = (
        np.asarray(given[i].values).tolist() if len(given) > i and given[i].name else default
        for i, default in ((2, list(range(len(starts)))), (3, [1] * len(starts)))
    )
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis % 4 == 0 or step < 1:
            return source, None
        ranges[axis % 4 - 1] = ranges[axis % 4 - 1][start:end:step]
    return source, ranges
