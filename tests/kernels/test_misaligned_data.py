"""External data may begin anywhere in a file; what operators read of it may not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import misaligned_operators
import pytest
from fuzz_programs import KERNELS, run
from misaligned_operators import run_misaligned
from operator_models import CALLS

from onnxcomp import kernels


@pytest.mark.parametrize("name", CALLS)
def test_operators_read_misaligned_data(name: str, tmp_path: Path) -> None:
    run_misaligned(CALLS[name], tmp_path / "model", kernels.library_path())


@pytest.mark.slow
def test_sanitizers_find_nothing_in_operators_that_onnxruntime_runs(tmp_path: Path) -> None:
    if sys.platform != "linux" or shutil.which("g++") is None or shutil.which("cmake") is None:
        pytest.skip("needs Linux, g++ and cmake")
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DONNXCOMP_FUZZ=ON", "-DCMAKE_CXX_COMPILER=g++"]
    run("cmake", "-S", KERNELS, "-B", "build", *options, folder=tmp_path)
    build = ("cmake", "--build", "build", "--parallel", "2", "--target", "onnxcomp_ops")
    run(*build, folder=tmp_path)
    libraries = [
        run("g++", f"-print-file-name={name}", folder=tmp_path).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTHONPATH": str(Path(misaligned_operators.__file__).parent),
    }
    script = [sys.executable, misaligned_operators.__file__, str(tmp_path)]
    done = subprocess.run(
        [*script, str(tmp_path / "build" / "libonnxcomp_ops.so")],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == list(CALLS), done.stderr[-4000:]
    assert done.returncode == 0
