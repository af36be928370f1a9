"""A ConvTranspose is the Conv that it is said to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.graph import Names
from onnxcomp.linear_layers import LinearLayer, reason_against
from onnxcomp.runtime import open_session
from onnxcomp.testing import graph_of

EVERYWHERE = 10**6
FORMS: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
    ("kernel_shape = [3, 3]", (4, 3, 3, 3), (5, 6)),
    ("kernel_shape = [4, 2], strides = [2, 3], pads = [1, 0, 1, 1]", (4, 3, 4, 2), (3, 4)),
    ("kernel_shape = [3, 3], strides = [2, 2], output_padding = [1, 1], group = 2", (4, 3, 3, 3),
     (4, 4)),
    ("kernel_shape = [2, 3], dilations = [2, 2], pads = [2, 1, 0, 3], group = 4", (4, 1, 2, 3),
     (5, 5)),
    ("kernel_shape = [1, 1], strides = [2, 2], auto_pad = \"VALID\"", (4, 3, 1, 1), (3, 3)),
    ("kernel_shape = [5], strides = [3], pads = [2, 2]", (4, 2, 5), (7,)),
]  # fmt: skip


def normal(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize(("attributes", "shape", "sizes"), FORMS)
def test_rows_times_weights_are_what_onnxruntime_makes(
    attributes: str, shape: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    groups = int(attributes.split("group = ")[1]) if "group" in attributes else 1
    graph = graph_of(
        f"""net (float[2, 4, {", ".join(map(str, sizes))}] x) => (float[N, C, {
            ", ".join("HWD"[: len(sizes)])
        }] y) {{
            [up] y = ConvTranspose <{attributes}> (x, w, b) }}""",
        w=normal(0, *shape),
        b=normal(1, shape[1] * groups),
    )
    (node,) = graph.nodes
    assert reason_against(node) is None
    layer = LinearLayer.of(node)
    x = normal(2, 2, 4, *sizes)
    made = open_session(graph).run({"x": x})[0]
    rows = layer.inputs(x, EVERYWHERE, [0])
    wanted = layer.outputs(made, EVERYWHERE, [0])
    got = np.einsum("god,sgdn->sgon", layer.weights, rows) + layer.bias[None, :, :, None]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    before = node.inputs[1].values
    layer.write(layer.weights, layer.bias, Names(graph))
    np.testing.assert_array_equal(node.inputs[1].values, before)


def test_padding_that_follows_from_the_output_is_not_followed() -> None:
    graph = graph_of(
        """net (float[1, 4, 3, 3] x) => (float[1, 2, 6, 6] y) {
            [up] y = ConvTranspose <strides = [2, 2], auto_pad = "SAME_UPPER"> (x, w) }""",
        w=normal(0, 4, 2, 3, 3),
    )
    assert reason_against(graph.nodes[0]) == "its padding follows from the size of its output"
