"""Factors that know the data lose less of the output than those of the weights, at every rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rank_losses import curves, losses_at_ranks, matrices

from onnxcomp.gram import Array
from onnxcomp.lowrank import lost_energy, spectrum
from onnxcomp.model import load_model
from onnxcomp.runtime import Feed

ROUNDING = 1e-12  # of the output's energy
BLOCK = 4  # matrices of a transformer's block


def images(models: Path, name: str, count: int) -> list[Feed]:
    with np.load(models / f"digits_{name}.npz") as samples:
        return [{"input": image[None]} for image in samples["input"][:count]]


def test_every_rank_of_every_matrix_of_a_transformer(models: Path) -> None:
    graph = load_model(models / "digits_vit.onnx").graph
    fitted, held = images(models, "calibration", 32), images(models, "test", 32)
    losses = []
    for at, (name, matrix, gram, other) in enumerate(matrices(graph, fitted, held)):
        seen, plain = curves(matrix, gram, gram)
        assert (seen <= plain + ROUNDING).all(), name
        seen, plain = curves(matrix, gram, other)
        losses.append((seen[len(seen) // 2], plain[len(plain) // 2]))
        assert seen.mean() < plain.mean(), name
        if at < BLOCK:  # and on images that the factors do not know
            assert (seen[1:-1] < plain[1:-1]).all(), name
    assert len(losses) == 17
    ours, others = np.transpose(losses[:-1])  # but for the classifier, which has ten ranks
    assert np.median(ours / others) < 0.25


@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
def test_losses_at_all_ranks_are_those_of_each(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    matrix: Array = rng.standard_normal(shape)
    rows = rng.standard_normal((40, shape[1])) * np.arange(1, shape[1] + 1)
    gram = rows.T @ rows / 40
    found = spectrum(matrix, gram)
    expected = []
    for rank in range(len(found.errors)):
        left, right = found.factors(rank)
        expected.append(lost_energy(matrix - left @ right, gram) / lost_energy(matrix, gram))
    losses = losses_at_ranks(matrix, found.left, found.right, gram)
    np.testing.assert_allclose(losses, expected, atol=1e-10)
