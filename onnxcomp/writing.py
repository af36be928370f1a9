"""Where results go: refused before the work where it cannot be written, complete or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from onnxcomp.errors import OutputError


def check_target(path: Path, inputs: Iterable[Path], option: str) -> None:
    """Refuses a path for a result before any work is done.

    Args:
        path: of the result.
        inputs: files that are read, and must not be replaced.
        option: that names the path, for the message.

    Raises:
        OutputError: it is a folder or one of the inputs, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise OutputError(f"{option} {path}: is a folder; give the name of a file")
    for other in inputs:
        if path.resolve() == other.resolve() or (path.exists() and path.samefile(other)):
            raise OutputError(f"{option} {path}: is an input; write the result under another name")
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{option} {path}: there is no folder {folder}; make it first")
    try:  # trying is the only test that holds for root and on read-only file systems
        with tempfile.TemporaryFile(prefix=".onnxcomp-", dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{option} {path}: cannot be written ({error.strerror}); choose another folder"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears complete or not at all; an existing one is replaced.

    Raises:
        OutputError: the folder is not writable, or the disk is full.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxcomp-", dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            fresh.write_text(text, encoding="utf-8")
            os.replace(fresh, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path}: cannot be written ({reason})") from error


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to write in, gone afterwards whatever happens.

    Raises:
        OutputError: what the body did failed for a full disk or the like.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxcomp-", dir=target.parent) as folder:
            yield Path(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{target}: cannot be written ({reason}); nothing was changed") from error


def appear(files: list[Path], folder: Path, aside: Path) -> None:
    """Moves ``files`` to ``folder``, the model last; all of them, or everything stays as it was.

    An old model leaves first, so that none ever stands beside the weights of another.
    """
    places = [folder / file.name for file in files]
    old = [place for place in reversed(places) if place.exists()] if len(files) > 1 else []
    moved: list[tuple[Path, Path]] = []
    try:
        for start, end in [
            *((place, aside / f"old-{place.name}") for place in old),
            *zip(files, places, strict=True),
        ]:
            os.replace(start, end)
            moved.append((start, end))
    except BaseException:
        for start, end in reversed(moved):
            os.replace(end, start)
        raise
