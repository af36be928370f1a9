"""On how many threads numpy multiplies matrices.

The threads of OpenBLAS spin while they wait for each other. Many products of a few hundred columns
take several times the CPU time on two threads that they take on one, and longer too where the
machine has other work. On one thread results do not depend on the number of cores either.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
from collections.abc import Callable, Iterator

NAMES = (  # as built for numpy's wheels, with 64-bit indices, and plain
    "scipy_openblas_{}_num_threads64_",
    "scipy_openblas_{}_num_threads",
    "openblas_{}_num_threads64_",
    "openblas_{}_num_threads",
)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """While it is open, or around a function it decorates, products run on the caller's thread.

    Of the whole process. Does nothing where numpy's BLAS is not an OpenBLAS that can be found.
    """
    found = _library()
    if found is None:
        yield
        return
    get, put = found
    before = get()
    put(1)
    try:
        yield
    finally:
        put(before)


def blas_threads() -> int | None:
    """How many threads products run on at most; None where that cannot be told."""
    found = _library()
    return None if found is None else found[0]()


@functools.cache
def _library() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """What tells the number of threads, and what sets it."""
    try:
        linked = importlib.import_module("numpy._core._multiarray_umath")
    except ImportError:
        return None
    library = ctypes.CDLL(linked.__file__)  # finds the names of all that it is linked with
    for name in NAMES:
        with contextlib.suppress(AttributeError):
            get, put = (library[name.format(verb)] for verb in ("get", "set"))
            get.argtypes, get.restype = [], ctypes.c_int
            put.argtypes, put.restype = [ctypes.c_int], None
            return get, put
    return None
