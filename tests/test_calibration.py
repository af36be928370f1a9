"""observe: any tensor, every sample, in chunks, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import parser

from onnxcomp import calibration as module
from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationError, UnsupportedModel
from onnxcomp.importing import from_proto
from onnxcomp.runtime import open_session
from onnxcomp.statistics import Gram, Histogram, MinMax, Moments
from onnxcomp.testing import graph_of


def chain(*, typed: bool = False) -> gs.Graph:
    """x [N, 3] -> a = x * 2 -> b = a - 5 -> c = Relu(b) -> y = Concat(a, c); typed: with shapes."""
    known = "<float[N, 3] a, float[N, 3] b, float[N, 3] c>" if typed else ""
    return from_proto(
        parser.parse_model(
            f"""<ir_version: 8, opset_import: ["" : 17]>
            g (float[N, 3] x) => (float[N, 6] y)
            <float two = {{2}}, float five = {{5}}{", " + known[1:-1] if known else ""}>
            {{ a = Mul(x, two)  b = Sub(a, five)  c = Relu(b)  y = Concat<axis = 1>(a, c) }}"""
        )
    )


ROWS = np.random.default_rng(0).normal(2, 3, (20, 1, 3)).astype(np.float32)
FEEDS = [{"x": row} for row in ROWS]


class Recorder:
    """A statistic that keeps everything, which only a test may."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def update(self, values: np.ndarray) -> None:
        self.seen.append(values.copy())

    def result(self) -> np.ndarray:
        return np.concatenate(self.seen)


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("run_bytes", [1 << 20, 24, 1])
def test_observe_shows_inputs_inner_tensors_and_outputs_sample_by_sample(
    monkeypatch: pytest.MonkeyPatch, typed: bool, run_bytes: int
) -> None:
    monkeypatch.setattr(module, "RUN_BYTES", run_bytes)
    graph = chain(typed=typed)
    taps = {name: Recorder() for name in ("x", "y", "b", "a", "c")}
    Calibration.from_source(FEEDS, graph).observe(graph, taps)
    rows = ROWS[:, 0]
    np.testing.assert_array_equal(taps["x"].result(), rows)
    np.testing.assert_array_equal(taps["a"].result(), rows * 2)
    np.testing.assert_array_equal(taps["b"].result(), rows * 2 - 5)
    np.testing.assert_array_equal(taps["c"].result(), np.maximum(rows * 2 - 5, 0))
    np.testing.assert_array_equal(taps["y"].result()[:, :3], rows * 2)


@pytest.mark.parametrize(("few", "typed"), [(0, False), (8, True)])
def test_chunks_keep_to_the_bytes_of_a_run(
    monkeypatch: pytest.MonkeyPatch, few: int, typed: bool
) -> None:
    """12 bytes each for a, b, c and 24 for y, whether told by shapes or measured."""
    monkeypatch.setattr(module, "RUN_BYTES", 24)
    monkeypatch.setattr(module, "FEW", few)
    opened: list[list[str]] = []

    def opening(graph: gs.Graph, *, extra_outputs: Any = (), **options: Any) -> Any:
        opened.append(list(extra_outputs))
        return open_session(graph, extra_outputs=extra_outputs, **options)

    monkeypatch.setattr(module, "open_session", opening)
    graph = chain(typed=typed)
    taps = {name: Recorder() for name in ("a", "b", "c", "y")}
    Calibration.from_source(FEEDS, graph).observe(graph, taps)
    chunks = [names for names in opened if not names[0].endswith(".shape")]
    assert chunks == [["a", "b"], ["c"], ["y"]]
    assert len(opened) - len(chunks) == (0 if typed else 1)


def test_several_statistics_of_one_tensor_share_the_runs() -> None:
    graph = chain()
    calls: list[tuple[int, int]] = []
    statistics = [MinMax(), MinMax(axis=1), Moments(axis=1), Histogram(), Gram()]
    Calibration.from_source(FEEDS, graph).observe(
        graph, {"b": statistics}, limit=7, advance=lambda done, total: calls.append((done, total))
    )
    assert calls == [(done, 7) for done in range(1, 8)]
    b = ROWS[:7, 0] * 2 - 5
    whole, channels, moments, histogram, gram = (s.result() for s in statistics)  # type: ignore[attr-defined]
    assert (whole.low, whole.high) == (b.min(), b.max())
    np.testing.assert_array_equal(channels.high, b.max(0))
    np.testing.assert_allclose(moments.mean, b.mean(0), rtol=1e-5)
    assert histogram.counts.sum() == 21
    np.testing.assert_allclose(gram.matrix, b.T @ b / 7, rtol=1e-4)


def test_observing_a_changed_graph_shows_the_change() -> None:
    original, changed = chain(), chain()
    calibration = Calibration.from_source(FEEDS, original)
    changed.nodes[0].inputs[1] = gs.Constant("three", np.array(3, np.float32))
    before, after = MinMax(), MinMax()
    calibration.observe(original, {"a": before})
    calibration.observe(changed, {"a": after})
    np.testing.assert_allclose(after.result().high, before.result().high * 1.5, rtol=1e-6)


def test_observing_nothing_runs_nothing() -> None:
    graph = chain()
    calls: list[Any] = []
    Calibration.from_source(FEEDS, graph).observe(
        graph, {}, advance=lambda *args: calls.append(args)
    )
    assert calls == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bb", "cannot observe 'bb': the graph has no such tensor; did you mean 'b'?"),
        ("five", "cannot observe 'five': it is a constant, read its values"),
    ],
)
def test_names_that_cannot_be_observed(name: str, message: str) -> None:
    graph = chain()
    with pytest.raises(CalibrationError) as caught:
        Calibration.from_source(FEEDS, graph).observe(graph, {name: MinMax()})
    assert str(caught.value) == message


def test_a_sequence_cannot_be_observed() -> None:
    graph = from_proto(
        parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[N, 3] x) => (float[N, 3] y)
            { s = SequenceConstruct(x)  y = ConcatFromSequence<axis = 0>(s) }"""
        )
    )
    with pytest.raises(CalibrationError, match="'s': it is not a tensor but a sequence"):
        Calibration.from_source(FEEDS, graph).observe(graph, {"s": MinMax()})


def test_samples_that_the_model_cannot_run_with_say_so() -> None:
    graph = from_proto(
        parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[N, T] x) => (float[N, S] y) <float[4, 2] w = {1, 1, 1, 1, 1, 1, 1, 1}>
            { y = MatMul(x, w) }"""
        )
    )
    with pytest.raises(UnsupportedModel, match="cannot run the model") as caught:
        Calibration.from_source(FEEDS, graph).observe(graph, {"y": MinMax()})
    assert "\n" not in str(caught.value)


MEASURED_RUN = """
import re, sys
from onnx import parser
from onnxcomp.calibration import Calibration
from onnxcomp.importing import from_proto
from onnxcomp.statistics import Gram, Histogram, MinMax, Moments, Window

weights = ", ".join(["0.1"] * 432)
graph = from_proto(parser.parse_model(f'''<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 96, 96] x) => (float[N, 16, 96, 96] y) <float[16, 3, 3, 3] w = {{{weights}}}>
    {{ c = Conv<pads = [1, 1, 1, 1]>(x, w)  y = Relu(c) }}'''))
calibration = Calibration.from_source(sys.argv[1], graph, limit=int(sys.argv[2]))
taps = {
    "x": [MinMax(), Gram(window=Window(kernel=(3, 3), pads=(1, 1, 1, 1)))],
    "c": [Histogram(), Moments(axis=1), Gram(axis=1)],
    "y": [Histogram(), MinMax(axis=1)],
}
calibration.observe(graph, taps)
assert taps["c"][2].result().count == int(sys.argv[2]) * 96 * 96
print(re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """8 samples against 512: all values of the 512 would take 690 MB, their inputs alone 57 MB.

    The peak is VmHWM: ru_maxrss of a child starts at what its parent occupied.
    """
    samples = np.random.default_rng(0).integers(0, 64, (512, 3, 96, 96)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples)
    (tmp_path / "run.py").write_text(MEASURED_RUN)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "samples.npz")]
    few, many = (
        int(subprocess.run([*command, count], check=True, capture_output=True, text=True).stdout)
        for count in ("8", "512")
    )
    assert many / few < 1.2


# --- holding samples back ---------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["counted", "not counted"])
@pytest.mark.parametrize(
    ("count", "limit", "held"),
    [(16, None, 4), (19, None, 4), (20, None, 5), (100, 32, 8), (300, None, 64), (15, None, None)],
)
def test_one_sample_in_four_is_held_back(
    count: int, limit: int | None, held: int | None, known: bool
) -> None:
    graph = graph_of("g (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }")
    feeds = [{"x": np.full((1, 2), index, np.float32)} for index in range(count)]
    source = feeds if known else _Again(feeds)
    whole = Calibration.from_source(source, graph, limit=limit)
    used, judging = whole.split()
    if held is None:
        assert used is judging is whole
        return
    mine, theirs = ([int(f["x"][0, 0]) for f in part.feeds()] for part in (used, judging))
    assert theirs == [4 * index + 3 for index in range(held)]
    assert sorted(mine + theirs) == list(range(limit or count))
    assert (len(used), len(judging)) == (len(mine), held)
    assert used.description.startswith(f"{len(mine)} samples of a list")
    assert [f["x"][0, 0] for f in judging.feeds(2)] == [3, 7], "from the start at every call"


def test_made_up_samples_are_not_shared_out() -> None:
    graph = graph_of("g (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }")
    whole = Calibration.from_source(None, graph, limit=40)
    assert whole.split() == (whole, whole)


class _Again:
    """A list that does not tell its length."""

    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self.feeds = feeds

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(list(self.feeds))
