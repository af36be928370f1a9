"""What the build of the C++ folders relies on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parent.parent.parent / "kernels"
PER_ISA = sorted(
    path
    for path in KERNELS.glob("*/*")
    if path.stem in {"avx2", "avx512", "neon"} or path.name.endswith("_loops.h")
)
INTRINSICS = {"arm_neon.h", "cstdint", "immintrin.h"}


def includes(path: Path) -> list[str]:
    return re.findall(r'^#include [<"]([^>"]+)[>"]', path.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("path", PER_ISA, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_of_one_instruction_set_bring_no_templates_of_std(path: Path) -> None:
    code = path.read_text(encoding="utf-8")
    assert "std::" not in code
    for name in includes(path):
        assert name in INTRINSICS or name.startswith(f"{path.parent.name}/"), name


def test_every_source_file_is_built() -> None:
    scripts = [KERNELS / "CMakeLists.txt", *KERNELS.glob("*/*.cmake")]
    listed = "".join(script.read_text(encoding="utf-8") for script in scripts)
    sources = {path.relative_to(KERNELS).as_posix() for path in KERNELS.glob("*/*.cc")}
    assert not {source for source in sources if source not in listed}
