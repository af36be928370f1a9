"""Values of many tensors at once: chunks of all of them, in threads.

What can be is done by the compiled `Restoring`, which waits for no interpreter. Where something is
wrong, everything is done again by the reader, which says what.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.container import Cut, Entry, cut, has_scale_a_row, stream_dims
from onnxcomp.container_reader import WIDENED_IN_PLACE, ContainerReader, Run, Task
from onnxcomp.kernels.planes import WIDENINGS
from onnxcomp.kernels.restoring import Restoring, restores_files
from onnxcomp.number_types import FLOAT, number_type
from onnxcomp.representations import Grid, Planes, Same, Trellis

Array = npt.NDArray[Any]


def restore(
    reader: ContainerReader,
    outs: Mapping[int, Array],
    run: Run,
    threads: int | None,
    beside: Iterable[Task] = (),
) -> None:
    """Fills arrays with tensors and compares them with their hashes.

    Args:
        reader: of the container.
        outs: uint8, as large as the tensors whose indices they are under.
        run: runs tasks in threads.
        threads: how many; None for one a processor.
        beside: tasks that can be done meanwhile.

    Raises:
        CorruptContainer: a payload or a result is damaged, or the base is missing.
    """
    native, chunks, rest = _native(reader, outs)
    tasks, checks = _tasks(reader, rest)
    runs = [native.run] * min(threads or os.cpu_count() or 1, chunks)
    run([*runs[1:], *beside, *runs[:1], *tasks])
    run(checks)
    if native.defects() != (-1, -1):
        for todo in _tasks(reader, outs):
            run(todo)


def _largest_first(outs: Mapping[int, Array]) -> list[int]:
    """So that no thread ends late."""
    return sorted(outs, key=lambda index: -outs[index].size)


def _tasks(reader: ContainerReader, outs: Mapping[int, Array]) -> tuple[list[Task], list[Task]]:
    """What decodes tensors, and what compares those of several chunks with their hashes."""
    tasks: list[Task] = []
    checks: list[Task] = []
    for index in _largest_first(outs):
        parts = list(reader.tasks(index, outs[index]))
        check = functools.partial(reader.check, index, outs[index])
        if len(parts) == 1:  # what was just written is still in the cache
            tasks.append(functools.partial(_both, parts[0], check))
        else:
            tasks += parts
            checks.append(check)
    return tasks, checks


def _both(task: Task, check: Task) -> None:
    task()
    check()


# --- compiled -----------------------------------------------------------------------------------


def _native(
    reader: ContainerReader, outs: Mapping[int, Array]
) -> tuple[Restoring, int, dict[int, Array]]:
    """What restores tensors without the interpreter, its chunks, and those that it cannot."""
    native, rest, count, chunks = Restoring(), dict(outs), 0, 0
    for index in _largest_first(outs) if restores_files else ():
        entry, out = reader.directory.entries[index], outs[index]
        source, of = reader, index
        while isinstance(how := source.directory.entries[of].representation, Same):
            source, of = source.source(of, how), how.index
        coded = source.directory.entries[of]
        cuts = [cut(*dims) for dims in stream_dims(coded)]
        if not out.size or not _is_compiled(coded, cuts[0]):
            continue
        native.add_tensor(out, entry.checksum)
        table = source.table(of, cuts)
        for chunk in range(cuts[0].chunks):
            _add(native, count, source, of, chunk, cuts[0], table, out)
        del rest[index]
        count += 1
        chunks += cuts[0].chunks
    return native, chunks, rest


def _is_compiled(entry: Entry, place: Cut) -> bool:
    how, kind = entry.representation, number_type(entry.data_type)
    if isinstance(how, Planes):
        return how.source == kind or (kind == FLOAT and how.source in WIDENED_IN_PLACE)
    return has_scale_a_row(entry, place)


def _add(
    native: Restoring,
    tensor: int,
    source: ContainerReader,
    index: int,
    chunk: int,
    place: Cut,
    table: Array | None,
    out: Array,
) -> None:
    entry = source.directory.entries[index]
    how, shape, start = entry.representation, place.shape(chunk), place.start(chunk)
    count = math.prod(shape)
    values = out[start * entry.bits // 8 :][: count * entry.bits // 8]
    payloads = source.payloads(index, chunk)
    if isinstance(how, Planes):
        widened = how.source if how.source != number_type(entry.data_type) else None
        widening = WIDENINGS.index(WIDENED_IN_PLACE[widened] if widened else "")
        native.add_planes(payloads, shape, values, tensor, bytes(how.widths), how.rotated, widening)
    elif isinstance(how, Grid) and table is not None:
        scales, length, inner = table.view(np.float32), 0, 0
        if scales.size > 1:
            scales = scales[chunk * place.step :][: shape[0]]
        if isinstance(how, Trellis):
            inner = math.prod(entry.dims[how.along + 1 :])
            length = entry.dims[how.along] if how.along else count // inner
        native.add_scaled(payloads[:1], shape, values, tensor, scales, length, inner)
