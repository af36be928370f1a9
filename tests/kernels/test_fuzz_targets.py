"""The fuzz targets of kernels/fuzz: they build, and a few thousand changed inputs find nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fuzz_programs import KERNELS, build_targets, run
from fuzz_seeds import SEEDS, write_seeds
from operator_seeds import CASES, hostile_inputs

KINDS = {  # of seeds
    **{"codec": 90, "container": 11, "zstd": 24},
    **{"sparse": 63, "sparse_int8": 49, "binary": 42},
}
RUNS = {
    **{"codec": 1500, "container": 3000, "zstd": 5000},
    **{"sparse": 10000, "sparse_int8": 10000, "binary": 5000},
}
CLANGS = ["clang++", *(f"clang++-{version}" for version in range(30, 13, -1))]
SANITIZERS = "-fsanitize=address,undefined"


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
    return build_targets(folder, f"-DCMAKE_CXX_COMPILER={compiler(folder)}")


@pytest.mark.parametrize("name", SEEDS)
def test_changed_inputs_find_nothing(name: str, targets: Path, tmp_path: Path) -> None:
    seeds = write_seeds(name, tmp_path / "seeds")
    assert len(seeds) == KINDS[name]
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


@pytest.mark.parametrize("name", CASES)
def test_hostile_numbers_do_no_harm(name: str, targets: Path, tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    for index, data in enumerate(hostile_inputs(name)):
        (tmp_path / "seeds" / f"{index:04}").write_bytes(data)
    run(targets / f"fuzz-{name}", "-runs=0", "-rss_limit_mb=0", "seeds", folder=tmp_path)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("read = data[size];", b"heap-buffer-overflow"),
        ("read = uint8_t(*reinterpret_cast<const int*>(data + 1));", b"misaligned address"),
        ('onnxcomp::fuzz::expect(size == 0, "a size");', b"unexpected: a size"),
    ],
)
def test_a_target_ends_where_something_unexpected_happens(
    statement: str, found: bytes, targets: Path, tmp_path: Path
) -> None:
    """What would otherwise pass by saying nothing."""
    source = tmp_path / "broken.cc"
    source.write_text(
        '#include "fuzz/target.h"\n'
        'extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {\n'
        "  static volatile uint8_t read;\n"  # a compiler would leave out what nothing comes of
        f"  {statement}\n"
        "  return read & 0;\n"
        "}\n"
    )
    driver = KERNELS / "fuzz" / "driver.cc"
    options = ["-std=c++17", SANITIZERS, "-fno-sanitize-recover=all", "-I", KERNELS]
    run(compiler(tmp_path), *options, source, driver, "-o", "broken", folder=tmp_path)
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "0").write_bytes(b"abcdefgh")
    done = subprocess.run(
        [tmp_path / "broken", "-runs=0", "seeds"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode != 0
    assert found in done.stderr
    assert (tmp_path / "crash.bin").read_bytes() == b"abcdefgh"
