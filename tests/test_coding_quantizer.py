"""Codes on unbounded grids: against brute force, planted layers and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from output_losses import loss

from onnxcomp.coding_quantizer import CodedWeight, fitted_scale, quantize_vector, quantize_weight
from onnxcomp.weight_sites import Layout


def correlated(rng: np.random.Generator, width: int, shared: float) -> np.ndarray:
    """Second moments of inputs that one common cause moves."""
    basis = rng.standard_normal((width, width)) + shared * rng.standard_normal((width, 1))
    return np.asarray(basis @ basis.T / width)


@pytest.mark.parametrize("seed", range(5))
def test_codes_are_between_nearest_and_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, gram, step = rng.standard_normal((40, 4)), correlated(rng, 4, 3.0), 0.5
    layout = Layout((40, 4), (0, 1), 1)
    coded = quantize_weight(weights.astype(np.float32), layout, gram, step, damping=1e-4)
    around = np.rint(weights / step)
    offsets = np.asarray(list(itertools.product(range(-3, 4), repeat=4)))
    errors = weights[:, None] - step * (around[:, None] + offsets)
    best = np.einsum("rod,de,roe->ro", errors, gram, errors).min(1).sum()
    plain = loss(weights - step * around, gram)
    got = loss(weights - step * coded.codes, gram)
    assert best - 1e-9 <= got
    assert got < 0.7 * plain
    assert loss(weights - coded.values, gram) < 1.01 * got  # the scale is fitted afterwards


def test_without_correlations_codes_are_the_nearest_ones() -> None:
    weights = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    layout = Layout((5, 7), (0, 1), 1)
    wanted = np.rint(weights.astype(np.float64) / 0.3)
    for gram in (None, np.diag(np.arange(1.0, 8.0))):
        np.testing.assert_array_equal(quantize_weight(weights, layout, gram, 0.3).codes, wanted)


def test_codes_keep_the_axes_of_the_constant() -> None:
    rng = np.random.default_rng(1)
    kernel = rng.standard_normal((6, 2, 3, 3)).astype(np.float32)
    grams = np.stack([correlated(rng, 18, 1.0) for _ in range(3)])
    whole = quantize_weight(kernel, Layout(kernel.shape, (0, 1, 2, 3), 1), grams, 0.2)
    for group in range(3):
        rows = slice(2 * group, 2 * group + 2)
        alone = quantize_weight(
            kernel[rows], Layout((2, 2, 3, 3), (0, 1, 2, 3), 1), grams[group], 0.2
        )
        np.testing.assert_array_equal(whole.codes[rows], alone.codes)
    matrix = kernel.reshape(6, 18)
    turned = quantize_weight(matrix.T.copy(), Layout((18, 6), (1, 0), 1), grams[0], 0.2)
    straight = quantize_weight(matrix, Layout((6, 18), (0, 1), 1), grams[0], 0.2)
    np.testing.assert_array_equal(turned.codes, straight.codes.T)
    assert turned.codes.dtype == np.int32
    assert turned.values.dtype == np.float32


def test_the_scale_leaves_outputs_as_large_as_they_were() -> None:
    """E[y y'] = E[y y], of samples whose second moments the Gram matrix is; codes that shrink."""
    rng = np.random.default_rng(2)
    matrix, inputs = rng.standard_normal((4, 5)), rng.standard_normal((5, 9))
    gram = inputs @ inputs.T / 9
    codes = np.trunc(matrix / 0.6).astype(np.int32)
    for moments, seen in ((gram, inputs), (None, np.eye(5))):
        scale = fitted_scale(matrix, codes, moments, 0.6)
        assert 0.6 < scale < 1.2
        outputs, coded = matrix @ seen, scale * codes @ seen
        assert np.sum(outputs * coded) == pytest.approx(np.sum(outputs**2))
    groups = fitted_scale(matrix.reshape(2, 2, 5), codes.reshape(2, 2, 5), np.stack([gram] * 2), 1)
    assert groups == pytest.approx(fitted_scale(matrix, codes, gram, 0.6))
    assert fitted_scale(matrix, np.zeros_like(codes), gram, 0.9) == 0.9


def test_rows_with_twice_the_step_have_half_the_codes() -> None:
    table = np.random.default_rng(3).standard_normal((4, 50)).astype(np.float32)
    layout = Layout((4, 50), (0, 1), 1)
    coded = quantize_weight(table, layout, None, 0.1, multiples=np.asarray([1.0, 2.0, 1.0, 2.0]))
    assert coded.axis == 0
    np.testing.assert_array_equal(coded.scales / coded.scales[0], [1, 2, 1, 2])
    error = np.abs(table - coded.values).max(1)
    assert (error < np.asarray([0.053, 0.106, 0.053, 0.106])).all()
    assert error[1] > 0.06


def test_a_vector_is_within_half_a_step() -> None:
    values = np.linspace(-1, 1, 77).astype(np.float32)
    coded = quantize_vector(values, 1e-3)
    assert np.abs(coded.values - values).max() <= 0.5001e-3
    huge = quantize_vector(values, 1e-30)  # codes stay exact in float32
    assert np.abs(huge.codes).max() <= 2**22
    np.testing.assert_allclose(huge.values, values, atol=1e-6)


def test_values_are_one_float32_product() -> None:
    coded = CodedWeight(
        np.asarray([[3, -7], [5, 11]], np.int32), np.asarray([0.1, 0.7], np.float32), 1
    )
    wanted = np.float32([[3, -7], [5, 11]]) * np.float32([0.1, 0.7])
    np.testing.assert_array_equal(coded.values, wanted)
