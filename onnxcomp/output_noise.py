"""What a model's outputs make of other values of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.errors import CalibrationError, UnsupportedModel
from onnxcomp.graph import constants, replace_constants
from onnxcomp.output_effects import before_softmax
from onnxcomp.quantization import Array
from onnxcomp.runtime import Feed, open_session

MOST_BYTES = 1 << 30  # of outputs that are kept to compare with


class OutputNoise:
    """A session that is fed its weights, so that they can change from run to run."""

    def __init__(self, graph: gs.Graph, names: Sequence[str], feeds: Sequence[Feed]) -> None:
        """Runs the original.

        Args:
            graph: is copied.
            names: of the constants that may change.
            feeds: samples; of those whose outputs take much memory the first few.

        Raises:
            CalibrationError: there are no samples.
            UnsupportedModel: the model does not run, or no output of it is of floats.
        """
        if not feeds:
            raise CalibrationError("no samples to measure the outputs on")
        twin = graph.copy()
        self._defaults = _fed(twin, frozenset(names))
        outputs = list(dict.fromkeys(before_softmax(tensor) for tensor in graph.outputs))
        self._session = open_session(twin, extra_outputs=outputs, threads=1)
        first = self._run(feeds[0], {}, outputs)
        taken = sum(value.nbytes for value in first if _is_float(value))
        kept = MOST_BYTES // max(1, taken)
        self._feeds = list(feeds[: max(1, kept)])
        self.outputs = [
            name for name, value in zip(outputs, first, strict=True) if _is_float(value)
        ]
        if not self.outputs:
            raise UnsupportedModel("no output of the model is a tensor of floats to compare")
        self._wanted = [self._run(feed, {}, self.outputs) for feed in self._feeds]
        self._energy = sum(_energies(answer) for answer in self._wanted)

    @property
    def samples(self) -> int:
        """How many outputs are compared on."""
        return len(self._feeds)

    def shares(self, changed: Mapping[str, Array], samples: int | None = None) -> Array:
        """Energy of what changes at each output over its own, float64 [outputs].

        inf where an output is no longer finite or has another shape; outputs that are zero
        throughout count as unchanged.

        Args:
            changed: new values of constants; the others have their own.
            samples: only the first so many.
        """
        noise, energy = np.zeros(len(self.outputs)), np.zeros(len(self.outputs))
        for feed, wanted in zip(self._feeds[:samples], self._wanted, strict=False):
            found = self._run(feed, changed, self.outputs)
            noise += [_difference(z, other) for z, other in zip(wanted, found, strict=True)]
            energy += _energies(wanted)
        return np.asarray(np.divide(noise, energy, where=energy > 0, out=np.zeros_like(noise)))

    def response(self, changed: Mapping[str, Array], sample: int) -> Array:
        """What changes at all outputs for one sample, each relative to its energy, float32 [n].

        NaN where an output has another shape.

        Args:
            changed: new values of constants; the others have their own.
            sample: which of the samples.
        """
        wanted = self._wanted[sample]
        found = self._run(self._feeds[sample], changed, self.outputs)
        scales = np.sqrt(np.where(self._energy > 0, self._energy, np.inf))
        parts = [
            (other - z).ravel() / scale if z.shape == other.shape else np.full(z.size, np.nan)
            for z, other, scale in zip(wanted, found, scales, strict=True)
        ]
        return np.concatenate(parts).astype(np.float32)

    def sqnr_db(self, changed: Mapping[str, Array]) -> float:
        """Of the worst output; inf where nothing changes."""
        worst = float(self.shares(changed).max())
        return float(-10 * np.log10(worst)) if worst > 0 else float("inf")

    def _run(self, feed: Feed, changed: Mapping[str, Array], outputs: Sequence[str]) -> list[Any]:
        return self._session.run({**self._defaults, **changed, **feed}, outputs)


def _fed(graph: gs.Graph, names: frozenset[str]) -> dict[str, Array]:
    """Makes constants inputs of a graph, in its bodies too; their values by name."""
    found = {name: tensor for name, tensor in constants(graph).items() if name in names}
    inputs = {n: gs.Variable(n, tensor.dtype, tensor.shape) for n, tensor in found.items()}
    replace_constants(graph, inputs)
    graph.inputs.extend(inputs.values())
    return {name: np.ascontiguousarray(tensor.values) for name, tensor in found.items()}


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _energies(answer: Sequence[Array]) -> Array:
    return np.asarray([np.sum(np.square(z, dtype=np.float64)) for z in answer])


def _difference(z: Array, other: Array) -> float:
    if z.shape != other.shape or not np.isfinite(other).all():
        return float("inf")
    return float(np.sum(np.square(z.astype(np.float64) - other)))
