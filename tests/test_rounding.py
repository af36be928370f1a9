"""Rounding against exhaustive search, the textbook GPTQ and plain arithmetic."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.quantization import Array
from onnxcomp.rounding import LEAF, descend, gptq, loss, nearest


def correlated(rng: np.random.Generator, width: int, *groups: int) -> Array:
    """E[x xT] of inputs with a mean and strong correlations."""
    mixed = rng.normal(size=(*groups, width, width)) @ rng.normal(size=(*groups, width, 3 * width))
    mixed += rng.normal(size=(*groups, width, 1)) * width
    return np.asarray(mixed @ mixed.swapaxes(-1, -2) / (3 * width))


def rectified(rng: np.random.Generator, width: int) -> Array:
    """E[x xT] behind a Relu, as most layers see it."""
    noise = rng.normal(size=(width, width)) @ rng.normal(size=(width, 50 * width))
    x = np.maximum(noise + rng.normal(size=(width, 1)), 0)
    return np.asarray(x @ x.T / x.shape[1])


def layer(rng: np.random.Generator, out: int, width: int, bits: int) -> tuple[Array, Array]:
    weights = rng.normal(size=(out, width)).astype(np.float32)
    scale = np.abs(weights).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 0.5)
    return weights, scale


def exhaustive(weights: Array, gram: Array, scale: Array, low: int, high: int) -> Array:
    """The least possible loss of each row."""
    every = np.array(list(itertools.product(range(low, high + 1), repeat=weights.shape[1])))
    error = weights[:, None].astype(np.float64) - every * scale[:, None]
    return np.asarray(np.einsum("ocd,de,oce->oc", error, gram, error).min(axis=1))


def textbook_gptq(weights: Array, gram: Array, scale: Array, low: int, high: int) -> Array:
    """Optimal brain quantization in a fixed order, one row at a time: after each weight all later
    ones move by -error * (H^-1)_j / (H^-1)_jj, with H of the later ones inverted afresh."""
    codes = np.zeros(weights.shape, np.int32)
    for row in range(weights.shape[0]):
        w = weights[row].astype(np.float64)
        for j in range(w.size):
            code = np.clip(np.rint(w[j] / scale[row, j]), low, high)
            codes[row, j] = code
            inverse = np.linalg.inv(gram[j:, j:])
            w[j:] -= (w[j] - code * scale[row, j]) * inverse[0] / inverse[0, 0]
    return codes


@pytest.mark.parametrize(("bits", "width"), [(2, 6), (3, 4), (2, 3), (3, 2)])
def test_descended_gptq_is_close_to_exhaustive_search(bits: int, width: int) -> None:
    rng = np.random.default_rng(bits * 10 + width)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    totals = np.zeros(4)
    for _ in range(10):
        weights, scale = layer(rng, 20, width, bits)
        gram = rectified(rng, width)
        plain = nearest(weights, scale, 0, low, high)
        rounded = gptq(weights, gram, scale, 0, low, high)
        best = descend(weights, rounded, gram, scale, 0, low, high)
        floor = exhaustive(weights, gram, scale, low, high)
        found = [loss(weights, codes, gram, scale, 0) for codes in (plain, rounded, best)]
        assert (found[2] >= floor * (1 - 1e-9)).all()
        assert (found[2] <= found[1] * (1 + 1e-9)).all()
        totals += [f.sum() for f in (*found, floor)]
    plain_loss, gptq_loss, descended, least = totals
    assert gptq_loss < 0.9 * plain_loss
    assert descended < 1.05 * least


@pytest.mark.parametrize("width", [1, 5, LEAF, LEAF + 1, 2 * LEAF + 7])
def test_gptq_equals_the_textbook(width: int) -> None:
    rng = np.random.default_rng(width)
    weights, _ = layer(rng, 5, width, 4)
    scale = rng.uniform(0.1, 0.3, size=weights.shape)
    gram = correlated(rng, width)
    damped = gram + 0.02 * np.trace(gram) / width * np.eye(width)
    wanted = textbook_gptq(weights, damped, scale, -8, 7)
    found = gptq(weights, gram, scale, 0, -8, 7, damping=0.02, act_order=False)
    assert np.array_equal(found, wanted)

    order = np.argsort(-np.diagonal(gram))
    wanted = textbook_gptq(weights[:, order], damped[np.ix_(order, order)], scale[:, order], -8, 7)
    found = gptq(weights, gram, scale, 0, -8, 7, damping=0.02)
    assert np.array_equal(found[:, order], wanted)


@given(seed=st.integers(0, 2**16), bits=st.integers(2, 8))
@settings(max_examples=30, deadline=None)
def test_without_correlations_nearest_is_best(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    weights, scale = layer(rng, 4, 40, bits)
    gram = np.diag(rng.uniform(0, 2, size=40))
    low, high = 0, 2**bits - 1
    zero_point = rng.integers(low, high, size=(4, 1))
    wanted = nearest(weights, scale, zero_point, low, high)
    assert np.array_equal(gptq(weights, gram, scale, zero_point, low, high), wanted)
    moved = descend(weights, wanted, gram, scale, zero_point, low, high)
    assert np.array_equal(moved, wanted)


@given(seed=st.integers(0, 2**16), bits=st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_descent_ends_where_no_code_and_no_pair_of_codes_can_improve(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    width = int(rng.integers(2, 2 * LEAF))
    weights, scale = layer(rng, 3, width, bits)
    gram, low, high = correlated(rng, width), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    start = rng.integers(low, high + 1, size=weights.shape)
    codes = descend(weights, start, gram, scale, 0, low, high, sweeps=500)
    found = loss(weights, codes, gram, scale, 0)
    assert (found <= loss(weights, start, gram, scale, 0) * (1 + 1e-9)).all()
    moves = [(j, 0, step, 0) for j in range(width) for step in (-1, 1)]
    moves += [
        (*columns, *steps)
        for columns in itertools.combinations(range(min(width, 12)), 2)
        for steps in itertools.product((-1, 1), repeat=2)
    ]
    for i, j, first, second in moves:
        other = codes.copy()
        other[:, i] = np.clip(other[:, i] + first, low, high)
        other[:, j] = np.clip(other[:, j] + second, low, high)
        assert (loss(weights, other, gram, scale, 0) >= found * (1 - 1e-7)).all()


def test_codes_are_those_of_the_definition_and_within_their_limits() -> None:
    weights = np.array([[0.5, 1.5, -9.0, 9.0, 0.26]], np.float32)
    assert nearest(weights, 1.0, 3, 0, 6).tolist() == [[3, 5, 0, 6, 3]]
    gram = correlated(np.random.default_rng(0), 5)
    for codes in (
        gptq(weights, gram, 1.0, 3, 0, 6),
        descend(weights, np.zeros((1, 5), np.int32), gram, 1.0, 3, 0, 6),
    ):
        assert codes.dtype == np.int32
        assert codes.min() >= 0
        assert codes.max() <= 6


def test_groups_are_rounded_each_with_its_own_gram() -> None:
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(7, 2, 9)).astype(np.float32)
    scale = np.abs(weights).max(axis=2, keepdims=True) / 7
    gram = correlated(rng, 9, 7)
    codes = gptq(weights, gram, scale, 0, -8, 7)
    moved = descend(weights, codes, gram, scale, 0, -8, 7)
    losses = loss(weights, moved, gram, scale, 0)
    for g in range(7):
        alone = gptq(weights[g], gram[g], scale[g], 0, -8, 7)
        assert np.array_equal(codes[g], alone)
        alone = descend(weights[g], alone, gram[g], scale[g], 0, -8, 7)
        assert np.array_equal(moved[g], alone)
        assert np.allclose(losses[g], loss(weights[g], alone, gram[g], scale[g], 0))


def test_inputs_never_seen_leave_their_weights_at_the_nearest_codes() -> None:
    rng = np.random.default_rng(4)
    weights, scale = layer(rng, 6, 8, 4)
    gram = correlated(rng, 8)
    dead = [2, 5]
    gram[dead] = 0
    gram[:, dead] = 0
    plain = nearest(weights, scale, 0, -8, 7)
    codes = gptq(weights, gram, scale, 0, -8, 7)
    moved = descend(weights, codes, gram, scale, 0, -8, 7)
    assert np.array_equal(codes[:, dead], plain[:, dead])
    assert np.array_equal(moved[:, dead], plain[:, dead])
    assert not np.array_equal(codes, plain)
    assert np.array_equal(gptq(weights, np.zeros((8, 8)), scale, 0, -8, 7), plain)


def test_a_singular_gram_needs_no_damping_of_its_own() -> None:
    rng = np.random.default_rng(5)
    weights, scale = layer(rng, 6, 30, 4)
    few = rng.normal(size=(30, 4))
    gram = few @ few.T
    codes = gptq(weights, gram, scale, 0, -8, 7, damping=0.0)
    plain = nearest(weights, scale, 0, -8, 7)
    found, before = (loss(weights, c, gram, scale, 0).sum() for c in (codes, plain))
    assert found < 0.1 * before


def test_many_rows_are_rounded_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    weights, scale = layer(rng, 11, 12, 3)
    gram = correlated(rng, 12)
    codes = gptq(weights, gram, scale, 0, -4, 3)
    moved = descend(weights, codes, gram, scale, 0, -4, 3)
    monkeypatch.setattr("onnxcomp.rounding.ROWS", 4)
    assert np.array_equal(gptq(weights, gram, scale, 0, -4, 3), codes)
    assert np.array_equal(descend(weights, codes, gram, scale, 0, -4, 3), moved)


def test_a_gram_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        gptq(np.ones((1, 2)), np.full((2, 2), np.nan), 1.0, 0, -8, 7)
