"""What `trellis` computes, in numpy: slow, and vectorised over sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
STATES = 16


def following(state: Array, code: Array) -> Array:
    """The state after a code."""
    shifted: Array = ((state << 1) & 15) ^ np.where(state >= 8, 9, 0) ^ np.where(code & 1, 4, 0)
    return shifted


def restore(codes: Array) -> Array:
    """The integers of codes [outer, length, inner], int32."""
    wide = codes.astype(np.int64)
    integers = np.empty_like(wide)
    state = np.zeros((codes.shape[0], codes.shape[2]), np.int64)
    for i in range(codes.shape[1]):
        code = wide[:, i]
        integers[:, i] = 2 * code - np.sign(code) * (state >> 3)
        state = following(state, code)
    return integers.astype(np.int32)


def choose(targets: Array, prices: Array, period: int) -> tuple[Array, float]:
    """The integers of targets [sequences, length] with the least error and price, and the sum."""
    parts = [targets[:, i : i + period] for i in range(0, targets.shape[1], period)]
    found = [_choose(part, np.asarray(prices, np.float64)) for part in parts]
    whole = np.concatenate([np.zeros((len(targets), 0), np.int32), *(part for part, _ in found)], 1)
    return whole, float(sum(cost for _, cost in found))


def _choose(targets: Array, prices: Array) -> tuple[Array, float]:
    """All states at once, every code up to two beyond the target."""
    count, length = targets.shape
    most = int(np.abs(targets).max(initial=0) / 2) + 3
    codes = np.arange(-most, most + 1)
    price = prices[np.minimum(np.abs(codes), len(prices) - 1)]
    sequences = np.arange(count)
    costs = np.full((count, STATES), np.inf)
    costs[:, 0] = 0
    came = np.zeros((length, count, STATES, 2), np.int64)  # from which state, by which code
    for i in range(length):
        reached = np.full_like(costs, np.inf)
        for state in range(STATES):
            integers = 2 * codes - np.sign(codes) * (state >> 3)
            cost = (targets[:, i, None] - integers) ** 2 + price
            for parity in (0, 1):
                mine = codes[codes % 2 == parity]
                best = cost[:, codes % 2 == parity]
                chosen = best.argmin(1)
                total = costs[:, state] + best[sequences, chosen]
                to = int(following(np.asarray(state), np.asarray(parity)))
                wins = total < reached[:, to]
                reached[wins, to] = total[wins]
                came[i, wins, to] = np.stack([np.full(count, state), mine[chosen]], 1)[wins]
        costs = reached
    state = costs.argmin(1)
    found = np.zeros((count, length), np.int32)
    for i in reversed(range(length)):
        before, code = came[i, sequences, state].T
        found[:, i] = 2 * code - np.sign(code) * (before >> 3)
        state = before
    return found, float(costs.min(1).sum())
