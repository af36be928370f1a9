"""Single tensors through containers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxcomp.container import Entry
from onnxcomp.container_reader import ContainerReader
from onnxcomp.container_writer import ContainerWriter
from onnxcomp.kernels.coding import xxh3_64
from onnxcomp.lossless import encode_lossless
from onnxcomp.testing import small_convnet


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


def model_of_many_kinds() -> onnx.ModelProto:
    """small_convnet with a duplicated, a half-like, a grid, integer and empty tensors."""
    rng = np.random.default_rng(0)
    model, values = small_convnet(), rng.standard_normal((9, 40), np.float32)
    extra = {
        "one": values,
        "two": values,
        "half": values.astype(np.float16).astype(np.float32),
        "grid": rng.integers(-8, 8, (12, 90)).astype(np.float32) * rng.random((12, 1), np.float32),
        "few": rng.choice(np.array([0.1, 0.7, 3], np.float32), (10, 64)),
        "codes": rng.integers(-90, 90, (3, 333)).astype(np.int8),
        "shape": rng.integers(0, 2**60, 50),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(3, np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in extra.items())
    return model
