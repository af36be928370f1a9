"""A picture of channel groups: layers as bars of channels, what leaves together in one colour."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channels import ChannelGroup, Channels
from onnxcomp.graph import is_constant, label
from onnxcomp.union_find import Array

EDGE, NAME, BAR, GAP, ROW, HEIGHT, TOP = 10, 370, 200, 30, 24, 14, 34  # pixels
THINNEST = 2  # of what is dark
LONGEST_NAME = 56
PINNED, GOLDEN = "#d4d4d4", 137.508 / 360
WINDOWED = ("Conv", "ConvTranspose", "FusedConv")
RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Bar:
    """The channels that a layer reads or makes.

    Attributes:
        groups: for each index the number of its group, -1 where it stays, [length].
        first: whether it belongs to the first unit of its group, [length].
    """

    groups: Array
    first: Array


def picture_of(graph: gs.Graph, channels: Channels) -> str:
    """An SVG: a row for each layer, what it reads on the left and what it makes on the right.

    Every index of an axis is a stripe, in the colour of its group or grey where it stays; the
    first unit of a group is dark wherever it stands.
    """
    places: dict[tuple[str, int], list[tuple[int, Array]]] = {}
    for number, group in enumerate(channels.groups):
        for place in group.places:
            places.setdefault((place.tensor, place.axis), []).append((number, place.units))
    rows = []
    for node, ends in _layers(graph):
        bars = [_bar(channels, places, end) for end in ends]
        if any(bar is not None for bar in bars):
            rows.append((label(node), bars))
    longest = max(
        (bar.groups.size for _, bars in rows for bar in bars if bar is not None), default=1
    )
    drawn = [_text(NAME, TOP - 12, "reads"), _text(NAME + BAR + GAP, TOP - 12, "makes")]
    for at, (name, bars) in enumerate(rows):
        drawn.append(_text(EDGE, TOP + at * ROW + HEIGHT - 3, _short(name)))
        for side, bar in enumerate(bars):
            if bar is not None:
                drawn += _stripes(bar, NAME + side * (BAR + GAP), TOP + at * ROW, longest)
    below = TOP + len(rows) * ROW + 10
    drawn += _legend(channels.groups, below)
    size = NAME + 2 * BAR + GAP + EDGE, below + ROW * len(channels.groups) + EDGE
    return "\n".join([_header(*size), *drawn, "</svg>", ""])


def _layers(graph: gs.Graph) -> Iterator[tuple[gs.Node, tuple[tuple[gs.Tensor, int], ...]]]:
    """Layers with weights: (tensor, axis) of the channels that they read and make."""
    for node in graph.nodes:
        if not any(is_constant(t) and len(t.shape) > 1 for t in node.inputs):
            continue
        data, result = node.inputs[0], node.outputs[0]
        if node.op in WINDOWED:
            yield node, ((data, 1), (result, 1))
        elif node.op in RECURRENT:
            yield node, ((data, 2), (result, 3))
        elif node.op == "Gemm":
            yield node, ((data, 0 if node.attrs.get("transA") else 1), (result, 1))
        elif node.op == "MatMul":
            left = is_constant(data)
            yield node, ((node.inputs[1], -2) if left else (data, -1), (result, -2 if left else -1))


def _bar(
    channels: Channels,
    places: Mapping[tuple[str, int], Sequence[tuple[int, Array]]],
    end: tuple[gs.Tensor, int],
) -> Bar | None:
    tensor, axis = end
    axes = channels.axes.get(tensor.name, [])
    if not -len(axes) <= axis < len(axes) or not axes[axis].size:
        return None
    length = axes[axis].size
    groups, first = np.full(length, -1), np.zeros(length, bool)
    for number, units in places.get((tensor.name, axis % len(axes)), ()):
        groups[units >= 0] = number
        first |= units == 0
    return Bar(groups, first)


def _stripes(bar: Bar, x: float, y: float, longest: int) -> Iterator[str]:
    """One rectangle for each run of equal indices; bars are as long as the root of their length."""
    width = BAR * (bar.groups.size / longest) ** 0.5
    kinds = 2 * bar.groups + bar.first
    starts = np.flatnonzero(np.diff(kinds, prepend=kinds[0] - 1))
    ends = np.append(starts[1:], kinds.size)
    scale = width / kinds.size
    for i in np.argsort(bar.first[starts], kind="stable"):  # what is dark over all else
        start, end = int(starts[i]), int(ends[i])
        least = THINNEST if bar.first[start] else 0
        colour = _colour(int(bar.groups[start]), bool(bar.first[start]))
        yield _rectangle(x + scale * start, y, max(scale * (end - start), least), colour)


def _colour(group: int, first: bool) -> str:
    """Hues a golden angle apart, so that neighbours differ."""
    if group < 0:
        return PINNED
    lightness, saturation = (0.3, 0.8) if first else (0.62, 0.6)
    red, green, blue = colorsys.hls_to_rgb(group * GOLDEN % 1, lightness, saturation)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _legend(groups: Sequence[ChannelGroup], y: float) -> Iterator[str]:
    for number, group in enumerate(groups):
        top = y + number * ROW
        for i, first in enumerate((True, False)):
            wide = 10 if first else 24
            yield _rectangle(NAME + 12 * i, top, wide, _colour(number, first))
        words = f"{group.size} units" + (f" of {group.span}" if group.span > 1 else "")
        yield _text(NAME + 48, top + HEIGHT - 3, f"{_short(group.name)}: {words}")


def _header(width: float, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>'
    )


def _rectangle(x: float, y: float, width: float, colour: str) -> str:
    return f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{HEIGHT}" fill="{colour}"/>'


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x}" y="{y}">{escape(words)}</text>'


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"
