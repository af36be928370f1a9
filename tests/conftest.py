"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data (ONNXCOMP_SHARED), or a skip that says so."""
    folder = Path(os.environ.get("ONNXCOMP_SHARED", ROOT.parent / "shared"))
    if not (folder / "kit" / "evaluate.py").is_file():
        pytest.skip(f"no shared models at {folder}: set ONNXCOMP_SHARED")
    return folder


@pytest.fixture(scope="session")
def models() -> Path:
    """The small reference models of this repository."""
    return ROOT / "models"
