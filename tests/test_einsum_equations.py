"""Names of the axes of an Einsum."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.einsum_equations import einsum_axes


def test_an_ellipsis_counts_from_the_back() -> None:
    terms, result = einsum_axes("...qd, ...kd -> ...qk", [4, 3])

    assert terms == [["-2", "-1", "q", "d"], ["-1", "k", "d"]]
    assert result == ["-2", "-1", "q", "k"]


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk", [(2, 3), (3, 4)]),
        ("kj,ji", [(2, 3), (3, 4)]),
        ("...ij,...jk", [(5, 2, 3), (5, 3, 4)]),
        ("...ij,...jk", [(2, 3), (5, 3, 4)]),
        ("a...b,b...c", [(2, 5, 3), (3, 5, 4)]),
        ("ii->i", [(3, 3)]),
    ],
)
def test_lengths_of_the_result_are_those_of_numpy(
    equation: str, shapes: list[tuple[int, ...]]
) -> None:
    terms, result = einsum_axes(equation, [len(shape) for shape in shapes])
    sizes = {
        name: size
        for term, shape in zip(terms, shapes, strict=True)
        for name, size in zip(term, shape, strict=True)
    }

    found = tuple(sizes[name] for name in result)
    assert found == np.einsum(equation, *map(np.ones, shapes)).shape
