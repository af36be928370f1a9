"""HOW the graph changes: one file, one class a pass."""

from __future__ import annotations

if __name__ == "passes":
    raise ImportError("this folder is installed as onnxcomp.passes; import it by that name")

from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.passes.binarize_layers import BinarizeLayers
from onnxcomp.passes.code_weights import CodeWeights
from onnxcomp.passes.convert_float16 import ConvertFloat16
from onnxcomp.passes.equalize_channels import EqualizeChannels
from onnxcomp.passes.factorize_weights import FactorizeWeights
from onnxcomp.passes.lower_binary import LowerBinary
from onnxcomp.passes.lower_sparse import LowerSparse
from onnxcomp.passes.prune_blocks import PruneBlocks
from onnxcomp.passes.prune_channels import PruneChannels
from onnxcomp.passes.quantize_dynamic import QuantizeDynamic
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.passes.quantize_weights import QuantizeWeights
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.passes.sparsify_weights import SparsifyWeights

PASSES: tuple[type[Pass], ...] = (
    SimplifyGraph,
    PruneBlocks,
    PruneChannels,
    FactorizeWeights,
    SparsifyWeights,
    EqualizeChannels,
    QuantizeStatic,
    QuantizeDynamic,
    LowerSparse,
    QuantizeWeights,
    BinarizeLayers,
    LowerBinary,
    ConvertFloat16,
    CodeWeights,
)

__all__ = ["PASSES", "Pass", "PassContext", "PassReport"]
