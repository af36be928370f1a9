"""Quantized models of this repository: their integers take what their entropy says, and less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coded_integers import coded_integers

from onnxcomp import optimize
from onnxcomp.container import Entry
from onnxcomp.container_packing import pack
from onnxcomp.lossless import encode_lossless
from onnxcomp.number_types import UINT8
from onnxcomp.recipe import compose, parse_pass
from onnxcomp.representations import Integer, Planes

LEAST = 1000  # elements
SLACK = 1.003
FIXED = 48  # bytes of a payload whatever it holds: header, final states


SPECS = ["quantize_static"]
SPECS += [f"quantize_weights:bits=4{form}" for form in ("", ",form=dequantize")]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["digits_resnet", "digits_vit"])
def test_integers_take_their_entropy_and_what_describes_it(
    name: str, spec: str, models: Path, tmp_path: Path
) -> None:
    calibration = models / "digits_calibration.npz" if spec == "quantize_static" else None
    quantized = tmp_path / "q.onnx"
    recipe = compose([parse_pass(spec)])
    source = str(models / f"{name}.onnx")
    optimize(source, recipe, output=str(quantized), calibration=_of(calibration), verify="off")
    pack(quantized, tmp_path / "q.oxc")
    found = list(coded_integers(tmp_path / "q.oxc", LEAST))
    assert len(found) > 3
    for tensor in found:
        assert tensor.size < SLACK * tensor.entropy + tensor.model + FIXED, tensor
    total = sum(tensor.size for tensor in found)
    assert total < sum(SLACK * tensor.entropy + tensor.model for tensor in found)


def _of(calibration: Path | None) -> Any:
    return str(calibration) if calibration else None


def entry_of(values: np.ndarray[Any, Any]) -> Entry:
    return Entry(0, True, 0, 0, UINT8, values.shape, Integer())


def test_bytes_that_are_two_codes_are_coded_as_two_codes() -> None:
    rng = np.random.default_rng(0)
    codes = np.clip(np.rint(rng.standard_normal((2, 3000)) * 2 + 8), 0, 15).astype(np.uint8)
    values = codes[0] | codes[1] << 4
    coded = encode_lossless(entry_of(values), values)
    assert coded.representation == Planes(UINT8, False, (4, 4))
    counts = np.unique(codes, return_counts=True)[1]
    entropy = -float((counts * np.log2(counts / codes.size)).sum()) / 8
    assert coded.size < 1.03 * entropy
    whole = np.rint(rng.standard_normal(6000) * 30).astype(np.int8).view(np.uint8)
    assert encode_lossless(entry_of(whole), whole).representation == Integer()
