"""What is reordered around a float convolution that is alone."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp import blocked_channels, kernels
from onnxcomp.blocked_channels import reorders

FEATURES = kernels.cpu_features()


@pytest.mark.skipif(not FEATURES["avx2"], reason="no blocks of channels here")
def test_reorders_take_the_images_and_give_them_back() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 32, 5, 6)).astype(np.float32)
    y = np.zeros((2, 20, 5, 6), np.float32)
    (back, blocks), (there, images) = reorders((20, 32, 3, 3), 1, x, y, threads=1)
    assert images["x"] is x
    size = 16 if FEATURES["avx512f"] else 8
    (moved,) = there.run(images)
    expected = x.reshape(2, 32 // size, size, 5, 6).transpose(0, 1, 3, 4, 2)
    np.testing.assert_array_equal(moved.reshape(-1), expected.reshape(-1))
    (given,) = back.run(blocks)
    assert given.shape == y.shape


@pytest.mark.parametrize(
    ("weight", "group", "count"),
    [
        ((20, 3, 3, 3), 1, 1),  # few channels are read as they are
        ((20, 32, 3, 3), 1, 2),
        ((20, 34, 3, 3), 1, 0),
        ((32, 16, 3, 3), 2, 2),
        ((20, 16, 3, 3), 2, 0),
    ],
)
def test_only_some_convolutions_take_blocks(
    weight: tuple[int, ...], group: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr(blocked_channels, "_open", lambda op, *_: opened.append(op))
    monkeypatch.setattr(blocked_channels, "cpu_features", lambda: {"avx512f": True, "avx2": True})
    x = np.zeros((1, weight[1] * group, 4, 4), np.float32)
    y = np.zeros((1, weight[0], 4, 4), np.float32)
    assert len(reorders(weight, group, x, y, threads=1)) == count
    assert opened == ["ReorderOutput", "ReorderInput"][:count]


def test_processors_without_blocks_reorder_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked_channels, "cpu_features", lambda: {"avx512f": False, "avx2": False})
    x = np.zeros((1, 16, 4, 4), np.float32)
    assert reorders((16, 16, 3, 3), 1, x, x, threads=1) == []
