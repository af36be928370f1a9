"""Integers that are cheap to code: against brute force, and as a container gives them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from output_losses import loss

from onnxcomp.coding_quantizer import CodedWeight, quantize_weight
from onnxcomp.coding_trellis import Trellis, cheapest, prices_of, trellis_integers
from onnxcomp.container_packing import pack
from onnxcomp.container_reader import ContainerReader
from onnxcomp.container_unpacking import unpack
from onnxcomp.kernels import trellis_reference
from onnxcomp.kernels.coding import encode
from onnxcomp.rounding import gptq
from onnxcomp.weight_sites import Layout


def laplace(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).laplace(0, 1, shape).astype(np.float32)


def gram_of(seed: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((width, 4 * width)) + rng.standard_normal((width, 1))
    return np.asarray(basis @ basis.T / (4 * width))


def entropy(values: np.ndarray) -> float:
    shares = np.unique(values, return_counts=True)[1] / values.size
    return float(-(shares * np.log2(shares)).sum())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 1), st.sampled_from([0.3, 1.0, 5.0]))
def test_no_integer_near_by_is_cheaper(seed: int, rate_weight: float, spread: float) -> None:
    targets = np.random.default_rng(seed).normal(0, spread, 200)
    prices = prices_of(np.rint(targets), rate_weight).astype(np.float64)

    def cost(integers: np.ndarray) -> np.ndarray:
        price = prices[np.minimum(np.abs(integers), len(prices) - 1).astype(int)]
        return np.asarray((targets - integers) ** 2 + price)

    found = cheapest(targets, prices)
    assert (found == np.rint(found)).all()
    others = [np.sign(targets) * np.maximum(np.rint(np.abs(targets)) + i, 0) for i in (-1, 0)]
    for other in [*others, np.zeros(200)]:
        assert (cost(found) <= cost(other) + 1e-12).all()


def test_prices_are_bits_of_codes_with_their_signs() -> None:
    codes = np.repeat([0, 1, -1, 2], [500, 200, 200, 100])
    prices = prices_of(codes, 0.5)
    wanted = [1.0, -np.log2(0.2), 1 - np.log2(0.1)]  # a half, two fifths with a sign, a tenth
    np.testing.assert_allclose(prices[:3], np.multiply(0.5, wanted), atol=0.004)
    assert len(prices) == 4
    assert prices[3] > prices[2] + 1


@pytest.mark.parametrize(("step", "saved"), [(3.6, 0.03), (2.6, 0.02), (1.8, 0.005)])
def test_cheap_codes_take_fewer_bits_for_the_same_error(step: float, saved: float) -> None:
    """Against codes of a step that gives the same error, both with the scale of least squares."""
    weights, gram = laplace(0, 400, 60).astype(np.float64), gram_of(1, 60)
    layout = Layout((400, 60), (0, 1), 1)

    def error(codes: np.ndarray) -> float:
        whole, part = np.sum((weights @ gram) * weights), np.sum((weights @ gram) * codes)
        return float(whole - part**2 / np.sum((codes @ gram) * codes))

    cheap = quantize_weight(weights.astype(np.float32), layout, gram, step).codes
    low, high = step / 2, 2 * step
    for _ in range(20):
        middle = (low + high) / 2
        nearest = gptq(weights, gram, middle, 0, -(2**20), 2**20)
        low, high = (middle, high) if error(nearest) < error(cheap) else (low, middle)
    assert entropy(cheap) < entropy(nearest) * (1 - saved)


@pytest.mark.parametrize("known", [True, False])
def test_a_trellis_takes_fewer_bytes_for_a_smaller_error(known: bool) -> None:
    weights, gram = laplace(2, 512, 48), gram_of(3, 48) if known else np.eye(48)
    layout = Layout((512, 48), (0, 1), 1)
    given_ = gram if known else None
    plain = quantize_weight(weights, layout, given_, 0.5)
    coded = quantize_weight(weights, layout, given_, 0.5 * 0.96, trellis=True)
    assert (plain.along, coded.along) == (None, 0)
    assert loss(weights - coded.values, gram) < loss(weights - plain.values, gram)
    sizes = [len(encode(each.codes.reshape(512, 48, 1))) for each in (plain, coded)]
    assert sizes[1] < 0.98 * sizes[0]


@pytest.mark.parametrize(
    ("shape", "order", "along"),
    [
        ((64, 5, 3, 3), (0, 1, 2, 3), 0),  # Conv
        ((30, 64), (1, 0), 1),  # MatMul
        ((5, 40, 3), (1, 0, 2), 1),  # ConvTranspose
        ((1400, 800), (0, 1), 0),  # two chunks
        ((1400, 800), (1, 0), 1),
    ],
)
def test_values_are_those_that_a_container_gives_back(
    shape: tuple[int, ...], order: tuple[int, ...], along: int, tmp_path: Path
) -> None:
    weights, layout = laplace(4, *shape), Layout(shape, order, 1)
    coded = quantize_weight(weights, layout, None, 0.4, trellis=True)
    assert coded.along == along
    mean_square = np.mean((weights - coded.values) ** 2)
    assert mean_square < 1.2 * 0.4**2 / 12  # so decoder and search agree on every state
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", 1, shape)],
        [numpy_helper.from_array(coded.values, "w")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    found = pack(tmp_path / "m.onnx", tmp_path / "m.oxc", grids={"w": coded}, prefer="speed")
    assert [tensor.representation for tensor in found.tensors] == ["trellis, 1 scale"]
    unpack(tmp_path / "m.oxc", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    with ContainerReader(tmp_path / "m.oxc") as reader:
        assert reader.read(0).tobytes() == coded.values.tobytes()


def test_rows_of_a_table_keep_their_steps() -> None:
    table, multiples = laplace(5, 40, 30), np.where(np.arange(40) % 2, 2.0, 1.0)
    layout = Layout((40, 30), (0, 1), 1)
    coded = quantize_weight(table, layout, None, 0.2, multiples=multiples, trellis=True)
    assert (coded.axis, coded.along) == (0, 0)
    np.testing.assert_array_equal(coded.scales / coded.scales[0], multiples)
    squares = np.mean((table - coded.values) ** 2, axis=1)
    assert squares[1::2].mean() == pytest.approx(4 * squares[::2].mean(), rel=0.25)


def test_sequences_start_again_with_each_chunk() -> None:
    codes = np.random.default_rng(6).integers(-3, 4, (1400, 800)).astype(np.int32)
    rows = 2**20 // 800
    found = trellis_integers(codes, 0)
    for part in (slice(rows), slice(rows, None)):
        wanted = trellis_reference.restore(codes[None, part])
        np.testing.assert_array_equal(found[part], wanted[0])
    np.testing.assert_array_equal(
        trellis_integers(codes, 1), trellis_reference.restore(codes[:, :, None])[:, :, 0]
    )
    assert Trellis.of(Layout((1400, 800), (0, 1), 1)) == Trellis(0, rows)
    assert Trellis.of(Layout((1400, 800), (1, 0), 1)) == Trellis(1, 800)


def test_weights_without_sequences_stay_as_they_are() -> None:
    """Rows of two axes, few rows, groups, rows beyond a chunk, and rates where zeros rule."""
    assert Trellis.of(Layout((2, 20, 30), (0, 1, 2), 2)) is None
    assert Trellis.of(Layout((1, 20, 30), (0, 1, 2), 2)) == Trellis(1, 20)
    assert Trellis.of(Layout((7, 30), (0, 1), 1)) is None
    assert Trellis.of(Layout((8, 2**17 + 1), (1, 0), 1)) == Trellis(1, 2**17 + 1)
    assert Trellis.of(Layout((8, 2**20 + 1), (1, 0), 1)) is None
    kernel, grams = laplace(7, 16, 2, 3, 3), np.stack([gram_of(8, 18)] * 2)
    layout = Layout(kernel.shape, (0, 1, 2, 3), 1)
    assert quantize_weight(kernel, layout, grams, 0.3, trellis=True).along is None
    coarse = quantize_weight(kernel, layout, None, 6.0, trellis=True)
    assert coarse.along is None
    np.testing.assert_array_equal(coarse.codes, quantize_weight(kernel, layout, None, 6.0).codes)


def test_integers_are_multiplied_not_codes() -> None:
    codes = np.asarray([[1, 5], [2, -3], [3, 1], [-1, 2]], np.int32)
    coded = CodedWeight(codes, np.asarray([0.1], np.float32), along=0)
    integers = trellis_reference.restore(codes[None])[0]
    assert (integers != 2 * codes).any()
    np.testing.assert_array_equal(coded.values, integers.astype(np.float32) * np.float32(0.1))
