"""`pack` to a quality: the coarsest steps that still keep it, or the finest that a size allows."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from onnxcomp.coding_packing import pack_codes
from onnxcomp.coding_quality import Quality, Quantized
from onnxcomp.container_contents import Contents
from onnxcomp.evaluation import Evaluator, evaluator_of
from onnxcomp.level_search import LevelSearch, PointsLost
from onnxcomp.lossless import Prefer
from onnxcomp.measuring import open_calibration
from onnxcomp.model import Model, load_model
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.progress import Progress
from onnxcomp.runtime import open_file
from onnxcomp.targets import resolve_target

__all__ = ["Quality", "Quantized", "pack_quantized", "quantize_for_coding"]


def quantize_for_coding(
    model: str | os.PathLike[str] | Model,
    quality: Quality,
    *,
    calibration: Any = None,
    evaluator: Evaluator | str | None = None,
    prefer: Prefer = "size",
    seed: int = 0,
    progress: Progress | None = None,
) -> Quantized:
    """Simplifies a model and puts its float32 weights on grids of integers.

    Args:
        model: a path or a loaded model, which is not changed.
        quality: what to keep.
        calibration: samples, as `Calibration.from_source` takes them; None makes some up.
        evaluator: for max_drop: an onnxruntime session -> score; or "FILE.py:FUNCTION".
        prefer: of coding, for sizes.
        seed: of made-up samples.
        progress: told how far the work is.

    Raises:
        UnsupportedModel: the model cannot be read or does not run.
        CalibrationError: the samples do not fit the model.
        OnnxcompError: there is nothing to quantize, or the quality cannot be reached.
    """
    progress = progress or Progress()
    evaluator = evaluator_of(evaluator)
    model = model if isinstance(model, Model) else load_model(model)
    session = open_file(model.path, threads=1)
    fitted, held = open_calibration(calibration, model.graph, session, seed).split()
    most = quality.max_drop
    lost = None if most is None else PointsLost(session, held, evaluator)
    progress.stage("simplifying")
    graph = model.graph.copy()
    SimplifyGraph().rewrite(graph, PassContext(target=resolve_target("auto")), PassReport())
    progress.stage("measuring what errors of weights do")
    search = LevelSearch(
        graph,
        quality,
        fitted,
        held,
        margin=None if lost is None or most is None else lambda twin: most - lost.of(twin),
        prefer=prefer,
        advance=progress.advance,
    )
    progress.stage("searching the steps")
    found = search.result()
    if lost is None:
        return found
    return dataclasses.replace(found, points_lost=lost.of(found.graph))


def pack_quantized(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    quality: Quality,
    *,
    calibration: Any = None,
    evaluator: Evaluator | str | None = None,
    base: str | os.PathLike[str] | None = None,
    prefer: Prefer = "size",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Contents, Quantized]:
    """Packs a model as small as a quality allows, or as good as a size allows.

    Args:
        model: a file.
        output: the container, which appears complete or not at all.
        quality, calibration, evaluator, seed: as for `quantize_for_coding`.
        base, prefer, threads: as for `pack`.
        progress: told how far the work is.

    Raises what `quantize_for_coding` and `pack` raise.
    """
    progress = progress or Progress()
    source = load_model(model)
    found = quantize_for_coding(
        source,
        quality,
        calibration=calibration,
        evaluator=evaluator,
        prefer=prefer,
        seed=seed,
        progress=progress,
    )
    progress.stage("packing")
    packed = pack_codes(
        found.graph,
        found.codes,
        output,
        external=source.external,
        base=base,
        prefer=prefer,
        threads=threads,
        errors=found.errors,
        progress=progress,
    )
    return dataclasses.replace(packed, model_bytes=source.bytes), found
