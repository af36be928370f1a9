"""The triangular factor of a Gram matrix that GPTQ and SparseGPT walk along."""

from __future__ import annotations

import numpy as np

from onnxcomp.quantization import Array

MOST_DAMPING = 1e6  # times the mean diagonal: by then G no longer matters


def upper_factor(gram: Array, order: Array, damping: float) -> Array:
    """R, upper triangular, with R RT = G + damping * mean(diag G) * I; [*groups, d, d].

    G is ``gram`` with its columns and rows in ``order``, [*groups, d].

    Raises:
        ValueError: G is not finite.
    """
    if not np.isfinite(gram).all():
        raise ValueError("the Gram matrix is not finite")
    width = gram.shape[-1]
    tables, last = gram.reshape(-1, width, width), order.reshape(-1, width)[:, ::-1]
    group = np.arange(len(tables))[:, None, None]
    damped = tables[group, last[:, :, None], last[:, None, :]].astype(np.float64, copy=False)
    diagonal = np.einsum("gii->gi", damped)  # a view
    given = diagonal.copy()
    mean = np.trace(gram, dtype=np.float64, axis1=-2, axis2=-1).reshape(-1, 1) / max(1, width)
    mean = np.where(mean > 0, mean, 1.0)
    while True:
        diagonal[...] = given + damping * mean
        try:  # the factor of the reversed matrix, reversed back, is upper triangular
            factor = np.linalg.cholesky(damped).reshape(gram.shape)
            return np.asarray(factor[..., ::-1, ::-1])
        except np.linalg.LinAlgError:  # singular up to rounding, or damping is 0
            damping = max(10 * damping, 1e-10)
            if damping > MOST_DAMPING:
                raise
