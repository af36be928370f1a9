"""Runs every operator on numbers that begin at odd addresses, as they may in external data.

    python tests/misaligned_operators.py FOLDER [LIBRARY]

prints a line for each; what comes of them must be the same as of aligned numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import external_data_helper
from operator_models import CALLS, Call, feed_of, model_of

from onnxcomp import kernels


def save_misaligned(call: Call, folder: Path) -> Path:
    """A model of the operator, whose initializers lie at odd places of a file beside it."""
    model = model_of(call)
    data = b""
    for tensor in model.graph.initializer:
        data += bytes(1 + len(data) % 2)
        external_data_helper.set_external_data(
            tensor, "data.bin", offset=len(data), length=len(tensor.raw_data)
        )
        data += tensor.raw_data
        tensor.ClearField("raw_data")
    folder.mkdir()
    (folder / "data.bin").write_bytes(data)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def result_of(model: bytes | str, call: Call, library: Path) -> npt.NDArray[Any]:
    """What the operator gives for the call's X."""
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, feed_of(call))
    return np.asarray(y)


def run_misaligned(call: Call, folder: Path, library: Path) -> None:
    """Raises AssertionError where addresses change the result."""
    expected = result_of(model_of(call).SerializeToString(), call, library)
    found = result_of(str(save_misaligned(call, folder)), call, library)
    np.testing.assert_array_equal(found, expected)


if __name__ == "__main__":
    given = Path(sys.argv[2]) if len(sys.argv) > 2 else kernels.library_path()
    for name, each in CALLS.items():
        run_misaligned(each, Path(sys.argv[1]) / name, given)
        print(name)
