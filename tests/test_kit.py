"""The default recipe on real models, judged from outside by numpy and the kit's own scores."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from onnxcomp import Recipe, compare, optimize

SAMPLES = {"yolox_nano": 32, "cifar10_resnet20": 200, "cifar10_resnet56": 200}  # others: 100
EVALUATED = {"yolox_nano": 48, "minilm_l6_v2": 300, "dtln_1": 3, "dtln_2": 3}  # others: 500
# points of the kit's own score on those samples; noise of the score included
LARGEST_DROP = {"yolox_nano": 1.0, "minilm_l6_v2": 0.6, "dtln_1": 0.3, "dtln_2": 0.3}  # others: 1.5
KITS = [
    "CNV_1W1A_cifar10",
    "TFC_1W1A",
    "cifar10_resnet20",
    "cifar10_resnet56",
    "dtln_1",
    "dtln_2",
    "minilm_l6_v2",
    "mobilenet_v1_075",
    "mobilenet_v2_100_deq",
    "silero_vad_16k_op15",
    "squeezenet11_fp32",
    "tiny_resnet8_cifar10",
    "yolox_nano",
]
SHRINKS = {  # bytes at most this share of the input: INT8 was found to pay here
    "cifar10_resnet20": 0.32,
    "cifar10_resnet56": 0.32,
    "minilm_l6_v2": 0.30,
    "mobilenet_v1_075": 0.30,
    "mobilenet_v2_100_deq": 0.30,
    "squeezenet11_fp32": 0.30,
}


@pytest.fixture
def source(kit: ModuleType, name: str, request: pytest.FixtureRequest) -> Path:
    """The fp32 model of the kit called ``name``."""
    if name == "minilm_l6_v2":
        return Path(request.getfixturevalue("minilm"))
    return Path(kit.model_path(name))


def signature(session: ort.InferenceSession) -> list[Any]:
    both = (*session.get_inputs(), *session.get_outputs())
    return [(value.name, value.type, value.shape) for value in both]


def worst_sqnr_db(original: Any, result: Any, feeds: list[Any]) -> float:
    """The plain definition, all samples at once, of the worst output."""
    pairs = [(original.run(None, feed), result.run(None, feed)) for feed in feeds]
    found = []
    for index in range(len(pairs[0][0])):
        a = np.concatenate([x[index].ravel().astype(np.float64) for x, _ in pairs])
        b = np.concatenate([y[index].ravel().astype(np.float64) for _, y in pairs])
        noise = ((a - b) ** 2).sum()
        found.append(10 * np.log10((a**2).sum() / noise) if noise else np.inf)
    return float(min(found))


@pytest.mark.parametrize("name", KITS)
def test_default_recipe_is_faithful_small_and_honest(
    kit: ModuleType, name: str, source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "optimized.onnx"
    feeds = kit.calibration(name, SAMPLES.get(name, 100))

    report = optimize(source, calibration=feeds, output=output).report

    assert report.after.bytes == output.stat().st_size
    assert report.before.bytes == source.stat().st_size
    assert report.after.bytes <= SHRINKS.get(name, 1.0) * report.before.bytes
    sessions = [ort.InferenceSession(str(path)) for path in (source, output)]
    assert signature(sessions[0]) == signature(sessions[1])
    if report.fidelity is None:  # nothing was kept
        assert output.read_bytes() == source.read_bytes()
        return
    held_back = feeds[3::4] if len(feeds) >= 16 else feeds
    measured = worst_sqnr_db(*sessions, held_back[: report.fidelity.samples])
    assert (
        report.fidelity.sqnr_db == pytest.approx(measured, abs=1.0)
        or min(report.fidelity.sqnr_db, measured) > 60
    )  # threads round differently
    limit = EVALUATED.get(name, 500)
    scores = [kit.evaluate(str(path), name, limit)["value"] for path in (source, output)]
    assert scores[0] - scores[1] <= LARGEST_DROP.get(name, 1.5)


@pytest.mark.parametrize("name", ["minilm_l6_v2", "yolox_nano"])
def test_gate_tells_a_collapse_from_a_faithful_result(
    kit: ModuleType, name: str, source: Path, tmp_path: Path
) -> None:
    """onnxruntime's own quantizer collapses on these two; the default gate has to notice."""
    feeds = kit.calibration(name, 16)
    simple, collapsed = tmp_path / "simple.onnx", tmp_path / "collapsed.onnx"
    optimize(source, "simplify", calibration=feeds, output=simple, verify="off")
    quantize_static(
        simple,
        collapsed,
        Feeds(feeds),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )

    gate = Recipe.load("default").gates.min_sqnr_db
    ours = optimize(source, calibration=feeds).report.fidelity

    assert gate is not None
    assert ours is not None
    assert compare(source, collapsed, calibration=feeds).fidelity.sqnr_db < gate
    assert ours.sqnr_db >= gate


class Feeds(CalibrationDataReader):  # type: ignore[misc]
    """Samples as onnxruntime's quantizer wants them."""

    def __init__(self, feeds: list[Any]) -> None:
        self.left = iter(feeds)

    def get_next(self) -> Any:
        return next(self.left, None)
