"""Factors of matrices against singular value decompositions of W G^1/2."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp import lowrank
from onnxcomp.gram import Array
from onnxcomp.lowrank import Outputs, lost_energy, spectrum

SHAPES = [(1, 1), (5, 5), (9, 4), (4, 9), (1, 7), (7, 1), (30, 20)]


def gram_of(rng: np.random.Generator, width: int, samples: int | None = None) -> Array:
    """E[x xT] of inputs with a mean and correlations; of lower rank with few samples."""
    rows = rng.standard_normal((samples or 4 * width, width)) @ rng.standard_normal((width, width))
    rows += rng.standard_normal(width)
    return np.asarray(rows.T @ rows / len(rows))


def conditioned(rng: np.random.Generator, width: int, lowest: float) -> Array:
    """Eigenvalues from 1 down to ``lowest``."""
    basis = np.linalg.qr(rng.standard_normal((width, width)))[0]
    values = np.logspace(0, np.log10(lowest), width)
    return np.asarray((basis * values) @ basis.T)


def tails(weights: Array, gram: Array | None) -> Array:
    """The least that every rank can lose: tails of the squared singular values of W G^1/2."""
    if gram is not None:
        values, vectors = np.linalg.eigh(gram)
        weights = weights @ (vectors * np.sqrt(values.clip(min=0)))
    squares = np.linalg.svd(weights, compute_uv=False) ** 2
    return np.append(np.cumsum(squares[::-1])[::-1], 0.0)


def check(weights: Array, gram: Array | None) -> None:
    """Every rank loses what it says, and no more than the least possible."""
    found = spectrum(weights, gram)
    least = tails(weights, gram)
    close = 1e-11 * least[0] + 1e-300
    assert (found.errors <= 1.01 * least + close).all()
    assert (found.errors >= least * (1 - 1e-9) - close).all()
    assert (np.diff(found.errors) <= 0).all()
    for rank in range(len(least)):
        left, right = found.factors(rank)
        assert left.shape == (len(weights), rank)
        difference = weights - left @ right
        assert lost_energy(difference, gram) == pytest.approx(
            found.errors[rank], rel=1e-6, abs=1e-11 * least[0] + 1e-300
        )
    np.testing.assert_allclose(left @ right, weights, rtol=0, atol=1e-10 * np.abs(weights).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_every_rank_is_the_best_under_the_data(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(shape))
    weights = rng.standard_normal(shape)
    check(weights, None)
    check(weights, gram_of(rng, shape[1]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["few samples", "zero", "1e-12", "dead inputs", "mean only"])
def test_every_rank_is_the_best_under_any_data(shape: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(3)
    width = shape[1]
    gram = {
        "few samples": gram_of(rng, width, max(1, width // 3)),
        "zero": np.zeros((width, width)),
        "1e-12": conditioned(rng, width, 1e-12),
        "dead inputs": np.diag(np.arange(width) % 3).astype(float),
        "mean only": np.full((width, width), 7.0),
    }[kind]
    check(rng.standard_normal(shape), gram)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.data())
def test_matrices_of_any_rank(out: int, width: int, rank: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    weights = rng.standard_normal((out, rank)) @ rng.standard_normal((rank, width))
    weights *= 10.0 ** data.draw(st.integers(-8, 8))
    samples = data.draw(st.integers(1, 20))
    check(weights, data.draw(st.sampled_from([None, gram_of(rng, width, samples)])))


@pytest.mark.parametrize("lowest", [1e-1, 1e-3, 1e-6, 1e-9, 1e-14])
def test_a_tall_matrix_may_be_nearly_singular(lowest: float) -> None:
    """The short cut to W = Q R holds or is not taken."""
    rng = np.random.default_rng(11)
    weights = rng.standard_normal((40, 12)) @ conditioned(rng, 12, lowest)
    against = np.linalg.inv(weights.T @ weights + 1e-3 * np.eye(12))
    for gram in (None, gram_of(rng, 12), (against + against.T) / 2):
        check(weights, gram)


@pytest.mark.parametrize("lowest", [1e-1, 1e-4, 1e-8, 1e-11, 1e-14])
def test_a_tall_matrix_under_ill_conditioned_data(lowest: float) -> None:
    """The short cut through an inverse of G's root holds or is not taken."""
    rng = np.random.default_rng(12)
    for smallest in (1.0, 1e-3, 1e-9):
        check(rng.standard_normal((40, 12)) @ conditioned(rng, 12, smallest),
              conditioned(rng, 12, lowest))  # fmt: skip


def test_a_triangle_is_inverted_by_halves() -> None:
    rng = np.random.default_rng(14)
    gram = conditioned(rng, 301, 1e-6)
    pair = lowrank._root(gram)
    assert pair is not None
    np.testing.assert_allclose(pair[0] @ pair[0].T, gram, atol=1e-15)
    np.testing.assert_allclose(pair[0] @ pair[1], np.eye(301), atol=1e-11)
    assert lowrank._root(conditioned(rng, 301, 1e-13)) is None
    assert lowrank._root(np.zeros((3, 3))) is None


@pytest.mark.parametrize("shape", [(4, 9), (9, 9), (1, 7), (30, 40)])
@pytest.mark.parametrize("samples", [1, 5, 200])
def test_outputs_of_the_samples_say_what_their_inputs_do(
    shape: tuple[int, int], samples: int
) -> None:
    rng = np.random.default_rng(13)
    x, weights = rng.standard_normal((samples, shape[1])), rng.standard_normal(shape)
    gram, made = x.T @ x / samples, (x @ weights.T).T @ (x @ weights.T) / samples
    damped = gram + 0.01 * np.eye(shape[1])
    found, least = spectrum(weights, Outputs(made, 0.01)), tails(weights, damped)
    np.testing.assert_allclose(found.errors, least, rtol=1e-9, atol=1e-12 * least[0])
    for rank in (0, 1, shape[0]):
        difference = weights - np.matmul(*found.factors(rank))
        assert lost_energy(difference, damped) == pytest.approx(least[rank], abs=1e-12 * least[0])
    with pytest.raises(ValueError, match="do not fit weights"):
        spectrum(weights.T if shape[0] != shape[1] else weights[1:], Outputs(made))


def test_only_what_a_rank_needs_is_multiplied() -> None:
    """A tall matrix in float32 is not copied, and few ranks take a part of the time of all."""
    rng = np.random.default_rng(15)
    weights = rng.standard_normal((60, 20)).astype(np.float32)
    found = spectrum(weights, gram_of(rng, 20))
    assert np.shares_memory(found.outward[0], weights)
    assert max(part.size for part in (*found.outward[1:], *found.inward)) <= 20 * 20


def test_a_zero_matrix_and_no_rank() -> None:
    check(np.zeros((3, 5)), np.eye(5))
    check(np.zeros((5, 3)), None)
    left, right = spectrum(np.ones((2, 3))).factors(0)
    np.testing.assert_array_equal(left @ right, np.zeros((2, 3)))


def test_the_data_decide() -> None:
    """The large weights read an input that is never there."""
    weights = np.diag([10.0, 2.0, 1.0])
    left, right = spectrum(weights, np.diag([0.0, 1.0, 9.0])).factors(1)
    np.testing.assert_allclose(left @ right, np.diag([0.0, 0.0, 1.0]), atol=1e-12)
    found = spectrum(weights, np.diag([0.0, 1.0, 9.0]))
    np.testing.assert_allclose(found.errors, [13.0, 4.0, 0.0, 0.0], atol=1e-12)
    left, right = found.factors(3)
    np.testing.assert_allclose(left @ right, weights, atol=1e-12)


def test_what_no_sample_used_comes_last_and_the_larger_first() -> None:
    weights = np.diag([1.0, 3.0, 2.0])
    found = spectrum(weights, np.diag([1e-3, 0.0, 0.0]))
    for rank, kept in ((1, [1, 0, 0]), (2, [1, 3, 0]), (3, [1, 3, 2])):
        left, right = found.factors(rank)
        np.testing.assert_allclose(left @ right, np.diag(kept).astype(float), atol=1e-9)


def test_a_diagonal_stands_for_a_gram_matrix() -> None:
    rng = np.random.default_rng(0)
    weights, energy = rng.standard_normal((6, 9)), rng.random(9)
    short, long = spectrum(weights, energy), spectrum(weights, np.diag(energy))
    np.testing.assert_allclose(short.errors, long.errors, rtol=1e-9, atol=1e-12)
    difference = weights - np.matmul(*short.factors(2))
    assert lost_energy(difference, energy) == pytest.approx(short.errors[2])
    assert lost_energy(difference, np.diag(energy)) == pytest.approx(short.errors[2])


def test_factors_have_the_same_scale() -> None:
    rng = np.random.default_rng(1)
    found = spectrum(1e6 * rng.standard_normal((8, 6)), gram_of(rng, 6))
    left, right = found.factors(4)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1))


def test_few_samples_of_the_inputs_give_what_the_outputs_lose() -> None:
    """The error is that of the outputs themselves, over the samples."""
    rng = np.random.default_rng(2)
    x, weights = rng.standard_normal((5, 8)), rng.standard_normal((6, 8))
    found = spectrum(weights, x.T @ x / 5)
    wrong = x @ (weights - np.matmul(*found.factors(2))).T
    assert found.errors[2] == pytest.approx(np.mean(np.sum(wrong**2, axis=1)))
    assert found.errors[5] < 1e-12 * found.errors[0] < found.errors[2]


@pytest.mark.parametrize("decay", [0.3, 1.0])
@pytest.mark.parametrize("shape", [(400, 250), (250, 400)])
def test_few_ranks_of_many_are_nearly_the_best(
    shape: tuple[int, int], decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowrank, "RANDOMIZED_ABOVE", 100)
    rng = np.random.default_rng(4)
    weights = rng.standard_normal(shape) * np.arange(1, shape[1] + 1) ** -decay
    gram = gram_of(rng, shape[1])
    found, least = spectrum(weights, gram, most_rank=40), tails(weights, gram)
    assert found.left.shape == (shape[0], 40)
    assert (found.errors <= 1.01 * least[:41]).all()
    assert (found.errors >= least[:41] * (1 - 1e-9)).all()
    for rank in (0, 1, 17, 40):
        difference = weights - np.matmul(*found.factors(rank))
        assert lost_energy(difference, gram) == pytest.approx(found.errors[rank], rel=1e-6)
    again = spectrum(weights, gram, most_rank=40)
    np.testing.assert_array_equal(found.left, again.left)
    other = spectrum(weights, gram, most_rank=40, seed=1)
    assert not np.array_equal(found.left, other.left)


@pytest.mark.parametrize("kind", ["flat", "power", "exponential", "step", "trained"])
@pytest.mark.parametrize("data", ["none", "full", "few samples", "decaying"])
def test_random_vectors_lose_at_most_1_percent_more(
    kind: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every rank of any spectrum, flat ones too, where no direction stands out."""
    monkeypatch.setattr(lowrank, "RANDOMIZED_ABOVE", 100)
    rng = np.random.default_rng(21)
    out, width = 240, 180
    at = np.arange(width)
    values = {
        "flat": np.ones(width),
        "power": (1.0 + at) ** -1,
        "exponential": 0.95**at,
        "step": np.where(at < 12, 30.0, 1.0),
        "trained": (1.0 + at) ** -0.4 * (1 - at / (width + 20)),  # the tail of noise's own law
    }[kind]
    outer, inner = (np.linalg.qr(rng.standard_normal((n, width)))[0] for n in (out, width))
    weights = (outer * values) @ inner.T
    gram = {
        "none": None,
        "full": gram_of(rng, width),
        "few samples": gram_of(rng, width, 30),
        "decaying": conditioned(rng, width, 1e-5),
    }[data]
    for shape in (weights, np.ascontiguousarray(weights[:width].T)):
        found, least = spectrum(shape, gram, most_rank=36), tails(shape, gram)[:37]
        close = 1e-10 * least[0]
        assert (found.errors <= 1.01 * least + close).all()
        for rank in (1, 20, 36):
            lost = lost_energy(shape - np.matmul(*found.factors(rank)), gram)
            assert lost <= 1.01 * least[rank] + close


def test_random_vectors_find_a_matrix_of_few_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank, "RANDOMIZED_ABOVE", 100)
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((300, 10)) @ rng.standard_normal((10, 200))
    left, right = spectrum(weights, gram_of(rng, 200), most_rank=10).factors(10)
    np.testing.assert_allclose(left @ right, weights, atol=1e-10 * np.abs(weights).max())


def test_fewer_ranks_of_a_small_matrix_are_the_first_of_all() -> None:
    rng = np.random.default_rng(6)
    weights, gram = rng.standard_normal((9, 7)), gram_of(rng, 7)
    some, every = spectrum(weights, gram, most_rank=3), spectrum(weights, gram)
    np.testing.assert_allclose(some.errors, every.errors[:4])
    np.testing.assert_allclose(np.matmul(*some.factors(2)), np.matmul(*every.factors(2)))


def test_bad_input_is_named() -> None:
    weights = np.ones((3, 4))
    for wrong, match in (
        ((np.ones(3), None), "not a matrix"),
        ((weights, np.eye(3)), r"\(3, 3\) does not fit 4 inputs"),
        ((weights * np.nan, None), "not finite"),
        ((weights, np.full((4, 4), np.inf)), "not finite"),
    ):
        with pytest.raises(ValueError, match=match):
            spectrum(*wrong)
    with pytest.raises(ValueError, match="rank 4 is not one of 0 to 3"):
        spectrum(weights).factors(4)


def test_float32_weights_are_factorized_in_float64() -> None:
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((5, 6)).astype(np.float32)
    before = weights.copy()
    left, right = spectrum(weights, gram_of(rng, 6)).factors(5)
    assert left.dtype == right.dtype == np.float64
    np.testing.assert_allclose(left @ right, weights, atol=1e-12)
    np.testing.assert_array_equal(weights, before)
