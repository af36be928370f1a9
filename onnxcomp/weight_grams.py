"""The Gram matrices of what weights are multiplied with, a bounded number in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationError
from onnxcomp.gram import Gram, Window
from onnxcomp.graph import is_constant
from onnxcomp.quantization import Array
from onnxcomp.weight_sites import Site, Weight

WIDEST = 4096  # input columns: their Gram matrix takes 128 MB
AT_ONCE = 1 << 29  # bytes of Gram matrices that one go over the samples makes

Key = tuple[str, int, Window | None]  # tensor, axis, window of a Conv


def observed_grams(
    graph: gs.Graph,
    weights: Sequence[Weight],
    samples: Calibration | None,
    limit: int,
    advance: Callable[[int, int], None],
) -> Iterator[tuple[Weight, Array | None]]:
    """Each weight with E[x xT] of its inputs, [d, d] or [groups, d, d], or None.

    None stands where there are no samples, the weight is wider than WIDEST, its input is inside a
    body or not known, or its values are not finite. ``graph`` is copied: what becomes of it while
    this is read does not matter.
    """
    twin = graph.copy()
    tensors = twin.tensors()
    wanted: dict[int, list[Key]] = {}
    for weight in weights if samples is not None else ():
        keys = [key for site in weight.sites if (key := _key(site)) is not None]
        known = len(keys) == len(weight.sites) and all(
            key[0] in tensors and not is_constant(tensors[key[0]]) for key in keys
        )
        if known and _width(weight) <= WIDEST:
            wanted[id(weight)] = keys
    waiting = list(weights)
    while waiting:
        now, room = [waiting.pop(0)], AT_ONCE
        while waiting and room > 0:
            room -= 8 * _width(waiting[0]) ** 2 if id(waiting[0]) in wanted else 0
            now.append(waiting.pop(0))
        keys_now = {key for weight in now for key in wanted.get(id(weight), [])}
        grams = {key: Gram(key[1], window=key[2]) for key in sorted(keys_now, key=str)}
        if samples is not None and grams:
            taps: dict[str, list[Gram]] = {}
            for key, gram in grams.items():
                taps.setdefault(key[0], []).append(gram)
            samples.observe(twin, taps, limit=limit, advance=advance)
        for weight in now:
            yield weight, _mean([grams[key] for key in wanted.get(id(weight), [])])


def _key(site: Site) -> Key | None:
    """Which tensor a weight is multiplied with, and how; None where nothing shows it."""
    node, index = site.node, site.index
    if node.op == "Conv":
        window = Window.of_conv(node.attrs, node.inputs[1].shape)
        return (node.inputs[0].name, 1, window)
    if node.op == "MatMul":
        other = node.inputs[1 - index]
        return (other.name, -1 if index else -2, None)
    if node.op == "Gemm":
        return (node.inputs[0].name, 0 if node.attrs.get("transA", 0) else -1, None)
    if node.op in ("LSTM", "GRU", "RNN"):
        if index == 1:
            return (node.inputs[0].name, -1, None)
        if site.layout.shape[0] == 1 and node.outputs and node.outputs[0].name:
            return (node.outputs[0].name, -1, None)  # the states that come back as its input
    return None


def _width(weight: Weight) -> int:
    """Input columns of a weight."""
    return int(np.prod(weight.layout.ordered[weight.layout.outputs :]))


def _mean(grams: Sequence[Gram]) -> Array | None:
    """The average over all that reads a weight, each by its rows."""
    try:
        results = [gram.result() for gram in grams]
    except CalibrationError:  # nothing was seen
        return None
    if not results:
        return None
    count = sum(result.count for result in results)
    total = sum(result.matrix * (result.count / count) for result in results)
    mean = np.asarray(total, np.float64)
    if mean.ndim == 3 and len(mean) == 1:
        mean = mean[0]
    return mean if np.isfinite(mean).all() else None
