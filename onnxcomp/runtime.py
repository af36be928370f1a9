"""onnxruntime sessions of graphs and files, weights of any size.

A graph is serialized without its weights. Those in files are mapped by onnxruntime, never copied;
those in memory are handed over, of which it keeps a copy. So nothing is limited to 2 GB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxcomp.errors import UnsupportedModel
from onnxcomp.exporting import data_type_of, inline, to_proto
from onnxcomp.stored import StoredValues

if TYPE_CHECKING:
    import onnxruntime

Feed = dict[str, np.ndarray[Any, Any]]  # one run's inputs by name

FOLDER = "session.model_external_initializers_file_folder_path"
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
    profile: Path | None = None,
) -> Session:
    """A CPU session of a graph.

    Args:
        graph: what changes in it afterwards does not reach the session.
        extra_outputs: names of tensors to return besides the model's outputs.
        threads: intra-op threads; None for onnxruntime's choice.
        optimize: apply onnxruntime's graph optimizations.
        lean: keep no second copy of weights: none in a faster layout, none folded or cast ahead.
        profile: start of the name of a file that the time of each kernel is written to.

    Raises:
        UnsupportedModel: onnxruntime cannot load the model.
    """
    weights = _Weights()
    proto = to_proto(graph, weights.store, extra_outputs)
    options = session_options(threads=threads, optimize=optimize, lean=lean)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    handed = [_as_value(array) for array in weights.handed.values()]
    if handed:
        options.add_external_initializers(list(weights.handed), handed)
    if weights.folder is not None:
        options.add_session_config_entry(FOLDER, str(weights.folder))
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

    def load() -> ort.InferenceSession:
        return ort.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
        )

    try:
        inner = with_our_own(load, options)
    except Exception as error:
        raise UnsupportedModel(f"onnxruntime cannot load the model: {one_line(error)}") from error
    return Session(inner, weights)


def with_our_own(
    load: Callable[[], onnxruntime.InferenceSession], options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    """What ``load`` opens with ``options``, which get our operators if the model has some."""
    try:
        return load()
    except Exception as error:
        if not _lacks_our_own(error):
            raise
    _register_our_own(options)
    return load()


def _lacks_our_own(error: Exception) -> bool:
    """Whether a model has operators of our library: "onnxcomp:PackSigns(-1) is not registered"."""
    return "onnxcomp:" in str(error)


def _register_our_own(options: onnxruntime.SessionOptions) -> None:
    """Makes our own operators known; models without any never load their library."""
    from onnxcomp.kernels import library_path

    options.register_custom_ops_library(str(library_path()))


class _Weights:
    """A store that leaves large weights of the outermost graph out of the proto.

    Attributes:
        handed: arrays for onnxruntime to take, by name.
        folder: where the files are that it is to map; None for no such weights.
    """

    def __init__(self) -> None:
        self.handed: dict[str, np.ndarray[Any, Any]] = {}
        self.folder: Path | None = None
        self._maps = _maps_files()

    def store(self, constant: gs.Constant, scope: str) -> TensorProto:
        """Writes a reference, or the values of small constants and of those in bodies."""
        data_type, values = data_type_of(constant.dtype), constant._values
        if scope or np.prod(constant.shape, dtype=np.int64) < SMALLEST_HANDED:
            return inline(constant)
        stub = TensorProto(name=constant.name, data_type=data_type, dims=constant.shape)
        stub.data_location = TensorProto.EXTERNAL
        if self._maps and isinstance(values, StoredValues) and values.is_external:
            folder = (values.folder or Path()).resolve()
            if self.folder in (None, folder):
                self.folder = folder
                stub.external_data.extend(values.tensor.external_data)
                return stub
        if data_type not in _HANDED:
            return inline(constant)
        self.handed[constant.name] = np.ascontiguousarray(constant.values)
        stub.external_data.add(key="location", value="handed")
        return stub


def _maps_files() -> bool:
    """Whether onnxruntime takes the folder of external data for a model that is no file (1.21)."""
    import onnxruntime as ort

    return tuple(int(part) for part in ort.__version__.split(".")[:2]) >= (1, 21)


def _as_value(array: np.ndarray[Any, Any]) -> onnxruntime.OrtValue:
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(array)
