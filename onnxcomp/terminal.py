"""The two channels of the command line: results on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from onnxcomp.progress import Progress


class TerminalProgress(Progress):
    """Shows the current stage on stderr while it lasts; silent when that is not a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True, highlight=False, markup=False)
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> TerminalProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def stage(self, name: str) -> None:
        """Shows ``name`` with a bar that knows no end."""
        self._bar.reset(self._task, description=name, total=None)

    def advance(self, done: int, total: int) -> None:
        """Fills the bar."""
        self._bar.update(self._task, completed=done, total=total)


@contextlib.contextmanager
def results_only_on_stdout() -> Iterator[None]:
    """Sends to stderr what others print meanwhile.

    onnx's checker writes to the file descriptor from C++, evaluators may print from Python.
    """
    sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:  # closed: nothing can get there anyway
        yield
        return
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _flush_c_streams()
        os.dup2(saved, 1)
        os.close(saved)


def _flush_c_streams() -> None:
    """Writes out what C++ has printed but still holds in a buffer."""
    if sys.platform != "win32":
        ctypes.CDLL(None).fflush(None)
