"""How long a convolution takes in integers and in float: what a placement weighs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConvolutionSpeed:
    """Times of a runtime's convolutions, rough but of the right size.

    The integer kernel gathers its inputs tap by tap, which takes the same time for one channel as
    for sixteen: it loses where few channels go in or few come out. A depthwise one is slower than
    in float, but saves converting what it reads and writes.

    Attributes:
        gather_ns: for each pixel and tap of the kernel.
        gather_group_ns: the same for each group.
        integer_macs_per_ns: behind that.
        float_macs_per_ns: at most.
        float_macs_per_ns_and_output: for each output channel of a group.
        depthwise_integer_macs_per_ns: with one channel a group.
        depthwise_float_macs_per_ns: with one channel a group.
        conversion_ns: for each element that is converted to or from codes.
        margin: how many times the time in float the time in integers may be: it saves bytes, too.
        slack_ns: that nobody notices.
    """

    gather_ns: float = 2.4
    gather_group_ns: float = 4.0
    integer_macs_per_ns: float = 200.0
    float_macs_per_ns: float = 55.0
    float_macs_per_ns_and_output: float = 2.9
    depthwise_integer_macs_per_ns: float = 13.0
    depthwise_float_macs_per_ns: float = 35.0
    conversion_ns: float = 0.6
    margin: float = 1.5
    slack_ns: float = 20_000.0

    def integer_ns(self, shape: Sequence[int], groups: int) -> float:
        """For each pixel of the output.

        Args:
            shape: of the weight, [out_channels, in_channels / groups, *kernel].
            groups: of the convolution.
        """
        if _is_depthwise(shape, groups):
            return math.prod(shape) / self.depthwise_integer_macs_per_ns
        taps = math.prod(shape[2:])
        gathered = self.gather_ns if groups == 1 else self.gather_group_ns * groups
        gathers = groups * taps > 1
        return gathered * taps * gathers + math.prod(shape) / self.integer_macs_per_ns

    def float_ns(self, shape: Sequence[int], groups: int) -> float:
        """For each pixel of the output; arguments as of `integer_ns`."""
        if _is_depthwise(shape, groups):
            return math.prod(shape) / self.depthwise_float_macs_per_ns
        widest = self.float_macs_per_ns_and_output * (shape[0] // groups)
        return math.prod(shape) / min(self.float_macs_per_ns, widest)

    def pays(
        self, shape: Sequence[int], groups: int, pixels: int, converted: int, saved: int
    ) -> bool:
        """Whether integers are faster, or not much slower.

        Args:
            shape: of the weight, [out_channels, in_channels / groups, *kernel].
            groups: of the convolution.
            pixels: of the output, those of a whole batch.
            converted: elements to convert to and from codes for the integer form.
            saved: elements to convert for the float form.
        """
        integer = pixels * self.integer_ns(shape, groups) + self.conversion_ns * converted
        real = pixels * self.float_ns(shape, groups) + self.conversion_ns * saved
        return integer <= self.margin * real + self.slack_ns


def _is_depthwise(shape: Sequence[int], groups: int) -> bool:
    return groups > 1 and shape[1] == 1 and shape[0] == groups
