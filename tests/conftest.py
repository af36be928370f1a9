"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent


def missing(what: str) -> NoReturn:
    """Skips and says what is missing; fails where ONNXCOMP_REQUIRE_SHARED asks for all of it."""
    if os.environ.get("ONNXCOMP_REQUIRE_SHARED"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data (ONNXCOMP_SHARED), or a skip that says so."""
    folder = Path(os.environ.get("ONNXCOMP_SHARED", ROOT.parent / "shared"))
    if not (folder / "kit" / "evaluate.py").is_file():
        missing(f"no shared models at {folder}: set ONNXCOMP_SHARED")
    return folder.resolve()


@pytest.fixture(scope="session")
def models() -> Path:
    """The small reference models of this repository."""
    return ROOT / "models"


@pytest.fixture(scope="session")
def minilm(shared: Path) -> Path:
    """minilm_l6_v2 with its weights (ONNXCOMP_MINILM), which the shared models lack."""
    default = shared / "kit" / "models" / "minilm_l6_v2.onnx"
    path = Path(os.environ.get("ONNXCOMP_MINILM", default))
    if not path.is_file():
        missing(f"no weights of minilm_l6_v2 at {path}: set ONNXCOMP_MINILM, as .ci/run does")
    return path
