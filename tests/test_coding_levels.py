"""The root search: against functions whose root is known."""

from __future__ import annotations

import math

import pytest

from onnxcomp.coding_levels import CLOSE, MOST_TRIALS, largest_level
from onnxcomp.errors import OnnxcompError


@pytest.mark.parametrize("root", [-61.3, -12.0, -3.001, 7.9])
def test_a_smooth_margin_takes_few_looks(root: float) -> None:
    looks: list[float] = []

    def margin(x: float) -> float:
        looks.append(x)
        return 3 * (root - x) + 0.2 * math.sin(x) - 0.2 * math.sin(root)

    found = largest_level(margin, -20.0, bounds=(-80.0, 10.0), per_octave=3.0, close=0.05)
    assert margin(found) >= 0
    assert root - found <= CLOSE + 0.02
    assert len(looks) < 14


@pytest.mark.parametrize("root", [-40.25, -20.0, 0.5])
def test_a_step_is_found_by_halving(root: float) -> None:
    looks: list[float] = []

    def margin(x: float) -> float:
        looks.append(x)
        return 1.0 if x <= root else -math.inf

    found = largest_level(margin, -20.0, bounds=(-80.0, 10.0), per_octave=1.0, close=-1.0)
    assert found <= root
    assert root - found <= 0.1
    assert len(looks) <= MOST_TRIALS


def test_bounds_are_kept_and_what_cannot_be_is_said() -> None:
    def always(x: float) -> float:
        assert -8 <= x <= 4
        return 5.0

    assert largest_level(always, 0.0, bounds=(-8.0, 4.0), per_octave=1.0, close=0.0) == 4.0
    with pytest.raises(OnnxcompError, match=r"for that: .* --lossless"):
        largest_level(lambda x: -1.0, 0.0, bounds=(-8.0, 4.0), per_octave=1.0, close=0.0)
