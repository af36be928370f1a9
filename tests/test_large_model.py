"""A model of more than 2 GB passes through `optimize`: how much memory and time that takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxcomp.model import load_model
from onnxcomp.testing import assert_same_answers, model_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM of a process"),
]
WIDTH, LAYERS, TOKENS = 4096, 30, 50_000  # 30 * 64 MiB of layers and 781 MiB of embedding: 2.8e9
MEASURED = """
import json, sys, time
{code}
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({{"seconds": seconds, "peak": 1024 * int(status["VmHWM"].split()[0])}}))
"""
OPTIMIZE = """
start = time.perf_counter()
from onnxcomp.optimize import optimize
result = optimize(sys.argv[1], "simplify", output=sys.argv[2])
seconds = time.perf_counter() - start
assert [p.status for p in result.report.passes] == ["kept"], result.report.passes
"""
SESSION = """
import onnxruntime
start = time.perf_counter()
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
seconds = time.perf_counter() - start
"""


def embedding_and_layers(layers: int, tokens: int) -> onnx.ModelProto:
    """ids [N] -> Gather -> ``layers`` times MatMul, Add, Relu -> y [N, WIDTH], without weights.

    Every layer has an Identity, so that simplifying finds something to do.
    """
    linear, rest = "p{0} = MatMul (t{0}, w{0}) s{0} = Add (p{0}, b{0})", "t{1} = Identity (r{0})"
    steps = [f"{linear} r{{0}} = Relu (s{{0}}) {rest}".format(i, i + 1) for i in range(layers)]
    text = f"""large (int64[N] ids) => (float[N, {WIDTH}] y) {{
        t0 = Gather (table, ids) {" ".join(steps)} y = Identity (t{layers})
    }}"""
    rng = np.random.default_rng(0)
    biases = {f"b{i}": rng.standard_normal(WIDTH, np.float32) for i in range(layers)}
    return model_of(text, **biases)


def weights_of(layers: int, tokens: int) -> dict[str, int]:
    """Rows of each weight by name; all are [rows, WIDTH]."""
    return {"table": tokens} | {f"w{i}": WIDTH for i in range(layers)}


def write_external(folder: Path) -> Path:
    """One random block, tiled and scaled: quick to make, no two weights alike."""
    model = embedding_and_layers(LAYERS, TOKENS)
    block = np.random.default_rng(1).standard_normal((64, WIDTH), np.float32) / np.float32(64)
    with open(folder / "large.onnx.data", "wb") as file:
        for number, (name, rows) in enumerate(weights_of(LAYERS, TOKENS).items()):
            tensor = model.graph.initializer.add(name=name, data_type=TensorProto.FLOAT)
            tensor.dims.extend([rows, WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": "large.onnx.data", "offset": file.tell()}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            scaled = (block * np.float32(1 + number / 100)).tobytes()
            for start in range(0, rows, 64):
                file.write(scaled[: min(64, rows - start) * WIDTH * 4])
    path = folder / "large.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def measured(code: str, *arguments: Path) -> dict[str, float]:
    """Seconds and peak memory of a piece of code in a process of its own."""
    program = MEASURED.format(code=code)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def copy_seconds(paths: list[Path], folder: Path) -> float:
    start = time.perf_counter()
    for path in paths:
        shutil.copyfile(path, folder / f"copy.{path.name}")
    seconds = time.perf_counter() - start
    for path in paths:
        (folder / f"copy.{path.name}").unlink()
    return seconds


def write_single(folder: Path) -> Path:
    """1.5 GB of layers in the model's own file."""
    layers = 23
    model = embedding_and_layers(layers, WIDTH)
    block = np.random.default_rng(1).standard_normal((64, WIDTH), np.float32) / np.float32(64)
    for number, (name, rows) in enumerate(weights_of(layers, WIDTH).items()):
        tensor = model.graph.initializer.add(name=name, data_type=TensorProto.FLOAT)
        tensor.dims.extend([rows, WIDTH])
        tensor.raw_data = (block * np.float32(1 + number / 100)).tobytes() * (rows // 64)
    path = folder / "single.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def report(kind: str, size: int, copy: float, session: dict[str, float], run: Any) -> None:
    bound = 4 * copy + session["seconds"]
    print(
        f"\n{size / 1e9:.2f} GB {kind}: peak {run['peak'] / size:.2f} of the size, the session"
        f" alone {session['peak'] / size:.2f}; {run['seconds']:.1f} s, {run['seconds'] / bound:.2f}"
        f" of four copies ({copy:.1f} s each) and a session ({session['seconds']:.1f} s)"
    )


def test_one_and_a_half_gb_in_one_file(tmp_path: Path) -> None:
    """protobuf holds the file and what it says while it parses, and onnxruntime does the same."""
    source = write_single(tmp_path)
    size = source.stat().st_size
    copy = sorted(copy_seconds([source], tmp_path) for _ in range(3))[1]
    session = measured(SESSION, source)
    run = measured(OPTIMIZE, source, tmp_path / "out.onnx")
    report("in one file", size, copy, session, run)
    assert run["peak"] < 2.5 * size
    assert_same_answers(source, tmp_path / "out.onnx", [{"ids": np.array([0, 7])}])


def test_more_than_2_gb_of_external_weights(tmp_path: Path) -> None:
    source = write_external(tmp_path)
    files = [source, tmp_path / "large.onnx.data"]
    size = sum(path.stat().st_size for path in files)
    assert size > 2.2e9
    copy = sorted(copy_seconds(files, tmp_path) for _ in range(3))[1]
    session = measured(SESSION, source)
    run = measured(OPTIMIZE, source, tmp_path / "out.onnx")
    report("external", size, copy, session, run)
    assert run["peak"] < 2 * size
    written = load_model(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size > 2.2e9
    assert not any(node.op == "Identity" for node in written.graph.nodes)
    assert_same_answers(source, tmp_path / "out.onnx", [{"ids": np.array([0, 7, TOKENS - 1])}])
