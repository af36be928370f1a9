"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite runs on all cores; a part of it, and what is timed, in one process.

    ``-n`` says otherwise, and without pytest-xdist there is one process.
    """
    option = config.option
    unsaid = getattr(option, "numprocesses", 0) is None and not hasattr(config, "workerinput")
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if unsaid and whole and "not benchmark" in option.markexpr:
        option.numprocesses, option.dist = "auto", "loadfile"
        for name in THREADS:  # the processes share the cores
            os.environ.setdefault(name, "1")


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


def script(path: Path, name: str) -> ModuleType:
    """A Python file outside every package, as the module ``name``."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def kit(shared: Path) -> ModuleType:
    """kit/evaluate.py: scores and samples of the shared models."""
    return script(shared / "kit" / "evaluate.py", "evaluate")


@pytest.fixture(scope="session")
def hydrate(shared: Path) -> ModuleType:
    """archzoo/hydrate.py: gives the shared architectures random weights."""
    return script(shared / "archzoo" / "hydrate.py", "hydrate")


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
