"""onnxruntime sessions of graphs and files, without copying weights.

A graph is serialized without its weights, which are handed to the session as they lie in memory or
in the mapped file: no limit of 2 GB, no copy, and the same way for a tap on any tensor.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxcomp.errors import UnsupportedModel
from onnxcomp.exporting import Store, data_type_of, inline, to_proto

if TYPE_CHECKING:
    import onnxruntime

Feed = dict[str, np.ndarray[Any, Any]]  # one run's inputs by name

SMALLEST_HANDED = 4096  # elements; below, a weight is written into the serialized graph
_HANDED = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT32,
        TensorProto.INT64,
    }
)


class Session:
    """An onnxruntime session and the weights it reads, which have to live as long as it does.

    Attributes:
        inner: the onnxruntime.InferenceSession.
        inputs: names of the inputs a caller must feed.
        outputs: names of the outputs, in order.
    """

    def __init__(self, inner: onnxruntime.InferenceSession, weights: Sequence[Any] = ()) -> None:
        self.inner, self._weights = inner, weights
        self.inputs = [value.name for value in inner.get_inputs()]
        self.outputs = [value.name for value in inner.get_outputs()]

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> list[Any]:
        """Runs one feed; the values of ``outputs`` (default: all) in order.

        Raises:
            UnsupportedModel: onnxruntime refused the feed or failed in a node.
        """
        try:
            result: list[Any] = self.inner.run(outputs, feed)
        except Exception as error:
            raise UnsupportedModel(
                f"onnxruntime cannot run the model: {one_line(error)}"
            ) from error
        return result


def open_session(
    graph: gs.Graph,
    *,
    extra_outputs: Iterable[str] = (),
    threads: int | None = None,
    optimize: bool = True,
    lean: bool = False,
) -> Session:
    """A CPU session of a graph.

    Args:
        graph: its weights are shared with the session, not copied.
        extra_outputs: names of tensors to return besides the model's outputs.
        threads: intra-op threads; None for onnxruntime's choice.
        optimize: apply onnxruntime's graph optimizations.
        lean: keep no second copy of weights: none in a faster layout, none folded or cast ahead.

    Raises:
        UnsupportedModel: onnxruntime cannot load the model.
    """
    names: list[str] = []
    weights: list[Any] = []
    proto = to_proto(graph, _handing_over(names, weights), extra_outputs)
    options = session_options(threads=threads, optimize=optimize, lean=lean)
    handed = [_as_value(array) for array in weights]
    if names:
        options.add_external_initializers(names, handed)
    return _session(proto.SerializeToString(), options, handed, lean)


def open_file(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    optimize: bool = True,
    lean: bool = False,
    custom_ops: Sequence[str] = (),
) -> Session:
    """A CPU session of a file, as a user of the model would open it.

    Raises:
        UnsupportedModel: onnxruntime cannot load the model.
    """
    options = session_options(threads=threads, optimize=optimize, lean=lean)
    for library in custom_ops:
        options.register_custom_ops_library(library)
    return _session(str(path), options, [], lean)


def session_options(
    *, threads: int | None = None, optimize: bool = True, lean: bool = False
) -> onnxruntime.SessionOptions:
    """Options all sessions share: quiet, and without threads that spin between measurements."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if lean:
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def one_line(error: BaseException) -> str:
    """The message of an error of onnxruntime or onnx on one line, without its source locations."""
    text = " ".join(str(error).split()) or type(error).__name__
    for noise in ("[ONNXRuntimeError] : ", "Status Message: "):
        text = text.replace(noise, "")
    return text if len(text) <= 400 else text[:397] + "..."


def _session(
    model: str | bytes, options: onnxruntime.SessionOptions, weights: Sequence[Any], lean: bool
) -> Session:
    import onnxruntime as ort

    left_out = ["ConstantFolding"] if lean else []
    try:
        inner = ort.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
        )
    except Exception as error:
        raise UnsupportedModel(f"onnxruntime cannot load the model: {one_line(error)}") from error
    return Session(inner, weights)


def _handing_over(names: list[str], weights: list[Any]) -> Store:
    """A store that leaves large weights out of the proto and collects them instead.

    onnxruntime takes them for the outermost graph only.
    """

    def store(constant: gs.Constant, scope: str) -> TensorProto:
        data_type = data_type_of(constant.dtype)
        small = np.prod(constant.shape, dtype=np.int64) < SMALLEST_HANDED
        if scope or small or data_type not in _HANDED:
            return inline(constant)
        names.append(constant.name)
        weights.append(np.ascontiguousarray(constant.values))
        stub = TensorProto(name=constant.name, data_type=data_type, dims=constant.shape)
        stub.data_location = TensorProto.EXTERNAL
        stub.external_data.add(key="location", value=f"{constant.name}.handed")
        return stub

    return store


def _as_value(array: np.ndarray[Any, Any]) -> onnxruntime.OrtValue:
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(array)
