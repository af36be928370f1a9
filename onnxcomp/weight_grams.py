"""The Gram matrices of what weights are multiplied with, a bounded number in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationError
from onnxcomp.gram import Gram, GramResult, Window
from onnxcomp.graph import is_constant
from onnxcomp.lowrank import Outputs
from onnxcomp.output_moments import OutputMoments, OutputMomentsResult
from onnxcomp.quantization import Array
from onnxcomp.rewriting import peek
from onnxcomp.weight_sites import Site, Weight

WIDEST = 4096  # input columns: their Gram matrix takes 128 MB
WIDEST_OUTPUT = 8192  # rows of a weight with more columns than that
AT_ONCE = 1 << 29  # bytes of Gram matrices that one go over the samples makes

Advance = Callable[[int, int], None]
_Statistic = Gram | OutputMoments
_Result = GramResult | OutputMomentsResult
_Plans = dict[int, list["_Key"]]


@dataclass(frozen=True)
class _Key:
    """What to observe: of a tensor along an axis, or in the window of a Conv.

    Attributes:
        made: name of the weight whose products are observed, not the tensor itself.
    """

    tensor: str
    axis: int
    window: Window | None = None
    made: str = ""


def observed_inputs(
    graph: gs.Graph,
    weights: Sequence[Weight],
    samples: Calibration | None,
    limit: int,
    advance: Advance,
) -> Iterator[tuple[Weight, GramResult | None]]:
    """Each weight with the moments of its inputs, E[x xT] [d, d] or [groups, d, d], or None.

    None stands where there are no samples, the weight is wider than WIDEST, its input is inside a
    body or not known, or its values are not finite. ``graph`` is copied: what becomes of it while
    this is read does not matter. A Conv whose layout ends with its input channels, and an ungrouped
    ConvTranspose whose layout does, is told of the channels, not of patches.
    """
    fitting = {id(weight) for weight in weights if weight.layout.columns <= WIDEST}
    plans = {id(w): _keys(w) if id(w) in fitting else [] for w in weights}
    for weight, found in _observed(graph, weights, plans, samples, limit, advance):
        assert not isinstance(found, Outputs)
        yield weight, found


def observed_grams(
    graph: gs.Graph,
    weights: Sequence[Weight],
    samples: Calibration | None,
    limit: int,
    advance: Advance,
) -> Iterator[tuple[Weight, Array | None]]:
    """Each weight with E[x xT] of its inputs, or None, as of `observed_inputs`."""
    for weight, found in observed_inputs(graph, weights, samples, limit, advance):
        yield weight, None if found is None else found.matrix


def observed_moments(
    graph: gs.Graph,
    weights: Sequence[Weight],
    samples: Calibration | None,
    limit: int,
    advance: Advance,
) -> Iterator[tuple[Weight, Array | Outputs | None]]:
    """As `observed_grams`, but of what is wider than WIDEST something narrower.

    Of the weight of a MatMul or Gemm that is what it makes, unless that is wider than
    WIDEST_OUTPUT or than its inputs; of the kernel of a Conv the G of its channels, [in, in].
    """
    plans = {id(weight): _narrowed(weight) for weight in weights}
    for weight, found in _observed(graph, weights, plans, samples, limit, advance):
        yield weight, found.matrix if isinstance(found, GramResult) else found


def _observed(
    graph: gs.Graph,
    weights: Sequence[Weight],
    plans: _Plans,
    samples: Calibration | None,
    limit: int,
    advance: Advance,
) -> Iterator[tuple[Weight, GramResult | Outputs | None]]:
    twin = graph.copy()
    known = {name for name, tensor in twin.tensors().items() if not is_constant(tensor)}
    for keys in plans.values():
        if samples is None or not all(key.tensor in known for key in keys):
            keys.clear()
    for now in _groups(weights, plans):
        statistics: dict[_Key, _Statistic] = {}
        for weight in now:
            statistics |= {key: _statistic(key, weight) for key in plans[id(weight)]}
        taps: dict[str, list[_Statistic]] = {}
        for key in sorted(statistics, key=str):
            taps.setdefault(key.tensor, []).append(statistics[key])
        if samples is not None and taps:
            samples.observe(twin, taps, limit=limit, advance=advance)
        taps.clear()
        last = {key: at for at, weight in enumerate(now) for key in plans[id(weight)]}
        for at, weight in enumerate(now):
            keys = plans[id(weight)]
            found = _mean([statistics[key] for key in keys])
            for key in set(keys):
                if last[key] == at:
                    del statistics[key]
            yield weight, found


def _groups(weights: Sequence[Weight], plans: _Plans) -> Iterator[list[Weight]]:
    """Weights that are observed at once: AT_ONCE bytes of them, or a single one."""
    group: list[Weight] = []
    seen: set[_Key] = set()
    room = AT_ONCE
    for weight in weights:
        added = set(plans[id(weight)]) - seen
        taken = sum(8 * _rows(weight, key) ** 2 for key in added)
        if group and taken > room:
            yield group
            group, seen, room = [], set(), AT_ONCE
            added = set(plans[id(weight)])
            taken = sum(8 * _rows(weight, key) ** 2 for key in added)
        group.append(weight)
        seen |= added
        room -= taken
    if group:
        yield group


def _keys(weight: Weight) -> list[_Key]:
    """All that it is multiplied with; nothing where that is not known of one that reads it."""
    keys = [_key(site) for site in weight.sites]
    return [key for key in keys if key is not None] if None not in keys else []


def _narrowed(weight: Weight) -> list[_Key]:
    keys, rows = _keys(weight), weight.layout.rows
    if weight.layout.columns <= WIDEST:
        return keys
    if all(site.node.op == "Conv" for site in weight.sites):
        ungrouped = all(key.window is None or key.window.group == 1 for key in keys)
        channels = int(weight.layout.shape[1])
        fits = ungrouped and channels <= WIDEST
        return [replace(key, window=None) for key in keys] if fits else []
    matrices = all(site.node.op in ("MatMul", "Gemm") for site in weight.sites)
    if matrices and rows <= min(WIDEST_OUTPUT, weight.layout.columns):
        return [replace(key, made=weight.constant.name) for key in keys]
    return []


def _rows(weight: Weight, key: _Key) -> int:
    """Of the matrix that is observed."""
    if key.made:
        return weight.layout.rows
    of_channels = weight.sites[0].node.op == "Conv" and key.window is None
    return int(weight.layout.shape[1]) if of_channels else weight.layout.columns


def _statistic(key: _Key, weight: Weight) -> _Statistic:
    if not key.made:
        return Gram(key.axis, window=key.window)
    return OutputMoments(weight.layout.matrix(peek(weight.constant)), key.axis)


def _key(site: Site) -> _Key | None:
    """Which tensor a weight is multiplied with, and how; None where nothing shows it."""
    node, index = site.node, site.index
    by_channels = site.layout.order[-1] == (1 if node.op == "Conv" else 0)
    if node.op == "ConvTranspose":
        alone = node.attrs.get("group", 1) == 1
        return _Key(node.inputs[0].name, 1) if by_channels and alone else None
    if node.op == "Conv" and by_channels:
        return _Key(node.inputs[0].name, 1) if node.attrs.get("group", 1) == 1 else None
    if node.op == "Conv":
        window = Window.of_conv(node.attrs, node.inputs[1].shape)
        return _Key(node.inputs[0].name, 1, window)
    if node.op == "MatMul":
        other = node.inputs[1 - index]
        return _Key(other.name, -1 if index else -2)
    if node.op == "Gemm":
        return _Key(node.inputs[0].name, 0 if node.attrs.get("transA", 0) else -1)
    if node.op in ("LSTM", "GRU", "RNN"):
        if index == 1:
            return _Key(node.inputs[0].name, -1)
        if site.layout.shape[0] == 1 and node.outputs and node.outputs[0].name:
            return _Key(node.outputs[0].name, -1)  # the states that come back as its input
    return None


def _mean(statistics: Sequence[_Statistic]) -> GramResult | Outputs | None:
    """The average over all that reads a weight, each by its rows."""
    try:
        results: list[_Result] = [statistic.result() for statistic in statistics]
    except CalibrationError:  # nothing was seen
        return None
    if not results:
        return None
    count = sum(result.count for result in results)
    matrix = _average([result.matrix for result in results], results, count)
    if not np.isfinite(matrix).all():
        return None
    inputs = [result for result in results if isinstance(result, GramResult)]
    if inputs:
        return GramResult(matrix, _average([r.mean for r in inputs], results, count, 1), count)
    squares = sum(
        r.mean_square * (r.count / count) for r in results if isinstance(r, OutputMomentsResult)
    )
    return Outputs(matrix, mean_square=float(squares))


def _average(
    arrays: Sequence[Array], results: Sequence[_Result], count: int, rank: int = 2
) -> Array:
    """Of arrays [d, d] or [d] or those of groups; of one group alone."""
    mean = arrays[0]
    if len(arrays) > 1:
        shares = [result.count / count for result in results]
        mean = np.asarray(sum(map(np.multiply, arrays, shares)), np.float64)
    return mean[0] if mean.ndim > rank and len(mean) == 1 else mean
