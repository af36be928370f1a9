"""Every command and snippet that the documentation shows runs.

In ```console blocks a line "$ command" is run, with "\\" for long ones; ```python blocks are run as
they stand. The blocks of one page share a folder that holds a copy of models/. Commands that make
or leave the environment itself (pip, git, docker ...) are run by .ci/run instead.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("pip ", "git ", "python -m venv", "pytest", "ruff ", "mypy ", ".ci/run")


def snippets(page: Path) -> list[tuple[str, str]]:
    """(kind, text) of a page: single commands and whole Python blocks, in order."""
    found: list[tuple[str, str]] = []
    for kind, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            found.append((kind, body))
            continue
        lines = body.replace("\\\n", " ").splitlines()
        found += [(kind, line[2:].strip()) for line in lines if line.startswith("$ ")]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_runs(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models")
    shared = os.environ.get("ONNXCOMP_SHARED", str(ROOT.parent / "shared"))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ONNXCOMP_SHARED": str(Path(shared).resolve()),
        "COLUMNS": "100",
    }
    for kind, text in snippets(page):
        if kind == "console" and text.startswith(ELSEWHERE):
            continue
        command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-ec", text]
        if "$ONNXCOMP_SHARED" in text and not Path(environment["ONNXCOMP_SHARED"]).is_dir():
            pytest.skip(f"no shared models at {shared}: set ONNXCOMP_SHARED")
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{page.name}: {text}\n{done.stdout}\n{done.stderr}"


def test_every_recipe_that_a_page_shows_parses() -> None:
    from onnxcomp.recipe import Recipe

    shown = [
        Recipe.parse(body, page.name)
        for page in PAGES
        for body in re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
        if "[[passes]]" in body
    ]
    assert shown


def test_no_command_hides_in_an_indented_block() -> None:
    for page in PAGES:
        hidden = re.findall(
            r"^ {4}(?:\$ )?onnxcomp .*", page.read_text(encoding="utf-8"), re.MULTILINE
        )
        assert not hidden, f"{page.name}: use a ```console block for {hidden[0].strip()!r}"


def test_every_command_is_documented() -> None:
    from onnxcomp.cli import main

    shown = "\n".join(text for page in PAGES for kind, text in snippets(page) if kind == "console")
    words = {tuple(shlex.split(line)[:2]) for line in shown.splitlines() if line.strip()}
    for command in main.commands:
        assert ("onnxcomp", command) in words, f"no page shows onnxcomp {command}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
