"""How often the rows of a table are looked up, with a share for those that samples do not show."""

from __future__ import annotations

import numpy as np

from onnxcomp.errors import CalibrationError
from onnxcomp.gram import NOTHING_SEEN, Array, GramResult


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
