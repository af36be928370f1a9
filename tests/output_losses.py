"""What changed weights do to the outputs of a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def loss(change: npt.NDArray[Any], gram: npt.NDArray[Any]) -> float:
    """E|dW x|^2 of all outputs, where dW is [out, d] and the Gram matrix E[x xT] is [d, d]."""
    return float(np.einsum("od,de,oe->", change, gram, change))
