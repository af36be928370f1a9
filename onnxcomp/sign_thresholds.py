"""What comes between a sum of signs and the next sign, folded to an integer comparison.

A layer of -1 and +1 has integer sums d, from -n to n. BatchNormalization, biases and scales behind
it make factor * d + offset of each channel's, and a comparison with a number makes that a sign
again. So the sign is one of `d >= threshold` or `-d >= threshold` with an integer threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Comparison = Literal["greater", "greater_or_equal", "less", "less_or_equal"]
OPPOSITE: dict[Comparison, Comparison] = {
    "greater": "less_or_equal",
    "greater_or_equal": "less",
    "less": "greater_or_equal",
    "less_or_equal": "greater",
}
MIRRORED: dict[Comparison, Comparison] = {
    "greater": "less",
    "greater_or_equal": "less_or_equal",
    "less": "greater",
    "less_or_equal": "greater_or_equal",
}
_ALWAYS, _NEVER = np.iinfo(np.int32).min, np.iinfo(np.int32).max
# Of the numbers that are added: a few roundings of half a unit each.
_ROUNDING = 4 * np.finfo(np.float32).eps
_COMPARE: dict[Comparison, Any] = {
    "greater": np.greater,
    "greater_or_equal": np.greater_equal,
    "less": np.less,
    "less_or_equal": np.less_equal,
}


@dataclass(frozen=True)
class Affine:
    """factor * d + offset, [channels] each.

    Attributes:
        rounds: whether computing it in float32 rounds: not if it is d itself.
    """

    factor: Numbers
    offset: Numbers
    rounds: bool = False

    @classmethod
    def identity(cls, channels: int) -> Affine:
        """D itself."""
        return cls(np.ones(channels), np.zeros(channels))

    def then(self, factor: Any, offset: Any) -> Affine:
        """``factor`` * this + ``offset``."""
        return Affine(self.factor * factor, self.offset * factor + offset, True)


@dataclass(frozen=True)
class Folded:
    """Bits of ``direction * d >= threshold``, for each channel.

    Attributes:
        directions: [channels] of 1 or -1: where it is -1 the channel's weights are to be negated.
        thresholds: [channels], the lowest or highest int32 for a channel that is constant.
    """

    directions: npt.NDArray[np.int8]
    thresholds: npt.NDArray[np.int32]


def fold(
    affine: Affine, comparison: Comparison, levels: Any, largest: int, *, zero_counts: bool = True
) -> Folded | str:
    """Folds ``factor * d + offset <comparison> levels`` to integers.

    Args:
        affine: what is compared.
        comparison: how.
        levels: with what: one number, or one for each channel.
        largest: no sum is larger, nor its negative.
        zero_counts: False where equality is neither of the signs, as for Sign.

    Returns:
        The thresholds, or why there are none: a sum could land so near its level that float32
        decides by how it rounds, or on it where that has no sign.
    """
    level = np.broadcast_to(np.asarray(levels, np.float64), affine.factor.shape)
    constant = affine.factor == 0
    factor = np.where(constant, 1.0, affine.factor)
    meeting = (level - affine.offset) / factor  # the sum at which both are equal
    for near in (np.floor(meeting), np.ceil(meeting)):
        products = affine.factor * np.clip(near, -largest, largest)
        gap = np.abs(products + affine.offset - level)
        size = np.abs(products) + np.abs(affine.offset) + np.abs(level)
        unsure = affine.rounds & np.isfinite(level) & (gap <= _ROUNDING * size)
        if unsure.any():
            return f"float rounding decides the sign of {np.count_nonzero(unsure)} channels"
        if not zero_counts and (gap == 0).any():
            return "a sum can be 0, which has no sign"
    downwards = (comparison in ("less", "less_or_equal")) ^ (factor < 0)
    strict = comparison in ("greater", "less")
    above = np.floor(meeting) + 1 if strict else np.ceil(meeting)
    below = np.ceil(meeting) - 1 if strict else np.floor(meeting)
    wanted = np.where(downwards, -below, above)
    always = np.where(constant, _COMPARE[comparison](affine.offset, level), wanted <= -largest)
    never = np.where(constant, ~always, wanted > largest)
    thresholds = np.where(always, _ALWAYS, np.where(never, _NEVER, wanted))
    directions = np.where(downwards & ~constant, -1, 1).astype(np.int8)
    return Folded(directions, thresholds.astype(np.int32))
