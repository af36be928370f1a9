"""Classes of equal labels: union-find on arrays, for any number of equations at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def components(root: Array, one: Array, other: Array) -> Array:
    """Joins the classes of ``one[i]`` and ``other[i]`` for all i.

    Both ends of every equation are followed to the least label of their class, the larger points to
    the smaller, and paths are halved until nothing points on: as many rounds as the logarithm of
    the longest chain.

    Args:
        root: [labels], for each the least label of its class so far; ``arange`` at first.
        one: [equations].
        other: [equations].

    Returns:
        [labels], for each the least label of its class.
    """
    root = root.copy()
    apart = root[one] != root[other]
    one, other = one[apart], other[apart]
    while one.size:
        left, right = root[one], root[other]
        np.minimum.at(root, np.maximum(left, right), np.minimum(left, right))
        while True:
            further = root[root]
            if np.array_equal(further, root):
                break
            root = further
        apart = root[one] != root[other]
        one, other = one[apart], other[apart]
    return root
