"""onnxcomp.sparsity against definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from output_losses import loss

from onnxcomp.sparsity import Pattern, magnitude, wanda


@pytest.mark.parametrize("name", ["", "3", "4:2", "4:4", "0x4", "4x", "2:400", "dense"])
def test_unknown_patterns_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        Pattern.named(name)


def test_names_of_patterns() -> None:
    assert Pattern.named("unstructured") == Pattern()
    assert Pattern.named("2:4") == Pattern(zeros=2, of=4)
    assert Pattern.named("3:4").sparsity(0.9) == 0.25
    assert Pattern.named("16x1") == Pattern(rows=16, columns=1)
    assert Pattern.named("16x1").sparsity(0.9) == 0.9


@given(
    st.sampled_from(["unstructured", "1:2", "2:4", "4x4", "1x4", "16x1"]),
    st.integers(1, 20),
    st.integers(1, 20),
    st.floats(0, 1),
)
@settings(deadline=None, max_examples=60)
def test_masks_have_the_pattern_and_the_sparsity(
    name: str, out: int, d: int, sparsity: float
) -> None:
    pattern = Pattern.named(name)
    scores = np.random.default_rng(out * 21 + d).random((out, d))
    kept = pattern.mask(scores, sparsity)
    assert kept.shape == scores.shape
    if pattern.of:
        groups = kept[:, : d // pattern.of * pattern.of].reshape(out, -1, pattern.of)
        assert (groups.sum(-1) == pattern.of - pattern.zeros).all()
        assert kept[:, d // pattern.of * pattern.of :].all()
        return
    blocks = {
        (i, j): kept[i : i + pattern.rows, j : j + pattern.columns]
        for i in range(0, out, pattern.rows)
        for j in range(0, d, pattern.columns)
    }
    assert all(block.all() or not block.any() for block in blocks.values())
    gone = sum(not block.any() for block in blocks.values())
    assert gone == round(sparsity * len(blocks))
    sums = {(i, j): scores[i : i + pattern.rows, j : j + pattern.columns].sum() for i, j in blocks}
    lost = [total for at, total in sums.items() if not blocks[at].any()]
    stay = [total for at, total in sums.items() if blocks[at].any()]
    assert max(lost, default=0) <= min(stay, default=np.inf) + 1e-12


def test_scores_are_what_a_weight_alone_loses() -> None:
    rng = np.random.default_rng(0)
    weights, x = rng.standard_normal((3, 5)), rng.standard_normal((20, 5))
    gram = x.T @ x / 20
    for (i, j), score in np.ndenumerate(wanda(weights, gram)):
        without = weights.copy()
        without[i, j] = 0
        np.testing.assert_allclose(score, loss(weights - without, gram))
        np.testing.assert_allclose(magnitude(weights)[i, j], loss(weights - without, np.eye(5)))
