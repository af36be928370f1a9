"""The README's table: the default recipe on every kit model, beside onnxruntime's own quantizer.

    pytest -m benchmark -s tests/benchmarks/test_kit.py

Scores are the kit's, on all of its evaluation data; latencies are medians of runs by turns of all
three models, one thread. onnxruntime quantizes statically with the settings that suit it best on
x86: uint8 activations, int8 weights per channel, MinMax; it wants sympy for its shape inference.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from onnxcomp import optimize
from onnxcomp.runtime import open_file
from onnxcomp.timing import interleaved

SAMPLES = {"yolox_nano": 32, "cifar10_resnet20": 200, "cifar10_resnet56": 200}  # others: 100
HEAD = (
    "| model | bytes | ratio | latency | score | after | alike"
    " | onnxruntime: latency | score | alike |\n|---|---|---|---|---|---|---|---|---|---|"
)


def by_onnxruntime(name: str, source: Path, target: Path) -> Path | None:
    """The model as onnxruntime's quantizer makes it; None where it fails."""
    import baselines

    try:
        baselines.make("qdq_minmax", name, str(source), str(target))
    except Exception as error:
        print(f"onnxruntime on {name}: {type(error).__name__}: {str(error)[:200]}")
        return None
    return target


def scored(kit: ModuleType, name: str, source: Path, path: Path) -> tuple[float, float]:
    """The kit's score, and how alike the answers are to the original's."""
    score = kit.evaluate(str(path), name)["value"]
    return float(score), float(kit.agreement(str(source), str(path), name)["value"])


def row(kit: ModuleType, name: str, source: Path, folder: Path) -> str:
    ours, feeds = folder / f"{name}.onnx", kit.calibration(name, SAMPLES.get(name, 100))
    report = optimize(source, calibration=feeds, output=ours).report
    theirs = by_onnxruntime(name, source, folder / f"{name}.onnxruntime.onnx")
    paths = [source, ours, *([theirs] if theirs else [])]
    sessions = [open_file(path, threads=1) for path in paths]
    longest = max(feeds[:50], key=lambda feed: sum(value.size for value in feed.values()))
    ratios = interleaved(sessions, longest, rounds=21, round_ms=30, budget_s=60).ratios
    before = kit.evaluate(str(source), name)["value"]
    after, alike = scored(kit, name, source, ours)
    cells: list[Any] = [name, f"{report.after.bytes:,}"]
    cells += [f"{report.after.bytes / report.before.bytes:.2f}", f"{ratios[1]:.2f}"]
    cells += [f"{before:.2f}", f"{after:.2f}", f"{alike:.4g}"]
    if theirs:
        score, similar = scored(kit, name, source, theirs)
        cells += [f"{ratios[2]:.2f}", f"{score:.2f}", f"{similar:.4g}"]
    else:
        cells += ["", "fails", ""]
    print([(p.name, p.status, p.reason) for p in report.passes])
    return f"| {' | '.join(cells)} |"


@pytest.mark.benchmark
def test_table(
    kit: ModuleType,
    shared: Path,
    minilm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(shared / "kit"))  # for baselines.py
    rows = []
    for name in sorted(kit.TASKS):
        source = minilm if name == "minilm_l6_v2" else Path(kit.model_path(name))
        rows.append(row(kit, name, source, tmp_path))
        print(rows[-1], flush=True)
    print("\n".join(["", HEAD, *rows]))
    assert len(rows) == len(kit.TASKS)
