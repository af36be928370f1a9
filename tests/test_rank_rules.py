"""Ranks by rule against planted ranks and a slow free energy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.gram import Array
from onnxcomp.lowrank import spectrum
from onnxcomp.rank_rules import evbmf_rank, rank_for_energy


def planted(seed: int, out: int, width: int, rank: int, noise: float) -> Array:
    """Singular values of the signal are equal, twice to four times those of the noise."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((out, max(rank, 1))))[0]
    right = np.linalg.qr(rng.standard_normal((width, max(rank, 1))))[0]
    signal = 3 * noise * (np.sqrt(out) + np.sqrt(width))
    scale = signal * np.linspace(2 / 3, 4 / 3, max(rank, 1)) * (rank > 0)
    return np.asarray((left * scale) @ right.T + noise * rng.standard_normal((out, width)))


def slow_rank(weights: Array) -> int:
    """The free energy summed value by value at 4000 variances, and the exact threshold.

    tau is the root of log(tau + 1) + alpha log(tau / alpha + 1) = tau, by bisection.
    """
    if weights.shape[0] > weights.shape[1]:
        weights = weights.T
    length, most = weights.shape
    alpha = length / most
    squares = [float(v) ** 2 for v in np.linalg.svd(weights)[1]]

    def gain(tau: float) -> float:
        return math.log(tau + 1) + alpha * math.log(tau / alpha + 1) - tau

    low, high = 1e-6, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) > 0 else (low, middle)
    threshold = (1 + low) * (1 + alpha / low)
    highest = sum(squares) / (length * most)
    noise = min(math.ceil(length / (1 + alpha)) - 1, length - 1)
    tail = squares[noise:]
    lowest = max(tail[0] / (most * threshold), sum(tail) / len(tail) / most)
    best, variance = math.inf, highest
    for step in range(4001):
        tried = lowest * (highest / lowest) ** (step / 4000)
        energy = 0.0
        for square in squares:
            x = square / (most * tried)
            energy += x - math.log(x)
            if x > threshold:
                rest = x - 1 - alpha
                energy += gain((rest + math.sqrt(rest * rest - 4 * alpha)) / 2)
        if energy < best:
            best, variance = energy, tried
    return sum(square > most * variance * threshold for square in squares)


@pytest.mark.parametrize("energy", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_the_least_rank_with_the_energy(energy: float) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((20, 30)) / np.arange(1, 31)
    errors = spectrum(weights).errors
    rank = rank_for_energy(errors, energy)
    kept = 1 - errors / errors[0]
    assert kept[rank] >= energy - 1e-12
    assert rank == 0 or kept[rank - 1] < energy
    squares = np.linalg.svd(weights)[1] ** 2
    assert np.sum(squares[:rank]) >= (energy - 1e-12) * np.sum(squares)


def test_energies_that_cannot_be_kept() -> None:
    errors = np.array([10.0, 4.0, 2.0])
    assert rank_for_energy(errors, 0.8) == 2
    with pytest.raises(ValueError, match=r"rank 2, the highest known, keeps 80.0% of the energy"):
        rank_for_energy(errors, 0.81)
    with pytest.raises(ValueError, match="not a share"):
        rank_for_energy(errors, 1.5)
    assert rank_for_energy(np.zeros(3), 0.9) == 0


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50), (20, 200)])
@pytest.mark.parametrize("rank", [0, 1, 5, 10])
@pytest.mark.parametrize("noise", [1e-3, 1.0])
def test_evbmf_finds_the_planted_rank(shape: tuple[int, int], rank: int, noise: float) -> None:
    assert evbmf_rank(planted(rank, *shape, rank, noise)) == rank


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 25), st.integers(2, 25), st.integers(0, 8), st.floats(0.3, 3), st.data())
def test_evbmf_is_the_minimum_of_the_free_energy(
    out: int, width: int, rank: int, strength: float, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    weights = rng.standard_normal((out, rank)) @ rng.standard_normal((rank, width)) * strength
    weights += rng.standard_normal((out, width))
    assert evbmf_rank(weights) == slow_rank(weights)


def test_evbmf_does_not_know_the_scale_nor_the_side() -> None:
    weights = planted(3, 30, 45, 6, 0.1)
    assert evbmf_rank(weights * 1e-9) == evbmf_rank(weights.T * 1e9) == 6


def test_evbmf_without_noise_counts_what_is_there() -> None:
    rng = np.random.default_rng(1)
    exact = rng.standard_normal((30, 4)) @ rng.standard_normal((4, 20))
    assert evbmf_rank(exact) == 4
    assert evbmf_rank(np.zeros((3, 4))) == 0
    assert evbmf_rank(np.ones((3, 4))) == 1
    with pytest.raises(ValueError, match=r"\(3,\) are not a finite matrix"):
        evbmf_rank(np.ones(3))
    with pytest.raises(ValueError, match="not a finite matrix"):
        evbmf_rank(np.full((2, 2), np.inf))
