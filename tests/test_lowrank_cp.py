"""Sums of outer products against planted ones, exact ranks and known optima."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.gram import Array
from onnxcomp.lowrank import lost_energy, spectrum
from onnxcomp.lowrank_cp import cp, cp_kernel


def patches(rng: np.random.Generator, width: int, samples: int) -> Array:
    rows = rng.standard_normal((samples, width)) @ rng.standard_normal((width, width))
    rows += 3 * rng.standard_normal(width)
    return np.asarray(rows.T @ rows / len(rows))


def planted(rng: np.random.Generator, shape: tuple[int, ...], rank: int) -> Array:
    factors = (rng.standard_normal((length, rank)) for length in shape)
    return np.einsum("or,ir,hr,wr->oihw", *factors)


@settings(deadline=None, max_examples=30)
@given(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
       st.integers(0, 20), st.integers(0, 2), st.data())  # fmt: skip
def test_enough_terms_make_the_kernel_itself(
    shape: tuple[int, int, int, int], samples: int, more: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    kernel = rng.standard_normal(shape)
    out, width, high, wide = shape
    gram = patches(rng, width * high * wide, samples) if samples else None
    rank = high * wide * min(out, width) + more
    found = cp(kernel, rank, gram)
    assert [f.shape for f in found] == [(rank, width), (rank, high), (rank, wide), (out, rank)]
    np.testing.assert_allclose(cp_kernel(*found), kernel, atol=1e-8)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), st.integers(1, 8), st.integers(1, 40))
def test_sweeps_under_the_whole_gram_lose_no_more(seed: int, rank: int, samples: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((5, 4, 3, 3))
    gram = patches(rng, 36, samples)
    between = np.einsum("isjs->ij", gram.reshape(4, 9, 4, 9))
    found = [cp(kernel, rank, between), *(cp(kernel, rank, gram, sweeps=n) for n in (0, 1, 3))]
    errors = [lost_energy(kernel - cp_kernel(*factors), gram) for factors in found]
    assert (np.diff(errors) <= 1e-8 * lost_energy(kernel, gram)).all()
    assert errors[1] < errors[0]


@pytest.mark.parametrize("seed", range(3))
def test_planted_terms_are_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = planted(rng, (8, 7, 3, 3), 4)
    noise = 0.01 * rng.standard_normal(kernel.shape)
    for gram in (None, patches(rng, 7, 30), patches(rng, 63, 200)):
        found = cp_kernel(*cp(kernel + noise, 4, gram))
        assert lost_energy(kernel + noise - found, gram_of(gram)) <= 1.01 * lost_energy(
            noise, gram_of(gram)
        )


def gram_of(gram: Array | None) -> Array | None:
    return np.kron(gram, np.eye(9)) if gram is not None and len(gram) == 7 else gram


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_1_x_1_kernel_is_a_matrix(rank: int) -> None:
    rng = np.random.default_rng(1)
    kernel = rng.standard_normal((6, 5, 1, 1)) * np.arange(1, 6)[:, None, None]
    for gram in (None, patches(rng, 5, 20)):
        least = spectrum(kernel.reshape(6, 5), gram).errors[rank]
        error = lost_energy(kernel - cp_kernel(*cp(kernel, rank, gram)), gram)
        assert error == pytest.approx(least, rel=0.01)


def test_more_terms_lose_less_and_the_data_help() -> None:
    rng = np.random.default_rng(2)
    kernel = planted(rng, (10, 8, 3, 3), 6) + 0.3 * rng.standard_normal((10, 8, 3, 3))
    gram = patches(rng, 72, 300)
    errors = [lost_energy(kernel - cp_kernel(*cp(kernel, r, gram)), gram) for r in (2, 4, 8, 16)]
    assert (np.diff(errors) < 0).all()
    plain = lost_energy(kernel - cp_kernel(*cp(kernel, 8)), gram)
    assert errors[2] < 0.9 * plain


def test_terms_have_like_sizes_and_a_zero_kernel_is_zero() -> None:
    rng = np.random.default_rng(3)
    inward, first, second, outward = cp(1e6 * rng.standard_normal((5, 4, 3, 3)), 3)
    sizes = [np.sqrt(np.mean(f**2, axis=1)) for f in (inward, first, second, outward.T)]
    np.testing.assert_allclose(sizes, np.broadcast_to(sizes[0], (4, 3)))
    zero = cp(np.zeros((3, 2, 3, 3)), 2, np.zeros((18, 18)))
    np.testing.assert_array_equal(cp_kernel(*zero), np.zeros((3, 2, 3, 3)))
    assert all(np.isfinite(f).all() for f in zero)


def test_the_same_seed_gives_the_same_terms() -> None:
    kernel = planted(np.random.default_rng(4), (6, 5, 3, 3), 9)
    for one, other in zip(cp(kernel, 3, seed=7), cp(kernel, 3, seed=7), strict=True):
        np.testing.assert_array_equal(one, other)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="no two spatial axes"):
        cp(np.ones((2, 3, 3)), 1)
    with pytest.raises(ValueError, match="rank 0"):
        cp(np.ones((2, 3, 3, 3)), 0)
    with pytest.raises(ValueError, match="does not fit 3 channels of 9 positions"):
        cp(np.ones((2, 3, 3, 3)), 1, np.eye(9))
