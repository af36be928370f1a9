"""The shape of the code: who may import whom, and how much fits one reading."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Highest first; a layer imports itself and lower ones only. Other modules of onnxcomp are core.
LAYERS: dict[str, set[str]] = {
    "command line": {
        "onnxcomp.__main__",
        "onnxcomp.cli",
        "onnxcomp.comparison_commands",
        "onnxcomp.container_commands",
        "onnxcomp.container_tables",
        "onnxcomp.group_tables",
        "onnxcomp.inspection_tables",
        "onnxcomp.optimize_command",
        "onnxcomp.options",
        "onnxcomp.program",
        "onnxcomp.report_tables",
        "onnxcomp.run_command",
        "onnxcomp.sensitivity_table",
        "onnxcomp.tables",
    },
    "orchestration": {
        "onnxcomp.coding_search",
        "onnxcomp.comparison",
        "onnxcomp.gates",
        "onnxcomp.group_inspection",
        "onnxcomp.inspection",
        "onnxcomp.listings",
        "onnxcomp.measuring",
        "onnxcomp.told_shapes",
        "onnxcomp.mixing",
        "onnxcomp.optimize",
        "onnxcomp.pipeline",
        "onnxcomp.planning",
        "onnxcomp.probing",
        "onnxcomp.recipe",
        "onnxcomp.recipe_file",
        "onnxcomp.result_writing",
        "onnxcomp.sensitivity",
    },
    "passes": {"onnxcomp.passes"},
    "core": set(),
    "kernels": {"onnxcomp.kernels"},
}
ORDER = list(LAYERS)
LONGEST_FILE = 350
LONGEST_FUNCTION = 40
FILES = sorted(
    path for folder in ("onnxcomp", "passes", "kernels") for path in (ROOT / folder).rglob("*.py")
)


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "onnxcomp":
        parts.insert(0, "onnxcomp")
    return ".".join(parts).removesuffix(".__init__")


def layer_of(module: str) -> str:
    for layer, modules in LAYERS.items():
        if any(module == m or module.startswith(f"{m}.") for m in modules):
            return layer
    return "core"


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_one_way(path: Path) -> None:
    module = module_of(path)
    if module == "onnxcomp":
        return  # the public names, each imported when it is asked for
    mine = ORDER.index(layer_of(module))
    for name in imports_of(path):
        if not name.startswith("onnxcomp") or name == "onnxcomp.errors":
            continue
        theirs = ORDER.index(layer_of(name))
        assert theirs >= mine, f"{module} ({ORDER[mine]}) imports {name} ({ORDER[theirs]})"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_fit_one_reading(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno if body else 0
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = {"utils", "util", "helpers", "common", "manager", "misc", "base_utils"}
    assert not empty & {path.stem for path in FILES}


def test_every_pass_is_one_file_one_class_one_test_one_row_and_one_entry() -> None:
    from onnxcomp.passes import PASSES

    files = {p.stem for p in (ROOT / "passes").glob("*.py")} - {"__init__", "base"}
    assert files == {kind.name() for kind in PASSES}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for kind in PASSES:
        name = kind.name()
        assert kind.__module__ == f"onnxcomp.passes.{name}"
        assert (ROOT / "tests" / "passes" / f"test_{name}.py").is_file()
        assert (ROOT / "docs" / "passes" / f"{name}.md").is_file()
        assert re.search(rf"^\| .*`{name}`", readme, re.MULTILINE), f"no README row for {name}"


def test_operator_folders_know_neither_python_nor_onnxruntime() -> None:
    doors = {"bindings", "onnxruntime"}
    sources = [
        path
        for path in (ROOT / "kernels").rglob("*")
        if path.suffix in (".cc", ".h") and path.relative_to(ROOT / "kernels").parts[0] not in doors
    ]
    assert sources
    for path in sources:
        for included in re.findall(r'#include\s*[<"]([^>"]+)', path.read_text(encoding="utf-8")):
            assert not re.search(r"python|nanobind|onnxruntime|abi\.h", included, re.IGNORECASE), (
                path
            )


def test_runtime_dependencies_stay_few() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[<>=\[ ]", entry)[0] for entry in project["dependencies"]}
    assert names == {
        *("click", "numpy", "onnx", "onnx-graphsurgeon", "onnxruntime", "rich"),
        "backports.zstd",  # half a megabyte, and none from Python 3.14 on
    }
