"""The frame of the command line: whatever goes wrong becomes one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
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
        interrupts = _Interrupts()
        try:
            super().main(*args, **{**extra, "standalone_mode": False})
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code, getattr(error, "ctx", None))
        except OnnxcompError as error:
            _fail(str(error), error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            _fail("", INTERRUPTED)
        except SystemExit:
            raise
        except Exception as error:
            if interrupts.came:  # some libraries turn an interruption into an error of their own
                _fail("", INTERRUPTED)
            if os.environ.get(DEBUG):
                raise
            _fail(_unexpected(error), UNEXPECTED)
        sys.exit(0)


class _Interrupts:
    """Raises KeyboardInterrupt on Ctrl-C, once: who mashes the keys must not stop the cleanup."""

    def __init__(self) -> None:
        self.came = 0.0
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, self)

    def __call__(self, number: int, frame: object) -> None:
        if self.came and time.monotonic() - self.came < CLEANING_UP:
            return
        self.came = time.monotonic()
        raise KeyboardInterrupt


def _unexpected(error: Exception) -> str:
    message = " ".join(str(error).split())
    return (
        f"unexpected {type(error).__name__}: {message}; please report this with the model"
        f" ({DEBUG}=1 shows where it happened)"
    )


def _fail(message: str, code: int, context: click.Context | None = None) -> NoReturn:
    """Prints one line and exits; an empty message stands for an interruption."""
    text = " ".join(message.split())
    if context is not None:
        text = f"{text.rstrip('.')}; see '{context.command_path} --help'"
    line = f"onnxcomp: error: {text}" if text else "onnxcomp: interrupted; nothing was written"
    with contextlib.suppress(OSError):
        click.echo(line, err=True)
    sys.exit(code)
