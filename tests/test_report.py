"""The JSON of a report: its keys and values are promised, and what JSON cannot hold has a form."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from onnxcomp.kernel_use import Conversion, KernelShare, KernelUse
from onnxcomp.report import SCHEMA, Cost, Fidelity, OutputFidelity, PassResult, Report, plain

ROOT = Path(__file__).resolve().parent
GOLDEN = ROOT / "golden" / "report-1.json"
COST = {"bytes": 1, "parameters": 2, "macs": None, "latency_ms": None}


def output(name: str, sqnr_db: float, top1: float | None = None) -> OutputFidelity:
    return OutputFidelity(
        output=name, sqnr_db=sqnr_db, cosine=0.5, max_abs_difference=0.25, top1_agreement=top1
    )


def full_report() -> Report:
    """A report in which every field has a value that is not its default."""
    fidelity = Fidelity(
        samples=8,
        synthetic=True,
        outputs=(output("scores", 31.5, 99.5), output("boxes", math.inf)),
    )
    kept = PassResult(
        name="quantize_static",
        options={"calibrator": "percentile", "ops": ("Conv",), "overrides": {"a*": {"skip": True}}},
        reason="",
        changed=["conv1"],
        skipped={"conv2": "its input is not measured"},
        numbers={"layers": 3.0},
        notes=["a note"],
        removed=[
            {"group": "conv1", "units": 64, "removed_units": 32, "cost": 0.25, "places": []},
            {
                "group": "add1",
                "units": 1,
                "removed_units": 1,
                "cost": None,
                "replaced_by": "a linear map",
                "places": [{"tensor": "w", "axis": 0, "indices": [0, 1], "constant": True}],
            },
        ],
        factorized=[
            {
                "weight": "w",
                "nodes": ["fc"],
                "method": "svd",
                "rank": 8,
                "lost_energy": 0.015625,
                "seen": True,
                "parameters": 512,
                "parameters_before": 1024,
                "macs": 512,
                "macs_before": 1024,
            }
        ],
        bytes=1000,
        latency_ratio=0.5,
        fidelity=fidelity,
        score=71.25,
        seconds=1.5,
    )
    undone = PassResult(name="simplify_graph", options={}, status="undone", reason="does not pay")
    return Report(
        model="model.onnx",
        output="model.optimized.onnx",
        recipe="default",
        target="x86-vnni",
        seed=7,
        samples="8 synthetic samples (seed 7)",
        gates={"min_sqnr_db": 10.0, "max_drop": None, "must_pay": True},
        before=Cost(bytes=4000, parameters=900, macs=10_000, latency_ms=2.0),
        after=Cost(bytes=1000, parameters=900, macs=None, latency_ms=1.0),
        latency_ratio=0.5,
        fidelity=fidelity,
        score_before=72.0,
        score_after=71.25,
        passes=[kept, undone],
        notes=["opset 11 was converted to 13 first"],
        versions={"onnxcomp": "0.1.0"},
        kernels=KernelUse(
            kernels=(
                KernelShare(
                    op="QLinearConv", kind="integer", count=2, time_share=0.75, nodes=("conv1",)
                ),
            ),
            conversions=(
                Conversion(op="QuantizeLinear", tensor="x", elements=192, time_share=0.25),
            ),
        ),
    )


def test_the_format_is_the_promised_one() -> None:
    """A change of this file is a change of format: see docs/report.md for when SCHEMA changes."""
    assert full_report().to_json() == GOLDEN.read_text(encoding="utf-8")
    assert json.loads(GOLDEN.read_text(encoding="utf-8"))["schema"] == SCHEMA == "onnxcomp.report/1"


def test_every_field_is_in_the_golden_file_with_a_value() -> None:
    data = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for kind, found in (
        (Report, data),
        (PassResult, data["passes"][0]),
        (Cost, data["before"]),
        (Fidelity, data["fidelity"]),
        (OutputFidelity, data["fidelity"]["outputs"][0]),
        (KernelUse, data["kernels"]),
        (KernelShare, data["kernels"]["kernels"][0]),
        (Conversion, data["kernels"]["conversions"][0]),
    ):
        names = {field.name for field in dataclasses.fields(kind)}
        assert names == found.keys() - {"schema"}
        empty = {name for name in names if found[name] in (None, "", [], {})}
        assert empty <= {"reason", "note"}, f"{kind.__name__}: {empty} are not shown"


def test_every_key_is_described() -> None:
    text = (ROOT.parent / "docs" / "report.md").read_text(encoding="utf-8")
    kinds = (Report, PassResult, Cost, Fidelity, OutputFidelity, KernelUse, KernelShare, Conversion)
    for kind in kinds:
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in text, f"docs/report.md does not describe {field.name}"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, None),
        ((1, [math.inf]), [1, ["inf"]]),
        ({1: math.nan}, {"1": None}),
        (Cost(bytes=1, parameters=2), COST),
        (
            [np.float32(0.5), np.float64(math.inf), np.int64(3), np.bool_(True)],
            [0.5, "inf", 3, True],
        ),
        (np.array([1.0, math.nan]), [1.0, None]),
        ({"path": Path("a")}, {"path": "a"}),
    ],
)
def test_what_json_cannot_hold_has_a_form(value: object, wanted: object) -> None:
    assert plain(value) == wanted
    json.dumps(plain(value), allow_nan=False)


def test_the_worst_output_stands_for_all() -> None:
    fidelity = full_report().fidelity
    assert fidelity is not None
    assert (fidelity.sqnr_db, fidelity.top1_agreement) == (31.5, 99.5)
    nothing = Fidelity(samples=1, synthetic=False, outputs=())
    assert (nothing.sqnr_db, nothing.top1_agreement) == (math.inf, None)
