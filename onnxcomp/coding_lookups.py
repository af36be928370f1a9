"""What errors of looked-up rows do to the outputs: by how often a row is looked up, and by column.

The rows of a table are read as they are, so a table has no Gram matrix of inputs. But its columns
do not matter alike, and errors of two of them can cancel further on: with J the Jacobian of the
outputs in the elements of a row, an error e costs e JT J eT. J comes from finite differences: in a
column of all rows at once, with a random sign for each row, so that rows do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcomp.output_noise import OutputNoise
from onnxcomp.quantization import Array

RUNS = 3072  # of one sample each
SAMPLES = 8  # at most; more cost more than they tell
DIFFERENCE = 0.1  # of the standard deviation of the table
OFTEN = 4  # halvings of the step, at most, for rows of tables that are looked up often
UNSEEN = 1  # doublings for rows that samples do not look up: other texts may


def row_multiples(shares: Array) -> Array:
    """How much finer or coarser than rows looked up once the rows of a table are coded.

    A row's error counts as often as the row is looked up, so steps go as the inverse root of that,
    in powers of two. Of rows that samples do not show only their number is known: one of them may
    be the commonest word of other texts, so they are at most twice as coarse.

    Args:
        shares: of lookups, [rows], as `RowCounts` gives them.
    """
    seen = shares[shares > shares.min()]
    once = seen.min() if seen.size else shares.min()
    doublings = np.rint(np.log2(once / shares) / 2)
    return np.asarray(2.0 ** np.clip(doublings, -OFTEN, UNSEEN))


def samples_for(columns: int) -> int:
    """How many samples a table with so many columns can be measured on; 0 where it is too wide."""
    count = min(SAMPLES, RUNS // max(1, columns)) // 2 * 2
    return count if count >= 2 else 0


def column_products(
    noise: OutputNoise, name: str, values: Array, samples: int
) -> tuple[Array, Array] | None:
    """JT J, [columns, columns], of each half of the samples; None where outputs are not finite.

    Args:
        noise: of outputs, where the table can change.
        name: of the table.
        values: of it, float32 [rows, columns].
        samples: how many of those of ``noise``, even.
    """
    rng = np.random.default_rng(0)
    step = DIFFERENCE * float(np.std(values, dtype=np.float64))
    halves = range(samples // 2), range(samples // 2, samples)
    first, second = (
        _products(noise, name, values, rng.choice((-step, step), len(values)), half)
        for half in halves
    )
    if not np.isfinite(first).all() or not np.isfinite(second).all():
        return None
    return first, second


def _products(
    noise: OutputNoise, name: str, values: Array, differences: Array, samples: Sequence[int]
) -> Array:
    """Products of what a difference in one column and in another does, as float64."""
    changed, found = values.copy(), []
    for column in range(values.shape[1]):  # each is a run of the model
        changed[:, column] += differences.astype(np.float32)
        found.append(np.concatenate([noise.response({name: changed}, i) for i in samples]))
        changed[:, column] = values[:, column]
    responses = np.stack(found)
    with np.errstate(over="ignore", invalid="ignore"):  # seen by the caller
        products = np.asarray(responses @ responses.T, np.float64)
    return products / float(np.mean(np.square(differences)))
