"""Constants that are the same in every row, against what numpy broadcasts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.output_vectors import is_output_vector, output_vector

SIZES = st.sampled_from([1, 2, 3])


@given(st.lists(SIZES, max_size=3), SIZES, SIZES)
def test_a_vector_is_what_broadcasts_to_rows_that_are_alike(
    shape: list[int], out: int, rows: int
) -> None:
    values = np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape)
    found = output_vector(values, out)
    assert (found is not None) == is_output_vector(shape, out)
    try:
        spread = np.broadcast_to(values, (*[1] * (values.ndim - 2), rows, out))
    except ValueError:  # it has other sizes, or more of them
        spread = None
    if found is not None:
        assert found.shape == (out,)
        if spread is not None:
            np.testing.assert_array_equal(spread, np.broadcast_to(found, spread.shape))
    elif spread is not None:
        assert (spread != spread[..., :1, :]).any()


def test_a_column_is_no_vector_though_it_has_as_many_numbers() -> None:
    assert output_vector(np.ones((3, 1)), 3) is None
    assert is_output_vector((1, 3), 3)
