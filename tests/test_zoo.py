"""Other people's models: real exported architectures and files found in public repositories.

The default run takes a few of each; `pytest -m slow tests/test_zoo.py` takes all.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from zoo import SHARED, architectures

from onnxcomp import OnnxcompError, Recipe, optimize
from onnxcomp.recipe import compose, parse_pass

FEW_ARCHITECTURES = {
    *("dscnn_kws", "efficientnet_b0", "gpt2", "gru_speech", "lstm_text", "mobilenet_v3_small"),
    *("shufflenet_v2_x1_0", "t5_encoder", "unet", "vit_b_16", "yolo_head"),
}
SLOW_FILES = {"Windows-Machine-Learning__fns-candy.onnx"}  # 720 x 720 pixels, in and out
RECIPES = {
    "simplify": Recipe.load("simplify"),
    "quantize_static": compose([parse_pass("simplify_graph"), parse_pass("quantize_static")]),
}


def corpus(runs: bool) -> list[object]:
    """Entries of the corpus that run, or that have to be refused."""
    index = SHARED / "kit" / "corpus" / "index.json"
    found = json.loads(index.read_text()) if index.is_file() else []
    entries = [entry for entry in found if entry["runs"] == runs] or [{"file": "no shared models"}]
    return [
        pytest.param(
            entry, marks=pytest.mark.slow if entry["file"] in SLOW_FILES else (), id=entry["file"]
        )
        for entry in entries
    ]


def check(source: Path, output: Path, recipe: Recipe) -> None:
    """The result is valid and runs, its signature is unchanged, and every undoing has a reason."""
    report = optimize(source, recipe, output=output).report

    onnx.checker.check_model(str(output))
    sessions = [ort.InferenceSession(str(path)) for path in (source, output)]
    before, after = (
        [(v.name, v.type, v.shape) for v in (*s.get_inputs(), *s.get_outputs())] for s in sessions
    )
    assert before == after
    assert all(p.reason for p in report.passes if p.status in ("undone", "failed"))
    assert not [p for p in report.passes if p.status == "failed"], report.passes
    if recipe.gates.must_pay:
        assert report.after.bytes <= report.before.bytes
    assert np.isfinite(report.after.latency_ms or 0.0)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", architectures(FEW_ARCHITECTURES))
def test_architecture(hydrate: ModuleType, name: str, recipe: str, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(hydrate.load(name), source)

    check(source, tmp_path / "optimized.onnx", RECIPES[recipe])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("entry", corpus(runs=True))
def test_found_model(shared: Path, entry: dict[str, str], recipe: str, tmp_path: Path) -> None:
    source = shared / "kit" / "corpus" / entry["file"]

    check(source, tmp_path / "optimized.onnx", RECIPES[recipe])


@pytest.mark.parametrize("entry", corpus(runs=False))
def test_found_model_that_cannot_run_is_refused(
    shared: Path, entry: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "optimized.onnx"

    with pytest.raises(OnnxcompError) as caught:
        optimize(shared / "kit" / "corpus" / entry["file"], "simplify", output=output)

    assert "\n" not in str(caught.value)
    assert entry["file"] in str(caught.value) or "onnxruntime cannot" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
