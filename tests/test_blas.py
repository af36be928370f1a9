"""Products on one thread: the number is put back whatever happens, and results stay."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from onnxcomp.blas import blas_threads, one_blas_thread


def test_numpys_own_wheel_is_understood() -> None:
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]  # type: ignore[index]
    if built != "scipy-openblas" or sys.platform == "win32":
        pytest.skip(f"numpy is linked with {built}")
    assert 1 <= (blas_threads() or 0) <= max(64, os.cpu_count() or 1)


def test_one_thread_within_and_as_many_as_before_after() -> None:
    before = blas_threads()
    one = None if before is None else 1

    @one_blas_thread()
    def inside(value: int) -> tuple[float, int | None]:
        return 12 / value, blas_threads()

    assert [inside(3), inside(4)] == [(4, one), (3, one)]
    assert blas_threads() == before
    with pytest.raises(ZeroDivisionError):
        inside(0)
    assert blas_threads() == before


def test_products_are_the_same() -> None:
    table = np.random.default_rng(0).standard_normal((300, 300))
    with one_blas_thread():
        alone = table @ table.T
    np.testing.assert_allclose(alone, table @ table.T, rtol=1e-12, atol=1e-10)
