"""The benchmark of packing runs, and without other tools prints onnxcomp's rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent / "benchmarks/bench_codec.py"


def run(*arguments: str) -> str:
    gone = ("ONNXCOMP_NNCODEC", "ONNXCOMP_ZIPNN")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in gone},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_says_what_is_compared() -> None:
    text = run("--help")
    assert "--nncodec PYTHON" in text
    assert "samples that nothing was fitted to" in text


def test_a_small_model_has_its_rows(models: Path) -> None:
    source = models / "digits_resnet.onnx"
    rows = json.loads(run("--json", "--model", str(source), "--db", "25"))
    assert [row["tool"] for row in rows] == ["onnxcomp", "integers", "lossless"]
    packed, integers, lossless = rows
    assert packed["model"] == "digits_resnet"
    assert packed["sqnr_db"] == pytest.approx(25, abs=5)  # other samples than it was packed for
    assert 0 < packed["bytes"] < lossless["bytes"] / 2 < source.stat().st_size / 2
    assert packed["encode_mws"] > 0
    assert packed["decode_mws"] > 0
    assert integers["entropy_bytes"] < integers["bytes"] < packed["bytes"]
