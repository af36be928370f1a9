"""The one call that does it all: model and recipe in, smaller model and honest report out."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from onnxcomp.errors import RecipeError
from onnxcomp.evaluation import Evaluator, evaluator_of
from onnxcomp.measuring import Measurements
from onnxcomp.model import Model, load_model
from onnxcomp.pipeline import Run, Verify
from onnxcomp.progress import Progress
from onnxcomp.recipe import Recipe
from onnxcomp.result_writing import Result, check_result, is_packed
from onnxcomp.targets import resolve_target

__all__ = ["Result", "optimize"]


def optimize(
    model: str | os.PathLike[str] | Model,
    recipe: Recipe | str | Path | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    calibration: Any = None,
    evaluator: Evaluator | str | None = None,
    target: str = "auto",
    seed: int = 0,
    min_sqnr_db: float | None = None,
    max_drop: float | None = None,
    must_pay: bool | None = None,
    verify: Verify = "each",
    strict: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Makes a model smaller and faster.

    Args:
        model: a path or a loaded model, which is not changed.
        recipe: what to do: a recipe, the name of a built-in one or a .toml file; None for
            "default" with samples and "data_free" without.
        output: where to write the result, packed if the name ends in .oxc; nothing is written
            without.
        calibration: samples, as `Calibration.from_source` takes them; None makes some up.
        evaluator: an onnxruntime session -> score, higher is better; or "FILE.py:FUNCTION".
        target: what the result is for; see `target_names`.
        seed: of every random choice.
        min_sqnr_db: a gate to add to the recipe's, as are max_drop and must_pay.
        max_drop: points the evaluator may lose; without one, share of the held-back samples, in
            %, whose best class may change.
        must_pay: undo what makes the model slower or larger.
        verify: run the model after each pass, at the end only, or never.
        strict: stop where a pass raises or a gate breaks instead of undoing the pass.
        progress: told how far the work is.

    Raises:
        UnsupportedModel: the model cannot be read or does not run.
        CalibrationError: the samples do not fit the model.
        RecipeError: the recipe, a gate or the target is wrong.
        PassFailed, GateFailed: with ``strict`` only.
        OutputError: the result cannot be written; nothing was.
    """
    progress = progress or Progress()
    chosen = recipe or ("data_free" if calibration is None else "default")
    plan = chosen if isinstance(chosen, Recipe) else Recipe.load(chosen)
    plan = plan.with_gates(min_sqnr_db=min_sqnr_db, max_drop=max_drop, must_pay=must_pay)
    if plan.pack and output is not None and not is_packed(output):
        raise RecipeError(
            f"recipe {plan.name} makes a container; give the output {output} a name in .oxc"
        )
    evaluator = evaluator_of(evaluator)
    plan = dataclasses.replace(plan, gates=plan.gates.for_score(evaluator is not None))
    aim = resolve_target(target)
    if not isinstance(model, Model):
        progress.stage(f"reading {Path(model).name}")
        model = load_model(model)
    if output is not None:
        check_result(model.graph, Path(output), model.external)
    progress.stage("measuring the original")
    measurements = Measurements(model, calibration, evaluator, seed=seed, compared=verify != "off")
    if plan.gates.max_drop is not None and evaluator is None:
        _check_agreement_tells(measurements)
    place = None if output is None else Path(output)
    return Run(model, plan, measurements, aim, seed, verify, strict, progress, place).result()


def _check_agreement_tells(measurements: Measurements) -> None:
    """Without an evaluator max_drop counts samples whose best class changes.

    Raises:
        RecipeError: the samples are made up, or no output looks like class scores.
    """
    if measurements.held_back.synthetic:
        raise RecipeError(
            "the gate max_drop needs an evaluator (--evaluate FILE.py:FUNCTION), or samples to "
            "count changed classes on (--calibration SRC)"
        )
    if measurements.reference.identical().top1_agreement is None:
        raise RecipeError(
            "the gate max_drop needs an evaluator (--evaluate FILE.py:FUNCTION): no output looks "
            "like class scores, of which agreement could be counted; or use --min-sqnr DB"
        )
    measurements.notes.append(
        f"max_drop counts the share of {len(measurements.reference.feeds)} samples whose best "
        "class changes: there is no evaluator"
    )
