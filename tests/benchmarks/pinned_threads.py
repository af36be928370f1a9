"""A processor for each thread of a session.

Left alone, the threads of short runs may share one processor for a while, and two are no faster
than one then: what is measured is the scheduler.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import onnxruntime


def options_for(threads: int) -> onnxruntime.SessionOptions:
    """Options of a session with so many threads, the caller's on the first processor."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if 1 < threads <= len(processors):
        others = ";".join(str(processor + 1) for processor in processors[1:threads])
        options.add_session_config_entry("session.intra_op_thread_affinities", others)
    return options


@contextmanager
def staying() -> Iterator[None]:
    """Keeps this thread on the first processor."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, processors)


def warm_s(threads: int) -> float:
    """For how long to run before taking time: workers of other sessions spin after their runs."""
    return 1e-3 if threads == 1 else 30e-3
