"""The root of a falling function that is dear to look at."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnxcomp.errors import OnnxcompError

CLOSE = 1 / 64  # octaves of a level: 0.05 dB
MOST_TRIALS = 24


def largest_level(
    margin: Callable[[float], float],
    start: float,
    *,
    bounds: tuple[float, float],
    per_octave: float,
    close: float,
) -> float:
    """The largest x with margin(x) >= 0, of a margin that falls as x grows.

    It is the last x looked at whose margin was not negative. Steps out from ``start`` until both
    sides are known, then closes in on the root: by regula falsi, kept away from the ends so that a
    margin with jumps costs no more than bisection does.

    Args:
        margin: what is left of the target.
        start: where to look first.
        bounds: of x.
        per_octave: by how much the margin falls as x grows by 1, about.
        close: a margin that small is not worth another look.

    Raises:
        OnnxcompError: no x within the bounds has margin >= 0.
    """
    low, high = bounds
    good: tuple[float, float] | None = None
    bad: tuple[float, float] | None = None
    x, reach = min(max(start, low), high), 0.5
    for _ in range(MOST_TRIALS):
        found = margin(x)
        if found >= 0:
            good = x, found
            if found <= close or x >= high:
                break
        else:
            bad = x, found
            if x <= low:
                break
        if good is not None and bad is not None:
            width = bad[0] - good[0]
            if width <= CLOSE:
                break
            part = good[1] / (good[1] - bad[1]) if math.isfinite(bad[1] + good[1]) else 0.5
            x = good[0] + width * min(max(part, 0.1), 0.9)
        else:
            away = found / per_octave if math.isfinite(found) else -reach
            x += math.copysign(max(min(abs(away), 8.0) * 1.1, reach), found if found else 1.0)
            x, reach = min(max(x, low), high), 2 * reach
    if good is None:
        raise OnnxcompError(
            "no steps of the weights are fine enough, or coarse enough, for that: ask for less, or "
            "pack --lossless"
        )
    return good[0]
