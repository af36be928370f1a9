"""The operators' kernels for ARM, cross-compiled and emulated, against their numpy twins."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fuzz_programs import build_targets, read_results, run
from fuzz_seeds import write_seeds
from operator_seeds import CASES

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
INT8_ISAS = {  # of processors with products of u8 x s8, with those of s8 x s8, and with neither
    "max": {"neon_i8mm", "neon_dotprod", "neon", "portable"},
    "cortex-a76": {"neon_dotprod", "neon", "portable"},
    "cortex-a53": {"neon", "portable"},
}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs."""
    if shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None:
        pytest.skip("needs the Debian packages g++-aarch64-linux-gnu and qemu-user")
    return build_targets(
        tmp_path_factory.mktemp("arm"),
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={COMPILER}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
        "-DONNXCOMP_SANITIZERS=OFF",
    )


@pytest.mark.parametrize("processor", INT8_ISAS)
@pytest.mark.parametrize("name", CASES)
def test_every_kernel_equals_its_twin(
    name: str, processor: str, targets: Path, tmp_path: Path
) -> None:
    cases = list(CASES[name]())
    (tmp_path / "inputs").mkdir()
    for index, (data, _) in enumerate(cases):
        (tmp_path / "inputs" / f"{index:03}").write_bytes(data)
    program = targets / f"fuzz-{name}"
    run(
        *(EMULATOR, "-cpu", processor, program, "-runs=0", "-results=results", "inputs"),
        folder=tmp_path,
    )
    results = read_results(tmp_path / "results")
    assert len(results) == len(cases)
    isas = INT8_ISAS[processor] if name == "sparse_int8" else {"neon", "portable"}
    for index, ((_, expected), found) in enumerate(zip(cases, results, strict=True)):
        assert set(found) in (isas, {"any"}), index
        for isa, numbers in found.items():
            np.testing.assert_array_equal(
                np.frombuffer(numbers, expected.dtype),
                expected.ravel(),
                err_msg=f"input {index} with {isa}",
            )


@pytest.mark.parametrize("name", ["codec", *CASES])
def test_instruction_sets_agree_on_changed_inputs(name: str, targets: Path, tmp_path: Path) -> None:
    write_seeds(name, tmp_path / "seeds")
    program = targets / f"fuzz-{name}"
    said = run(EMULATOR, "-cpu", "max", program, "-runs=500", "-seed=1", "seeds", folder=tmp_path)
    assert "Done 500 runs" in said
