"""Sessions of onnxruntime that know the operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime

from onnxcomp import kernels


def open_model(
    model: onnx.ModelProto, *libraries: Path, threads: int = 1
) -> onnxruntime.InferenceSession:
    """A session with the operators of these libraries, or of the installed one."""
    options = onnxruntime.SessionOptions()
    for library in libraries or (kernels.library_path(),):
        options.register_custom_ops_library(str(library))
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model: onnx.ModelProto, x: npt.NDArray[Any], *, threads: int = 1) -> Any:
    """Y of a model that reads X."""
    return open_model(model, threads=threads).run(["Y"], {"X": x})[0]
