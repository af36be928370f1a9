"""Weights in float16, where rounding to it loses next to nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import Names, all_graphs, all_nodes, consumers, label, sort_nodes
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.quantization import Array
from onnxcomp.stored import constant_bytes
from onnxcomp.weight_forms import FormWriter

LARGEST = float(np.finfo(np.float16).max)  # 65504
LEAST_SQNR_DB = 60.0  # values in float16's normal range have 66 dB or more, one by one
NEGLIGIBLE_DB = 120.0  # slices so far below the largest are dead channels
LEAST_VALUES = 64  # fewer save no more bytes than the Cast takes
CHUNK = 1 << 22  # values looked at in one go
QUANTIZED = ("Quant", "QLinear", "QGemm", "Integer", "NBits", "QAttention")
"""In the names of operators that read scales, which runtimes want to see as initializers."""


@dataclass(frozen=True, kw_only=True)
class ConvertFloat16(Pass):
    """Stores float32 weights as float16 and computes with float32, at half the bytes.

    Attributes:
        smallest_weight: constants with fewer elements than this stay float32.
    """

    smallest_weight: int = 1024

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.smallest_weight < LEAST_VALUES:
            raise ValueError(
                f"smallest_weight must be at least {LEAST_VALUES}, as the Cast takes the bytes"
                f" that fewer would save, not {self.smallest_weight}"
            )

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the nodes whose constants would be stored as float16."""
        outputs = _outputs(graph)
        fit = (
            constant
            for constant in _constants(graph)
            if not self._is_small(constant) and not self._refusal(constant, outputs)
        )
        return list(dict.fromkeys(label(node) for c in fit for node in consumers(c)))

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Rounds constant after constant, each once however many read it; see `Pass.rewrite`."""
        writer = FormWriter(graph, Names(graph))
        found, outputs = list(_constants(graph)), _outputs(graph)
        changed: dict[str, None] = {}
        reasons: dict[str, list[str]] = {}
        small = 0
        for number, constant in enumerate(found, 1):
            context.advance(number, len(found))
            readers = [label(node) for node in consumers(constant)]
            report.current = readers[0]
            if self._is_small(constant):
                small += 1
                continue
            reason = self._refusal(constant, outputs)
            if not reason:
                values = constant.values
                reason = loss(values)
            if reason:
                for reader in readers:
                    reasons.setdefault(reader, []).append(f"{constant.name}: {reason}")
            else:
                writer.float16(constant, values.astype(np.float16))
                changed |= dict.fromkeys(readers)
        report.current = ""
        sort_nodes(graph)
        for name in changed:
            report.change(name)
        for name, why in reasons.items():
            report.skip(name, "; ".join(why))
        if small:
            report.notes.append(f"{small} constants are too small to gain and stay float32")

    def _is_small(self, constant: gs.Constant) -> bool:
        smallest = (self._options(constant) or self).smallest_weight
        return math.prod(map(int, constant.shape)) < smallest

    def _options(self, constant: gs.Constant) -> Self | None:
        """The options for a constant; None where those for any of its readers leave it alone."""
        options = [self.options_for(node) for node in consumers(constant)]
        return None if None in options else options[0]

    def _refusal(self, constant: gs.Constant, outputs: set[int]) -> str:
        """Why a constant stays float32 whatever its values are; empty if it need not."""
        if self._options(constant) is None:
            return "the recipe says so"
        if id(constant) in outputs:
            return "it is an output"
        if constant_bytes(constant) <= 2 * math.prod(constant.shape):
            return "it is sparse, and smaller so"
        for node in consumers(constant):
            if any(word in node.op for word in QUANTIZED):
                return f"{node.op} needs it as it is"
        return ""


def loss(values: Array) -> str:
    """Why float16 would not do for ``values``, float32 of any shape; empty if it does.

    What has one index along any one axis is weighed by itself, but in vectors. So a channel of
    tiny weights counts as much as its neighbours, though it is nothing to the energy of all: a
    normalization may enlarge it.
    """
    axes = [axis for axis in range(values.ndim) if values.shape[axis] > 1]
    if len(axes) < 2:
        values, axes = values.reshape(-1, 1), [1]
    signal = [np.zeros(values.shape[axis]) for axis in axes]
    noise = [np.zeros(values.shape[axis]) for axis in axes]
    step = max(1, CHUNK // max(1, values[:1].size))
    for start in range(0, len(values), step):
        part = values[start : start + step]
        if not np.isfinite(part).all():
            return "its values are not all finite"
        if (largest := float(np.abs(part).max(initial=0.0))) > LARGEST:
            return f"its values reach {largest:.3g}, float16 ends at {LARGEST:.0f}"
        real = part.astype(np.float64)
        errors = np.square(real - part.astype(np.float16))
        squares = np.square(real)
        for i, axis in enumerate(axes):
            others = tuple(other for other in range(values.ndim) if other != axis)
            where = slice(start, start + step) if axis == 0 else slice(None)
            signal[i][where] += squares.sum(axis=others)
            noise[i][where] += errors.sum(axis=others)
    worst = min((_sqnr_db(*both) for both in zip(signal, noise, strict=True)), default=math.inf)
    if worst >= LEAST_SQNR_DB:
        return ""
    return f"its smallest values are lost in float16: {worst:.0f} dB in the worst channel"


def _sqnr_db(signal: Array, noise: Array) -> float:
    """The least ratio of slices that are not negligible, energies of each given."""
    counts = (noise > 0) & (signal > signal.max(initial=0.0) * 10 ** (-NEGLIGIBLE_DB / 10))
    return float(10 * np.log10((signal[counts] / noise[counts]).min(initial=np.inf)))


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Every float32 constant that a node reads, bodies included, once, in the graph's order."""
    seen: set[int] = set()
    for node in all_nodes(graph):
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                if tensor.dtype == np.float32:
                    yield tensor


def _outputs(graph: gs.Graph) -> set[int]:
    """The ids of what a graph and its bodies return."""
    return {id(tensor) for body in all_graphs(graph) for tensor in body.outputs}
