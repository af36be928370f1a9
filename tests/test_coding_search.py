"""Targets of `pack`: measured on what the written container gives back."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from onnxcomp.calibration import Calibration
from onnxcomp.cli import main
from onnxcomp.coded_constants import shrunk
from onnxcomp.coding_plan import CodingPlan
from onnxcomp.coding_search import Quality, Quantized, pack_quantized, quantize_for_coding
from onnxcomp.container_contents import Contents, contents
from onnxcomp.container_reader import ContainerReader
from onnxcomp.container_unpacking import unpack, verify
from onnxcomp.errors import OnnxcompError
from onnxcomp.kernels.coding import encode
from onnxcomp.testing import graph_of, model_of

NET = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[1,4,12,12] x) => (float[1,96] y) {
    a = Conv<pads = [1,1,1,1]>(x, w1, b1)
    b = Relu(a)
    c = Conv<pads = [1,1,1,1], group = 4>(b, w2)
    d = Relu(c)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    y = Gemm(f, w3, b3)
}
"""


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def net() -> onnx.ModelProto:
    return model_of(
        NET,
        w1=normal(1, 32, 4, 3, 3) * 0.3,
        b1=normal(2, 32) * 0.1,
        w2=normal(3, 64, 8, 3, 3) * 0.1,
        w3=normal(4, 64, 96) * 0.2,
        b3=normal(5, 96),
    )


def images(seed: int, count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {"x": (rng.standard_normal((1, 4, 12, 12)) + rng.standard_normal((1, 4, 1, 1))).astype("f")}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(net(), path)
    return path


def packed(model: Path, name: str, **quality: Any) -> tuple[Path, Contents, Quantized]:
    target = model.with_name(name)
    found, quantized = pack_quantized(
        model, target, Quality(**quality), calibration=images(0, 32), threads=1
    )
    return target, found, quantized


def sqnr(model: Path, container: Path, feeds: list[dict[str, np.ndarray]]) -> float:
    other = container.with_suffix(".back.onnx")
    unpack(container, other)
    sessions = [ort.InferenceSession(path) for path in (model, other)]
    pairs = [[s.run(None, feed)[0].astype(np.float64) for s in sessions] for feed in feeds]
    signal = sum((a**2).sum() for a, _ in pairs)
    return float(10 * np.log10(signal / sum(((a - b) ** 2).sum() for a, b in pairs)))


@pytest.mark.parametrize("wanted", [18.0, 30.0])
def test_the_sqnr_asked_for_is_that_of_the_unpacked_model(model: Path, wanted: float) -> None:
    container, _, quantized = packed(model, f"sqnr{wanted}.oxc", min_sqnr_db=wanted)
    held = images(0, 32)[3::4]
    found = sqnr(model, container, held)
    assert found == pytest.approx(quantized.sqnr_db, abs=0.01)
    assert wanted <= found < wanted + 1.0
    assert sqnr(model, container, images(7, 16)) > wanted - 3
    assert verify(container) > 0


def test_better_quality_takes_more_bits(model: Path) -> None:
    found = [packed(model, "grow.oxc", min_sqnr_db=db)[1:] for db in (15.0, 22.0, 29.0)]
    assert all(a.bytes < b.bytes for (a, _), (b, _) in itertools.pairwise(found))
    # each 6.02 dB takes a bit a weight, less where zeros are many
    bits = [quantized.bits_per_weight for _, quantized in found]
    assert 0.6 < bits[2] - bits[1] < 1.5


@pytest.mark.parametrize("size", [4000, 6000])
def test_the_container_has_at_most_the_bytes_asked_for(model: Path, size: int) -> None:
    container, found, _ = packed(model, "size.oxc", target_bytes=size)
    assert 0.97 * size < container.stat().st_size == found.bytes <= size


def test_bits_are_those_of_the_payloads(model: Path) -> None:
    _, found, quantized = packed(model, "bits.oxc", bits=4.0)
    assert 3.9 < quantized.bits_per_weight <= 4.0
    grids = [tensor for tensor in found.tensors if tensor.representation.startswith("grid")]
    assert len(grids) == len(quantized.codes) == 4
    for tensor in grids:
        codes = quantized.codes[tensor.name].codes
        rows, columns = (1, codes.size) if codes.ndim == 1 else codes.shape[:2]
        assert tensor.packed_bytes == len(encode(codes.reshape(rows, columns, -1)))


def test_the_same_input_gives_the_same_bytes(model: Path) -> None:
    first, _, _ = packed(model, "a.oxc", bits=3.0)
    second, _, _ = packed(model, "b.oxc", bits=3.0)
    assert first.read_bytes() == second.read_bytes()


def test_points_lost_stay_within_what_an_evaluator_allows(model: Path) -> None:
    feeds = images(3, 8)
    wanted = [ort.InferenceSession(model).run(None, feed)[0] for feed in feeds]

    def points(session: ort.InferenceSession) -> float:
        pairs = zip(feeds, wanted, strict=True)
        error = sum(float(((session.run(None, feed)[0] - y) ** 2).sum()) for feed, y in pairs)
        return 100 - error

    quantized = quantize_for_coding(
        model, Quality(max_drop=0.5), calibration=images(0, 32), evaluator=points
    )
    assert quantized.points_lost is not None
    assert 0.4 < quantized.points_lost <= 0.5


def test_errors_are_what_each_tensor_alone_does_to_the_outputs(model: Path) -> None:
    container, found, quantized = packed(model, "errors.oxc", min_sqnr_db=20.0)
    with ContainerReader(container) as reader:
        told = {t.name: t.error_db for t in contents(reader).tensors}
    assert told == {tensor.name: tensor.error_db for tensor in found.tensors}
    for name, coded in quantized.codes.items():
        if name not in told:
            continue  # too small for a place in the directory
        proto = onnx.load(model)
        (weight,) = [t for t in proto.graph.initializer if t.name == name]
        weight.CopyFrom(numpy_helper.from_array(coded.values, name))
        onnx.save(proto, model.with_name("one.onnx"))
        sessions = [ort.InferenceSession(p) for p in (model, model.with_name("one.onnx"))]
        pairs = [[s.run(None, f)[0] for s in sessions] for f in images(0, 32)[3::4]]
        share = sum(((a - b) ** 2).sum() for a, b in pairs) / sum((a**2).sum() for a, _ in pairs)
        assert told[name] == pytest.approx(10 * np.log10(share), abs=0.02)
    together = sum(10 ** (error_db / 10) for error_db in told.values() if error_db is not None)
    assert found.error_db == pytest.approx(10 * np.log10(together), abs=0.01)
    assert found.error_db == pytest.approx(-quantized.sqnr_db, abs=1.5)


def test_steps_go_by_what_errors_do_to_the_outputs() -> None:
    """y = A x + 10 B x: equal weights, but errors of B count a hundredfold."""
    graph = graph_of(
        """
        <ir_version: 8, opset_import: ["" : 13]>
        two (float[1,32] x) => (float[1,48] y) {
            a = MatMul(x, wa)
            b = MatMul(x, wb)
            c = Mul(b, ten)
            y = Add(a, c)
        }
        """,
        wa=normal(1, 32, 48),
        wb=normal(2, 32, 48),
        ten=np.float32(10),
    )
    feeds = [{"x": normal(seed, 1, 32)} for seed in range(64)]
    plan = CodingPlan(graph, Calibration.from_source(feeds, graph))
    noise = {weight.name: weight.noise for weight in plan.weights}
    assert noise["wb"] / noise["wa"] == pytest.approx(100, rel=0.3)
    codes = plan.at(plan.level_for(30.0))
    assert float(codes["wa"].scales[0] / codes["wb"].scales[0]) == pytest.approx(10, rel=0.15)
    shares = plan.noise.shares({name: coded.values for name, coded in codes.items()})
    assert -10 * np.log10(shares[0]) == pytest.approx(30.0, abs=1.0)  # errors add up


def test_few_samples_are_not_trusted_about_products() -> None:
    """32 rows of 64 inputs: what their Gram matrix says of others' errors is made up."""
    graph = graph_of(
        """
        <ir_version: 8, opset_import: ["" : 13]>
        one (float[1,64] x) => (float[1,40] y) { y = MatMul(x, w) }
        """,
        w=normal(1, 64, 40),
    )
    feeds = [{"x": normal(seed, 1, 64)} for seed in range(32)]
    plan = CodingPlan(graph, Calibration.from_source(feeds, graph))
    (weight,) = plan.weights
    assert weight.gram is not None
    inside = np.abs(weight.gram[~np.eye(64, dtype=bool)]).mean()
    seen = np.mean([feed["x"].T @ feed["x"] for feed in feeds], axis=0)
    assert inside < 0.75 * np.abs(seen[~np.eye(64, dtype=bool)]).mean()
    np.testing.assert_allclose(np.diag(weight.gram), np.diag(seen), rtol=1e-4)


def test_shrinking_scales_what_is_off_the_diagonal() -> None:
    gram = np.asarray([[[2.0, 1.0], [1.0, 4.0]]])
    np.testing.assert_allclose(shrunk(gram, 0.25), [[[2.0, 0.75], [0.75, 4.0]]])


@pytest.mark.parametrize(
    ("given", "message"),
    [({}, "not 0"), ({"bits": 3.0, "max_drop": 1.0}, "not 2"), ({"bits": -1.0}, "positive")],
)
def test_targets_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OnnxcompError, match=message):
        Quality(**given)


def test_the_command_takes_one_target(model: Path) -> None:
    run = CliRunner().invoke(main, ["pack", str(model), "--bits", "3", "--lossless"])
    assert run.exit_code == 2
    assert "one of --bits" in run.output
    target = model.with_name("command.oxc")
    run = CliRunner().invoke(main, ["pack", str(model), "--bits", "3", "-o", str(target)])
    assert run.exit_code == 0
    assert "made-up samples" in run.output
    assert "nearest codes: w1, w2, w3: no samples were given" in run.output
    assert "bits a weight" in run.output
    assert verify(target) > 0


def test_what_a_trellis_gave_is_what_is_unpacked(model: Path) -> None:
    """In two of three weights: w2 has groups of channels, where it does not apply."""
    target, found, quantized = packed(model, "t.oxc", min_sqnr_db=25.0, trellis=True)
    kinds = {tensor.name: tensor.representation.split(",")[0] for tensor in found.tensors}
    assert [kinds[name] for name in ("w1", "w2", "w3")] == ["trellis", "grid", "trellis"]
    assert 25.0 <= quantized.sqnr_db < 26.0
    held = images(0, 32)[3::4]
    assert sqnr(model, target, held) == pytest.approx(quantized.sqnr_db, abs=0.01)
    assert verify(target) > 0


def test_the_command_takes_a_trellis(model: Path) -> None:
    target = model.with_name("trellis.oxc")
    arguments = ["pack", str(model), "--bits", "4", "--trellis", "-o", str(target)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    with ContainerReader(target) as reader:
        assert any("trellis" in tensor.representation for tensor in contents(reader).tensors)
    run = CliRunner().invoke(main, ["pack", str(model), "--lossless", "--trellis"])
    assert run.exit_code == 2
    assert "--trellis is a way to quantize" in run.output


def test_made_up_samples_are_not_trusted(model: Path) -> None:
    """Without samples errors of weights count as if they reached the outputs undiminished."""
    target = model.with_name("free.oxc")
    _, quantized = pack_quantized(model, target, Quality(min_sqnr_db=20.0))
    assert quantized.synthetic
    assert sqnr(model, target, images(9, 16)) > 20.0
