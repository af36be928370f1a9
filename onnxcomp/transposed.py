"""A ConvTranspose as a Conv: its input with zeros in between, by the kernel turned round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.gram import Array, Window


def turned_round(weights: Array, groups: int) -> Array:
    """Kernels [in, out / groups, *kernel] as a Conv has them, [out, in / groups, *kernel].

    And the other way round.
    """
    first, second, *kernel = weights.shape
    apart = weights.reshape(groups, first // groups, second, *kernel).swapaxes(1, 2)
    joined = apart.reshape(groups * second, first // groups, *kernel)
    return np.asarray(np.flip(joined, tuple(range(2, joined.ndim))))


def spread_out(
    values: Array, attributes: Mapping[str, Any], weight_shape: Sequence[int]
) -> tuple[Array, Window]:
    """What the Conv reads, and how, that equals a ConvTranspose.

    Args:
        values: what the ConvTranspose reads, [samples, channels, *spatial].
        attributes: its own; without ``output_shape``, and not with padding of ``SAME_*``.
        weight_shape: of its kernel, [in, out / groups, *kernel].
    """
    kernel = tuple(weight_shape[2:])
    rank = len(kernel)
    strides = tuple(attributes.get("strides", ())) or (1,) * rank
    dilations = tuple(attributes.get("dilations", ())) or (1,) * rank
    trimmed = tuple(attributes.get("pads", ())) or (0,) * (2 * rank)
    if attributes.get("auto_pad", "NOTSET") == "VALID":
        trimmed = (0,) * (2 * rank)
    added = tuple(attributes.get("output_padding", ())) or (0,) * rank
    sizes, inside, cropped = [], [], []
    for axis, (stride, dilation, length) in enumerate(zip(strides, dilations, kernel, strict=True)):
        size = (values.shape[2 + axis] - 1) * stride + 1
        reach = (length - 1) * dilation  # zeros on either side let each element of the kernel by
        sizes.append(size + 2 * reach + added[axis])
        inside.append(slice(reach, reach + size, stride))
        cropped.append(slice(trimmed[axis], sizes[-1] - trimmed[rank + axis]))
    whole = np.zeros((*values.shape[:2], *sizes), values.dtype)
    whole[(slice(None), slice(None), *inside)] = values
    window = Window(kernel=kernel, dilations=dilations, group=int(attributes.get("group", 1)))
    return whole[(slice(None), slice(None), *cropped)], window
