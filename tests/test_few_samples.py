"""Too few samples to tell channels apart are not passed over in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp import optimize
from onnxcomp.group_inspection import inspect_groups
from onnxcomp.passes.prune_channels import PruneChannels
from onnxcomp.recipe import compose
from onnxcomp.testing import model_of

NOTE = (
    "1 layers that read 1 groups saw no more rows of samples than they have inputs, such as"
    " second (8 rows for 384 inputs): what their channels cost is uncertain; give more samples"
)


def normal(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One row a sample, 384 channels between two products."""
    onnx.save(
        model_of(
            """mlp (float[1, 16] x) => (float[1, 5] y) {
                [first] a = MatMul (x, w1) [act] b = Relu (a) [second] y = MatMul (b, w2) }""",
            w1=normal(0, 16, 384),
            w2=normal(1, 384, 5),
        ),
        tmp_path / "model.onnx",
    )
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(("count", "notes"), [(8, [NOTE]), (500, [])])
def test_the_report_names_layers_that_saw_too_little(
    model: Path, tmp_path: Path, count: int, notes: list[str]
) -> None:
    samples = [{"x": normal(n, 1, 16)} for n in range(count)]
    recipe = compose([PruneChannels(sparsity=0.5)])
    options = {"verify": "off", "output": tmp_path / "out.onnx"}
    (report,) = optimize(model, recipe, calibration=samples, **options).report.passes
    assert [note for note in report.notes if "rows of samples" in note] == notes
    reason = "not refitted: 8 rows of samples are too few for 192 inputs"
    assert (report.skipped.get("second") == reason) is (count == 8)
    assert onnx.load(tmp_path / "out.onnx").graph.node[2].op_type == "MatMul"


def test_the_order_by_size_of_weights_needs_no_rows(model: Path, tmp_path: Path) -> None:
    samples = [{"x": normal(n, 1, 16)} for n in range(8)]
    recipe = compose([PruneChannels(sparsity=0.5, importance="l2")])
    result = optimize(model, recipe, calibration=samples, output=tmp_path / "o", verify="off")
    assert not [note for note in result.report.passes[0].notes if "rows of samples" in note]


def test_inspection_says_so_too(model: Path) -> None:
    samples = [{"x": normal(n, 1, 16)} for n in range(8)]
    assert inspect_groups(model, calibration=samples).notes == (NOTE,)
    assert inspect_groups(model).notes == ()
