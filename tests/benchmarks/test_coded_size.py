"""Integers of quantized models beside their entropy: `pytest -m benchmark -s tests/benchmarks`.

Per model: bytes of all payloads over those of the zeroth-order entropy of each tensor, the same
with the description of its frequencies (half of log2(count) bits a value that occurs), and the
tensor that exceeds the latter by most. INT8 by `quantize_static`, 4 bits by `quantize_weights`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from coded_integers import coded_integers

from onnxcomp import optimize
from onnxcomp.container_packing import pack
from onnxcomp.recipe import compose, parse_pass

pytestmark = pytest.mark.benchmark

NAMES = ("squeezenet11_fp32", "cifar10_resnet56", "mobilenet_v1_075", "yolox_nano")
SPECS = ("quantize_static", "quantize_weights:bits=4,form=dequantize")
SAMPLES = 32


@pytest.mark.parametrize("spec", SPECS)
def test_integers_beside_their_entropy(spec: str, shared: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(shared / "kit"))
    import evaluate as kit  # type: ignore[import-not-found]

    print(f"\n{spec}")
    for name in NAMES:
        feeds = kit.calibration(name, SAMPLES) if spec == "quantize_static" else None
        quantized = tmp_path / f"{name}.onnx"
        recipe = compose([parse_pass(spec)])
        optimize(
            str(kit.model_path(name)),
            recipe,
            output=str(quantized),
            calibration=feeds,
            verify="off",
        )
        pack(quantized, tmp_path / "m.oxc")
        found = list(coded_integers(tmp_path / "m.oxc", 1))
        size, entropy = sum(t.size for t in found), sum(t.entropy for t in found)
        described = entropy + sum(t.model for t in found)
        most = max(found, key=lambda t: t.size - t.entropy - t.model)
        print(
            f"{name:18s} {size:>9,} bytes  {size / entropy:7.2%} of the entropy  "
            f"{size / described:7.2%} with frequencies; {most.name} [{most.count}] "
            f"{most.size - most.entropy - most.model:+.0f} bytes"
        )
