"""Whatever graph is drawn and whatever share leaves: pruned equals the masked original."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.printer
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from masked_reference import contradictions, inferred_shapes, masked_reference, pruned_shapes
from onnxcomp.exporting import to_proto
from onnxcomp.importing import from_proto
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.passes.prune_channels import PruneChannels
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.report import plain
from onnxcomp.targets import resolve_target
from random_graphs import feed_of, models

TOLERANCE = 1e-4  # of the largest element of an output


def run(model: onnx.ModelProto) -> list[Any]:
    """Without onnxruntime's own rewriting, in one thread: the same bits at every run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feed_of(model)))


def prune(model: onnx.ModelProto, *passes: Pass) -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    """The pruned model, and the last pass's list as it stands in the JSON."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, report = from_proto(copy), PassReport()
    context = PassContext(target=resolve_target(), original=graph.copy())
    for each in passes:
        report = PassReport()
        each.rewrite(graph, context, report)
    return to_proto(graph), plain(report.removed)


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Of all tensors for the feed of `run`: inference does not follow every computed target."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output]
    del wide.graph.output[:]
    wide.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return {name: np.shape(value) for name, value in zip(names, run(wide), strict=True)}


def text_of(model: onnx.ModelProto) -> str:
    """The nodes, for a person to read why hypothesis failed."""
    lines = onnx.printer.to_text(model.graph).splitlines()
    return "\n".join(line for line in lines if "=" in line and len(line) < 300)


def read_elements(model: onnx.ModelProto) -> int:
    """Of constants, each for every node that reads it: what two share may become one for each."""
    sizes = {t.name: numpy_helper.to_array(t).size for t in model.graph.initializer}
    return sum(sizes.get(name, 0) for node in model.graph.node for name in node.input)


def assert_pruned_as_reported(
    model: onnx.ModelProto, pruned: onnx.ModelProto, removed: list[dict[str, Any]]
) -> None:
    note(text_of(model))
    onnx.checker.check_model(pruned, full_check=True)
    for side in ("input", "output"):
        before, after = (list(getattr(m.graph, side)) for m in (model, pruned))
        assert before == after
    shapes = shapes_of(model)
    assert contradictions(model, removed, shapes) == []
    told, (actual, _) = pruned_shapes(model, removed, shapes), inferred_shapes(pruned)
    constants = {tensor.name for tensor in model.graph.initializer}
    for name, shape in told.items():
        if name in actual and name not in constants:  # another reader may keep a whole constant
            pairs = zip(shape, actual[name], strict=True)
            assert all(a == b or a is None or b is None for a, b in pairs), name
    reference = masked_reference(model, removed, shapes)
    answers = zip(run(reference), run(pruned), run(model), strict=True)
    for expected, found, whole in answers:
        assert expected.shape == found.shape
        error, scale = np.abs(expected - found).max(), np.abs(expected).max()
        scale = max(scale, 1e-2 * np.abs(whole).max())  # what is left may cancel out
        assert np.isfinite(scale)
        assert error <= TOLERANCE * scale, f"{error} of {scale}"


GRANULARITY = st.sampled_from(["auto", "head", "head_dim", "both"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models(), st.floats(0.05, 0.9), GRANULARITY, st.sampled_from(["l1", "l2"]))
def test_pruned_random_graph_equals_the_masked_original(
    model: onnx.ModelProto, sparsity: float, granularity: str, importance: str
) -> None:
    pruned, removed = prune(
        model,
        PruneChannels(
            multiple=1, sparsity=sparsity, granularity=granularity, importance=importance
        ),
    )

    assert_pruned_as_reported(model, pruned, removed)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    places = [place for group in removed for place in group["places"]]
    assert all(place["constant"] == (place["tensor"] in constants) for place in places)
    assert read_elements(pruned) < read_elements(model) or not places


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models(), st.floats(0.05, 0.9), GRANULARITY)
def test_removal_is_reported_in_names_of_the_model_before_it_was_simplified(
    model: onnx.ModelProto, sparsity: float, granularity: str
) -> None:
    last = PruneChannels(multiple=1, sparsity=sparsity, granularity=granularity)

    pruned, removed = prune(model, SimplifyGraph(), last)

    assert_pruned_as_reported(model, pruned, removed)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(models(), st.floats(0.05, 0.9), GRANULARITY, st.booleans())
def test_many_pruned_random_graphs_equal_the_masked_original(
    model: onnx.ModelProto, sparsity: float, granularity: str, simplify: bool
) -> None:
    last = PruneChannels(multiple=1, sparsity=sparsity, granularity=granularity)

    pruned, removed = prune(model, *[SimplifyGraph()] * simplify, last)

    assert_pruned_as_reported(model, pruned, removed)
