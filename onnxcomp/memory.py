"""Peak memory of a session, measured in a process of its own.

    python -m onnxcomp.memory MODEL THREADS <feed.npz

prints the bytes that opening the model and running it added at most.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from onnxcomp.runtime import Feed, open_file

STATUS = Path("/proc/self/status")  # Linux
RUNS = 3


def peak_memory(
    path: str | os.PathLike[str], feed: Feed, *, threads: int = 1, timeout: float | None = 600
) -> int | None:
    """Bytes that a session of the model at ``path`` adds to a process at most.

    Args:
        path: of the model.
        feed: what is run, a few times.
        threads: intra-op threads of the session.
        timeout: seconds after which the measurement is given up.

    Returns:
        None where this machine does not tell, or the child failed.
    """
    data = io.BytesIO()
    if any(array.dtype.hasobject for array in feed.values()):
        return None  # strings cannot be handed over without pickling
    np.savez(data, allow_pickle=False, **{f"feed.{name}": array for name, array in feed.items()})
    command = [sys.executable, "-m", __name__, str(Path(path).resolve()), str(threads)]
    try:
        done = subprocess.run(
            command, input=data.getvalue(), capture_output=True, timeout=timeout, check=True
        )
        return int(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def resident_peak() -> int | None:
    """Bytes that this process had in memory at most; None where the system does not tell."""
    if STATUS.exists():
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _measure(path: str, threads: int) -> int | None:
    import onnxruntime  # noqa: F401  (belongs to what the process has anyway)

    with np.load(io.BytesIO(sys.stdin.buffer.read())) as archive:
        feed = {name.removeprefix("feed."): archive[name] for name in archive.files}
    before = resident_peak()
    session = open_file(path, threads=threads)
    for _ in range(RUNS):
        session.run(feed)
    after = resident_peak()
    return None if before is None or after is None else after - before


if __name__ == "__main__":
    print(_measure(sys.argv[1], int(sys.argv[2])))
