"""Pruning and static INT8 in one recipe: independent errors, whose energies add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcomp import optimize
from onnxcomp.recipe import compose, parse_pass
from onnxcomp.runtime import open_file

STEPS = {
    "pruned": ("prune_channels:max_macs=0.8",),
    "quantized": ("quantize_static",),
    "both": ("prune_channels:max_macs=0.8", "quantize_static"),
}
CORRELATED = 1.12  # what energies add up to where errors happen to point the same way, 0.5 dB


@pytest.mark.parametrize("name", ["digits_resnet", "digits_vit"])
def test_the_losses_of_one_recipe_add_up(models: Path, tmp_path: Path, name: str) -> None:
    with np.load(models / "digits_test.npz") as samples:
        feed = {"input": samples["input"]}
    with np.load(models / "digits_calibration.npz") as samples:
        calibration = [{"input": image[None]} for image in samples["input"][:32]]
    source = models / f"{name}.onnx"
    (wanted,) = open_file(source, threads=1).run(feed)
    energy, macs = {}, {}
    for which, steps in STEPS.items():
        path = tmp_path / f"{which}.onnx"
        recipe = compose([parse_pass(step) for step in ("simplify_graph", *steps)])
        report = optimize(source, recipe, calibration=calibration, output=path, verify="off").report
        assert [result.status for result in report.passes[1:]] == ["kept"] * len(steps)
        assert report.before.macs is not None
        assert report.after.macs is not None
        macs[which] = report.after.macs / report.before.macs
        (found,) = open_file(path, threads=1).run(feed)
        energy[which] = float(np.square(found - wanted).sum() / np.square(wanted).sum())

    assert macs["both"] == macs["pruned"] <= 0.8 < macs["quantized"]
    in_codes = {node.op_type for node in onnx.load(tmp_path / "both.onnx").graph.node}
    assert "DequantizeLinear" in in_codes
    assert 0 < energy["pruned"] < 1e-2
    assert energy["both"] <= CORRELATED * (energy["pruned"] + energy["quantized"])
