"""`lower_sparse`: on one graph, and behind the passes that make a network sparse."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

import onnxcomp
from onnxcomp.calibration import Calibration
from onnxcomp.model import check_graph, load_model
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.lower_sparse import LowerSparse
from onnxcomp.quantization import Array
from onnxcomp.recipe import Recipe
from onnxcomp.report import PassResult
from onnxcomp.runtime import Feed, open_file
from onnxcomp.targets import resolve_target

MODELS = Path(__file__).resolve().parent.parent / "models"
LAST = """
[[passes]]
name = "lower_sparse"
choose = "always"
"""


def lower(
    graph: gs.Graph, feeds: list[Feed] | None = None, *, choose: Any = "always", **options: Any
) -> PassReport:
    """Rewrites the graph, which is then checked."""
    report = PassReport()
    calibration = None if feeds is None else Calibration.from_source(feeds, graph)
    context = PassContext(target=resolve_target("auto"), calibration=calibration)
    LowerSparse(choose=choose, **options).rewrite(graph, context, report)
    check_graph(graph)
    return report


def operators(graph: gs.Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
    """The network of digits after some passes, and after `lower_sparse` behind them.

    Attributes:
        dense, sparse: the logits of both, [images, classes].
        result: what the report says of the last pass.
        operators: of the second.
    """

    dense: Array
    sparse: Array
    result: PassResult
    operators: Counter[str]


def lowered_digits(steps: str, folder: Path) -> Digits:
    samples = MODELS / "digits_calibration.npz"
    logits = []
    for index, text in enumerate((steps, steps + LAST)):
        path = folder / f"{index}.onnx"
        done = onnxcomp.optimize(
            MODELS / "digits_resnet.onnx",
            Recipe.parse(text, "steps"),
            calibration=samples,
            output=path,
        )
        logits.append(open_file(path, threads=1).run({"input": np.load(samples)["input"]})[0])
    dense, sparse = logits
    result = done.report.passes[-1]
    found = operators(load_model(path).graph)
    return Digits(dense=dense, sparse=sparse, result=result, operators=found)
