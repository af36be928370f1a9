"""Single weights of layers so large that inputs come in slices: exact, whatever is left over."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from onnxcomp import kernels
from onnxcomp.kernels import reference_sparse_conv as twin
from onnxcomp.kernels.sparse_conv import Window, pack_conv, sparse_conv

Floats = npt.NDArray[np.float32]


def small_integers(rng: np.random.Generator, *shape: int) -> Floats:
    """Sums of some hundred products stay below 2^24: no order of them rounds."""
    return rng.integers(-8, 9, shape).astype(np.float32)


def sparse_integers(rng: np.random.Generator, *shape: int, density: float) -> Floats:
    return small_integers(rng, *shape) * (rng.random(shape) < density).astype(np.float32)


@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize("tokens", [47, 48, 64, 65, 79, 113, 192])
@pytest.mark.parametrize("outputs", [131, 136])
def test_tokens_of_broad_panels(tokens: int, outputs: int, isa: str) -> None:
    rng = np.random.default_rng(tokens)
    weight = sparse_integers(rng, 300, outputs, density=0.3)
    weight[:, 5] = 0  # an output that nothing feeds
    weight[:200, 6] = 0  # one whose first slices are empty
    weight[100:, 7] = 0
    x, bias = small_integers(rng, tokens, 300), small_integers(rng, outputs)
    packed = kernels.pack(weight, block_size=1)
    np.testing.assert_array_equal(kernels.sparse_matmul(x, packed, isa=isa), x @ weight)
    y = kernels.sparse_matmul(x, packed, bias, isa=isa)
    np.testing.assert_array_equal(y, x @ weight + bias)


@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize(
    ("groups", "outputs", "kernel", "image", "padding"),
    [
        (1, 131, (3, 3), (13, 11), 1),
        (2, 264, (3, 3), (5, 5), 1),
        (1, 40, (1, 1), (8, 8), 0),
        (1, 140, (1, 1), (7, 7), 0),
        (1, 20, (1, 1), (10, 10), 0),
        (3, 60, (3, 3), (9, 30), 0),
    ],
)
@pytest.mark.parametrize("relu", [False, True])
def test_pixels_that_are_copied(
    groups: int,
    outputs: int,
    kernel: tuple[int, int],
    image: tuple[int, int],
    padding: int,
    relu: bool,
    isa: str,
) -> None:
    rng = np.random.default_rng(outputs)
    channels = 300 // (kernel[0] * kernel[1])
    weight = sparse_integers(rng, outputs, channels, *kernel, density=0.35)
    weight[3] = 0
    packed = pack_conv(weight, block_size=1, groups=groups)
    x = small_integers(rng, 2, groups * channels, *image)
    bias = small_integers(rng, outputs)
    window = Window(pads=(padding,) * 4)
    expected = twin.sparse_conv(x, packed, bias, window, relu=relu)
    y = sparse_conv(x, packed, bias, window, relu=relu, isa=isa)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("isa", kernels.available_isas())
def test_numbers_that_are_none_stay_none(isa: str) -> None:
    rng = np.random.default_rng(0)
    weight = sparse_integers(rng, 300, 24, density=0.4)
    weight[[0, 290]] = 1
    x = small_integers(rng, 64, 300)
    x[3, 0], x[40, 290], x[50, 0] = np.nan, -np.inf, np.inf
    y = kernels.sparse_matmul(x, kernels.pack(weight, block_size=1), isa=isa)
    assert np.isnan(y[3]).all()
    assert (y[40] == -np.inf).all()
    assert (y[50] == np.inf).all()
    finite = [token for token in range(64) if token not in (3, 40, 50)]
    np.testing.assert_array_equal(y[finite], x[finite] @ weight)
