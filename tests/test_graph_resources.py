"""What groups use up, against counts of the graph after units were cut from it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from zoo import architectures

from onnxcomp.channel_preparation import prepare
from onnxcomp.channels import Channels, find_channels
from onnxcomp.cutting import cut
from onnxcomp.exporting import to_proto
from onnxcomp.graph import sort_nodes
from onnxcomp.graph_resources import bytes_of, macs_of, parameters_of
from onnxcomp.importing import from_proto
from onnxcomp.macs import count_macs
from onnxcomp.parameters import count_parameters
from onnxcomp.resources import Product, Size
from onnxcomp.shapes import infer_shapes
from onnxcomp.testing import model_of
from random_graphs import feed_of, models

FEW = {"deit_tiny_patch16_224", "dscnn_kws", "llama_gqa", "lstm_text", "shufflenet_v2_x1_0"}
Shapes = Mapping[str, Any]


def analysed(model: onnx.ModelProto) -> tuple[gs.Graph, Channels]:
    graph = from_proto(model)
    sort_nodes(graph)
    infer_shapes(graph)
    prepare(graph)
    return graph, find_channels(graph)


def units_are_even(channels: Channels) -> bool:
    """Whether all units of a group take equally many indices of every axis."""
    places = [place for group in channels.groups for place in group.places]
    counts = (np.bincount(place.units[place.units >= 0]) for place in places)
    return all(np.ptp(count) == 0 for count in counts)


def assert_resources_foretell_cuts(model: onnx.ModelProto, shapes: Shapes, seed: int) -> None:
    graph, channels = analysed(model)
    macs, weights = macs_of(graph, channels, shapes), parameters_of(graph, channels)
    assert round(weights.value()) == count_parameters(graph)
    before = count_macs(graph, shapes)
    rng = np.random.default_rng(seed)
    removed = {g.name: rng.permutation(g.size)[: rng.integers(g.size)] for g in channels.groups}
    kept = {g.name: 1 - len(removed[g.name]) / g.size for g in channels.groups}

    cut(graph, channels, removed)

    assert round(weights.value(kept)) == count_parameters(graph)
    if before is not None:
        assert round(macs.value()) == before
        assert round(macs.value(kept)) == count_macs(graph, shapes)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


MLP = """mlp (float[N, 3] x) => (float[N, 2] y) {
    [first] a = Gemm (x, w1, b1)  b = Relu (a)  [second] y = MatMul (b, w2) }"""


def test_macs_and_parameters_of_two_layers_by_hand() -> None:
    graph, channels = analysed(model_of(MLP, w1=normal(3, 5), b1=normal(5), w2=normal(5, 2)))
    macs, weights = macs_of(graph, channels, {"x": [7, 3]}), parameters_of(graph, channels)

    hidden = Size(parts={"first": 5})
    assert macs.terms == (Product(coefficient=7 * (3 + 2), sizes=(hidden,)),)
    assert (macs.constant, macs.unit) == (0, "MACs")
    assert weights.terms == (Product(coefficient=3 + 1 + 2, sizes=(hidden,)),)
    assert weights.value({"first": 0.4}) == pytest.approx(6 * 2)


def test_a_layer_between_two_groups_is_a_product() -> None:
    text = """net (float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y) {
        [one] a = Conv (x, w1)  [two] b = Conv <pads = [1, 1, 1, 1]> (a, w2)
        [three] y = Conv (b, w3) }"""
    weights = {"w1": normal(6, 3, 1, 1), "w2": normal(4, 6, 3, 3), "w3": normal(2, 4, 1, 1)}
    graph, channels = analysed(model_of(text, **weights))

    found = macs_of(graph, channels, {"x": [1, 3, 8, 8]})

    kept = {"one": 3 / 6, "two": 1 / 4}
    assert found.value(kept) == pytest.approx(64 * (3 * 3 + 9 * 3 * 1 + 1 * 2))
    assert [len(term.sizes) for term in found.terms] == [1, 2, 1]


def test_what_nobody_knows_counts_as_nothing_and_what_stays_as_a_constant() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        net (float[1, 4] x) => (float[1, 5] y, float[1, 6] b) {
            a = MatMul (x, w1)  b = mine.Odd (a, w2)  y = MatMul (a, w3) }"""
    weights = {"w1": normal(4, 6), "w2": normal(2, 2), "w3": normal(6, 5)}
    graph, channels = analysed(model_of(text, **weights))

    assert macs_of(graph, channels, {"x": [1, 4]}).terms == ()
    assert macs_of(graph, channels, {"x": [1, 4]}).constant == 4 * 6 + 6 * 5
    assert parameters_of(graph, channels).constant == 24 + 4 + 30


def test_units_that_take_different_numbers_of_indices_count_with_the_mean() -> None:
    """A sum with its own reverse ties indices 0 and 4, and 1 and 3."""
    text = """mlp (float[N, 3] x) => (float[N, 2] y) {
        a = MatMul (x, w1)  b = Slice (a, minus, below, minus, minus)  c = Add (a, b)
        y = MatMul (c, w2) }"""
    weights = {"w1": normal(3, 5), "w2": normal(5, 2)}
    bounds = {"minus": np.asarray([-1]), "below": np.asarray([-9])}
    graph, channels = analysed(model_of(text, **weights, **bounds))
    found = parameters_of(graph, channels)

    assert channels.groups[0].size == 3
    assert found.value({channels.groups[0].name: 2 / 3}) == pytest.approx(25 * 2 / 3)


def test_bytes_are_those_of_the_file() -> None:
    weights = {"w1": normal(300, 500), "b1": normal(500), "w2": normal(500, 20)}
    text = MLP.replace("N, 3]", "N, 300]").replace("N, 2]", "N, 20]")
    graph, channels = analysed(model_of(text, **weights))
    found = bytes_of(graph, channels)

    cut(graph, channels, {"first": np.arange(200)})

    left = {"first": 0.6}
    assert found.value(left) == pytest.approx(to_proto(graph).ByteSize(), abs=100)
    assert found.value() - found.value(left) == pytest.approx(200 * (300 + 1 + 20) * 4)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(models(), st.integers(0, 100))
def test_resources_of_random_graphs(model: onnx.ModelProto, seed: int) -> None:
    shapes = {name: value.shape for name, value in feed_of(model).items()}
    assume(units_are_even(analysed(model)[1]))

    assert_resources_foretell_cuts(model, shapes, seed)


@pytest.mark.parametrize("name", architectures(FEW))
def test_resources_of_architectures(hydrate: ModuleType, name: str) -> None:
    model = hydrate.load(name)
    shapes = {name: value.shape for name, value in hydrate.feeds(model).items()}

    assert_resources_foretell_cuts(model, shapes, zlib.crc32(name.encode()))


@pytest.mark.parametrize("name", ["cifar10_resnet56", "dtln_2", "mobilenet_v1_075", "yolox_nano"])
def test_resources_of_trained_models(kit: ModuleType, name: str) -> None:
    path = kit.model_path(name)
    shapes = {name: value.shape for name, value in kit.calibration(name, 1)[0].items()}

    assert_resources_foretell_cuts(onnx.load(path), shapes, zlib.crc32(name.encode()))
