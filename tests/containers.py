"""Single tensors through containers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnxcomp.container import Entry
from onnxcomp.container_reader import ContainerReader
from onnxcomp.container_writer import ContainerWriter
from onnxcomp.kernels.coding import xxh3_64
from onnxcomp.lossless import encode_lossless


def through(entry: Entry, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The values of a tensor after writing and reading a container."""
    coded = encode_lossless(entry, values)
    entry.representation, entry.checksum = coded.representation, xxh3_64(values)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.oxc"
        with open(path, "wb") as file:
            writer = ContainerWriter(file, b"", external=False)
            writer.add(entry, coded.streams)
            writer.finish()
        with ContainerReader(path) as reader:
            (found,) = reader.directory.entries
            assert (found.dims, found.data_type) == (entry.dims, entry.data_type)
            assert found.streams == entry.streams
            return reader.read(0)
