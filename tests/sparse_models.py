"""A model of sparse float32 weights, by the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcomp import kernels
from onnxcomp.testing import model_of


def save_sparse_model(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Writes X [tokens, 256] -> SparseMatMul -> Y [tokens, 128]; returns the dense weight."""
    rng = np.random.default_rng(1)
    kept = rng.random((256, 128)) < 0.3
    weight = np.where(kept, rng.standard_normal((256, 128)), 0).astype(np.float32)
    packed = kernels.pack(weight, block_size=1)
    assert packed.values.nbytes > 2**15  # a session of a container is handed the values
    model = model_of("""<ir_version: 8, opset_import: ["" : 17, "onnxcomp" : 1]>
        sparse (float[tokens, 256] X) => (float[tokens, 128] Y) {
            Y = onnxcomp.SparseMatMul (X, values, indices, offsets) }""")
    for name, number in packed.attributes.items():
        model.graph.node[0].attribute.append(helper.make_attribute(name, number))
    for name in ("values", "indices", "offsets"):
        model.graph.initializer.append(numpy_helper.from_array(getattr(packed, name), name))
    onnx.save(model, path)
    return weight
