"""What `onnxcomp optimize` reads before the work and writes after it, besides the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_graphsurgeon as gs

from onnxcomp.errors import OutputError
from onnxcomp.graph import all_nodes, label
from onnxcomp.model import Model, load_model
from onnxcomp.optimize import Result
from onnxcomp.parameters import external_files
from onnxcomp.recipe import Recipe, compose, parse_pass
from onnxcomp.recipe_file import recipe_as_toml
from onnxcomp.result_writing import is_packed
from onnxcomp.writing import check_target, write_text


def plan_of(recipe: str | None, passes: Sequence[str]) -> Recipe | None:
    """The recipe that the options name or compose; None for the default one.

    Raises:
        RecipeError: there is no such recipe, pass or option.
    """
    if passes:
        return compose(map(parse_pass, passes))
    return None if recipe is None else Recipe.load(recipe)


def output_for(model: Path, output: Path | None, plan: Recipe | None) -> Path:
    """Where the result goes: where somebody said, or beside the model."""
    if output is not None:
        return output
    packs = plan is not None and plan.pack
    return model.with_name(f"{model.stem}.{'oxc' if packs else 'optimized.onnx'}")


def load_for(model: Path, output: Path, extra: Mapping[str, Path | None]) -> Model:
    """Reads the model, and refuses at once what could not be written at the end.

    Args:
        model: path to read.
        output: where the result is to go.
        extra: option -> another file to write, or None.

    Raises:
        UnsupportedModel: the model cannot be read.
        OutputError: a file cannot be written, or is another one of them.
    """
    loaded = load_model(model)
    taken = [model, *external_files(loaded.graph)]
    check_target(output, taken, "-o")
    if loaded.external and not is_packed(output):
        check_target(output.with_name(f"{output.name}.data"), taken, "-o")
    taken.append(output)
    for option, path in extra.items():
        if path is not None:
            check_target(path, taken, option)
            taken.append(path)
    return loaded


def operators_of(graph: gs.Graph) -> dict[str, str]:
    """Label of each node -> its operator type."""
    return {label(node): node.op for node in all_nodes(graph)}


def write_beside(result: Result, report: Path | None, recipe: Path | None) -> None:
    """Writes what was asked for besides the model.

    Raises:
        OutputError: a file cannot be written; says where the model is.
    """
    try:
        if report is not None:
            write_text(report, result.report.to_json())
        if recipe is not None:
            write_text(recipe, recipe_as_toml(result.recipe))
    except OutputError as error:
        raise OutputError(f"{error}; the model was written to {result.report.output}") from error
