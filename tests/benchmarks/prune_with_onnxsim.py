"""Prunes a model by onnxsim's structured Wanda pruning, in a Python that has onnxsim.

    python prune_with_onnxsim.py MODEL.onnx SAMPLES OUTPUT SPARSITY...

SAMPLES holds one .npz for each sample. Writes OUTPUT/uniform-SPARSITY.onnx, where every chain of
layers loses that fraction, and OUTPUT/global-SPARSITY.onnx, where all of them together do.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxsim  # type: ignore[import-not-found]


def main(source: str, samples: str, output: str, *sparsities: str) -> None:
    simplified, _ = onnxsim.simplify(onnx.load(source))
    feeds = [dict(np.load(path)) for path in sorted(Path(samples).glob("*.npz"))]
    for sparsity in sparsities:
        for scope in ("uniform", "global"):
            model = onnxsim.apply_structured_wanda_pruning(
                simplified,
                calibration_data=feeds,
                num_samples=len(feeds),
                sparsity=float(sparsity),
                global_sparsity=scope == "global",
            )
            # what it has for repair refits MatMul and Gemm only
            model = onnxsim.apply_pruning_finetune(
                simplified, model, calibration_data=feeds, num_samples=len(feeds)
            )
            onnx.save(model, Path(output) / f"{scope}-{sparsity}.onnx")


if __name__ == "__main__":
    main(*sys.argv[1:])
