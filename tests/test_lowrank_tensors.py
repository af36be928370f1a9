"""Factors of kernels against known optima, the higher-order SVD and tensorly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.gram import Array
from onnxcomp.lowrank import lost_energy, spectrum
from onnxcomp.lowrank_tensors import (
    spatial,
    spatial_kernel,
    tucker1,
    tucker1_errors,
    tucker2,
    tucker2_errors,
    tucker2_kernel,
)

SHAPES = [(6, 5, 3, 3), (3, 8, 1, 1), (8, 3, 2, 4), (4, 4, 5), (1, 6, 3, 3), (6, 1, 3, 3)]


def patches(rng: np.random.Generator, shape: tuple[int, ...], samples: int | None = None) -> Array:
    """G of patches [in * s] that are correlated over channels and positions."""
    width = int(np.prod(shape[1:]))
    rows = rng.standard_normal((samples or 4 * width, width)) @ rng.standard_normal((width, width))
    rows += 3 * rng.standard_normal(width)
    return np.asarray(rows.T @ rows / len(rows))


def smooth_kernel(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A kernel of few ranks, and noise: what factors are for."""
    out, width, *spatial_shape = shape
    core = rng.standard_normal((2, 2, *spatial_shape))
    kernel = np.einsum("op,pq...,qi->oi...", rng.standard_normal((out, 2)), core,
                       rng.standard_normal((2, width)))  # fmt: skip
    return np.asarray(kernel + 0.3 * rng.standard_normal(shape))


def hosvd_error(kernel: Array, ranks: tuple[int, int]) -> float:
    """What the truncated higher-order singular value decomposition loses."""
    out, width = kernel.shape[:2]
    u = np.linalg.svd(kernel.reshape(out, -1))[0][:, : ranks[0]]
    v = np.linalg.svd(np.moveaxis(kernel, 1, 0).reshape(width, -1))[0][:, : ranks[1]]
    kept = np.moveaxis(np.tensordot(v @ v.T, np.tensordot(u @ u.T, kernel, 1), (1, 1)), 0, 1)
    return float(np.sum(np.square(kernel - kept)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("data", ["none", "channels", "patches", "few", "zero", "outputs"])
def test_all_channels_make_the_kernel_itself(shape: tuple[int, ...], data: str) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal(shape)
    width = int(np.prod(shape[1:]))
    gram = {
        "channels": patches(rng, shape[:2]),
        "patches": patches(rng, shape),
        "few": patches(rng, shape, 3),
        "zero": np.zeros((width, width)),
    }.get(data)
    out_gram = patches(rng, (1, shape[0])) if data == "outputs" else None
    core, outward, inward = tucker2(kernel, shape[:2], gram, out_gram)
    assert core.shape == shape
    assert outward.shape == (shape[0],) * 2
    assert inward.shape == (shape[1],) * 2
    np.testing.assert_allclose(tucker2_kernel(core, outward, inward), kernel, atol=1e-8)
    core, inward = tucker1(kernel, shape[1], gram)
    one = np.eye(len(kernel))
    np.testing.assert_allclose(tucker2_kernel(core, one, inward), kernel, atol=1e-8)
    if len(shape) == 4:
        full = min(shape[0] * shape[3], shape[1] * shape[2])
        thin = spatial(kernel, full, gram)
        assert [f.shape for f in thin] == [
            (full, shape[1], shape[2], 1),
            (shape[0], full, 1, shape[3]),
        ]
        np.testing.assert_allclose(spatial_kernel(*thin), kernel, atol=1e-8)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.data())
def test_any_ranks_have_their_shapes_and_lose_less_with_more_sweeps(
    out: int, width: int, high: int, wide: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    kernel = rng.standard_normal((out, width, high, wide))
    gram = patches(rng, kernel.shape, data.draw(st.integers(1, 30)))
    close = 1e-8 * lost_energy(kernel, gram)
    ranks = data.draw(st.integers(1, out)), data.draw(st.integers(1, width))
    rank = data.draw(st.integers(1, min(out * wide, width * high)))
    for found, rebuilt in (
        ([tucker2(kernel, ranks, gram, sweeps=n) for n in (0, 1, 3)], tucker2_kernel),
        ([spatial(kernel, rank, gram, sweeps=n) for n in (0, 1, 3)], spatial_kernel),
    ):
        errors = [lost_energy(kernel - rebuilt(*factors), gram) for factors in found]
        assert (np.diff(errors) <= close).all()
    core, outward, inward = tucker2(kernel, ranks, gram)
    assert core.shape == (*ranks, high, wide)
    assert outward.shape == (out, ranks[0])
    assert inward.shape == (ranks[1], width)


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (4, 2), (5, 1), (6, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_tucker_is_no_worse_than_hosvd_and_tensorly(ranks: tuple[int, int], seed: int) -> None:
    from tensorly.decomposition import partial_tucker
    from tensorly.tenalg import multi_mode_dot

    rng = np.random.default_rng(seed)
    kernel = smooth_kernel(rng, (8, 6, 3, 3))
    found = lost_energy(kernel - tucker2_kernel(*tucker2(kernel, ranks)))
    assert found <= hosvd_error(kernel, ranks) * (1 + 1e-9)
    (core, factors), _ = partial_tucker(kernel, ranks, modes=[0, 1], n_iter_max=200, tol=1e-9)
    theirs = lost_energy(kernel - multi_mode_dot(core, factors, modes=[0, 1]))
    assert found == pytest.approx(theirs, rel=1e-3)


def hosvd_start(kernel: Array, ranks: tuple[int, int], gram: Array, *, white: bool) -> Array:
    """The kernel of a truncated higher-order SVD, whitened by the G of channels or not."""
    out, width, size = *kernel.shape[:2], int(np.prod(kernel.shape[2:]))
    root = np.eye(width)
    if white:
        between = np.einsum("isjs->ij", gram.reshape(width, size, width, size))
        values, vectors = np.linalg.eigh(between)
        root = (vectors * np.sqrt(values.clip(min=1e-12 * values[-1]))) @ vectors.T
    tensor = np.einsum("oi...,ij->oj...", kernel, root)
    u = np.linalg.svd(tensor.reshape(out, -1))[0][:, : ranks[0]]
    v = np.linalg.svd(np.moveaxis(tensor, 1, 0).reshape(width, -1))[0][:, : ranks[1]]
    kept = np.einsum("op,pi...,ij->oj...", u @ u.T, tensor, v @ v.T @ np.linalg.inv(root))
    return np.asarray(kept)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.data())
def test_tucker_is_no_worse_than_hosvd_under_the_whole_gram_matrix(
    out: int, width: int, high: int, wide: int, data: st.DataObject
) -> None:
    """Also where what is best under the G of channels alone is not."""
    rng = np.random.default_rng(data.draw(st.integers(0, 9999)))
    kernel = rng.standard_normal((out, width, high, wide)) ** 3
    gram = patches(rng, kernel.shape, data.draw(st.integers(1, 60)))
    gram *= np.outer(*[np.tile(rng.random(high * wide) ** 2, width)] * 2)
    ranks = data.draw(st.integers(1, out)), data.draw(st.integers(1, width))
    sweeps = data.draw(st.sampled_from([0, 1, 2]))
    found = lost_energy(kernel - tucker2_kernel(*tucker2(kernel, ranks, gram, sweeps=sweeps)), gram)
    for white in (False, True):
        least = lost_energy(kernel - hosvd_start(kernel, ranks, gram, white=white), gram)
        assert found <= least * (1 + 1e-6) + 1e-9 * lost_energy(kernel, gram)


def test_errors_of_all_pairs_are_those_of_hosvd() -> None:
    rng = np.random.default_rng(10)
    kernel = smooth_kernel(rng, (7, 5, 3, 3))
    errors = tucker2_errors(kernel)
    assert errors.shape == (8, 6)
    for ranks in ((1, 1), (3, 2), (2, 5), (7, 4), (7, 5)):
        assert errors[ranks] == pytest.approx(hosvd_error(kernel, ranks), rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(errors[0], np.sum(np.square(kernel)))
    np.testing.assert_allclose(errors[:, 0], errors[0, 0])
    # under G: an upper bound of what the iteration loses, in the same unit
    gram = patches(rng, (1, 5))
    errors = tucker2_errors(kernel, gram)
    np.testing.assert_allclose(tucker1_errors(kernel, gram), errors[-1], atol=1e-9 * errors[0, 0])
    np.testing.assert_allclose(errors, tucker2_errors(kernel, np.kron(gram, np.eye(9))), rtol=1e-9,
                               atol=1e-9 * errors[0, 0])  # fmt: skip
    assert errors[0, 0] == pytest.approx(lost_energy(kernel, np.kron(gram, np.eye(9))))
    for ranks in ((1, 1), (3, 2), (2, 5), (7, 4)):
        made = tucker2_kernel(*tucker2(kernel, ranks, gram))
        lost = lost_energy(kernel - made, np.kron(gram, np.eye(9)))
        assert 0.5 * errors[ranks] <= lost <= errors[ranks] * (1 + 1e-9)


@pytest.mark.parametrize("ranks", [(2, 3), (4, 2)])
def test_whitening_is_tucker_of_the_whitened_kernel(ranks: tuple[int, int]) -> None:
    """Independent of ours: tensorly on G^1/2 of both modes."""
    from tensorly.decomposition import partial_tucker
    from tensorly.tenalg import multi_mode_dot

    rng = np.random.default_rng(5)
    kernel = smooth_kernel(rng, (7, 5, 3, 3))
    gram, out_gram = patches(rng, (1, 5)), patches(rng, (1, 7))
    factors = tucker2(kernel, ranks, gram, out_gram)
    wrong = (kernel - tucker2_kernel(*factors)).reshape(7, -1)
    found = float(np.sum(out_gram * (wrong @ np.kron(gram, np.eye(9)) @ wrong.T)))
    white = multi_mode_dot(
        kernel, [np.linalg.cholesky(g).T for g in (out_gram, gram)], modes=[0, 1]
    )
    (core, bases), _ = partial_tucker(white, ranks, modes=[0, 1], n_iter_max=300, tol=1e-10)
    theirs = lost_energy(white - multi_mode_dot(core, bases, modes=[0, 1]))
    assert found == pytest.approx(theirs, rel=1e-3)


def test_planted_ranks_are_found() -> None:
    rng = np.random.default_rng(6)
    kernel = np.einsum("op,pqhw,qi->oihw", rng.standard_normal((7, 3)),
                       rng.standard_normal((3, 2, 3, 3)), rng.standard_normal((2, 6)))  # fmt: skip
    for gram in (None, patches(rng, kernel.shape), patches(rng, (7, 6))):
        rebuilt = tucker2_kernel(*tucker2(kernel, (3, 2), gram))
        np.testing.assert_allclose(rebuilt, kernel, atol=1e-8)
    kernel = np.einsum("rih,orw->oihw", rng.standard_normal((4, 6, 3)),
                       rng.standard_normal((7, 4, 3)))  # fmt: skip
    for gram in (None, patches(rng, kernel.shape), patches(rng, (7, 6))):
        np.testing.assert_allclose(spatial_kernel(*spatial(kernel, 4, gram)), kernel, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_where_the_optimum_is_known_it_is_reached(rank: int) -> None:
    rng = np.random.default_rng(7)
    # all inputs kept: the head of that rank
    kernel = rng.standard_normal((6, 4, 3, 3))
    gram = patches(rng, kernel.shape)
    least = spectrum(kernel.reshape(6, -1), gram).errors[rank]
    found = tucker2_kernel(*tucker2(kernel, (rank, 4), gram))
    assert lost_energy(kernel - found, gram) == pytest.approx(least, rel=1e-5)
    # a 1 x 1 kernel is a matrix
    kernel = rng.standard_normal((6, 7, 1, 1))
    gram = patches(rng, kernel.shape)
    least = spectrum(kernel.reshape(6, -1), gram).errors[rank]
    for ranks in ((rank, rank), (rank, 7), (6, rank)):
        found = tucker2_kernel(*tucker2(kernel, ranks, gram))
        assert lost_energy(kernel - found, gram) == pytest.approx(least, rel=1e-5)
    # a k x 1 kernel in k x 1 and 1 x 1
    kernel = rng.standard_normal((6, 3, 4, 1))
    gram = patches(rng, kernel.shape)
    least = spectrum(kernel.reshape(6, -1), gram).errors[rank]
    found = spatial_kernel(*spatial(kernel, rank, gram))
    assert lost_energy(kernel - found, gram) == pytest.approx(least, rel=1e-5)


def test_the_data_help() -> None:
    """Under G, factors that know it lose less than those that do not, and the whole G helps."""
    rng = np.random.default_rng(8)
    kernel = smooth_kernel(rng, (10, 8, 3, 3))
    gram = patches(rng, kernel.shape, 40)
    between = np.einsum("isjs->ij", gram.reshape(8, 9, 8, 9))
    for make, rebuilt in (
        (lambda g: tucker2(kernel, (4, 4), g), tucker2_kernel),
        (lambda g: spatial(kernel, 8, g), spatial_kernel),
    ):
        plain, channels, whole = (
            lost_energy(kernel - rebuilt(*make(g)), gram) for g in (None, between, gram)
        )
        assert whole < 0.7 * channels < 0.9 * plain


def test_layers_have_like_scales() -> None:
    rng = np.random.default_rng(9)
    kernel = 1e4 * rng.standard_normal((6, 5, 3, 3))
    core, outward, inward = tucker2(kernel, (3, 2), 1e-6 * patches(rng, kernel.shape))
    sizes = [np.sqrt(np.mean(np.square(factor))) for factor in (core, outward, inward)]
    assert max(sizes) < 10 * min(sizes)


@pytest.mark.parametrize("seed", range(5))
def test_what_no_sample_used_makes_no_large_factors(seed: int) -> None:
    """Two samples leave most directions open; they must not be filled with noise."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((3, 5, 1, 3))
    gram = patches(rng, kernel.shape, 2)
    for ranks in ((1, 5), (3, 5), (2, 3), (3, 1)):
        for sweeps in (0, 4):
            factors = tucker2(kernel, ranks, gram, sweeps=sweeps)
            assert max(np.abs(factor).max() for factor in factors) < 10
    assert max(np.abs(f).max() for f in spatial(kernel, 4, gram, sweeps=4)) < 10


def test_bad_input_is_named() -> None:
    kernel = np.ones((4, 3, 3, 3))
    with pytest.raises(ValueError, match="rank 5 is not one of 1 to 4"):
        tucker2(kernel, (5, 1))
    with pytest.raises(ValueError, match="rank 0 is not one of 1 to 3"):
        tucker2(kernel, (1, 0))
    with pytest.raises(ValueError, match="rank 13 is not one of 1 to 9"):
        spatial(kernel, 13)
    with pytest.raises(ValueError, match="no two spatial axes"):
        spatial(kernel[..., 0], 1)
    for gram in (np.eye(4), np.eye(9)):
        with pytest.raises(ValueError, match="does not fit 3 channels of 9 positions"):
            tucker2(kernel, (1, 1), gram)
    with pytest.raises(ValueError, match="not finite"):
        tucker2(kernel, (1, 1), np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="not of 4 channels"):
        tucker2(kernel, (1, 1), None, np.eye(3))
