"""Builds and runs the fuzz targets of kernels/fuzz."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parent.parent / "kernels"


def run(*command: str | Path, folder: Path) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
    return done.stdout + done.stderr


def build_targets(folder: Path, *options: str) -> Path:
    """The folder with the programs, below `folder`; skips where there is no cmake."""
    if shutil.which("cmake") is None:
        pytest.skip("fuzz targets cannot be built here: cmake is missing")
    options = ("-DCMAKE_BUILD_TYPE=Release", "-DONNXCOMP_FUZZ=ON", *options)
    run("cmake", "-S", KERNELS, "-B", "build", *options, folder=folder)
    run("cmake", "--build", "build", "--parallel", "2", folder=folder)
    return folder / "build"


def read_results(path: Path) -> list[dict[str, bytes]]:
    """What a target's -results=FILE says of each of its inputs: {instruction set: bytes}."""
    data, at = path.read_bytes(), 0
    inputs: list[dict[str, bytes]] = [{}]
    while at < len(data):
        name = data[at + 1 : at + 1 + data[at]].decode()
        at += 1 + len(name)
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if name:
            inputs[-1][name] = data[at : at + size]
        else:  # the end of an input
            inputs.append({})
        at += size
    return inputs[:-1]
