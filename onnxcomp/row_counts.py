"""How often the rows of a table are looked up, with a share for those that samples do not show."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationError
from onnxcomp.gram import NOTHING_SEEN, Array, GramResult
from onnxcomp.graph import is_constant


class RowCounts:
    """The probability of each row of a table being looked up, [rows], from indices into it.

    That of all rows not seen together is the share of lookups of rows seen once (Good, "The
    population frequencies of species and the estimation of population parameters", 1953); they
    share it alike, and the seen ones give it up in proportion. At least one lookup counts as of a
    row seen once: no row costs nothing.
    """

    def __init__(self, rows: int) -> None:
        """Of a table of so many rows."""
        self._counts = np.zeros(rows, np.int64)

    def update(self, values: Array) -> None:
        """``values``: indices of any shape, negative ones from the end."""
        rows = len(self._counts)
        indices = values.reshape(-1).astype(np.int64) % rows
        self._counts += np.bincount(indices, minlength=rows)

    def result(self) -> GramResult:
        """The diagonal of E[x xT], x a column of the identity; ``mean`` is the same.

        Raises:
            CalibrationError: no lookup was seen.
        """
        total = int(self._counts.sum())
        if total == 0:
            raise CalibrationError(NOTHING_SEEN)
        unseen = self._counts == 0
        once, never = (int(np.count_nonzero(self._counts == n)) for n in (1, 0))
        new = max(1, once) / (total + 1) if never else 0.0
        shares = self._counts * ((1 - new) / total)
        shares[unseen] = new / max(1, never)
        return GramResult(shares, shares, total)


@dataclass(frozen=True)
class Table:
    """What is looked up in.

    Attributes:
        rows: of it.
        indices: names of the tensors that choose rows.
    """

    rows: int
    indices: Collection[str]


def looked_up(
    graph: gs.Graph, tables: Sequence[Table], samples: Calibration, limit: int | None = None
) -> list[Array | None]:
    """Shares of the rows of each table; None where nothing was looked up, or not all is seen.

    Args:
        graph: whose activations choose rows; those of bodies are not seen.
        tables: in which they do.
        samples: to run.
        limit: of their number.
    """
    known = {name for name, tensor in graph.tensors().items() if not is_constant(tensor)}
    taps: dict[str, list[RowCounts]] = {}
    counts = [RowCounts(table.rows) for table in tables]
    for table, counter in zip(tables, counts, strict=True):
        if known.issuperset(table.indices):
            for name in table.indices:
                taps.setdefault(name, []).append(counter)
    if taps:
        samples.observe(graph, taps, limit=limit)
    return [_shares(counter) for counter in counts]


def _shares(counts: RowCounts) -> Array | None:
    try:
        return counts.result().matrix
    except CalibrationError:  # nothing was looked up
        return None
