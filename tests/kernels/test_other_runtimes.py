"""The library inside the onnxruntimes that it is said to load in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from operator_models import CALLS, feed_of, model_of
from operator_sessions import open_model

from onnxcomp import kernels

RUN_ELSEWHERE = """
import json
import sys
import numpy as np
import onnxruntime

library, folder = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(library)
options.register_custom_ops_library(library)
options.intra_op_num_threads = 2
options.log_severity_level = 4
providers = ["CPUExecutionProvider"]


def refusal(name):
    try:
        onnxruntime.InferenceSession(f"{folder}/{name}.onnx", options, providers=providers)
    except Exception as error:
        return str(error)
    raise AssertionError(f"{name} was opened")


for _ in range(3):  # the library is unloaded and loaded again in between
    session = onnxruntime.InferenceSession(f"{folder}/all.onnx", options, providers=providers)
    expected = np.load(f"{folder}/y.npz")
    names = [y.name for y in session.get_outputs()]
    shapes = {y.name: y.shape for y in session.get_outputs()}
    with open(f"{folder}/shapes.json") as file:
        assert shapes == json.load(file), shapes
    for name, y in zip(names, session.run(names, dict(np.load(f"{folder}/x.npz")))):
        np.testing.assert_array_equal(y, expected[name], err_msg=name)
    del session
named, unnamed = refusal("named"), refusal("unnamed")
assert "onnxcomp.SparseQLinearConv 'block/SparseQLinearConv': block_rows is 2" in named, named
assert "SparseQLinearConv that makes 'SparseQLinearConv.Y': block_rows is 2" in unnamed, unnamed
print(onnxruntime.__version__)
"""


def write_models(folder: Path) -> None:
    """Every operator at once, and a node that is refused."""
    calls = tuple(CALLS.values())
    onnx.save(model_of(*calls), folder / "all.onnx")
    session = open_model(model_of(*calls))
    shapes = {y.name: y.shape for y in session.get_outputs()}
    (folder / "shapes.json").write_text(json.dumps(shapes), encoding="utf-8")
    names = list(shapes)
    results = session.run(names, feed_of(*calls))
    np.savez(folder / "x.npz", **feed_of(*calls))
    np.savez(folder / "y.npz", **dict(zip(names, results, strict=True)))
    refused = CALLS["SparseQLinearConv"].changed(block_rows=2)
    onnx.save(model_of(refused), folder / "named.onnx")
    onnx.save(model_of(refused, named=False), folder / "unnamed.onnx")
    (folder / "run.py").write_text(RUN_ELSEWHERE, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the oldest have no wheels for it")
@pytest.mark.parametrize("version", ["1.17.0", "1.18.0", "1.20.1", "1.22.1", "1.23.2"])
def test_every_operator_gives_the_same_numbers_in(version: str, tmp_path: Path) -> None:
    write_models(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "other"], check=True)
    folder = "Scripts" if sys.platform == "win32" else "bin"
    python = tmp_path / "other" / folder / "python"
    requirements = [f"onnxruntime=={version}", *(["numpy<2"] if version < "1.19" else [])]
    subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
    result = subprocess.run(
        [python, tmp_path / "run.py", kernels.library_path(), tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(version)
