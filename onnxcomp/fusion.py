"""What onnxruntime makes of a graph: which operators it runs, read from its optimized model."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from onnxcomp.errors import UnsupportedModel
from onnxcomp.exporting import to_proto
from onnxcomp.runtime import one_line, session_options

PAIR = ("QuantizeLinear", "DequantizeLinear")


def optimized_operators(graph: gs.Graph) -> Counter[str]:
    """How often onnxruntime runs each operator type in the outermost graph, after all its fusions.

    A quantized model is fused completely when the QuantizeLinear nodes left are one for each float
    tensor that integer operators read, and the DequantizeLinear nodes one for each result that
    float operators read or that is an output.

    Raises:
        UnsupportedModel: onnxruntime cannot load the graph.
    """
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        source, result = Path(folder) / "model.onnx", Path(folder) / "optimized.onnx"
        onnx.save(to_proto(graph), source, save_as_external_data=True, location="model.data")
        options = session_options(threads=1)
        options.optimized_model_filepath = str(result)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.data"
        )
        try:
            ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UnsupportedModel(
                f"onnxruntime cannot load the model: {one_line(error)}"
            ) from error
        model = onnx.load(result, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)
