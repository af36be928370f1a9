"""Windows of convolutions by sparse weights, and images that they fit into, or do not."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from onnxcomp.kernels.reference_convolution import Window

WIDTHS = [0, 1, 6, 7, 13, 14, 15, 16, 27, 40, 75, 140]  # beyond the smallest


@st.composite
def windows(draw: st.DrawFn, kernel: tuple[int, int]) -> tuple[Window, tuple[int, int, int]]:
    """A window, and images, height and width that it fits into, with every kind of tail."""
    strides = draw(st.tuples(*[st.sampled_from([1, 1, 2, 3])] * 2))
    dilations = draw(st.tuples(*[st.integers(1, 3)] * 2))
    pads = draw(st.just((0, 0, 0, 0)) | st.tuples(*[st.integers(0, 4)] * 4))
    smallest = [
        max(1, d * (k - 1) + 1 - before - after)
        for d, k, before, after in zip(dilations, kernel, pads[:2], pads[2:], strict=True)
    ]
    height = smallest[0] + draw(st.integers(0, 12))
    width = smallest[1] + draw(st.sampled_from(WIDTHS))
    images = draw(st.sampled_from([0, 1, 1, 2]))
    return Window(strides=strides, dilations=dilations, pads=pads), (images, height, width)


# Kernel, groups and a window, of every kind.
KINDS = [
    ((1, 1), 1, Window()),
    ((3, 3), 1, Window(pads=(1, 1, 1, 1))),
    ((3, 3), 2, Window(strides=(2, 2), pads=(0, 1, 2, 1))),
    ((2, 5), 1, Window(strides=(1, 3), dilations=(3, 2), pads=(2, 4, 0, 3))),
]
# Of x, of a window over a weight [6, 5, 3, 3], and what is said of them.
MISFITS: list[tuple[tuple[int, ...], dict[str, Any], str]] = [
    ((1, 4, 9, 9), {}, "the channels of x"),
    ((1, 5, 2, 9), {}, "x is smaller than the kernel"),
    ((1, 5, 9, 9), {"pads": (0, -1, 0, 0)}, "padding of the columns is -1"),
    ((1, 5, 9, 9), {"pads": (40000, 0, 0, 0)}, "padding of the rows is 40000"),
    ((1, 5, 9, 9), {"strides": (0, 1)}, "the stride of the rows is 0"),
    ((1, 5, 9, 9), {"dilations": (1, 0)}, "the dilation of the columns is 0"),
    ((5, 9, 9), {}, r"x has shape \[5, 9, 9\] and the kernel \[3, 3\]"),
]
