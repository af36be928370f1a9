"""A model of the kit that benchmarks make smaller: its score, its time, its samples."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from onnxcomp import optimize
from onnxcomp.macs import count_macs
from onnxcomp.model import load_model
from onnxcomp.recipe import compose, parse_pass
from onnxcomp.report import Report
from onnxcomp.runtime import open_file
from onnxcomp.timing import interleaved

ERROR_OF_MAP = 1.0  # standard error of a loss of mAP over the kit's 128 images, points


@dataclass(frozen=True)
class Subject:
    """A model of the kit, and what belongs to it."""

    kit: ModuleType
    name: str
    source: Path
    feeds: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, kit: ModuleType, name: str, request: pytest.FixtureRequest, count: int) -> Subject:
        if name == "minilm_l6_v2":
            source = request.getfixturevalue("minilm")
        else:
            source = Path(kit.model_path(name))
        return cls(kit, name, source, kit.calibration(name, count))

    def score(self, path: Path) -> float:
        return float(self.kit.evaluate(str(path), self.name)["value"])

    def error(self) -> float:
        """Standard error of the score."""
        found = self.kit.evaluate(str(self.source), self.name)["se"]
        return ERROR_OF_MAP if found is None else float(found)

    def optimized(self, path: Path, *steps: str, unseen: bool = False) -> Report:
        """The report of a recipe after `simplify_graph`; ``unseen``: without samples."""
        recipe = compose([parse_pass(step) for step in ("simplify_graph", *steps)])
        feeds = None if unseen else self.feeds
        return optimize(self.source, recipe, calibration=feeds, output=path, verify="off").report

    def time_ratio(self, path: Path) -> float:
        """Of the longest sample, by turns with the original, in CPU time of one thread."""
        longest = max(self.feeds[:16], key=lambda feed: sum(v.size for v in feed.values()))
        sessions = [open_file(p, threads=1) for p in (self.source, path)]
        return interleaved(sessions, longest, clock=time.thread_time).ratios[1]

    def macs(self, path: Path) -> int:
        shapes = {name: value.shape for name, value in self.feeds[0].items()}
        return count_macs(load_model(path).graph, shapes)
