"""What integer tensors take in a container, and what their statistics say that they need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxcomp.container_reader import ContainerReader
from onnxcomp.number_types import FLOATS, number_type


@dataclass(frozen=True)
class CodedIntegers:
    """A tensor of integers.

    Attributes:
        size: bytes of its payloads.
        entropy: bytes by the zeroth-order entropy of its values.
        model: bytes that describe their frequencies: half of log2(count) bits for each but one
            (J. Rissanen, Modeling by shortest data description, 1978).
    """

    name: str
    count: int
    size: int
    entropy: float
    model: float


def coded_integers(path: Path, least: int) -> Iterator[CodedIntegers]:
    """The tensors of integers of at most 8 bits in a container, from ``least`` elements on."""
    with ContainerReader(path) as reader:
        for index, entry in enumerate(reader.directory.entries):
            if number_type(entry.data_type) in FLOATS or entry.bits > 8:
                continue
            values = reader.read(index)
            if entry.bits == 4:
                values = np.stack([values & 15, values >> 4], -1).reshape(-1)
            values = values[: int(np.prod(entry.dims))]
            if values.size < least or entry.bits < 4:
                continue
            counts = np.unique(values, return_counts=True)[1]
            bits = -float((counts * np.log2(counts / values.size)).sum())
            yield CodedIntegers(
                reader.names[index],
                values.size,
                sum(chunk.length for chunks in entry.streams for chunk in chunks),
                bits / 8,
                (counts.size - 1) / 2 * float(np.log2(values.size)) / 8,
            )
