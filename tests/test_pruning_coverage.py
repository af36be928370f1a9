"""Pruned architectures equal the original with removed channels masked, and lose what they should.

The default run takes a few; `pytest -m slow tests/test_pruning_coverage.py` takes all of archzoo.
Constant float vectors are randomised first: zero biases and unit scales hide a wrong slice.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper
from zoo import architectures

from masked_reference import contradictions, masked_reference
from onnxcomp import optimize
from onnxcomp.passes.prune_channels import PruneChannels
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.recipe import compose
from onnxcomp.report import plain

FEW = {
    *("albert", "dscnn_kws", "edgenext_x_small", "gru_speech", "llama_gqa", "lstm_text"),
    *("mobilenet_v3_small", "shufflenet_v2_x1_0", "yolo_head"),
}
TOLERANCE = 1e-4  # of the largest element of an output
LEAST_REMOVED, LEAST_MEAN = 0.40, 0.70  # share of the parameters at half the width


def randomised(model: onnx.ModelProto) -> onnx.ModelProto:
    """With noise on every float vector; variances and denominators stay positive."""
    readers = [
        (node.op_type, i, name) for node in model.graph.node for i, name in enumerate(node.input)
    ]
    kept = {name for op, _, name in readers if op in ("Resize", "Upsample", "Range")}
    positive = {
        name for op, i, name in readers if (op, i) in {("BatchNormalization", 4), ("Div", 1)}
    }
    for tensor in model.graph.initializer:
        length = int(np.prod(tensor.dims))
        if tensor.name in kept or tensor.data_type != TensorProto.FLOAT:
            continue
        if length < 2 or length != max(tensor.dims):
            continue
        rng = np.random.default_rng(zlib.crc32(tensor.name.encode()))
        values = numpy_helper.to_array(tensor)
        if tensor.name in positive:
            values = np.abs(values) + rng.uniform(0.5, 1.5, values.shape)
        else:
            values = values + rng.uniform(0.05, 0.3, values.shape) * rng.choice(
                [-1, 1], values.shape
            )
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return model


def pruned(source: Path, output: Path, **options: Any) -> list[dict[str, Any]]:
    """Writes ``output``; the report's list as it stands in the JSON."""
    recipe = compose([SimplifyGraph(), PruneChannels(multiple=1, **options)])
    report = optimize(source, recipe, output=output, verify="off").report
    assert report.passes[0].status in ("kept", "unchanged")
    assert report.passes[1].status == "kept", report.passes[1].reason
    return list(plain(report.passes[-1].removed))


def answers(model: onnx.ModelProto, feed: dict[str, Any]) -> list[npt.NDArray[Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feed))


def parameters(path: Path) -> int:
    """Elements of all float constants."""
    tensors = onnx.load(path).graph.initializer
    return sum(int(np.prod(t.dims)) for t in tensors if t.data_type == TensorProto.FLOAT)


def largest_error(hydrate: ModuleType, source: Path, output: Path, removed: list[Any]) -> float:
    """Of the pruned model against the masked original, relative to each output's largest element.

    Also checks that the model is valid and its signature unchanged.
    """
    original, model = onnx.load(source), onnx.load(output)
    onnx.checker.check_model(model)
    for side in ("input", "output"):
        assert list(getattr(original.graph, side)) == list(getattr(model.graph, side))
    assert contradictions(original, removed) == []
    feed = hydrate.feeds(original)
    expected = answers(masked_reference(original, removed), feed)
    worst = 0.0
    for one, other in zip(expected, answers(model, feed), strict=True):
        assert one.shape == other.shape
        worst = max(worst, float(np.abs(one - other).max() / np.abs(one).max()))
    return worst


@pytest.mark.parametrize("name", architectures(FEW))
def test_architecture(hydrate: ModuleType, name: str, tmp_path: Path) -> None:
    """At half the width, and with a random share of every group."""
    source, output = tmp_path / "model.onnx", tmp_path / "pruned.onnx"
    onnx.save(randomised(hydrate.load(name)), source)

    removed = pruned(source, output, sparsity=0.5)

    assert largest_error(hydrate, source, output, removed) < TOLERANCE
    assert 1 - parameters(output) / parameters(source) >= LEAST_REMOVED

    rng = np.random.default_rng(zlib.crc32(name.encode()))
    wanted = {group["group"]: float(rng.uniform(0, 0.9)) for group in removed}
    overrides = {group: {"sparsity": sparsity} for group, sparsity in wanted.items()}

    removed = pruned(source, output, sparsity=0.5, overrides=overrides)

    assert largest_error(hydrate, source, output, removed) < TOLERANCE
    for group in removed:
        share = group["removed_units"] / group["units"]
        assert abs(share - wanted[group["group"]]) <= 1 / group["units"]


@pytest.mark.slow
def test_mean_share_of_parameters(hydrate: ModuleType, tmp_path: Path) -> None:
    shares = {}
    for name in hydrate.names():
        source, output = tmp_path / "model.onnx", tmp_path / "pruned.onnx"
        onnx.save(hydrate.load(name), source)
        pruned(source, output, sparsity=0.5)
        shares[name] = 1 - parameters(output) / parameters(source)

    assert len(shares) == 75
    assert np.mean(list(shares.values())) >= LEAST_MEAN, shares
