"""What static INT8 costs beside onnxruntime's MinMax: seconds at 128 samples, memory at 8 and 512.

    pytest -m benchmark -s tests/benchmarks/test_calibration_cost.py

Each figure is of a process of its own that reads a model, quantizes and writes it (calibrate.py):
its seconds from start to end, imports included, and its peak of resident memory (VmHWM). Samples
are files, read one by one; where the kit has too few they repeat.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

MODELS = ("mobilenet_v1_075", "cifar10_resnet20", "yolox_nano")
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Cost:
    """Of one process.

    Attributes:
        seconds: from start to end.
        peak_bytes: of its resident memory.
    """

    seconds: float
    peak_bytes: int


def cost(tool: str, model: Path, folder: Path) -> Cost:
    script = Path(__file__).with_name("calibrate.py")
    output = folder.with_suffix(f".{tool}.onnx")
    command = [sys.executable, str(script), tool, str(model), str(output), str(folder)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return Cost(time.perf_counter() - start, int(done.stdout.split()[-1]))


def samples(kit: ModuleType, name: str, count: int, folder: Path) -> Path:
    folder.mkdir()
    feeds = kit.calibration(name, count)
    for index in range(count):
        file = folder / f"{index:04}.npz"
        if index < len(feeds):
            np.savez(file, **feeds[index])
        else:
            file.symlink_to(folder / f"{index % len(feeds):04}.npz")
    return folder


@pytest.mark.benchmark
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is told by Linux only")
@pytest.mark.parametrize("name", MODELS)
def test_beside_onnxruntime(kit: ModuleType, tmp_path: Path, name: str) -> None:
    model = Path(kit.model_path(name))
    found = {
        (tool, count): cost(tool, model, samples(kit, name, count, tmp_path / f"{tool}{count}"))
        for count in (8, 128, 512)
        for tool in ("onnxcomp", "onnxruntime")
        if tool == "onnxcomp" or count < 512
    }
    print(f"\n{name}: samples, seconds and peak MiB")
    for (tool, count), spent in sorted(found.items()):
        print(f"  {tool:12} {count:4} {spent.seconds:6.1f} {spent.peak_bytes / MEBIBYTE:8.0f}")
    few, many = (found["onnxcomp", count].peak_bytes for count in (8, 512))
    assert many <= 1.2 * few
    assert few <= found["onnxruntime", 8].peak_bytes
