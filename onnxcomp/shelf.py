"""Large arrays that are needed again later: those used last in memory, the others in files.

What is known of each layer (Gram matrices, eigenvectors) is needed once to compare layers, and
again for the layers that are chosen. All of it at once takes several GB for models of 100 MB.
"""

from __future__ import annotations

import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxcomp.gram import Array
from onnxcomp.lowrank import Spectrum

MOST_BYTES = 1 << 30  # in memory


class Shelf:
    """Keeps at most so many bytes in memory, or the one entry that is larger."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        """Files go to a temporary folder, which is made when the first is."""
        self._most = most_bytes
        self._inside: OrderedDict[int, tuple[Array, ...]] = OrderedDict()  # used last comes last
        self._known: weakref.WeakValueDictionary[int, Entry] = weakref.WeakValueDictionary()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    @property
    def bytes_in_memory(self) -> int:
        """Of all entries; views of one array count each."""
        return sum(array.nbytes for arrays in self._inside.values() for array in arrays)

    def put(self, arrays: Sequence[Array]) -> Entry:
        """Takes arrays, which nobody may change; they leave with the entry."""
        for key, inside in self._inside.items():
            same = zip(inside, arrays, strict=False)
            if len(inside) == len(arrays) and all(a is b for a, b in same):
                return self._known[key]
        key, self._count = self._count, self._count + 1
        entry = Entry(self, key)
        self._known[key] = entry
        weakref.finalize(entry, self._forget, key)
        self._keep(key, tuple(arrays))
        return entry

    def arrays(self, key: int) -> tuple[Array, ...]:
        """Of an entry, from its files if need be."""
        if key in self._inside:
            self._inside.move_to_end(key)
            return self._inside[key]
        with np.load(self._path(key), allow_pickle=False) as file:
            arrays = tuple(file[name] for name in file.files)
        self._keep(key, arrays)
        return arrays

    def _keep(self, key: int, arrays: tuple[Array, ...]) -> None:
        self._inside[key] = arrays
        while len(self._inside) > 1 and self.bytes_in_memory > self._most:
            oldest, gone = self._inside.popitem(last=False)
            if not self._path(oldest).exists():
                np.savez(self._path(oldest), *gone)

    def _forget(self, key: int) -> None:
        self._inside.pop(key, None)
        if self._folder is not None:
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnxcomp-")
        return Path(self._folder.name) / f"{key}.npz"


class Entry:
    """Arrays on a shelf."""

    def __init__(self, shelf: Shelf, key: int) -> None:
        """Made by `Shelf.put`."""
        self._shelf, self._key = shelf, key

    @property
    def arrays(self) -> tuple[Array, ...]:
        """As they were put there; not to be kept for longer than they are used."""
        return self._shelf.arrays(self._key)


class ShelvedSpectrum:
    """A `Spectrum` whose vectors are on a shelf.

    Attributes:
        errors: of the spectrum.
    """

    def __init__(self, found: Spectrum, shelf: Shelf) -> None:
        """Of a spectrum, which is not to be kept."""
        self.errors = found.errors
        self._outward = len(found.outward)
        first, *behind = found.inward
        self._turned = first.base is found.outward[-1]  # one array serves both sides
        self._entry = shelf.put((*found.outward, *([] if self._turned else [first]), *behind))

    def factors(self, rank: int) -> tuple[Array, Array]:
        """See `Spectrum.factors`."""
        parts = self._entry.arrays
        outward, inward = parts[: self._outward], parts[self._outward :]
        if self._turned:
            inward = (outward[-1].T, *inward)
        return Spectrum(self.errors, outward, inward).factors(rank)


SHELF = Shelf()
