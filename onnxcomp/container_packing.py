"""`onnxcomp pack`: a model into an .oxc container."""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from onnxcomp.coding_quantizer import CodedWeight
from onnxcomp.container import error_field
from onnxcomp.container_contents import Contents, contents
from onnxcomp.container_reader import ContainerReader
from onnxcomp.container_unpacking import in_threads
from onnxcomp.container_writer import ContainerWriter
from onnxcomp.errors import OnnxcompError
from onnxcomp.kernels.coding import xxh3_64
from onnxcomp.lossless import Coded, Prefer, encode_grid, encode_lossless
from onnxcomp.number_types import FLOAT
from onnxcomp.progress import Progress
from onnxcomp.representations import Same
from onnxcomp.skeleton import Hole, Skeleton, cut_model
from onnxcomp.writing import appear, check_target, replacing

AHEAD = 2  # tensors of each thread that may be coded before they are written
Path_ = str | os.PathLike[str]


def pack(
    model: Path_,
    output: Path_,
    *,
    base: Path_ | None = None,
    prefer: Prefer = "size",
    threads: int | None = None,
    grids: Mapping[str, CodedWeight] | None = None,
    errors: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Contents:
    """Packs a model so that unpacking gives back its bytes.

    Args:
        model: a file; its external data is packed with it.
        output: the container, which appears complete or not at all.
        base: a container; tensors that it holds too are left out, so that the result is a delta
            package which only this base completes.
        prefer: "size", or "speed" of decoding.
        threads: that code tensors; None for one a processor.
        grids: codes of tensors, by name, where they are known; what they do not give back is
            coded without them.
        errors: that tensors cause at the outputs, by name, as shares of their energy; written
            into the container for `inspect` where they are given.
        progress: told how far the work is.

    Returns:
        What the container holds.

    Raises:
        UnsupportedModel: the model cannot be read or is not ONNX.
        CorruptContainer: the base is damaged.
        OutputError: the container cannot be written.
    """
    source, target = Path(model), Path(output)
    progress = progress or Progress()
    skeleton = cut_model(source)
    check_target(target, [source, *([Path(base)] if base else [])], "-o")
    with contextlib.ExitStack() as stack:
        older = stack.enter_context(ContainerReader(base)) if base else None
        if older is not None and older.directory.base is not None:
            raise OnnxcompError(f"--base {base}: is a delta package itself; use what it came from")
        folder = stack.enter_context(replacing(target))
        place = folder / target.name
        with open(place, "wb") as file:
            writer = ContainerWriter(
                file,
                skeleton.data,
                external=skeleton.external,
                base=older.identity if older else None,
                errors=bool(errors),
            )
            _tell_errors(skeleton, errors or {})
            encode = functools.partial(_encode, skeleton, grids or {}, prefer)
            _write_tensors(writer, skeleton, _Known(older), encode, threads, progress)
            writer.finish()
        found = _read_back(place, older, skeleton, threads)
        appear([place], target.parent, folder)
    return found.at(target)


def _write_tensors(
    writer: ContainerWriter,
    skeleton: Skeleton,
    known: _Known,
    encode: Callable[[Hole], Coded],
    threads: int | None,
    progress: Progress,
) -> None:
    """Codes tensors in threads, and writes them in their order."""

    def jobs() -> Iterator[Callable[[], Coded]]:
        for index, hole in enumerate(skeleton.holes):  # in order, so that threads change nothing
            hole.entry.checksum = xxh3_64(hole.values.data)
            same = known.find(index, hole)
            if same is not None:
                yield functools.partial(Coded, same)
            else:
                yield functools.partial(encode, hole)

    count = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(count) as pool:
        finished = _in_order(pool, jobs(), count * AHEAD)
        for hole, coded in zip(skeleton.holes, finished, strict=True):
            hole.entry.representation = coded.representation
            writer.add(hole.entry, coded.streams)
            progress.advance(len(writer.directory.entries), len(skeleton.holes))


def _read_back(
    place: Path, base: ContainerReader | None, skeleton: Skeleton, threads: int | None
) -> Contents:
    """What a new container holds: a file that does not decode never gets its name."""
    with ContainerReader(place, base=base) as reader, in_threads(threads) as run:
        for index in range(len(skeleton.holes)):
            reader.read(index, run)
        return contents(reader, skeleton.size)


def _tell_errors(skeleton: Skeleton, errors: Mapping[str, float]) -> None:
    for hole in skeleton.holes:
        hole.entry.error = error_field(errors.get(_name(skeleton, hole), 0.0))


def _name(skeleton: Skeleton, hole: Hole) -> str:
    start = hole.entry.name_start
    return skeleton.data[start : start + hole.entry.name_length].decode(errors="replace")


def _encode(
    skeleton: Skeleton, grids: Mapping[str, CodedWeight], prefer: Prefer, hole: Hole
) -> Coded:
    """By the codes that are known to give the values, or without loss in the shortest way."""
    entry = hole.entry
    coded = grids.get(_name(skeleton, hole))
    fits = coded is not None and coded.codes.shape == entry.dims and entry.data_type == FLOAT
    if fits and coded is not None and coded.values.tobytes() == hole.values.tobytes():
        return encode_grid(entry, coded.codes, coded.scales, coded.axis, coded.along, prefer=prefer)
    return encode_lossless(entry, hole.values, prefer=prefer)


def _in_order(
    pool: ThreadPoolExecutor, jobs: Iterator[Callable[[], Coded]], ahead: int
) -> Iterator[Coded]:
    """Results of jobs in their order, few of them waiting at a time."""
    waiting: deque[Future[Coded]] = deque()
    for job in jobs:
        waiting.append(pool.submit(job))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Known:
    """Tensors that need not be stored again."""

    def __init__(self, base: ContainerReader | None) -> None:
        self._base = base
        entries = base.directory.entries if base else []
        self._of_base = {(e.checksum, e.size): i for i, e in reversed(list(enumerate(entries)))}
        self._before: dict[tuple[int, int], tuple[int, Hole]] = {}

    def find(self, index: int, hole: Hole) -> Same | None:
        """Where the bytes of a tensor are already. Hashes only say where to look."""
        key = hole.entry.checksum, hole.entry.size
        in_base = self._of_base.get(key)
        if self._base is not None and in_base is not None:
            older = self._base.read(in_base)
            if np.array_equal(older, hole.values):
                return Same(in_base, of_base=True)
        first, other = self._before.setdefault(key, (index, hole))
        if first < index and np.array_equal(other.values, hole.values):
            return Same(first, of_base=False)
        return None
