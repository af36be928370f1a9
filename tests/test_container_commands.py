"""pack, unpack, verify and inspect as a user meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest
from command_line import run

from onnxcomp.testing import small_convnet


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(small_convnet(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_goes_there_and_back(folder: Path) -> None:
    shown = run("pack", "model.onnx", "--lossless").stdout
    assert f"{(folder / 'model.oxc').stat().st_size:,} bytes" in shown
    assert f"{(folder / 'model.onnx').stat().st_size:,}" in shown
    assert "float as" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "all checksums hold" in run("verify", "model.oxc").stdout
    run("unpack", "model.oxc", "-o", "back.onnx")
    assert (folder / "back.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    assert run("inspect", "model.oxc").stdout == shown


def test_json_says_of_each_tensor_what_it_takes(folder: Path) -> None:
    packed = json.loads(run("pack", "model.onnx", "--lossless", "--json").stdout)
    assert packed["schema"] == "onnxcomp.container/1"
    assert packed == json.loads(run("inspect", "model.oxc", "--json").stdout)
    assert packed["bytes"] == (folder / "model.oxc").stat().st_size
    assert packed["model_bytes"] == (folder / "model.onnx").stat().st_size
    assert packed["ratio"] == pytest.approx(packed["bytes"] / packed["model_bytes"], abs=1e-6)
    parts = packed["skeleton_packed_bytes"] + packed["directory_bytes"]
    assert parts + sum(t["packed_bytes"] for t in packed["tensors"]) == packed["bytes"]
    initializers = {t.name: t for t in onnx.load(folder / "model.onnx").graph.initializer}
    for tensor in packed["tensors"]:
        proto = initializers[tensor["name"]]
        assert tensor["shape"] == list(proto.dims)
        assert tensor["bytes"] == len(proto.raw_data)
        weights = tensor["bytes"] / 4
        assert tensor["bits_per_weight"] == pytest.approx(
            tensor["packed_bytes"] * 8 / weights, 1e-3
        )
        assert set(tensor["back_ends"]) <= {"raw", "rans", "cabac"}


def test_errors_of_codes_are_shown_by_pack_and_by_inspect(folder: Path) -> None:
    shown = run("pack", "model.onnx", "--bits", "4").stdout
    assert "errors of the tensors, if independent, -" in shown
    row, listed = (text.splitlines()[7] for text in (shown, run("inspect", "model.oxc").stdout))
    assert row == listed
    assert re.search(r"-\d+\.\d dB$", row)
    assert all(len(line) <= 80 for line in shown.splitlines())
    found = json.loads(run("inspect", "model.oxc", "--json").stdout)
    errors = [tensor["error_db"] for tensor in found["tensors"]]
    assert min(errors) > -100
    assert max(errors) < found["error_db"] < max(errors) + 10
    lossless = json.loads(run("pack", "model.onnx", "--lossless", "--json").stdout)
    assert {t["error_db"] for t in lossless["tensors"]} == {lossless["error_db"]} == {None}


def test_deltas_need_their_base(folder: Path) -> None:
    run("pack", "model.onnx", "--lossless", "-o", "old.oxc")
    model = small_convnet()
    model.producer_name = "changed"
    onnx.save(model, folder / "new.onnx")
    shown = run("pack", "new.onnx", "--lossless", "--base", "old.oxc").stdout
    assert "same as base: " in shown
    assert "needs its base" in run("inspect", "new.oxc").stdout
    run("verify", "new.oxc", "--base", "old.oxc")
    run("unpack", "new.oxc", "--base", "old.oxc", "-o", "back.onnx")
    assert (folder / "back.onnx").read_bytes() == (folder / "new.onnx").read_bytes()
    assert "--base" in run("unpack", "new.oxc", "-o", "x.onnx", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack", "model.onnx"], "--lossless"),
        (["pack", "none.onnx", "--lossless"], "none.onnx: cannot be read"),
        (["pack", "model.onnx", "--lossless", "-o", "model.onnx"], "is an input"),
        (["pack", "model.onnx", "--lossless", "-o", "no/model.oxc"], "there is no folder"),
        (["pack", "text", "--lossless"], "not an ONNX model"),
        (["pack", "model.onnx", "--lossless", "--base", "text"], "not an .oxc container"),
        (["verify", "model.onnx"], "not an .oxc container"),
        (["verify", "broken.oxc"], "broken.oxc: "),
        (["unpack", "broken.oxc", "-o", "x.onnx"], "broken.oxc: "),
        (["inspect", "broken.oxc"], "broken.oxc: "),
        (["unpack", "model.oxc"], "exists already; name the output with -o"),
        (["unpack", "model.oxc", "-o", "model.oxc"], "is an input"),
        (["unpack", "model.oxc", "-o", "y.onnx", "--base", "model.oxc"], "it needs no base"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder: Path, arguments: list[str], message: str) -> None:
    run("pack", "model.onnx", "--lossless")
    (folder / "text").write_text("no model at all")
    (folder / "broken.oxc").write_bytes((folder / "model.oxc").read_bytes()[:-7])
    before = sorted(folder.iterdir())
    shown = run(*arguments, code=2)
    assert message in shown.stderr
    assert shown.stderr.count("\n") == 1
    assert shown.stdout == ""
    assert sorted(folder.iterdir()) == before
