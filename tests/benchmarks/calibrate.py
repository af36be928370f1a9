"""Quantizes a model in this process and prints its peak of resident memory in bytes.

    python calibrate.py onnxcomp|onnxruntime MODEL.onnx OUTPUT.onnx FOLDER

FOLDER holds one .npz for each sample.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def with_onnxcomp(source: str, output: str, folder: str) -> None:
    """Converted, simplified and quantized, without gates or measurements."""
    from onnxcomp.calibration import Calibration
    from onnxcomp.model import load_model, save_model
    from onnxcomp.opset import convert_opset
    from onnxcomp.passes.base import PassContext, PassReport
    from onnxcomp.passes.quantize_static import QuantizeStatic
    from onnxcomp.passes.simplify_graph import SimplifyGraph
    from onnxcomp.targets import resolve_target

    graph = convert_opset(load_model(source).graph)
    SimplifyGraph().rewrite(graph, PassContext(target=resolve_target()), PassReport())
    samples = Calibration.from_source(folder, graph)
    context = PassContext(target=resolve_target(), calibration=samples)
    QuantizeStatic().rewrite(graph, context, PassReport())
    save_model(graph, output)


def with_onnxruntime(source: str, output: str, folder: str) -> None:
    """quant_pre_process, then quantize_static with MinMax, uint8 codes and int8 weights."""
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.files = iter(sorted(Path(folder).glob("*.npz")))

        def get_next(self) -> dict[str, Any] | None:
            file = next(self.files, None)
            if file is None:
                return None
            with np.load(file) as stored:
                return dict(stored)

    model = onnx.load(source)
    if next(o.version for o in model.opset_import if not o.domain) < 13:
        onnx.save(onnx.version_converter.convert_version(model, 13), output)
        source = output
    quantization.quant_pre_process(source, output)
    quantization.quantize_static(
        output,
        output,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def peak_bytes() -> int:
    """VmHWM of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    {"onnxcomp": with_onnxcomp, "onnxruntime": with_onnxruntime}[sys.argv[1]](*sys.argv[2:])
    print(peak_bytes())
