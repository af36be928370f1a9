"""How coarsely each weight of a model may be coded: what its error does to the outputs.

Errors of layers add up at the outputs about as independent noise does. With e_l the noise that a
step of 1 causes there, the fewest bits for a given noise are those where each weight causes its
share of it, by numbers of elements: e_l step_l^2 = c n_l. One c serves the whole model.
"""

from __future__ import annotations

import numpy as np

from onnxcomp.quantization import Array

SMALLEST_SHARE = 1e-14  # of the outputs' energy: below, an error drowns in rounding of float32
LARGEST_SHARE = 0.3  # above, what a network makes of an error says nothing about smaller ones


def unit_noise(share: float, step: float) -> float | None:
    """e of a weight, from what a trial step did; None where the trial says nothing."""
    if not SMALLEST_SHARE < share < LARGEST_SHARE:
        return None
    return share / step**2


def relative_noise(values: Array) -> float:
    """e of a weight whose error, relative to itself, reaches the outputs undiminished."""
    variance = float(np.var(values, dtype=np.float64))
    return 1 / (12 * variance) if variance > 0 else 1.0


def step_of(level: float, elements: int, noise: float) -> float:
    """The step of a weight whose unit noise is known.

    Args:
        level: c, the noise that an element may cause at the outputs, as a share of them.
        elements: of the weight.
        noise: e.
    """
    return float(np.sqrt(level * elements / noise))
