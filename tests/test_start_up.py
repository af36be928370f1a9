"""What is imported when: nobody waits for onnxruntime to read a help text."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import onnxcomp
from onnxcomp import errors

HEAVY = {"click", "numpy", "onnx", "onnx_graphsurgeon", "onnxruntime", "rich"}


def imported_by(code: str) -> set[str]:
    """Top-level modules that are loaded once ``code`` has run in a fresh interpreter."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not HEAVY & imported_by("import onnxcomp; onnxcomp.OnnxcompError; dir(onnxcomp)")


def test_reading_a_model_does_not_import_onnxruntime_or_click() -> None:
    found = imported_by("import onnxcomp; onnxcomp.load_model")
    assert "onnx" in found
    assert not {"click", "onnxruntime", "rich"} & found


@pytest.mark.parametrize("arguments", [["--help"], ["optimize", "--help"], ["--version"]])
def test_help_imports_click_only(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['onnxcomp', *{arguments!r}]\n"
        "from onnxcomp.cli import main\n"
        "try: main()\n"
        "except SystemExit as leaving: assert not leaving.code\n"
    )
    found = imported_by(code)
    assert "click" in found
    assert not (HEAVY - {"click"}) & found


def test_every_public_name_is_there() -> None:
    for name in onnxcomp.__all__:
        assert getattr(onnxcomp, name).__name__ == name
    assert set(onnxcomp.__all__) <= set(dir(onnxcomp))
    assert onnxcomp.__version__.count(".") >= 1
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        onnxcomp.optimise  # noqa: B018


def test_all_errors_are_public() -> None:
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert kinds <= set(onnxcomp.__all__)


def test_optimize_stays_the_function_when_its_module_is_imported() -> None:
    import onnxcomp.optimize

    assert callable(onnxcomp.optimize)
    from onnxcomp.optimize import optimize

    assert onnxcomp.optimize is optimize
