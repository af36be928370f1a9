"""Results that are containers, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import run

from onnxcomp import load_model, optimize
from onnxcomp.container_reader import is_container
from onnxcomp.container_unpacking import unpack, verify
from onnxcomp.recipe import Recipe
from onnxcomp.recipe_file import recipe_as_toml
from onnxcomp.testing import assert_same_answers, model_of, small_convnet


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(small_convnet(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_smallest_recipe_writes_a_container_beside_the_model(folder: Path) -> None:
    report = json.loads(run("optimize", "model.onnx", "--recipe", "smallest", "--json").stdout)
    assert report["output"] == "model.oxc"
    assert report["after"]["bytes"] == (folder / "model.oxc").stat().st_size
    assert report["before"]["bytes"] == (folder / "model.onnx").stat().st_size
    assert verify(folder / "model.oxc") > 0
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.oxc"}


def test_any_recipe_is_packed_into_a_container(folder: Path) -> None:
    run("optimize", "model.onnx", "--recipe", "simplify", "-o", "simple.oxc")
    result = optimize("model.onnx", "simplify", output="simple.onnx")
    assert result.report.after.bytes == (folder / "simple.onnx").stat().st_size
    assert is_container(folder / "simple.oxc")
    unpack("simple.oxc", "back.onnx")
    assert (folder / "back.onnx").read_bytes() == (folder / "simple.onnx").read_bytes()


def test_external_data_comes_back_in_a_file_of_its_own(folder: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((160, 160)).astype(np.float32)
    model = model_of(
        """
        <ir_version: 8, opset_import: ["" : 13]>
        net (float[1,160] x) => (float[1,160] y) { a = Identity(x)  y = MatMul(a, w) }
        """,
        w=weights,
    )
    onnx.save(model, "outside.onnx", save_as_external_data=True, location="weights")
    run("optimize", "outside.onnx", "--recipe", "simplify", "-o", "simple.oxc")
    assert not (folder / "simple.oxc.data").exists()
    unpack("simple.oxc", "back.onnx")
    assert (folder / "back.onnx.data").exists()
    assert_same_answers(onnx.load("outside.onnx"), onnx.load("back.onnx"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "smallest", "-o", "x.onnx"], "x.onnx a name in .oxc"),
        (["--recipe", "smallest", "-o", "no/x.oxc"], "there is no folder"),
        (["--recipe", "smallest", "-o", "taken.oxc"], "is a folder"),
        (["--recipe", "bad.toml"], "pack: 3 is not of type bool"),
        (["--pass", "code_weights:bits=0"], "bits must be positive"),
        (["--recipe", "smallest", "--min-sqnr", "300", "--strict"], "SQNR"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "bad.toml").write_text("pack = 3\n")
    (folder / "taken.oxc").mkdir()
    before = sorted(folder.iterdir())
    shown = run("optimize", "model.onnx", *arguments, code=2)
    assert message in shown.stderr
    assert shown.stderr.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_a_recipe_says_that_it_packs() -> None:
    recipe = Recipe.load("smallest")
    assert recipe.pack
    assert Recipe.parse(recipe_as_toml(recipe)).pack
    assert not Recipe.load("default").pack
    listed = json.loads(run("recipes", "--json").stdout)["recipes"]
    assert {entry["name"] for entry in listed if entry["pack"]} == {"smallest"}


def test_a_model_in_memory_goes_into_a_container(folder: Path) -> None:
    model = load_model("model.onnx")
    result = optimize(model, "smallest")
    assert result.report.output == ""
    assert result.save("later.oxc") == (folder / "later.oxc").stat().st_size
    assert result.report.after.bytes == pytest.approx((folder / "later.oxc").stat().st_size, 0.01)
