"""The frame of the command line: whatever goes wrong becomes one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from onnxcomp.errors import OnnxcompError

INTERRUPTED, UNEXPECTED = 130, 1
DEBUG = "ONNXCOMP_DEBUG"
CLEANING_UP = 2.0  # seconds after Ctrl-C in which a second one does not stop the cleaning up


class Program(click.Group):
    """Turns everything that can go wrong into one line on stderr and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs a command and exits."""
        with _interrupting_once():
            try:
                super().main(*args, **{**extra, "standalone_mode": False})
            except click.ClickException as error:
                _fail(error.format_message(), error.exit_code, getattr(error, "ctx", None))
            except click.Abort:
                _interrupted(KeyboardInterrupt())
        sys.exit(0)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that was parsed."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except OnnxcompError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt as error:
            _interrupted(error)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # who read the output has left; click knows how to be silent
            if _Once.came:  # some libraries turn an interruption into an error of their own
                _interrupted(KeyboardInterrupt())
            if os.environ.get(DEBUG):
                raise
            _fail(_unexpected(error), UNEXPECTED)


@contextlib.contextmanager
def interruption_names(output: Path) -> Iterator[None]:
    """Lets an interruption say that ``output`` was written, if it came as late as that."""
    before = _identity(output)
    try:
        yield
    except KeyboardInterrupt:
        written = _identity(output) not in (before, None)
        raise KeyboardInterrupt(f"{output} was written" if written else "") from None


def _identity(path: Path) -> tuple[int, int] | None:
    """Changes whenever a file is replaced; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


class _Once:
    """Raises KeyboardInterrupt on Ctrl-C, once: who mashes the keys must not stop the cleanup."""

    came = 0.0

    @classmethod
    def handle(cls, number: int, frame: object) -> None:
        if cls.came and time.monotonic() - cls.came < CLEANING_UP:
            return
        cls.came = time.monotonic()
        raise KeyboardInterrupt


@contextlib.contextmanager
def _interrupting_once() -> Iterator[None]:
    _Once.came = 0.0
    try:
        before = signal.signal(signal.SIGINT, _Once.handle)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:  # once interrupted, the process ends: nothing may disturb its last steps
        signal.signal(signal.SIGINT, signal.SIG_IGN if _Once.came else before)


def _unexpected(error: Exception) -> str:
    return (
        f"unexpected {type(error).__name__}: {error}; please report this with the model"
        f" ({DEBUG}=1 shows where it happened)"
    )


def _interrupted(error: KeyboardInterrupt) -> NoReturn:
    _exit(f"interrupted; {str(error) or 'nothing was written'}", INTERRUPTED)


def _fail(message: str, code: int, context: click.Context | None = None) -> NoReturn:
    if context is not None:
        message = f"{message.rstrip('.')}; see '{context.command_path} --help'"
    _exit(f"error: {message}", code)


def _exit(message: str, code: int) -> NoReturn:
    """Prints one line, whatever the message holds, and exits."""
    with contextlib.suppress(OSError):
        click.echo(f"onnxcomp: {' '.join(message.split())}", err=True)
    sys.exit(code)
