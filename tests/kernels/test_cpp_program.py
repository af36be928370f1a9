"""The C++ program of docs/kernels.md, compiled and run on onnxruntime's own library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sparse_models import save_sparse_model

from onnxcomp import kernels

ROOT = Path(__file__).resolve().parent.parent.parent
HEADERS = (
    "ONNXCOMP_ONNXRUNTIME_INCLUDE"  # the folder of onnxruntime's headers, where there are some
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program; the library that it is linked to lies beside it."""
    wheel = Path(str(onnxruntime.__file__)).parent / "capi"
    libraries = sorted(wheel.glob("libonnxruntime.so.*"))
    if sys.platform != "linux" or not libraries or shutil.which("c++") is None:
        pytest.skip("needs Linux, c++ and an onnxruntime wheel with libonnxruntime.so")
    folder = tmp_path_factory.mktemp("program")
    linked = folder / "libonnxruntime.so.1"  # the name that programs ask for
    linked.symlink_to(libraries[0])
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```cpp\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (folder / "program.cc").write_text(code, encoding="utf-8")
    stand_in = Path(__file__).parent / "stand_in"
    subprocess.run(
        [
            *("c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "program.cc", "-o", "program"),
            *("-isystem", os.environ.get(HEADERS, str(stand_in)), "-I", str(ROOT / "kernels")),
            *(str(linked), f"-Wl,-rpath,{folder}"),
        ],
        cwd=folder,
        check=True,
    )
    return folder / "program"


def test_the_program_of_the_page_runs_a_model(program: Path, tmp_path: Path) -> None:
    weight = save_sparse_model(tmp_path / "sparse.onnx")
    done = subprocess.run(
        [program, kernels.library_path(), tmp_path / "sparse.onnx"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = np.array(done.stdout.split(), np.float32)
    np.testing.assert_allclose(found, weight.sum(axis=0), rtol=1e-4, atol=1e-4)


def test_without_the_library_the_program_fails(program: Path, tmp_path: Path) -> None:
    save_sparse_model(tmp_path / "sparse.onnx")
    done = subprocess.run(
        [program, tmp_path / "none.so", tmp_path / "sparse.onnx"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "none.so" in done.stderr
