"""Factors of a table that is looked up in and multiplied with: what they lose, and how little."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.gram import Array
from onnxcomp.lowrank import spectrum
from onnxcomp.tied_factors import Tied, TiedSpectrum

RNG = np.random.default_rng(5)


def case(rows: int, width: int, seed: int = 0) -> tuple[Array, Tied]:
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((rows, width)) @ np.diag(0.9 ** np.arange(width))
    mix = rng.standard_normal((width, width)) * 0.7 ** np.arange(width)
    lookups = rng.permutation(1.0 / (1 + np.arange(rows)) ** 1.2)
    return table, Tied(lookups / lookups.sum(), mix @ mix.T)


def mean_of_shares(table: Array, tied: Tied, made: Array) -> float:
    """Read off the definition, row by row and without eigenvectors."""
    shares = []
    for wrong in (table - made, table):
        looked_up = sum(p * row @ row for p, row in zip(tied.lookups, wrong, strict=True))
        shares.append((looked_up, np.trace(wrong @ tied.products @ wrong.T)))
    return float(np.mean([lost / energy for lost, energy in zip(*shares, strict=True)]))


def test_what_is_lost_is_the_mean_of_both_shares() -> None:
    table, tied = case(60, 12)
    found = TiedSpectrum(table, tied)
    for rank in (0, 3, 7):
        left, right = found.factors(rank)
        assert left.shape == (60, rank)
        assert right.shape == (rank, 12)
        lost = mean_of_shares(table, tied, left @ right)
        assert found.error(left, right) == pytest.approx(lost, rel=1e-6)
        assert lost <= found.errors[rank] * (1 + 1e-9)
    assert found.errors[0] == pytest.approx(1)


@pytest.mark.parametrize(("rows", "width"), [(60, 12), (12, 60), (20, 20)])
def test_full_rank_is_the_table(rows: int, width: int) -> None:
    table, tied = case(rows, width)
    left, right = TiedSpectrum(table, tied).factors(min(rows, width))
    np.testing.assert_allclose(left @ right, table, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rank", [2, 5, 9])
def test_both_uses_lose_less_than_with_the_factors_of_one(seed: int, rank: int) -> None:
    table, tied = case(80, 16, seed)
    left, right = TiedSpectrum(table, tied).factors(rank)
    lost = mean_of_shares(table, tied, left @ right)
    of_lookups = spectrum(table.T, tied.lookups).factors(rank)
    of_products = spectrum(table, tied.products).factors(rank)
    plain = spectrum(table).factors(rank)
    for made in ((of_lookups[0] @ of_lookups[1]).T, of_products[0] @ of_products[1]):
        assert lost < mean_of_shares(table, tied, made)
    assert lost < mean_of_shares(table, tied, plain[0] @ plain[1])


def test_no_small_change_of_the_factors_is_better() -> None:
    """At the end of the rounds the gradient is small beside that of the start."""
    table, tied = case(80, 16)
    found = TiedSpectrum(table, tied)
    left, right = found.factors(6)
    lost = found.error(left, right)
    for _ in range(20):
        change = 1e-2 * RNG.standard_normal(left.shape), 1e-2 * RNG.standard_normal(right.shape)
        assert found.error(left + change[0], right + change[1]) > lost


def test_uses_alike_are_plain_svd() -> None:
    table, _ = case(50, 10)
    tied = Tied(np.full(50, 1 / 50), np.eye(10))
    found = TiedSpectrum(table, tied)
    plain = spectrum(table)
    np.testing.assert_allclose(found.errors, plain.errors / plain.errors[0], atol=1e-9)
    left, right = found.factors(4)
    np.testing.assert_allclose(left @ right, np.matmul(*plain.factors(4)), atol=1e-6)


def test_rows_never_looked_up_count_as_products_only() -> None:
    table, tied = case(40, 8)
    lookups = np.where(np.arange(40) < 5, 0.2, 0.0)
    found = TiedSpectrum(table, Tied(lookups, tied.products))
    left, right = found.factors(5)
    assert np.isfinite(left).all()
    assert np.isfinite(right).all()
    assert found.error(left, right) < found.errors[4]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        TiedSpectrum(np.ones((4, 3)), Tied(np.ones(3), np.eye(3)))
