"""Synthetic inputs: right dtypes, ranges and sizes, and real models run with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import parser

from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationError, UnsupportedModel
from onnxcomp.importing import from_proto
from onnxcomp.indices import index_bounds
from onnxcomp.runtime import Feed, open_session


def graph_of(**inputs: tuple[Any, list[Any] | None]) -> gs.Graph:
    return gs.Graph(inputs=[gs.Variable(name, *signature) for name, signature in inputs.items()])


def first_feed(graph: gs.Graph, **options: Any) -> Feed:
    return next(Calibration.from_source(None, graph, **options).feeds())


def test_the_seed_decides_everything_and_samples_differ() -> None:
    graph = graph_of(x=(np.float32, ["N", 3, 8, 8]), ids=(np.int64, ["N", "L"]))
    one, two = (list(Calibration.from_source(None, graph, seed=3).feeds()) for _ in range(2))
    other = first_feed(graph, seed=4)
    assert len(one) == 8
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
    assert not np.array_equal(one[0]["x"], one[1]["x"])
    assert not np.array_equal(one[0]["x"], other["x"])
    assert len(Calibration.from_source(None, graph, limit=3)) == 3
    calibration = Calibration.from_source(None, graph, seed=3)
    assert calibration.description == "8 synthetic samples (seed 3)"
    assert calibration.synthetic


def test_floats_are_standard_normal() -> None:
    x = first_feed(graph_of(x=(np.float16, [1, 3, 100, 100])))["x"]
    assert x.dtype == np.float16
    assert abs(x.astype(float).mean()) < 0.03
    assert 0.97 < x.astype(float).std() < 1.03


def test_dtypes_and_names_decide_the_range() -> None:
    feed = first_feed(
        graph_of(
            image=(np.uint8, ["N", 3, "H", "W"]),
            attention_mask=(np.int64, ["N", "L"]),
            keyMask=(bool, ["N", "L"]),
            position_ids=(np.int64, ["N", "L"]),
            tokens=(np.int32, ["N", "L"]),
            lengths=(np.int64, ["N"]),
            sr=(np.int64, []),
            score_threshold=(np.float32, []),
            text=(np.dtype(object), [2]),
        )
    )
    assert feed["image"].max() > 250
    assert feed["image"].shape == (1, 3, 224, 224)
    assert (feed["attention_mask"] == 1).all()
    assert feed["keyMask"].all()
    np.testing.assert_array_equal(feed["position_ids"], [np.arange(16)])
    assert feed["tokens"].dtype == np.int32
    assert feed["tokens"].min() >= 0
    assert feed["tokens"].max() < 100
    assert feed["sr"] == 16000
    assert feed["score_threshold"] == np.float32(0.5)
    assert feed["text"].dtype == object


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (["N", 3, "H", "W"], (1, 3, 224, 224)),
        (["batch_size", 3, None, None], (1, 3, 224, 224)),
        ([None, None, None, 3], (1, 224, 224, 3)),
        ([-1, 13], (1, 13)),
        (["batch", "sequence"], (1, 16)),
        (["seq_len", "batch", 8], (16, 1, 8)),
        ([None], (16,)),
        (["N", 3, 48, "W"], (1, 3, 48, 224)),
        ([2, "batch", 128], (2, 1, 128)),
        ([], ()),
        (None, (1, 3, 224, 224)),
    ],
)
def test_free_axes_get_the_likeliest_size(
    shape: list[Any] | None, expected: tuple[int, ...]
) -> None:
    assert first_feed(graph_of(x=(np.float32, shape)))["x"].shape == expected


def test_a_symbol_has_one_size_and_sums_of_symbols_add_up() -> None:
    cache = ["batch", 2, "past_sequence_length", 8]
    feed = first_feed(
        graph_of(
            ids=(np.int64, ["batch", "sequence_length"]),
            mask=(np.int64, ["batch", "past_sequence_length + sequence_length"]),
            total=(np.int64, ["batch", "total_sequence_length"]),
            plus=(np.float32, ["batch", "past_sequence_length + 1"]),
            past=(np.float32, cache),
        )
    )
    past, length = feed["past"].shape[2], feed["ids"].shape[1]
    assert feed["mask"].shape == feed["total"].shape == (1, past + length)
    assert feed["plus"].shape == (1, past + 1)


BOUNDS = [
    ("int64[N] x", "y = Gather(t, x)", 7),
    ("int32[N] x", "c = Cast<to = 7>(x)  y = Gather(t, c)", 7),
    ("int64[N] x", "c = Add(x, two)  y = Gather(t, c)", 5),
    ("int64[N] x", "c = Sub(x, two)  y = Gather(t, c)", 9),
    ("int64[N] x", "y = Gather<axis = 1>(t, x)", 3),
    ("int64[N] x", "a = Gather(t, x)  y = Gather<axis = 1>(t, x)", 3),
    ("int64[N] x", "y = OneHot(x, six, values)", 6),
    ("int64[N] x", "q = DequantizeLinear(codes, scale)  y = Gather(q, x)", 4),
    ("int64[N] x", "y = Mul(x, two)", None),
    ("int64[N] x", "r = Gather(t, zero)  y = Expand(r, x)", None),
]


@pytest.mark.parametrize(("inputs", "body", "bound"), BOUNDS)
def test_integer_inputs_stay_within_the_table_they_index(
    inputs: str, body: str, bound: int | None
) -> None:
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g ({inputs}) => (float y)
        <float[7, 3] t = {{{", ".join(["1"] * 21)}}}, int64 two = {{2}}, int64 six = {{6}},
         int64 zero = {{0}}, float[2] values = {{0, 1}}, int8[4, 1] codes = {{1, 1, 1, 1}},
         float scale = {{1}}>
        {{ {body} }}"""
    )
    graph = from_proto(model)
    found = index_bounds(graph)
    assert found == ({} if bound is None else {"x": bound})
    x = np.concatenate([f["x"] for f in Calibration.from_source(None, graph, limit=64).feeds()])
    assert x.max() == (bound or 100) - 1 or bound is None
    assert x.min() >= 0


def test_other_guesses_are_made_until_the_model_runs() -> None:
    """The model wants 64 of what the signature leaves free, and ids below 2."""
    graph = graph_of(x=(np.float32, ["N", "T"]), ids=(np.int64, ["N", 4]))
    tried = []

    def runs(feed: Feed) -> bool:
        tried.append(feed["x"].shape)
        return feed["x"].shape == (1, 64) and feed["ids"].max() < 2

    feed = first_feed(graph, runs=runs)
    assert feed["x"].shape == (1, 64)
    assert feed["ids"].max() < 2
    assert tried[0] == (1, 16)


def test_a_model_that_never_runs_is_given_up_on() -> None:
    calls = []
    with pytest.raises(CalibrationError, match="found no synthetic inputs"):
        first_feed(graph_of(x=(np.float32, ["N", "T", "H"])), runs=lambda feed: calls.append(feed))
    assert 5 < len(calls) <= 60
    assert len({feed["x"].shape for feed in calls}) == len(calls)


def runs_with_synthetic_inputs(model: onnx.ModelProto) -> str:
    """'' when the model runs with every synthetic feed, otherwise why not."""
    graph = from_proto(model)
    session = open_session(graph, threads=2)

    def runs(feed: Feed) -> bool:
        try:
            session.run(feed)
        except UnsupportedModel:
            return False
        return True

    try:
        calibration = Calibration.from_source(None, graph, limit=2, runs=runs)
    except CalibrationError as error:
        return str(error)
    return "" if all(map(runs, calibration.feeds())) else "a later sample does not run"


def small_models(shared: Path, hydrate: ModuleType) -> Iterator[tuple[str, onnx.ModelProto]]:
    fill = hydrate.load
    for path in sorted((shared / "kit" / "models").glob("*.onnx")):
        yield path.stem, fill(path.stem, folder=path.parent)
    for entry in json.loads((shared / "kit" / "corpus" / "index.json").read_text()):
        if entry["runs"]:
            yield entry["file"], onnx.load(shared / "kit" / "corpus" / entry["file"])


def test_every_model_of_the_kit_and_the_corpus_runs(shared: Path, hydrate: ModuleType) -> None:
    failures = {
        name: reason
        for name, model in small_models(shared, hydrate)
        if (reason := runs_with_synthetic_inputs(model))
    }
    assert failures == {}


@pytest.mark.slow
def test_every_architecture_runs(hydrate: ModuleType) -> None:
    failures = {
        name: reason
        for name in hydrate.names()
        if (reason := runs_with_synthetic_inputs(hydrate.load(name)))
    }
    assert failures == {}
