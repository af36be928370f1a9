"""The command line as a user meets it: what is printed where, and what stays unwritten."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

from onnxcomp.cli import main
from onnxcomp.report import Cost, Fidelity, OutputFidelity, PassResult, Report
from onnxcomp.report_tables import grouped, print_report
from onnxcomp.tables import decibels, milliseconds, short_count
from onnxcomp.testing import assert_same_answers, model_of, small_convnet

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs onnxcomp in a process of its own, in a folder with model.onnx and samples.npz."""
    onnx.save(small_convnet(), tmp_path / "model.onnx")
    rng = np.random.default_rng(3)
    np.savez(tmp_path / "samples.npz", image=rng.standard_normal((24, 3, 8, 8), np.float32))

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "onnxcomp", *arguments],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "80", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def test_optimize_writes_beside_the_model_and_prints_what_changed(run: Run, tmp_path: Path) -> None:
    before = (tmp_path / "model.onnx").read_bytes()
    done = run(
        *("optimize", "model.onnx", "--pass", "simplify_graph", "--calibration", "samples.npz"),
        *("--report", "report.json"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no terminal: no progress
    output = tmp_path / "model.optimized.onnx"
    assert_same_answers(tmp_path / "model.onnx", output, min_sqnr_db=80)
    assert (tmp_path / "model.onnx").read_bytes() == before
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == "onnxcomp.report/1"
    assert report["before"]["bytes"] == len(before)
    assert report["after"]["bytes"] == output.stat().st_size
    assert report["before"]["macs"] == 8 * 8 * 8 * (27 + 9) + 40
    assert f"{len(before):,}" in done.stdout
    assert f"{output.stat().st_size:,}" in done.stdout
    assert "24 samples of samples.npz" in done.stdout
    assert "1 BatchNormalization" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.onnx", "samples.npz", "model.optimized.onnx", "report.json"}


def test_json_is_the_report_and_nothing_else_is_on_stdout(run: Run) -> None:
    done = run("optimize", "model.onnx", "--pass", "simplify_graph", "--json", "-o", "out.onnx")
    report = json.loads(done.stdout)
    assert report["output"] == "out.onnx"
    assert report["recipe"] == "custom"
    assert report["fidelity"]["synthetic"] is True
    assert "synthetic" in report["samples"]


def test_made_up_samples_are_warned_of(run: Run) -> None:
    shown = run("optimize", "model.onnx", "--pass", "simplify_graph").stdout
    assert "warning: measured on made-up inputs" in shown


def test_the_same_run_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    for name in ("one.onnx", "two.onnx"):
        arguments = ["--pass", "simplify_graph", "--seed", "3", "-o", name]
        assert run("optimize", "model.onnx", *arguments).returncode == 0
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_a_gate_from_the_command_line_undoes_a_pass(run: Run, tmp_path: Path) -> None:
    done = run(
        *("optimize", "model.onnx", "--pass", "quantize_static", "--calibration", "samples.npz"),
        *("--min-sqnr", "200", "--json"),
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["passes"]
    assert result["status"] == "undone"
    assert "the gate is 200 dB" in result["reason"]
    original = (tmp_path / "model.onnx").read_bytes()
    assert (tmp_path / "model.optimized.onnx").read_bytes() == original


def test_a_target_is_reached_and_the_recipe_saved(run: Run, tmp_path: Path) -> None:
    quantize = ("--pass", "simplify_graph", "--pass", "quantize_static")
    source = ("--calibration", "samples.npz")
    plain = json.loads(run("optimize", "model.onnx", *quantize, *source, "--json").stdout)
    target = str(plain["fidelity"]["outputs"][0]["sqnr_db"] + 1)
    done = run(
        *("optimize", "model.onnx", *quantize, *source, "--min-sqnr", target, "--json"),
        *("--save-recipe", "mine.toml", "-o", "one.onnx"),
    )
    report = json.loads(done.stdout)
    static = report["passes"][1]
    assert (static["status"], done.stderr) == ("kept", "")
    assert report["fidelity"]["outputs"][0]["sqnr_db"] >= float(target)
    assert static["options"]["overrides"]
    assert any(reason.startswith("kept in float: ") for reason in static["skipped"].values())
    again = run("optimize", "model.onnx", "--recipe", "mine.toml", *source, "-o", "two.onnx")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_files_to_write_are_checked_before_the_work(run: Run, tmp_path: Path) -> None:
    for extra in (
        ["--save-recipe", "model.onnx"],
        ["--save-recipe", "none/mine.toml"],
        ["--save-recipe", "same.json", "--report", "same.json"],
    ):
        done = run("optimize", "model.onnx", "--pass", "simplify_graph", *extra)
        assert done.returncode == 2
        assert "--save-recipe" in done.stderr
        assert done.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "samples.npz"}


def test_points_without_anything_to_count_them_on_are_refused(run: Run) -> None:
    done = run("optimize", "model.onnx", "--max-drop", "1")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--evaluate FILE.py:FUNCTION" in done.stderr
    assert "--calibration SRC" in done.stderr


def test_sensitivity_ranks_layers_as_table_and_as_json(run: Run, tmp_path: Path) -> None:
    arguments = ("sensitivity", "model.onnx", "--calibration", "samples.npz")
    document = json.loads(run(*arguments, "--json").stdout)
    assert document["schema"] == "onnxcomp.sensitivity/1"
    names = [layer["name"] for layer in document["layers"]]
    assert {"stem", "depthwise", "classify"} <= set(names)
    shown = run(*arguments, "--top", "1")
    assert shown.stderr == ""
    assert names[0] in shown.stdout
    assert names[1] not in shown.stdout
    assert f"... and {len(names) - 1} more" in shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    (tmp_path / "judge.py").write_text("def score(session):\n    return 12.5\n")
    scored = run(*arguments, "--evaluate", "judge.py:score", "--samples", "2").stdout
    assert "score 12.50, all quantized 12.50" in scored
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("model.onnx", "samples.npz", "judge.py", "__pycache__")
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.onnx"], "none.onnx"),
        (["model.onnx", "--pass", "quantise_static"], "did you mean 'quantize_static'"),
        (["model.onnx", "--pass", "quantize_static:calibrator=best"], "unknown value 'best'"),
        (["model.onnx", "--pass", "quantize_static:operators=LSTM"], "changes no node"),
        (["model.onnx", "--calibration", "none.npz"], "none.npz: no such file"),
        (["model.onnx", "--evaluate", "judge.py"], "write FILE.py:FUNCTION"),
        (["model.onnx", "--samples", "0"], "--samples"),
        (["model.onnx", "--target", "vax"], "vax"),
    ],
)
def test_sensitivity_refuses_in_one_line(run: Run, arguments: list[str], said: str) -> None:
    done = run("sensitivity", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_strict_stops_where_a_gate_breaks(run: Run, tmp_path: Path) -> None:
    done = run(
        *("optimize", "model.onnx", "--pass", "quantize_static", "--calibration", "samples.npz"),
        *("--min-sqnr", "200", "--strict"),
    )
    assert done.returncode == 2
    assert "the gate is 200 dB" in done.stderr
    assert not (tmp_path / "model.optimized.onnx").exists()


def test_an_evaluator_is_shown_before_and_after(run: Run, tmp_path: Path) -> None:
    code = "def score(session):\n    print('chatter')\n    return 12.5\n"
    (tmp_path / "judge.py").write_text(code)
    done = run(
        *("optimize", "model.onnx", "--pass", "simplify_graph", "--json"),
        *("--evaluate", "judge.py:score", "--max-drop", "0"),
    )
    report = json.loads(done.stdout)
    assert (report["score_before"], report["score_after"]) == (12.5, 12.5)
    assert report["gates"]["max_drop"] == 0
    assert "chatter" in done.stderr


def test_what_the_checker_prints_stays_off_stdout(run: Run, shared: Path) -> None:
    model = str(shared / "kit" / "corpus" / "Windows-Machine-Learning__fns-candy.onnx")
    done = run("inspect", model, "--json")
    assert json.loads(done.stdout)["parameters"] == 424_905
    assert "experimental ops" in done.stderr


def test_inspect_agrees_with_the_library(run: Run, tmp_path: Path) -> None:
    import onnxcomp

    done = run("inspect", "model.onnx", "--json", "--shape", "image=2x3x8x8")
    found = onnxcomp.inspect(tmp_path / "model.onnx", shapes={"image": [2, 3, 8, 8]}).as_dict()
    assert json.loads(done.stdout) == {**found, "model": "model.onnx"}
    shown = run("inspect", "model.onnx", "--top", "2").stdout
    assert "... and 5 more operator types" in shown
    assert "N = 1" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_compare_and_benchmark_print_ratios(run: Run) -> None:
    compared = json.loads(
        run("compare", "model.onnx", "model.onnx", "--rounds", "1", "--json").stdout
    )
    assert compared["schema"] == "onnxcomp.comparison/1"
    assert compared["fidelity"]["outputs"][0]["output"] == "scores"
    shown = run("compare", "model.onnx", "model.onnx", "--rounds", "1").stdout
    assert "exact" in shown
    assert "peak memory" in shown
    timed = json.loads(
        run("benchmark", "model.onnx", "model.onnx", "--rounds", "1", "--json").stdout
    )
    assert [entry["model"] for entry in timed["latencies"]] == ["model.onnx"] * 2
    assert timed["latencies"][0]["ratio"] == 1
    assert "ratio" in run("benchmark", "model.onnx", "--rounds", "1").stdout


def test_recipes_are_listed_and_shown_as_they_can_be_used(run: Run, tmp_path: Path) -> None:
    listed = json.loads(run("recipes", "--json").stdout)["recipes"]
    assert {"default", "data_free", "simplify"} <= {recipe["name"] for recipe in listed}
    shown = run("recipes").stdout
    assert all(recipe["name"] in shown for recipe in listed)
    (tmp_path / "mine.toml").write_text(run("recipes", "simplify").stdout)
    done = run("optimize", "model.onnx", "--recipe", "mine.toml", "--json")
    assert json.loads(done.stdout)["recipe"] == "mine.toml"


def test_passes_are_listed_with_types_defaults_and_meanings(run: Run) -> None:
    from onnxcomp.passes import PASSES

    listed = json.loads(run("passes", "--json").stdout)["passes"]
    assert [entry["name"] for entry in listed] == [kind.name() for kind in PASSES]
    for entry in listed:
        assert entry["summary"]
        for option in entry["options"]:
            assert option["meaning"], f"{entry['name']}: {option['name']} is not explained"
    static = next(entry for entry in listed if entry["name"] == "quantize_static")
    options = {option["name"]: option for option in static["options"]}
    assert options["per_channel"]["type"] == "bool"
    assert options["per_channel"]["default"] is True
    assert static["needs_calibration"] is True
    assert "overrides" not in options
    shown = run("passes", "quantize_static").stdout
    assert "per_channel = true  (bool)" in shown
    assert "simplify_graph" not in shown


@pytest.mark.parametrize("name", sorted(main.commands))
def test_the_help_of_every_command_shows_an_example(name: str) -> None:
    from click.testing import CliRunner

    shown = CliRunner().invoke(main, [name, "--help"])
    assert shown.exit_code == 0
    assert f"Example:\n    onnxcomp {name} " in shown.output


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    done = run()
    assert done.returncode == 0
    assert "Usage: onnxcomp" in done.stdout


@pytest.mark.parametrize("arguments", [["inspect", "model.onnx"], ["passes", "--json"], ["-h"]])
def test_a_reader_that_leaves_early_causes_no_traceback(
    arguments: list[str], tmp_path: Path, run: Run
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "onnxcomp", *arguments],
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (1, 141)


def test_an_unexpected_error_is_one_line_that_asks_for_a_report(run: Run, tmp_path: Path) -> None:
    """sitecustomize makes reading fail in a way that nobody foresaw."""
    (tmp_path / "sitecustomize.py").write_text(
        "import onnx\ndef broken(*a, **k): raise SystemError('odd\\nthing')\n"
        "onnx.checker.check_model = broken\nimport onnxcomp.model\n"
        "def check(*a): raise ZeroDivisionError('odd\\nthing')\n"
        "onnxcomp.model.check_file = check\n"
    )
    done = run("inspect", "model.onnx", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith(
        "onnxcomp: error: unexpected ZeroDivisionError: odd thing; please"
    )
    assert done.stderr.count("\n") == 1
    traced = run("inspect", "model.onnx", PYTHONPATH=str(tmp_path), ONNXCOMP_DEBUG="1")
    assert "Traceback" in traced.stderr


# --- rendering --------------------------------------------------------------------------------


def report_of(**changes: Any) -> Report:
    scores = OutputFidelity(output="scores", sqnr_db=7.5, cosine=0.9, max_abs_difference=0.5)
    skipped = {f"node{i}": f"only {i} weights" for i in range(9)} | {"odd[x]": "it interpolates"}
    values: dict[str, Any] = {
        "model": "m.onnx",
        "recipe": "custom",
        "target": "arm64",
        "seed": 0,
        "samples": "3 samples of x.npz",
        "gates": {"min_sqnr_db": None, "max_drop": None, "must_pay": False},
        "before": Cost(bytes=1000, parameters=250, macs=1_234_567, latency_ms=2.0),
        "after": Cost(bytes=2000, parameters=250, macs=None, latency_ms=3.0),
        "latency_ratio": 1.5,
        "fidelity": Fidelity(samples=3, synthetic=False, outputs=(scores,)),
        "passes": [
            PassResult(
                name="quantize_static", options={}, changed=["conv", "gone"], skipped=skipped
            ),
            PassResult(name="prune", options={}, status="failed", reason="boom at node 'conv'"),
        ],
        "notes": ["opset 11 was converted to 13 first"],
    }
    return Report(**{**values, **changes})


def rendered(report: Report, verbose: bool = False) -> str:
    console = Console(width=80, markup=False, highlight=False, file=io.StringIO(), record=True)
    print_report(console, report, {"conv": "Conv", "odd[x]": "Resize"}, verbose)
    return console.export_text()


def test_a_report_shows_costs_reasons_and_loud_warnings() -> None:
    shown = rendered(report_of())
    assert all(len(line) <= 80 for line in shown.splitlines())
    for expected in (
        "2.000",  # bytes doubled
        "1.23 M",
        "changed 2: 1 Conv, 1 new node",
        "9 node: only 0 weights, or alike",
        "1 Resize: it interpolates",
        "boom at node 'conv'",
        "opset 11 was converted to 13 first",
        "warning: the result is larger",
        "warning: the result is slower",
        "warning: the result answers differently",
    ):
        assert expected in shown, expected
    assert "odd[x]" not in shown
    assert "odd[x]" in rendered(report_of(), verbose=True)


def test_a_good_result_has_no_warnings() -> None:
    good = OutputFidelity(output="y", sqnr_db=40.0, cosine=1.0, max_abs_difference=0.01)
    shown = rendered(
        report_of(
            after=Cost(bytes=500, parameters=250, macs=1_234_567, latency_ms=1.0),
            latency_ratio=0.5,
            fidelity=Fidelity(samples=3, synthetic=False, outputs=(good,)),
        )
    )
    assert "warning" not in shown


def test_reasons_that_differ_in_figures_are_grouped() -> None:
    groups = grouped({"a": "only 3 weights", "b": "only 17 weights", "c": "feeds 'x'"})
    assert [(reason, names) for reason, names in groups] == [
        ("only 3 weights, or alike", ["a", "b"]),
        ("feeds 'x'", ["c"]),
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (48_829_440, "48.8 M"), (999_900_000, "1000 M")],
)
def test_short_counts(value: int, shown: str) -> None:
    assert short_count(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.01234, "0.0123 ms"),
        (1.234, "1.23 ms"),
        (12.34, "12.3 ms"),
        (1234, "1234 ms"),
    ],
)
def test_milliseconds_have_three_digits(value: float | None, shown: str) -> None:
    assert milliseconds(value) == shown


def test_decibels_of_equal_and_of_lost_signals() -> None:
    assert [decibels(x) for x in (float("inf"), float("-inf"), 12.34)] == [
        "exact",
        "none",
        "12.3 dB",
    ]


def test_a_model_of_one_operator_goes_through_all_commands(tmp_path: Path, run: Run) -> None:
    onnx.save(model_of("m (float[2] x) => (float[2] y) { y = Relu (x) }"), tmp_path / "tiny.onnx")
    for command in (["inspect"], ["benchmark"], ["optimize", "--recipe", "simplify"]):
        done = run(*command, "tiny.onnx")
        assert done.returncode == 0, done.stderr


def keys_of(value: Any) -> set[str]:
    """All keys of a JSON document that a schema fixes: not those of tables by name."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    if not isinstance(value, dict):
        return set()
    by_name = {"options", "skipped", "numbers", "versions", "shapes", "assumed", "opsets"}
    by_name |= {"custom_domains", "subgraphs", "metadata", "operators"}
    inner = (keys_of(v) for k, v in value.items() if k not in by_name or isinstance(v, list))
    return set(value) | set().union(*inner)


def test_every_key_of_every_document_is_documented(run: Run, models: Path) -> None:
    page = (models.parent / "docs" / "report.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`([a-z0-9_]+)`", page))
    for command in (
        ["optimize", "model.onnx", "--pass", "simplify_graph"],
        ["inspect", "model.onnx"],
        ["compare", "model.onnx", "model.onnx", "--rounds", "1"],
        ["benchmark", "model.onnx", "--rounds", "1"],
        ["passes"],
    ):
        document = json.loads(run(*command, "--json").stdout)
        assert document["schema"] in page
        assert keys_of(document) <= described, keys_of(document) - described
