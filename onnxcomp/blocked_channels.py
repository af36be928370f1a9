"""What onnxruntime takes to reorder images around a float convolution that is alone.

On x86 it runs convolutions on blocks of channels: [images, channels / block, height, width, block].
Within a model hardly anything is reordered, as most of what lies between convolutions takes blocks.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.errors import UnsupportedModel
from onnxcomp.kernels import cpu_features
from onnxcomp.layer_latency import OPSET
from onnxcomp.quantization import Array
from onnxcomp.runtime import Feed, Session, open_session

DOMAIN = "com.microsoft.nchwc"  # of onnxruntime's own, in every build for x86
ALIGNED = 4  # channels of what is reordered are a multiple of it


def reorders(
    weight_shape: tuple[int, ...], group: int, x: Array, y: Array, threads: int
) -> list[tuple[Session, Feed]]:
    """Models of single reorders that such a convolution of x to y has around it, and their feeds.

    None where onnxruntime does not use blocks of channels, as far as that is known.
    """
    features = cpu_features()
    block = 16 if features["avx512f"] else 8 if features["avx2"] else 0
    out, per_group = weight_shape[:2]
    if group > 1:
        takes_blocks = block > 0 and per_group % block == 0 and out // group % block == 0
    else:
        takes_blocks = block > 0 and (per_group < block or per_group % ALIGNED == 0)
    if not takes_blocks:
        return []
    padded = np.zeros((len(y), -(-out // block) * block, *y.shape[2:]), np.float32)
    found = [("ReorderOutput", {"channels": out}, padded)]
    if group > 1 or per_group >= block:
        found.append(("ReorderInput", {}, x))
    try:
        return [(_open(op, attributes, a, threads), {"x": a}) for op, attributes, a in found]
    except UnsupportedModel:  # another onnxruntime may have other operators
        return []


def _open(op: str, attributes: dict[str, int], values: Array, threads: int) -> Session:
    x, y = gs.Variable("x", np.float32, list(values.shape)), gs.Variable("y", np.float32)
    node = gs.Node(op, "move", attributes, [x], [y], domain=DOMAIN)
    graph = gs.Graph([node], [x], [y], name="layer", opset=OPSET, ir_version=8)
    return open_session(graph, threads=threads)
