"""What is put away comes back, and no more than agreed is in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.lowrank import spectrum
from onnxcomp.shelf import Shelf, ShelvedSpectrum


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=30), st.integers(0, 5 * 80))
def test_every_array_comes_back(reads: list[int], most: int) -> None:
    shelf = Shelf(most)
    wanted = [np.arange(10.0) * i for i in range(6)]
    entries = [shelf.put([values.copy(), values[:i]]) for i, values in enumerate(wanted)]
    for i in reads:
        whole, part = entries[i].arrays
        np.testing.assert_array_equal(whole, wanted[i])
        np.testing.assert_array_equal(part, wanted[i][:i])
        assert shelf.bytes_in_memory <= max(most, whole.nbytes + part.nbytes)


def test_what_was_used_last_is_in_memory() -> None:
    shelf = Shelf(2 * 80)
    arrays = [np.full(10, i) for i in range(3)]
    first, second, third = (shelf.put([values]) for values in arrays)
    assert third.arrays[0] is arrays[2]
    assert second.arrays[0] is arrays[1]
    assert first.arrays[0] is not arrays[0]
    assert second.arrays[0] is arrays[1]
    assert third.arrays[0] is not arrays[2]


def test_the_same_array_is_put_away_once() -> None:
    shelf, values = Shelf(1000), np.ones(10)
    assert shelf.put([values]) is not shelf.put([values, values])
    entry = shelf.put([values])
    assert shelf.put([values]) is entry
    assert shelf.bytes_in_memory == 80


def test_files_go_with_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shelf = Shelf(0)
    assert not list(tmp_path.iterdir())
    entries = [shelf.put([np.ones(10)]) for _ in range(3)]
    assert len(list(tmp_path.rglob("*.npz"))) == 2
    del entries[:2]
    assert len(list(tmp_path.rglob("*.npz"))) == 0
    assert shelf.bytes_in_memory == 80
    entries.clear()
    assert shelf.bytes_in_memory == 0
    del shelf
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_factors_are_those_of_the_spectrum(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    weights, x = rng.standard_normal(shape).astype(np.float32), rng.standard_normal((30, shape[1]))
    for gram in (None, x.T @ x):
        shelf, plain = Shelf(0), spectrum(weights, gram)
        found = ShelvedSpectrum(spectrum(weights, gram), shelf)
        kept = {id(a if a.base is None else a.base): a for a in (*plain.outward, *plain.inward)}
        assert shelf.bytes_in_memory == sum(array.nbytes for array in kept.values())
        other = shelf.put([np.ones(3)])
        np.testing.assert_array_equal(found.errors, plain.errors)
        for one, same in zip(found.factors(3), plain.factors(3), strict=True):
            np.testing.assert_allclose(one, same, rtol=1e-12)
        assert other.arrays[0].size == 3
