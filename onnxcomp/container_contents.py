"""What a container holds, read from the file itself: for `pack`, `inspect` and JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcomp.container import Entry
from onnxcomp.container_reader import ContainerReader
from onnxcomp.number_types import NAMES

SCHEMA = "onnxcomp.container/1"
BACK_ENDS = ("raw", "rans", "cabac")


@dataclass(frozen=True)
class TensorContents:
    """One tensor of a container.

    Attributes:
        name: of the initializer, or #index of one without.
        data_type: name of its ONNX data type.
        shape: its dimensions.
        representation: how its values come from codes.
        back_ends: entropy coders of its payloads, each once.
        profiles: of those, as "back end/number".
        bytes: of its values in the model.
        packed_bytes: of its payloads.
        bits_per_weight: payload bits of an element.
        same_as: name of the tensor whose values it has too; None where it has its own.
        error_db: the error that its codes alone cause at the outputs, against their energy; None
            where they cause none, or none is told.
    """

    name: str
    data_type: str
    shape: list[int]
    representation: str
    back_ends: list[str]
    profiles: list[str]
    bytes: int
    packed_bytes: int
    bits_per_weight: float
    same_as: str | None
    error_db: float | None


@dataclass(frozen=True)
class Contents:
    """A container.

    Attributes:
        path: of the file.
        bytes: of the file.
        model_bytes: of the model, with its external data.
        skeleton_bytes: of the model without the tensors.
        skeleton_packed_bytes: of the same in the container.
        directory_bytes: of directory, header and footer.
        needs_base: whether it is a delta package.
        error_db: what the errors of all tensors come to at the outputs if they are independent.
        tensors: in the order of the model.
    """

    path: str
    bytes: int
    model_bytes: int
    skeleton_bytes: int
    skeleton_packed_bytes: int
    directory_bytes: int
    needs_base: bool
    error_db: float | None
    tensors: list[TensorContents]

    @property
    def ratio(self) -> float:
        """Bytes of the container / bytes of the model."""
        return self.bytes / self.model_bytes

    def at(self, path: Path) -> Contents:
        """The same under another name."""
        return dataclasses.replace(self, path=str(path))

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it (docs/report.md)."""
        return {"schema": SCHEMA, **dataclasses.asdict(self), "ratio": round(self.ratio, 6)}


def contents(reader: ContainerReader, model_bytes: int | None = None) -> Contents:
    """What an open container holds.

    Args:
        reader: the container.
        model_bytes: of the model it was made from, where that is known better.
    """
    directory = reader.directory
    packed = sum(entry.packed for entry in directory.entries)
    values = sum(entry.size for entry in directory.entries)
    return Contents(
        path=str(reader.path),
        bytes=reader.size,
        model_bytes=model_bytes or directory.skeleton_size + values,
        skeleton_bytes=directory.skeleton_size,
        skeleton_packed_bytes=directory.skeleton_packed,
        directory_bytes=reader.size - directory.skeleton_packed - packed,
        needs_base=directory.base is not None,
        error_db=_sum([entry.error_db for entry in directory.entries]),
        tensors=[_tensor(reader, index, entry) for index, entry in enumerate(directory.entries)],
    )


def _tensor(reader: ContainerReader, index: int, entry: Entry) -> TensorContents:
    starts = reader.payload_starts(index)
    profiles = sorted({f"{_back_end(start[0])}/{start[1]}" for start in starts})
    how = entry.representation
    return TensorContents(
        name=reader.names[index],
        data_type=NAMES[entry.data_type],
        shape=list(entry.dims),
        representation=how.describe(),
        back_ends=sorted({_back_end(start[0]) for start in starts}),
        profiles=profiles,
        bytes=entry.size,
        packed_bytes=entry.packed,
        bits_per_weight=round(entry.packed * 8 / max(math.prod(entry.dims), 1), 4),
        same_as=reader.same_as(index),
        error_db=entry.error_db,
    )


def _sum(errors_db: Sequence[float | None]) -> float | None:
    """Energies added up."""
    shares = [10 ** (error_db / 10) for error_db in errors_db if error_db is not None]
    return round(10 * math.log10(sum(shares)), 2) if shares else None


def _back_end(number: int) -> str:
    return BACK_ENDS[number] if number < len(BACK_ENDS) else str(number)
