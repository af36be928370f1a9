"""What the best factors of a matrix lose at every rank, with and without samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.gram import Array
from onnxcomp.lowrank import spectrum
from onnxcomp.rewriting import peek
from onnxcomp.runtime import Feed
from onnxcomp.weight_grams import observed_grams
from onnxcomp.weight_sites import find_weights

SAMPLES = 512
NARROWEST = 8  # inputs and outputs of a matrix


def losses_at_ranks(weights: Array, left: Array, right: Array, gram: Array) -> Array:
    """tr dW G dWT, dW = W - left[:, :r] right[:r], as shares of tr W G WT, for all r, [n + 1]."""
    right_seen = right @ gram
    whole = float(np.vdot(weights @ gram, weights))
    crossed = np.einsum("or,or->r", left, weights @ right_seen.T)
    products = (left.T @ left) * (right_seen @ right.T)
    own = np.diagonal(products.cumsum(axis=0).cumsum(axis=1))
    return np.concatenate([[1.0], (whole - 2 * crossed.cumsum() + own) / whole])


def matrices(
    graph: gs.Graph, fitted: Sequence[Feed], held: Sequence[Feed]
) -> Iterator[tuple[str, Array, Array, Array]]:
    """Name, [out, in], and the Gram matrices of inputs in two sets of samples, [in, in]."""
    weights = [weight for weight in find_weights(graph) if weight.sites[0].node.op != "Gather"]
    sides = [
        observed_grams(
            graph, weights, Calibration.from_source(feeds, graph), SAMPLES, lambda done, of: None
        )
        for feeds in (fitted, held)
    ]
    for (weight, gram), (_, other) in zip(*sides, strict=True):
        matrix = weight.layout.matrix(peek(weight.constant)).astype(np.float64)
        if gram is None or other is None or gram.ndim != 2 or min(matrix.shape) < NARROWEST:
            continue
        yield weight.constant.name, matrix, gram, other


def curves(matrix: Array, fitted: Array, judged: Array) -> tuple[Array, Array]:
    """Losses at every rank on ``judged`` of factors that know ``fitted``, and of plain SVD."""
    seen, plain = spectrum(matrix, fitted), spectrum(matrix)
    return (
        losses_at_ranks(matrix, seen.left, seen.right, judged),
        losses_at_ranks(matrix, plain.left, plain.right, judged),
    )
