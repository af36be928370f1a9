"""The architectures of archzoo as parameters of tests."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("ONNXCOMP_SHARED", Path(__file__).parents[2] / "shared"))


def architectures(few: Collection[str]) -> list[object]:
    """All of archzoo by name; those not among ``few`` are marked slow."""
    names = sorted(path.stem for path in (SHARED / "archzoo").glob("*.onnx"))
    slow = pytest.mark.slow
    return [pytest.param(name, marks=() if name in few else slow) for name in names] or [
        "no shared models"
    ]
