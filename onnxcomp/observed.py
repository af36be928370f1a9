"""Statistics that are measured once for many attempts at the same graph.

A planner runs a pass many times with other options, and every time the pass asks for the same
ranges of the same tensors. What a tensor holds follows from the nodes and weights it is computed
from, so statistics are kept under a hash of those.
"""

from __future__ import annotations

import copy
import hashlib
import pickle
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxcomp.calibration import Advance, Calibration, Taps
from onnxcomp.graph import is_constant
from onnxcomp.statistics import Statistic

KEPT_BYTES = 512 << 20  # of statistics; what comes later is measured anew
Statistics = dict[str, list[Statistic[Any]]]


class ObservedCalibration(Calibration):
    """The same samples as another calibration; remembers what was observed on them."""

    def __init__(self, calibration: Calibration) -> None:
        """Of the samples of ``calibration``."""
        super().__init__(
            calibration._samples,
            calibration._signature,
            synthetic=calibration.synthetic,
            limit=calibration._limit,
        )
        self._known: dict[bytes, dict[str, Any]] = {}
        self._room = KEPT_BYTES
        self._prints = Fingerprints()

    def observe(
        self,
        graph: gs.Graph,
        statistics: Taps,
        *,
        limit: int | None = None,
        advance: Advance | None = None,
    ) -> None:
        """As `Calibration.observe`; what is known is copied into the statistics."""
        prints = self._prints.of(graph)
        missing: Statistics = {}
        to_keep: list[tuple[bytes, Statistic[Any]]] = []
        for name, given in statistics.items():
            for statistic in given if isinstance(given, Sequence) else [given]:
                key = _key(prints.get(name), statistic, limit)
                if key is not None and key in self._known:
                    vars(statistic).update(copy.deepcopy(self._known[key]))
                    continue
                missing.setdefault(name, []).append(statistic)
                if key is not None:
                    to_keep.append((key, statistic))
        super().observe(graph, missing, limit=limit, advance=advance)
        for key, statistic in to_keep:
            size = _bytes(vars(statistic))
            if size <= self._room:
                self._room -= size
                self._known[key] = copy.deepcopy(vars(statistic))


def _key(fingerprint: bytes | None, statistic: Statistic[Any], limit: int | None) -> bytes | None:
    """What a statistic will hold; None where that cannot be told."""
    if fingerprint is None or not hasattr(statistic, "__dict__"):
        return None
    try:
        state = pickle.dumps((type(statistic), vars(statistic), limit))
    except (AttributeError, TypeError, pickle.PicklingError):
        return None
    return _hash(fingerprint, state)


def _bytes(state: Any) -> int:
    if isinstance(state, np.ndarray):
        return int(state.nbytes)
    if isinstance(state, dict):
        return sum(map(_bytes, state.values()))
    return sum(map(_bytes, state)) if isinstance(state, (list, tuple)) else 64


class Fingerprints:
    """Hashes of what tensors are computed from; arrays that were seen before are not read again."""

    def __init__(self) -> None:
        self._arrays: dict[int, tuple[weakref.ref[Any], bytes]] = {}

    def of(self, graph: gs.Graph) -> dict[str, bytes]:
        """Name of each tensor of the outermost graph -> hash; without those that depend on a body
        of If, Loop or Scan. The nodes have to be sorted."""
        found = {tensor.name: _hash(b"input", tensor.name.encode()) for tensor in graph.inputs}
        for node in graph.nodes:
            if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
                continue
            inputs = [self._of_tensor(tensor, found) for tensor in node.inputs]
            if None in inputs:
                continue
            parts = [part for part in inputs if part is not None]
            whole = _hash(f"{node.domain}:{node.op}".encode(), self._attributes(node.attrs), *parts)
            for index, tensor in enumerate(node.outputs):
                found[tensor.name] = _hash(whole, index.to_bytes(4, "little"))
        return found

    def _of_tensor(self, tensor: gs.Tensor, found: Mapping[str, bytes]) -> bytes | None:
        if is_constant(tensor):
            return self._of_values(tensor._values)
        return found.get(tensor.name) if tensor.name else b"absent"

    def _attributes(self, attributes: Mapping[str, Any]) -> bytes:
        parts: list[bytes] = []
        for name, value in sorted(attributes.items()):
            held = value._values if isinstance(value, gs.Constant) else value
            known = isinstance(held, (np.ndarray, LazyValues))
            parts += [name.encode(), self._of_values(held) if known else repr(held).encode()]
        return _hash(*parts)

    def _of_values(self, held: np.ndarray[Any, Any] | LazyValues) -> bytes:
        known = self._arrays.get(id(held))
        if known is not None and known[0]() is held:
            return known[1]
        values = held.load() if isinstance(held, LazyValues) else held
        header = f"{values.dtype}{values.shape}".encode()
        plain = repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes()
        digest = _hash(header, plain)
        self._arrays[id(held)] = weakref.ref(held), digest
        return digest


def _hash(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
