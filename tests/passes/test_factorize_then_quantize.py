"""Low rank and static INT8 in one recipe: thin layers become codes, and error energies add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp import optimize
from onnxcomp.graph import is_constant, label
from onnxcomp.kernel_use import kernel_use
from onnxcomp.model import load_model
from onnxcomp.recipe import Recipe
from onnxcomp.runtime import open_file
from onnxcomp.testing import model_of

Feeds = list[dict[str, np.ndarray[Any, Any]]]
PARTS = {
    "thin": ("factorize_weights",),
    "codes": ("quantize_static",),
    "both": ("factorize_weights", "quantize_static"),
}
ROUNDED_TWICE = 1.41  # what energies add up to, as a thin layer rounds its input in the middle too


def recipe_of(names: tuple[str, ...]) -> Recipe:
    options = {"factorize_weights": "max_macs = 0.85"}
    tables = [f'[[passes]]\nname = "{n}"\n{options.get(n, "")}\n' for n in names]
    return Recipe.parse("\n".join(tables), "test")


def transformer(models: Path, folder: Path) -> tuple[Path, Feeds, Feeds]:
    """As trained, with images that are not calibrated on."""
    found = []
    for name, count in (("calibration", 64), ("test", 200)):
        with np.load(models / f"digits_{name}.npz") as samples:
            found.append([{"input": image[None]} for image in samples["input"][:count]])
    return models / "digits_vit.onnx", found[0], found[1]


def convnet(models: Path, folder: Path) -> tuple[Path, Feeds, Feeds]:
    """Three layers on inputs in few directions."""
    rng = np.random.default_rng(2)
    turn = np.linalg.qr(rng.standard_normal((16, 16)))[0] * 0.7 ** np.arange(16)
    text = """net (float[N, 16, 12, 12] x) => (float[N, 16, 6, 6] y) {
        [first] a = Conv <pads = [1, 1, 1, 1]> (x, k1)  b = Relu (a)
        [second] c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (b, k2)  d = Relu (c)
        [third] y = Conv (d, k3) }"""
    shapes = {"k1": (32, 16, 3, 3), "k2": (32, 32, 3, 3), "k3": (16, 32, 1, 1)}
    kernels = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    onnx.save(model_of(text, **kernels), folder / "net.onnx")
    rows = rng.standard_normal((96, 12, 12, 16)) @ turn.T
    feeds: Feeds = [{"x": image.transpose(2, 0, 1)[None].astype(np.float32)} for image in rows]
    return folder / "net.onnx", feeds[:64], feeds[64:]


@pytest.mark.parametrize("model", [transformer, convnet])
def test_thin_layers_run_in_integers(models: Path, tmp_path: Path, model: Any) -> None:
    source, calibration, others = model(models, tmp_path)
    feed = {name: np.concatenate([other[name] for other in others]) for name in others[0]}
    (wanted,) = open_file(source, threads=1).run(feed)
    energy = {}
    for part, names in PARTS.items():
        path = tmp_path / f"{part}.onnx"
        made = optimize(
            source, recipe_of(names), calibration=calibration, output=path, verify="off"
        )
        assert [result.status for result in made.report.passes] == ["kept"] * len(names)
        (found,) = open_file(path, threads=1).run(feed)
        energy[part] = float(np.square(found - wanted).sum() / np.square(wanted).sum())
        if part != "codes":
            assert made.report.before.macs is not None
            assert made.report.after.macs is not None
            assert made.report.after.macs <= 0.85 * made.report.before.macs
    assert energy["both"] <= ROUNDED_TWICE * (energy["thin"] + energy["codes"])

    thin = {
        label(node)
        for node in load_model(tmp_path / "thin.onnx").graph.nodes
        if any(".factor" in tensor.name for tensor in node.inputs if is_constant(tensor))
    }
    use = kernel_use(load_model(tmp_path / "both.onnx").graph, feed)
    in_integers = {
        name for kernel in use.kernels if kernel.kind == "integer" for name in kernel.nodes
    }
    assert len(thin) >= 2
    assert thin <= in_integers
