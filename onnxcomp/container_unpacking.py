"""`onnxcomp unpack` and `verify`: a container back into a model, one tensor at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from onnxcomp.container_reader import ContainerReader, Run, Task
from onnxcomp.container_restoring import restore
from onnxcomp.errors import OutputError
from onnxcomp.progress import Progress
from onnxcomp.skeleton import moved
from onnxcomp.writing import appear, check_target, replacing

Path_ = str | os.PathLike[str]


@contextlib.contextmanager
def open_container(path: Path_, base: Path_ | None = None) -> Iterator[ContainerReader]:
    """A container and the one that it is based on.

    Raises:
        UnsupportedModel: a file cannot be read or is no container.
        CorruptContainer: one is damaged, or the base is the wrong one.
    """
    with contextlib.ExitStack() as stack:
        older = stack.enter_context(ContainerReader(base)) if base else None
        yield stack.enter_context(ContainerReader(path, older))


@contextlib.contextmanager
def in_threads(count: int | None) -> Iterator[Run]:
    """Something that runs tasks in threads and waits; what one raises is raised."""
    others = (count or os.cpu_count() or 1) - 1  # this thread is one of them
    with ThreadPoolExecutor(max(others, 1)) as pool:  # starts none before it has work

        def run(tasks: Iterable[Task]) -> None:
            waiting = deque(tasks)
            started = [pool.submit(_work, waiting) for _ in range(min(others, len(waiting) - 1))]
            try:
                _work(waiting)
            finally:
                for worker in started:
                    worker.result()

        yield run


def _work(waiting: deque[Task]) -> None:
    """Does tasks until none is left; after a failure nobody starts another one."""
    while True:
        try:
            task = waiting.popleft()
        except IndexError:
            return
        try:
            task()
        except BaseException:
            waiting.clear()
            raise


def unpack(
    path: Path_,
    output: Path_,
    *,
    base: Path_ | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Writes the model of a container; no more than one tensor of it is in memory at a time.

    Args:
        path: of the container.
        output: the model, which appears complete or not at all; weights that were in files of
            their own appear in ``<output>.data``.
        base: the container that a delta package was made from.
        threads: that decode; None for one a processor.

    Returns:
        Bytes written.

    Raises:
        UnsupportedModel: the container cannot be read or is none.
        CorruptContainer: it is damaged, or the base is missing or another one.
        OutputError: the model cannot be written.
    """
    target, inputs = Path(output), [Path(path), *([Path(base)] if base else [])]
    with open_container(path, base) as reader, in_threads(threads) as run:
        directory = reader.directory
        data = target.with_name(f"{target.name}.data")
        check_target(target, inputs, "-o")
        if directory.external:
            check_target(data, inputs, "-o")
        _check_room(reader, target)
        tensors = _tensors(reader, run, threads, progress or Progress())
        with replacing(target) as folder:
            files = [folder / target.name]
            skeleton = reader.skeleton()
            with open(files[0], "wb") as file:
                if directory.external:
                    with reader.naming():
                        file.write(moved(skeleton, data.name))
                else:
                    _fill(file, reader, tensors)
            if directory.external:
                files.insert(0, folder / data.name)
                with open(files[0], "wb") as file:
                    for gap, values in tensors:
                        file.seek(gap, os.SEEK_CUR)
                        file.write(values)
            written = sum(file.stat().st_size for file in files)
            appear(files, target.parent, folder)
    return written


def verify(
    path: Path_,
    *,
    base: Path_ | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Decodes everything and compares every checksum; the number of tensors.

    Raises:
        UnsupportedModel: the container cannot be read or is none.
        CorruptContainer: it is damaged, or the base is missing or another one.
    """
    with open_container(path, base) as reader, in_threads(threads) as run:
        reader.skeleton()
        for _ in _tensors(reader, run, threads, progress or Progress()):
            pass
        return len(reader.directory.entries)


def _tensors(
    reader: ContainerReader, run: Run, threads: int | None, progress: Progress
) -> Iterator[tuple[int, memoryview]]:
    """(gap before it, bytes) of each tensor."""
    entries = reader.directory.entries
    for index, entry in enumerate(entries):
        values = reader.allocate(entry.size)
        restore(reader, {index: values}, run, threads)
        yield entry.gap, values.data
        progress.advance(index + 1, len(entries))


def _fill(
    file: BinaryIO, reader: ContainerReader, tensors: Iterable[tuple[int, memoryview]]
) -> None:
    """Writes the skeleton with the values in their holes."""
    skeleton, position = memoryview(reader.skeleton()), 0
    for gap, values in tensors:
        file.write(skeleton[position : position + gap])
        file.write(values)
        position += gap
    file.write(skeleton[position:])


def _check_room(reader: ContainerReader, target: Path) -> None:
    """Refuses to start what cannot end: a small file can declare a large model."""
    needed = reader.directory.skeleton_size + sum(e.gap + e.size for e in reader.directory.entries)
    free = shutil.disk_usage(target.resolve().parent).free
    if needed > free:
        raise OutputError(f"-o {target}: needs {needed} bytes, the disk has {free} left")
