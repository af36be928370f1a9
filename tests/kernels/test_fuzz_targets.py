"""The fuzz targets of kernels/fuzz: they build, and a few thousand changed inputs find nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fuzz_seeds import SEEDS, write_seeds

KERNELS = Path(__file__).resolve().parent.parent.parent / "kernels"
RUNS = {"codec": 1500, "container": 3000, "zstd": 5000}
CLANGS = ["clang++", *(f"clang++-{version}" for version in range(30, 13, -1))]
SANITIZERS = "-fsanitize=address,undefined"


def run(*command: str | Path, folder: Path) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
    return done.stdout + done.stderr


def compiler(folder: Path) -> str:
    """A compiler with sanitizers; clang finds more."""
    (folder / "empty.cc").write_text("int main() { return 0; }\n")
    for name in [*CLANGS, "c++"] if os.name != "nt" else []:
        if shutil.which(name) is None:
            continue
        command = [name, SANITIZERS, "empty.cc", "-o", "empty"]
        if not subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
            return name
    pytest.skip("fuzz targets cannot be built here: no compiler has sanitizers")


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs."""
    folder = tmp_path_factory.mktemp("fuzz")
    if shutil.which("cmake") is None:
        pytest.skip("fuzz targets cannot be built here: cmake is missing")
    options = ["-DONNXCOMP_FUZZ=ON", f"-DCMAKE_CXX_COMPILER={compiler(folder)}"]
    run(
        "cmake", "-S", KERNELS, "-B", "build", "-DCMAKE_BUILD_TYPE=Release", *options, folder=folder
    )
    run("cmake", "--build", "build", "--parallel", "2", folder=folder)
    return folder / "build"


@pytest.mark.parametrize("name", SEEDS)
def test_changed_inputs_find_nothing(name: str, targets: Path, tmp_path: Path) -> None:
    seeds = write_seeds(name, tmp_path / "seeds")
    assert len(seeds) == {"codec": 90, "container": 11, "zstd": 24}[name]
    # The peak that libFuzzer would limit begins with that of the process that starts it, ours.
    limits = ["-rss_limit_mb=0", "-malloc_limit_mb=64"]
    said = run(
        targets / f"fuzz-{name}",
        f"-runs={RUNS[name]}",
        "-seed=1",
        *limits,
        "seeds",
        folder=tmp_path,
    )
    assert f"Done {RUNS[name]} runs" in said


def test_a_target_ends_where_something_unexpected_happens(targets: Path, tmp_path: Path) -> None:
    """What would otherwise pass by saying nothing."""
    source = tmp_path / "broken.cc"
    source.write_text(
        '#include "fuzz/target.h"\n'
        'extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {\n'
        "  static volatile uint8_t read;\n"  # a compiler would leave out what nothing comes of
        "  read = data[size];\n"
        "  return 0;\n"
        "}\n"
    )
    driver = KERNELS / "fuzz" / "driver.cc"
    run(
        compiler(tmp_path), "-std=c++17", SANITIZERS, "-I", KERNELS, source, driver, "-o", "broken",
        folder=tmp_path,
    )  # fmt: skip
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "0").write_bytes(b"abc")
    done = subprocess.run(
        [tmp_path / "broken", "-runs=0", "seeds"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode != 0
    assert b"heap-buffer-overflow" in done.stderr
    assert (tmp_path / "crash.bin").read_bytes() == b"abc"
