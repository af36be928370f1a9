"""Made-up images in the range of values that a network was trained on, as its weights tell.

Without samples nothing says whether pixels go in as 0..255 or normalized. The weights do: a
BatchNormalization holds the mean and variance of what it read in training, and where it was folded
into the layer before, channels should neither be constant nor lie all on one side of zero, as they
do when biases outweigh an input that is too small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.dead_leaves import dead_leaves
from onnxcomp.errors import UnsupportedModel
from onnxcomp.graph import consumers, is_constant, producer
from onnxcomp.runtime import Session, open_session
from onnxcomp.signature import Array, Signature
from onnxcomp.statistics import Moments

SAMPLES = 32
SMALLEST_SIDE = 8
MOST_LAYERS = 48  # whose statistics are compared, evenly spread over the network
MOST_VALUES = 1 << 14  # of a tensor in one image
TRIALS = 4  # images in each range
MIDDLE, HARSHER = np.float32(0.45), 1.4  # contrast of every other image, see `Images`
KEPT_BYTES = 64 << 20  # of images that are not drawn again
ALIKE, UNSURE = 1.15, 0.02  # times and plus: misfits up to there are as good as the other
VANISHING = 1e-12
LAYERS = ("Conv", "Gemm", "MatMul")
NORMALIZERS = (
    *("GroupNormalization", "InstanceNormalization", "LayerNormalization"),
    *("MeanVarianceNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
)
NOISE = "made-up inputs of this model are noise, which shows no ranges"
BLIND = "its layers normalize what they read: nothing tells the range of its images"
WORSE = "made-up images suit its weights less than noise does"


@dataclass(frozen=True)
class PixelRange:
    """What becomes of a pixel in 0..1: ``(pixel - mean) * scale``."""

    label: str
    scale: float
    mean: float


RANGES = (  # the likeliest first
    PixelRange("ImageNet-normalized", 1 / 0.225, 0.45),
    PixelRange("-1..1", 2.0, 0.5),
    PixelRange("0..1", 1.0, 0.0),
    PixelRange("0..255", 255.0, 0.0),
    PixelRange("0..255 less the mean", 255.0, 0.45),
)


@dataclass(frozen=True)
class Probe:
    """A tensor that tells a range: the output of a layer.

    Attributes:
        name: of the tensor.
        axis: of its channels.
        mean: of each channel in training, 0 where unknown.
        deviation: the same; None where unknown: that of the channel itself, and 1 on the whole.
    """

    name: str
    axis: int
    mean: Array
    deviation: Array | None


class Images:
    """Dead-leaves images for a model with one input; image i is the same whenever asked for.

    Once ``varied``, every other has more contrast than a display could show: features respond to
    photographs more strongly than to leaves, and ranges have to leave room for that.

    Attributes:
        range: of the values.
        varied: see above.
        unsuited: why they tell no ranges of the model's tensors; empty where they do.
    """

    def __init__(self, shape: Sequence[int], dtype: Any, seed: int) -> None:
        """``shape``: [N, C, H, W] or [N, H, W, C]."""
        self._shape, self._dtype, self._seed = tuple(shape), dtype, seed
        self._kept: dict[int, Array] = {}
        self.range, self.varied, self.unsuited = RANGES[0], False, ""

    def __call__(self, index: int) -> Array:
        """Image ``index`` in ``range``; a batch repeats it."""
        pixels = self._kept.get(index)
        if pixels is None:
            pixels = self._drawn(index)
            if (len(self._kept) + 1) * pixels.nbytes <= KEPT_BYTES:
                self._kept[index] = pixels
        if self.varied and index % 2:
            pixels = MIDDLE + np.float32(HARSHER) * (pixels - MIDDLE)
        values = (pixels - np.float32(self.range.mean)) * np.float32(self.range.scale)
        return np.ascontiguousarray(np.broadcast_to(values, self._shape), self._dtype)

    def noise(self, index: int) -> Array:
        """What a model gets that takes no images, to compare with."""
        rng = np.random.default_rng([self._seed, index, TRIALS])
        return np.asarray(rng.standard_normal(self._shape), self._dtype)

    def _drawn(self, index: int) -> Array:
        rng = np.random.default_rng([self._seed, index])
        if _channels_last(self._shape):
            _, height, width, channels = self._shape
            return dead_leaves(rng, channels, height, width).transpose(1, 2, 0)
        return dead_leaves(rng, *self._shape[1:])


def refined_images(
    graph: gs.Graph, signature: Signature, shape: Sequence[int], seed: int
) -> Images | None:
    """Images in the range that suits the weights best; None where the input is no image.

    Args:
        graph: with the weights.
        signature: of ``graph``.
        shape: of its input, as it runs.
        seed: of all random values.
    """
    if len(signature.required) != 1 or not is_image(shape, signature.required[0].dtype):
        return None
    probes = _probes(graph)
    if not probes:
        return None
    spec = signature.required[0]
    images = Images(shape, spec.dtype, seed)
    try:
        session = open_session(graph, extra_outputs=[probe.name for probe in probes])
        choose_range(probes, lambda values: _values(session, probes, {spec.name: values}), images)
    except UnsupportedModel:  # noise will do, and whoever runs it says what is wrong
        return None
    if not _is_known(probes) and any(_normalizes(node) for node in graph.nodes):
        images.unsuited = BLIND
    images.varied = True
    return images


def is_image(shape: Sequence[int], dtype: np.dtype[Any]) -> bool:
    """Whether an input looks like float images, grey or in colour."""
    if len(shape) != 4 or np.dtype(dtype).kind != "f":
        return False
    sides = shape[1:3] if _channels_last(shape) else shape[2:]
    return (_channels_last(shape) or shape[1] in (1, 3)) and min(sides) >= SMALLEST_SIDE


def _channels_last(shape: Sequence[int]) -> bool:
    return shape[3] in (1, 3) and shape[1] not in (1, 3)


def choose_range(
    probes: Sequence[Probe], run: Callable[[Array], list[Array]], images: Images
) -> None:
    """Gives ``images`` the range in which the layers look most as in training.

    Centring comes first, as it holds for every network: the mean of a channel, in deviations,
    off what it was in training. The deviations themselves come second: without normalization
    in training they may be anything. Images that noise outdoes are ``unsuited``.
    """
    found = []
    for candidate in RANGES:
        images.range = candidate
        tried = (run(images(index)) for index in range(TRIALS))
        found.append((*_misfit(probes, tried), candidate))
    noise = _misfit(probes, (run(images.noise(index)) for index in range(TRIALS)))
    if _is_known(probes):
        chosen = min(found, key=lambda f: f[0] + f[1])
        fits = _is_alike(chosen[0] + chosen[1], sum(noise))
    else:
        best = min(f[0] for f in found)
        chosen = min((f for f in found if _is_alike(f[0], best)), key=lambda f: f[1])
        fits = _is_alike(chosen[0], noise[0])
    images.range, images.unsuited = chosen[2], "" if fits else WORSE


def _is_alike(misfit: float, other: float) -> bool:
    return misfit <= ALIKE * other + UNSURE


def _is_known(probes: Sequence[Probe]) -> bool:
    """Whether BatchNormalization tells of any layer what it made in training."""
    return any(probe.deviation is not None for probe in probes)


def _misfit(probes: Sequence[Probe], seen: Iterable[Sequence[Array]]) -> tuple[float, float]:
    """How far means and deviations are from those of training, over all layers.

    Infinitely far where the model overflows.
    """
    moments = [Moments(axis=probe.axis, most=MOST_VALUES) for probe in probes]
    for outputs in seen:
        for statistic, values in zip(moments, outputs, strict=True):
            statistic.update(values)
    known = _is_known(probes)
    means, spreads = [], []
    for probe, statistic in zip(probes, moments, strict=True):
        if known and probe.deviation is None:
            continue
        result = statistic.result()
        actual = np.sqrt(result.variance + VANISHING)
        wanted = actual if probe.deviation is None else probe.deviation + VANISHING
        means.append(np.log1p(((result.mean - probe.mean) / wanted) ** 2).mean())
        unit = 1.0 if probe.deviation is None else wanted
        spreads.append(abs(np.median(np.log(actual / unit))))
    misfit = float(np.mean(means)), float(np.mean(spreads))
    return misfit if np.isfinite(misfit).all() else (np.inf, np.inf)


def _values(session: Session, probes: Sequence[Probe], feed: dict[str, Array]) -> list[Array]:
    return session.run(feed, [probe.name for probe in probes])


def _normalizes(node: gs.Node) -> bool:
    """Whether a node divides by the deviation of what it reads, alone or as exporters write it."""
    if node.op in NORMALIZERS:
        return True
    divisor = producer(node.inputs[1]) if node.op == "Div" else None
    return divisor is not None and divisor.op == "Sqrt"


def _probes(graph: gs.Graph) -> list[Probe]:
    """Outputs of the layers, evenly chosen, with what BatchNormalization knows of them."""
    found = []
    for node in graph.nodes:
        if node.op in LAYERS and len(node.inputs) > 1 and is_constant(node.inputs[1]):
            found.append(_probe(node))
    step = -(-len(found) // MOST_LAYERS) if found else 1
    return found[::step]


def _probe(node: gs.Node) -> Probe:
    output = node.outputs[0]
    axis = 1 if node.op == "Conv" else -1
    for reader in consumers(output):
        if reader.op == "BatchNormalization" and all(is_constant(t) for t in reader.inputs[3:5]):
            mean, variance = (t.values.astype(np.float64) for t in reader.inputs[3:5])
            return Probe(output.name, axis, mean, np.sqrt(np.maximum(variance, 0)))
    return Probe(output.name, axis, np.zeros(1), None)
