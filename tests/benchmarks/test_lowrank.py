"""What factors cost: CPU seconds of one core, and memory.

    pytest -m benchmark -s tests/benchmarks/test_lowrank.py

The large matrix runs in a process of its own: its peak is not that of other tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcomp.lowrank import lost_energy, spectrum
from onnxcomp.lowrank_tensors import spatial, spatial_kernel, tucker2, tucker2_kernel
from onnxcomp.testing import model_of

LARGE = """
import resource, sys, time
import numpy as np
from onnxcomp.lowrank import spectrum

rng = np.random.default_rng(0)
falling = np.arange(1, 4097, dtype=np.float32)
weights = rng.standard_normal((11008, 4096), dtype=np.float32) * falling**-0.25
rows = rng.standard_normal((3000, 4096), dtype=np.float32) * falling**-0.5
rows[:, 1:] += 0.5 * rows[:, :-1]
gram = (rows.T @ rows).astype(np.float64) / len(rows)
began = time.process_time()
found = spectrum(weights, gram, most_rank=int(sys.argv[1]) or None)
seconds = time.process_time() - began
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(seconds, peak, found.errors[128] / found.errors[0])
"""
MOST_BYTES = 3e9


@pytest.mark.benchmark
def test_a_large_matrix_fits_3_gb() -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    errors = []
    for most_rank in (0, 128):
        run = subprocess.run(
            [sys.executable, "-c", LARGE, str(most_rank)],
            env=env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds, peak, error = map(float, run.stdout.split())
        errors.append(error)
        ranks = most_rank or "all"
        print(f"\n11008 x 4096, {ranks} ranks: {seconds:.1f} CPU s, {peak / 1e9:.2f} GB", end="")
        assert peak < MOST_BYTES
    assert errors[0] <= errors[1] * (1 + 1e-9)
    assert errors[1] <= 1.01 * errors[0]


COMMAND = """
import resource, sys, time
from onnxcomp.cli import main

sys.argv[0] = "onnxcomp"
try:
    main(standalone_mode=False)
finally:
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(time.process_time(), peak, file=sys.stderr)
"""


@pytest.fixture(scope="module", params=[(4096, 11008), (11008, 4096)], ids=["up", "down"])
def large_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """One MatMul whose singular values fall as those of trained weights do."""
    inputs, outputs = request.param
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((inputs, outputs), dtype=np.float32) / np.sqrt(inputs)
    weights *= np.arange(1, inputs + 1, dtype=np.float32)[:, None] ** -0.25
    text = f"""net (float[N, {inputs}] x) => (float[N, {outputs}] y) {{ y = MatMul (x, w) }}"""
    path = tmp_path_factory.mktemp("large") / "large.onnx"
    onnx.save(model_of(text, w=weights), path)
    return path, inputs


@pytest.mark.benchmark
@pytest.mark.parametrize("options", ["energy=0.9", "max_parameters=0.5"])
@pytest.mark.parametrize("rows", [0, 64, 4096])
def test_a_large_model_fits_3_gb(
    large_model: tuple[Path, int], options: str, rows: int, tmp_path: Path
) -> None:
    """The whole command: reading, measuring, factors, refinement and writing."""
    model, width = large_model
    words = ["optimize", str(model), "--pass", f"factorize_weights:{options}",
             "-o", str(tmp_path / "thin.onnx")]  # fmt: skip
    if rows:
        rng = np.random.default_rng(1)
        x = rng.standard_normal((16, rows // 16, width), dtype=np.float32)
        x *= np.arange(1, width + 1, dtype=np.float32) ** -0.5
        x[..., 1:] += 0.5 * x[..., :-1]
        np.savez(tmp_path / "x.npz", x=x)
        words += ["--calibration", str(tmp_path / "x.npz")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    seconds, peak = map(float, run.stderr.splitlines()[-1].split())
    print(
        f"\n{width} inputs, {options}, {rows} rows: {seconds:.1f} CPU s, {peak / 1e9:.2f} GB",
        end="",
    )
    assert "kept" in run.stdout
    assert peak < MOST_BYTES


@pytest.mark.benchmark
@pytest.mark.parametrize(("channels", "rank"), [(64, 16), (256, 96)])
def test_kernels(channels: int, rank: int) -> None:
    rng = np.random.default_rng(0)
    half = rank // 2
    kernel = rng.standard_normal((channels, channels, 3, 3))
    kernel += (5 / rank) * np.einsum(
        "op,pqhw,qi->oihw",
        rng.standard_normal((channels, half)),
        rng.standard_normal((half, half, 3, 3)),
        rng.standard_normal((half, channels)),
    )
    mixing = rng.standard_normal((9 * channels,) * 2) / np.sqrt(9 * channels)
    rows = rng.standard_normal((3 * channels, 9 * channels))
    rows = np.maximum(rows @ (mixing + np.eye(9 * channels)), 0)
    gram = rows.T @ rows / len(rows)
    total = lost_energy(kernel, gram)
    print(f"\n{channels} channels, rank {rank}: share of the energy lost, CPU s")
    matrix = spectrum(kernel.reshape(channels, -1), gram).errors[rank]
    print(f"  svd {matrix / total:.4f}")
    for name, known in (("plain", None), ("data", gram)):
        began = time.process_time()
        thin = tucker2_kernel(*tucker2(kernel, (rank, rank), known))
        middle = time.process_time()
        flat = spatial_kernel(*spatial(kernel, rank, known))
        ended = time.process_time()
        lost = [lost_energy(kernel - made, gram) / total for made in (thin, flat)]
        print(f"  {name}: tucker2 {lost[0]:.4f} {middle - began:.2f}, "
              f"spatial {lost[1]:.4f} {ended - middle:.2f}")  # fmt: skip
        # the best of a rank on the outputs alone bounds what also has few inputs
        assert lost[0] * total >= matrix * (1 - 1e-6)
