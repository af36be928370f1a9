"""Layers are timed by onnxruntime itself; only orders of wide margins are asserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.errors import OnnxcompError, UnsupportedModel
from onnxcomp.layer_latency import BLOCK_PROBE, Layer, LayerLatency, cache_folder
from onnxcomp.resources import Resource, Size, Table

LARGE: tuple[str, dict[str, Any], Any] = (
    "Conv",
    {"pads": [1] * 4},
    [(1, 64, 24, 24), (64, 64, 3, 3)],
)
SMALL: tuple[str, dict[str, Any], Any] = (
    "Conv",
    {"pads": [1] * 4},
    [(1, 16, 24, 24), (16, 16, 3, 3)],
)


def matmul(inner: int, outer: int) -> Layer:
    return Layer(op="MatMul", attributes={}, shapes=((1, 8, inner), (inner, outer)))


def only_file(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def known(folder: Path, times: dict[str, float]) -> LayerLatency:
    """Latencies that a file tells."""
    latency = LayerLatency(folder=folder)
    latency.measure([matmul(1, 1)])
    path = only_file(folder)
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["milliseconds"] |= times
    path.write_text(json.dumps(stored), encoding="utf-8")
    return LayerLatency(folder=folder)


def test_larger_layers_take_longer(tmp_path: Path) -> None:
    latency = LayerLatency(folder=tmp_path)
    assert latency.milliseconds(*LARGE) > 2 * latency.milliseconds(*SMALL) > 0
    large, small = latency.measure([matmul(1024, 1024), matmul(64, 64)])
    assert large > 2 * small


@pytest.mark.parametrize(
    ("op", "attributes", "shapes", "fed"),
    [
        ("Gemm", {"transB": 1, "alpha": 0.5}, [(2, 8), (4, 8), (4,)], (0,)),
        ("Conv", {"group": 8, "auto_pad": "SAME_UPPER"}, [(1, 8, 5, 5), (8, 1, 3, 3), (8,)], (0,)),
        ("Conv", {"strides": np.asarray([2])}, [(1, 4, 9), (6, 4, 3)], (0,)),
        ("MatMul", {}, [(3, 4), (4, 5)], (1,)),
        ("MatMul", {}, [(1, 2, 6, 4), (1, 2, 4, 6)], (0, 1)),
    ],
)
def test_layers_of_all_kinds_run(
    tmp_path: Path, op: str, attributes: Any, shapes: Any, fed: Any
) -> None:
    latency = LayerLatency(folder=tmp_path, threads=2)
    assert 0 < latency.milliseconds(op, attributes, shapes, fed) < 1000


def test_times_come_back_from_the_file(tmp_path: Path) -> None:
    first = LayerLatency(folder=tmp_path).milliseconds(*SMALL)
    assert LayerLatency(folder=tmp_path).milliseconds(*SMALL) == first
    key = Layer(op=SMALL[0], attributes=SMALL[1], shapes=tuple(SMALL[2])).key
    stored = json.loads(only_file(tmp_path).read_text(encoding="utf-8"))
    assert stored["milliseconds"][key] == first
    assert known(tmp_path, {key: 123.0}).milliseconds(*SMALL) == 123
    again = LayerLatency(folder=tmp_path, threads=2)
    assert again.milliseconds(*SMALL) != 123  # another number of threads


def test_two_writers_keep_each_others_times(tmp_path: Path) -> None:
    one, other = LayerLatency(folder=tmp_path), LayerLatency(folder=tmp_path)
    one.measure([matmul(1, 1)])
    other.measure([matmul(2, 2)])
    one.measure([matmul(3, 3)])
    stored = json.loads(only_file(tmp_path).read_text(encoding="utf-8"))["milliseconds"]
    assert set(stored) == {matmul(n, n).key for n in (1, 2, 3)}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "\x00",
        lambda text: text.replace('"cpu"', '"other"'),
        lambda text: json.dumps(json.loads(text) | {"milliseconds": {"x": "fast"}}),
        lambda text: json.dumps(json.loads(text) | {"milliseconds": [1.0]}),
        lambda text: json.dumps(json.loads(text) | {"milliseconds": {matmul(2, 2).key: -1.0}}),
    ],
)
def test_a_damaged_file_is_measured_anew(tmp_path: Path, damage: Any) -> None:
    LayerLatency(folder=tmp_path).measure([matmul(2, 2)])
    path = only_file(tmp_path)
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    (found,) = LayerLatency(folder=tmp_path).measure([matmul(2, 2)])
    assert found > 0
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["milliseconds"] == {matmul(2, 2).key: found}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    assert LayerLatency(folder=blocked / "cache").measure([matmul(2, 2)])[0] > 0


def test_the_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "onnxcomp"
    LayerLatency().measure([matmul(2, 2)])
    assert only_file(tmp_path / "onnxcomp").suffix == ".json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "onnxcomp"


def test_a_key_depends_on_all_of_a_layer_and_on_nothing_else() -> None:
    def key(**other: Any) -> str:
        given = {"op": "Conv", "attributes": {"group": 1, "pads": [0, 0]}, "shapes": ((1, 2),)}
        return Layer(**given | other).key

    assert key(attributes={"pads": np.zeros(2, np.int64), "group": np.int64(1)}) == key()
    others = [{"op": "Gemm"}, {"attributes": {}}, {"shapes": ((2, 2),)}, {"fed": (0, 1)}]
    assert len({key(), *(key(**other) for other in others)}) == 5
    with pytest.raises(OnnxcompError, match="object"):
        key(attributes={"value": object()})


def test_a_layer_that_does_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"MatMul of \(\(2, 3\), \(4, 5\)\)"):
        LayerLatency(folder=tmp_path).milliseconds("MatMul", {}, [(2, 3), (4, 5)])


def test_a_curve_is_measured_at_multiples_and_read_between(tmp_path: Path) -> None:
    times = {matmul(8, n).key: float(n) for n in (16, 48, 80, 100)}
    sizes, values = known(tmp_path, times).curve(lambda n: matmul(8, n), 100, multiple=16, points=4)
    assert sizes.tolist() == [16, 48, 80, 112]  # 7 blocks of 16, the last of which is not full
    assert values.tolist() == [16, 48, 80, 100]
    assert np.interp(64, sizes, values) == 64


def test_a_grid_is_the_table_of_a_resource(tmp_path: Path) -> None:
    times = {matmul(a, b).key: float(a * b) for a in (8, 16, 24) for b in (3,)}
    knots, values = known(tmp_path, times).grid(matmul, (24, 3), multiple=8, points=4)
    assert [at.tolist() for at in knots] == [[8, 16, 24], [8]]
    sizes = (Size(parts={"hidden": 24.0}), Size(parts={}, constant=3.0))
    table = Table(sizes=sizes, knots=knots, values=values, step=8)
    resource = Resource(terms=(table,), unit="ms")
    assert resource.value() == 24 * 3
    assert resource.value({"hidden": 9 / 24}) == 16 * 3  # rounded up to a block


@pytest.mark.parametrize(("middle", "block"), [(1.95, 16), (1.5, 8)])
def test_the_block_is_where_time_steps(tmp_path: Path, middle: float, block: int) -> None:
    one, half, two = (layer.key for layer in BLOCK_PROBE)
    assert known(tmp_path, {one: 1.0, half: middle, two: 2.0}).block == block
