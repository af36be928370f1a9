"""Packed weights that a hostile model might have."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy.typing as npt
from hypothesis import strategies as st

Arrays = TypeVar("Arrays", bound=dict[str, npt.NDArray[Any]])
NUMBERS = st.integers(-2, 12) | st.sampled_from([-(2**31), 2**31 - 1, 2**24])


def spoil(draw: st.DrawFn, arrays: Arrays) -> Arrays:
    """Makes some indices and offsets others, or one of the arrays shorter."""
    for _ in range(draw(st.integers(0, 2))):
        array = arrays[draw(st.sampled_from(["indices", "offsets"]))]
        if array.size:
            array[draw(st.integers(0, array.size - 1))] = draw(NUMBERS)
    shortened = draw(st.sampled_from([None, None, *arrays]))
    if shortened:
        arrays[shortened] = arrays[shortened][:-1]
    return arrays
