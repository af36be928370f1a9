"""The command line: parses, calls the library, prints; nothing else.

Whatever is slow to import is imported by the command that needs it: `onnxcomp --help` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcomp.comparison_commands import benchmark_command, compare_command
from onnxcomp.container_commands import COMMANDS, show_container
from onnxcomp.options import (
    Decorator,
    calibration_option,
    check_gates_are_measured,
    evaluate_option,
    groups_options,
    help_settings,
    json_option,
    model_argument,
    parse_shape,
    print_json,
    seed_option,
    target_option,
    working,
)
from onnxcomp.program import Program, interruption_names
from onnxcomp.run_command import run_command


def _command(name: str, *example: str) -> Decorator:
    """A command whose help ends with an example."""
    return main.command(name, **help_settings(*example))


def _version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from onnxcomp import __version__

        click.echo(f"onnxcomp {__version__}")
        context.exit()


@click.group(
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n  onnxcomp optimize model.onnx --calibration samples.npz",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version.",
)
@click.pass_context
def main(context: click.Context) -> None:
    """Makes trained ONNX models smaller and faster without retraining."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _elsewhere in (*COMMANDS, compare_command, benchmark_command, run_command):
    main.add_command(_elsewhere)


@_command(
    "optimize",
    "optimize model.onnx --calibration samples.npz",
    "optimize model.onnx --pass simplify_graph --pass quantize_static:percentile=99.9",
)
@model_argument()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Where to write, packed if OUT ends in .oxc.  [default: <model>.optimized.onnx]",
)
@click.option("--recipe", metavar="NAME|FILE.toml", help="What to do; see `onnxcomp recipes`.")
@click.option(
    "--pass",
    "passes",
    multiple=True,
    metavar="NAME[:option=value,...]",
    help="Compose a recipe of passes, in order; see `onnxcomp passes`.",
)
@calibration_option
@evaluate_option
@target_option
@click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="Keep nodes in float, or undo passes, until the answers are this faithful.",
)
@click.option(
    "--max-drop",
    type=float,
    metavar="POINTS",
    help="The same for points of --evaluate, or % of samples whose class changes.",
)
@click.option("--must-pay", is_flag=True, help="Undo what makes the model slower or larger.")
@seed_option
@click.option(
    "--verify",
    type=click.Choice(["each", "final", "off"]),
    default="each",
    show_default=True,
    help="Measure after each pass, at the end only, or never.",
)
@click.option("--strict", is_flag=True, help="Stop where a pass fails or has to be undone.")
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Write the report as JSON too.",
)
@click.option(
    "--save-recipe",
    "recipe_path",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    help="Write the recipe as run, with the nodes found to have to stay in float.",
)
@json_option
@click.option("-v", "--verbose", is_flag=True, help="Name every node.")
def optimize_command(
    model: Path,
    output: Path | None,
    recipe: str | None,
    passes: tuple[str, ...],
    min_sqnr: float | None,
    max_drop: float | None,
    must_pay: bool,
    report_path: Path | None,
    recipe_path: Path | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Make MODEL smaller and faster, with a report."""
    check_gates_are_measured(options["verify"], min_sqnr, max_drop, must_pay)
    if recipe is not None and passes:
        raise click.UsageError(
            "--recipe and --pass exclude each other; put the passes in the recipe"
        )
    from onnxcomp.optimize_command import load_for, operators_of, output_for, plan_of, write_beside

    plan = plan_of(recipe, passes)
    output = output_for(model, output, plan)
    with interruption_names(output), working() as progress:
        from onnxcomp.optimize import optimize
        from onnxcomp.targets import resolve_target

        resolve_target(options["target"])
        progress.stage(f"reading {model.name}")
        loaded = load_for(model, output, {"--report": report_path, "--save-recipe": recipe_path})
        operators = operators_of(loaded.graph)
        options["evaluator"] = options.pop("evaluate")
        result = optimize(
            loaded,
            plan,
            output=output,
            min_sqnr_db=min_sqnr,
            max_drop=max_drop,
            must_pay=must_pay or None,
            progress=progress,
            **options,
        )
        operators |= operators_of(result.graph)
        write_beside(result, report_path, recipe_path)
    if as_json:
        print_json(result.report.as_dict())
        return
    from onnxcomp.report_tables import print_report
    from onnxcomp.tables import make_console

    print_report(make_console(), result.report, operators, verbose)


@_command("inspect", "inspect model.onnx --shape input=1x3x224x224")
@model_argument()
@click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, help="Rows of each table."
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="INPUT=1x3x224x224",
    help="Shape of an input, for counting MACs.",
)
@groups_options
@json_option
def inspect_command(
    model: Path, top: int, shapes: tuple[str, ...], as_json: bool, groups: bool, **options: Any
) -> None:
    """Show what MODEL is made of, and what each pass could touch; or what an .oxc holds."""
    if show_container(model, top, as_json):
        return
    given = dict(map(parse_shape, shapes))
    if groups:
        from onnxcomp.group_tables import show_groups

        show_groups(model, given, as_json=as_json, top=top, **options)
        return
    if any(options.values()):
        raise click.UsageError("--calibration and --svg belong to --groups; add it")
    with working() as progress:
        from onnxcomp.inspection import inspect

        progress.stage(f"reading {model.name}")
        inspection = inspect(model, shapes=given)
    if as_json:
        print_json(inspection.as_dict())
        return
    from onnxcomp.inspection_tables import print_inspection
    from onnxcomp.tables import make_console

    print_inspection(make_console(), inspection, top)


@_command("sensitivity", "sensitivity model.onnx --calibration samples.npz --pass quantize_static")
@model_argument()
@calibration_option
@click.option(
    "--pass",
    "step",
    default="quantize_static",
    show_default=True,
    metavar="NAME[:option=value,...]",
    help="The pass; see `onnxcomp passes`.",
)
@evaluate_option
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    default=8,
    show_default=True,
    help="How many samples the outputs are compared on.",
)
@target_option
@seed_option
@click.option(
    "--top", type=click.IntRange(min=1), default=20, show_default=True, help="Rows of the table."
)
@json_option
def sensitivity_command(
    model: Path, evaluate: str | None, top: int, as_json: bool, **options: Any
) -> None:
    """Rank the layers of MODEL by what quantizing them loses."""
    with working() as progress:
        from onnxcomp.sensitivity import sensitivity

        found = sensitivity(model, evaluator=evaluate, progress=progress, **options)
    if as_json:
        print_json(found.as_dict())
        return
    from onnxcomp.sensitivity_table import print_sensitivity
    from onnxcomp.tables import make_console

    print_sensitivity(make_console(), found, top)


@_command("recipes", "recipes default > mine.toml")
@click.argument("name", required=False)
@json_option
def recipes_command(name: str | None, as_json: bool) -> None:
    """List the built-in recipes, or print the TOML of one."""
    from onnxcomp.listings import recipes_as_dict
    from onnxcomp.recipe import recipe_text

    text = None if name is None else recipe_text(name)
    if as_json:
        print_json(recipes_as_dict(None if name is None else [name]))
    elif text is not None:
        click.echo(text, nl=False)
    else:
        from onnxcomp.tables import make_console, print_recipes

        print_recipes(make_console(), recipes_as_dict()["recipes"])


@_command("passes", "passes quantize_static")
@click.argument("name", required=False)
@json_option
def passes_command(name: str | None, as_json: bool) -> None:
    """List the passes with their options, or show one."""
    from onnxcomp.listings import list_passes, passes_as_dict

    listings = list_passes(name)
    if as_json:
        print_json(passes_as_dict(listings))
        return
    from onnxcomp.tables import make_console, print_passes

    print_passes(make_console(), listings)
