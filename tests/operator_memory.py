"""What the operators do about memory, measured in a process that nothing else has used.

    python tests/operator_memory.py growth SESSIONS WARM STRETCHES
    python tests/operator_memory.py little OPERATOR

The first prints the bytes that each session leaves; the second a JSON list of what a run said,
empty where it went well, with ever more memory to be had. Linux only.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from operator_models import CALLS, feed_of, model_of
from operator_sessions import open_model

PAGE = resource.getpagesize()


def _pages() -> tuple[int, int]:
    """Of the address space, and in memory."""
    size, resident, *_ = Path("/proc/self/statm").read_text().split()
    return int(size), int(resident)


def growth(sessions: int, warm: int, stretches: int) -> float:
    """Bytes that stay in memory for each session with every operator, once caches are full.

    A leak adds as much to every stretch of so many sessions, the heap now and then moves only one:
    the least of them.
    """
    every, feed = model_of(*CALLS.values()), feed_of(*CALLS.values())
    pages = []
    for done in range(warm + stretches * sessions + 1):
        if done >= warm and (done - warm) % sessions == 0:
            gc.collect()
            pages.append(_pages()[1])
        open_model(every).run(None, feed)
    return min(after - before for before, after in pairwise(pages)) * PAGE / sessions


def little(operator: str) -> list[str]:
    """Enough for nothing, for the output, for a copy of X beside it, for all."""
    call = CALLS[operator]
    shape = (2**19, 9) if call.x.ndim == 2 else (1, call.x.shape[1], 1200, 1200)
    x, said = np.zeros(shape, call.x.dtype), []
    limits = resource.getrlimit(resource.RLIMIT_AS)
    for spare in range(2**20, 10 * x.nbytes, x.nbytes):
        session = open_model(model_of(call))
        resource.setrlimit(resource.RLIMIT_AS, (_pages()[0] * PAGE + spare, limits[1]))
        try:
            session.run(None, {f"{operator}.X": x})
            said.append("")
        except Exception as error:
            said.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
    return said


if __name__ == "__main__":
    if sys.argv[1] == "growth":
        print(growth(*map(int, sys.argv[2:])))
    else:
        print(json.dumps(little(sys.argv[2])))
