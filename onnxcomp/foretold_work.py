"""About how long thin layers take on a target: foretold, the same wherever that is done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from onnxcomp.thin_layers import Shape, ThinLayer

MOVED = 11  # multiply-accumulates in the time in which a kernel reads or writes a number
CALLED = 25_000  # and in that of calling it: both fitted to 1059 Convs, within 12 % of half of them


def work_of(row: Sequence[ThinLayer], read: Shape, made: Shape, blocks: Mapping[str, int]) -> int:
    """Multiply-accumulates that take about as long as layers in a row; lookups take no time.

    Args:
        row: in the order in which they run.
        read: shape of what the first reads.
        made: of what the last makes.
        blocks: channels that kernels compute at once, by operator type: a part of a block takes
            as long as all of it.
    """
    total, before = 0, math.prod(read)
    for layer in row:
        after = math.prod(layer.made(read, made) or ())
        if layer.op != "Gather":
            block = blocks.get(layer.op, 1)
            whole = -(-layer.channels // block) * block
            total += layer.products * after // layer.channels * whole
            total += MOVED * (before + after) + CALLED
        before = after
    return total
