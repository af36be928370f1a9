"""Steps of factors against least squares on rows of samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.factor_descent import Expansion, Patterned, Repeated, descend, marginal
from onnxcomp.gram import Array
from onnxcomp.lowrank import lost_energy, spectrum

OUT, RANK, WIDTH, SIZE = 5, 3, 4, 6
KINDS = ["repeated", "patterned"]


def expansion_of(rng: np.random.Generator, kind: str) -> Expansion:
    return Repeated(SIZE) if kind == "repeated" else Patterned(rng.standard_normal((RANK, SIZE)))


def dense(expansion: Expansion, inward: Array) -> Array:
    """E(A) by its definition."""
    if isinstance(expansion, Patterned):
        rows = [np.outer(a, p).ravel() for a, p in zip(inward, expansion.patterns, strict=True)]
        return np.array(rows)
    return np.kron(inward, np.eye(SIZE))


def case(seed: int, kind: str, samples: int = 200) -> tuple[Array, Array, Expansion, Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, WIDTH * SIZE)) @ rng.standard_normal((WIDTH * SIZE,) * 2)
    expansion, inward = expansion_of(rng, kind), rng.standard_normal((RANK, WIDTH))
    head = rng.standard_normal((OUT, len(dense(expansion, inward))))
    return rng.standard_normal((OUT, WIDTH * SIZE)), x, expansion, head, inward


@pytest.mark.parametrize("kind", KINDS)
def test_expansions_do_what_their_matrix_does(kind: str) -> None:
    weights, x, expansion, head, inward = case(0, kind)
    matrix = dense(expansion, inward)
    np.testing.assert_allclose(expansion.lift(inward, x.T), matrix @ x.T)
    np.testing.assert_allclose(expansion.drop(inward, head.T), matrix.T @ head.T)
    other = np.random.default_rng(1).standard_normal(inward.shape)
    slope = expansion.pull(head, weights)
    wanted = np.vdot(weights, head @ dense(expansion, other))
    assert np.vdot(slope, other) == pytest.approx(wanted)
    # over white inputs, the energy of H E(A) is tr AT weight A
    energy = np.sum(np.square(head @ matrix))
    assert np.vdot(expansion.weight(head) @ inward, inward) == pytest.approx(energy)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_least_squares_over_the_samples(kind: str) -> None:
    weights, x, expansion, head, inward = case(1, kind)
    gram = x.T @ x / len(x)
    found, same = descend(weights, gram, expansion, head, inward, sweeps=0)
    np.testing.assert_array_equal(same, inward)
    features = x @ dense(expansion, inward).T
    wanted = np.linalg.lstsq(features, x @ weights.T, rcond=None)[0].T
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_head_of_a_rank_is_the_best_of_that_rank() -> None:
    """With inputs left as they are the head is the whole kernel, and the optimum is known."""
    weights, x, expansion, _, _ = case(2, "repeated")
    gram = x.T @ x / len(x)
    rng = np.random.default_rng(0)
    start = rng.standard_normal((OUT, 2)) @ rng.standard_normal((2, WIDTH * SIZE))
    head, inward = descend(weights, gram, expansion, start, np.eye(WIDTH), sweeps=0, most_rank=2)
    assert np.linalg.matrix_rank(head) == 2
    error = lost_energy(weights - head @ dense(expansion, inward), gram)
    assert error == pytest.approx(spectrum(weights, gram).errors[2], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_inward_is_least_squares_over_the_samples(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many steps as unknowns; a head that is best already stays."""
    monkeypatch.setattr("onnxcomp.factor_descent.STEPS", 60)
    weights, x, expansion, head, inward = case(3, kind)
    gram = x.T @ x / len(x)
    units = np.eye(inward.size).reshape(-1, *inward.shape)
    columns = [(x @ (head @ dense(expansion, unit)).T).ravel() for unit in units]
    wanted = np.linalg.lstsq(np.array(columns).T, (x @ weights.T).ravel(), rcond=None)[0]
    least = lost_energy(weights - head @ dense(expansion, wanted.reshape(inward.shape)), gram)
    start = lost_energy(weights - head @ dense(expansion, inward), gram)
    assert least < 0.9 * start
    from onnxcomp.factor_descent import _best_inward

    felt = (weights - head @ dense(expansion, inward)) @ gram
    found = _best_inward(gram, expansion, head, inward, felt)
    error = lost_energy(weights - head @ dense(expansion, found), gram)
    assert error == pytest.approx(least, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(KINDS), st.integers(0, 99), st.integers(1, 40), st.booleans())
def test_no_sweep_loses_more(kind: str, seed: int, samples: int, limited: bool) -> None:
    weights, x, expansion, head, inward = case(seed, kind, samples)
    gram = x.T @ x / samples
    most = None
    if limited:
        most, head = 1, np.outer(head[:, 0], head[0])
    errors = [lost_energy(weights - head @ dense(expansion, inward), gram)]
    for _ in range(4):
        head, inward = descend(weights, gram, expansion, head, inward, sweeps=1, most_rank=most)
        errors.append(lost_energy(weights - head @ dense(expansion, inward), gram))
        assert np.linalg.matrix_rank(head) <= (most or OUT)
    assert (np.diff(errors) <= 1e-9 * errors[0]).all()
    assert errors[1] < errors[0]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exact_stays(kind: str) -> None:
    _, x, expansion, head, inward = case(4, kind)
    weights = head @ dense(expansion, inward)
    found = descend(weights, x.T @ x, expansion, head, inward, sweeps=2)
    np.testing.assert_allclose(found[0] @ dense(expansion, found[1]), weights, atol=1e-10)


def test_marginal_adds_equal_positions() -> None:
    _, x, *_ = case(5, "repeated")
    rows = x.reshape(len(x), WIDTH, SIZE)
    wanted = np.einsum("nis,njs->ij", rows, rows)
    np.testing.assert_allclose(marginal(x.T @ x, SIZE), wanted)
