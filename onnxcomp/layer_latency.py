"""How long single layers take, measured through onnxruntime and remembered.

A layer is run as a model of one node with made-up weights. What an empty model takes is subtracted:
in a whole model a layer pays for no call of its own. With one thread CPU time is measured, which
other work on the machine hardly changes; else wall time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcomp.errors import OnnxcompError, OutputError, UnsupportedModel
from onnxcomp.runtime import Feed, Session, open_session
from onnxcomp.targets import AUTO, resolve_target
from onnxcomp.timing import clock_for, interleaved
from onnxcomp.writing import write_text

Array = npt.NDArray[Any]

OPSET = 17
ROUNDS, ROUND_MS, BUDGET_S = 7, 2.0, 4.0
TOGETHER = 12  # layers that take turns; their sessions are in memory at the same time
LEAST_MS = 1e-4  # what a layer takes that is lost in the time of a call
BLOCKS = (16, 8)  # channels that convolutions may work on at once: AVX-512, AVX2
RANDOM = 1 << 16  # made-up values, repeated as often as needed


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One node.

    Attributes:
        op: Conv, Gemm, MatMul or any other standard operator with float32 inputs.
        attributes: as the node has them.
        shapes: of its inputs.
        fed: which inputs are activations; the others are weights. Two of MatMul in attention.
    """

    op: str
    attributes: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    fed: tuple[int, ...] = (0,)

    @property
    def key(self) -> str:
        """The same text for the same layer."""
        parts = [self.op, dict(self.attributes), self.shapes, self.fed]
        return json.dumps(parts, sort_keys=True, default=_plain, separators=(",", ":"))

    def open(self, threads: int) -> tuple[Session, Feed]:
        """A session of a model of this node, and what to feed it.

        Raises:
            UnsupportedModel: onnxruntime does not take it.
        """
        values = np.random.default_rng(0).standard_normal(RANDOM, np.float32)
        arrays = [np.resize(values, shape) for shape in self.shapes]
        inputs = [
            gs.Variable(f"x{at}", np.float32, array.shape)
            if at in self.fed
            else gs.Constant(f"x{at}", array)
            for at, array in enumerate(arrays)
        ]
        output = gs.Variable("y", np.float32)
        node = gs.Node(self.op, "layer", dict(self.attributes), inputs, [output])
        fed = [inputs[at] for at in self.fed]
        graph = gs.Graph([node], fed, [output], name="layer", opset=OPSET, ir_version=8)
        feed = {f"x{at}": arrays[at] for at in self.fed}
        session = open_session(graph, threads=threads)
        session.run(feed)
        return session, feed


EMPTY = Layer(op="Identity", attributes={}, shapes=((1,),))
BLOCK_PROBE = tuple(
    Layer(op="Conv", attributes={"pads": [1] * 4}, shapes=((1, 64, 28, 28), (out, 64, 3, 3)))
    for out in (16, 24, 32)
)


class LayerLatency:
    """Times of layers on this machine, each measured once and kept in a file.

    Attributes:
        threads: of onnxruntime.
    """

    def __init__(self, threads: int = 1, *, target: str = AUTO, folder: Path | None = None) -> None:
        """Times are kept in ``folder``, None for `cache_folder`; one that is not writable is no
        error, and a file that is not understood counts as empty."""
        self.threads = threads
        self._context = {
            "onnxruntime": metadata.version("onnxruntime"),
            "cpu": _cpu(),
            "target": resolve_target(target).name,
            "threads": threads,
        }
        name = hashlib.sha256(json.dumps(self._context, sort_keys=True).encode()).hexdigest()[:16]
        self._path = (cache_folder() if folder is None else folder) / f"layer_latency_{name}.json"
        self._known: dict[str, float] = {}

    def milliseconds(
        self,
        op: str,
        attributes: Mapping[str, Any],
        shapes: Sequence[Sequence[int]],
        fed: Sequence[int] = (0,),
    ) -> float:
        """The time of one run of a layer; arguments as of `Layer`.

        Raises:
            UnsupportedModel: onnxruntime does not take the layer.
        """
        given = tuple(tuple(int(size) for size in shape) for shape in shapes)
        return self.measure([Layer(op=op, attributes=attributes, shapes=given, fed=tuple(fed))])[0]

    def measure(self, layers: Sequence[Layer]) -> list[float]:
        """Milliseconds of each; those not known yet take turns, so that they compare well.

        Raises:
            UnsupportedModel: onnxruntime does not take one of the layers.
        """
        if not self._known:
            self._known = self._read()
        new = {layer.key: layer for layer in layers if layer.key not in self._known}
        for start in range(0, len(new), TOGETHER):
            chosen = list(new.values())[start : start + TOGETHER]
            times = self._time(chosen)
            self._known |= {layer.key: ms for layer, ms in zip(chosen, times, strict=True)}
        if new:
            self._write()
        return [self._known[layer.key] for layer in layers]

    def grid(
        self,
        layer_at: Callable[..., Layer],
        lengths: Sequence[int],
        *,
        multiple: int = 1,
        points: int = 4,
    ) -> tuple[tuple[Array, ...], Array]:
        """Times of a layer with its axes cut to a few lengths, for a `Table` of a resource.

        Args:
            layer_at: the layer of given lengths, one argument each.
            lengths: the longest of each axis; those below are multiples of ``multiple``.
            multiple: `block` for convolutions, as a kernel that works on blocks is as slow for a
                part of one; then it is the ``step`` of the table, too.
            points: lengths measured of an axis, evenly spread; all of them where there are fewer.

        Returns:
            The lengths measured, one array an axis, and milliseconds [len(a), len(b), ...].

        Raises:
            UnsupportedModel: onnxruntime does not take one of the layers.
        """
        knots = tuple(_spread(length, multiple, points) for length in lengths)
        cut = [np.minimum(at, length) for at, length in zip(knots, lengths, strict=True)]
        layers = [layer_at(*(int(n) for n in sizes)) for sizes in itertools.product(*cut)]
        return knots, np.reshape(self.measure(layers), [len(at) for at in knots])

    def curve(
        self, layer_at: Callable[[int], Layer], length: int, *, multiple: int = 1, points: int = 5
    ) -> tuple[Array, Array]:
        """Lengths of one axis and milliseconds at them: ``np.interp(n, *curve)`` is between.

        Arguments and errors as of `grid`.
        """
        (knots,), values = self.grid(layer_at, [length], multiple=multiple, points=points)
        return knots, values

    @cached_property
    def block(self) -> int:
        """Output channels that convolutions compute at once here: 24 take as long as 32, or not."""
        one, middle, two = self.measure(BLOCK_PROBE)
        return BLOCKS[0] if middle > (one + 3 * two) / 4 else BLOCKS[1]

    def _time(self, layers: Sequence[Layer]) -> list[float]:
        opened: list[tuple[Session, Feed]] = []
        for layer in layers:
            try:
                opened.append(layer.open(self.threads))
            except UnsupportedModel as error:
                raise UnsupportedModel(f"{layer.op} of {layer.shapes}: {error}") from error
        return net_times(opened, self.threads)

    def _read(self) -> dict[str, float]:
        """What the file holds; nothing if it is missing, damaged or of another machine."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if found["context"] != self._context:
                return {}
            times = {str(key): float(ms) for key, ms in found["milliseconds"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return {key: ms for key, ms in times.items() if math.isfinite(ms) and ms > 0}

    def _write(self) -> None:
        """Adds to what others have written meanwhile."""
        times = self._read() | self._known
        text = json.dumps({"context": self._context, "milliseconds": times}, indent=1)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, text)
        except (OSError, OutputError):
            return  # it is measured again next time


def net_times(opened: Sequence[tuple[Session, Feed]], threads: int) -> list[float]:
    """Milliseconds of models that take turns, each less what an empty one takes."""
    sessions, feeds = zip(EMPTY.open(threads), *opened, strict=True)
    timing = interleaved(sessions, feeds, ROUNDS, ROUND_MS, BUDGET_S, clock_for(threads))
    empty, *times = timing.milliseconds
    return [max(ms - empty, LEAST_MS) for ms in times]


def cache_folder() -> Path:
    """Where measurements are kept: onnxcomp/ in XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "onnxcomp"


def _spread(length: int, multiple: int, points: int) -> Array:
    """At most ``points`` multiples, evenly spread, the last of them the first not below length."""
    count = -(-length // multiple)
    blocks = np.unique(np.rint(np.linspace(1, count, min(points, count))).astype(np.int64))
    found: Array = blocks * multiple
    return found


def _cpu() -> str:
    """What tells one type of CPU from another."""
    names = ("model name", "CPU implementer", "CPU part", "CPU variant")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = sorted({line.partition(":")[2].strip() for line in lines if line.startswith(names)})
    return ", ".join([*told, platform.processor(), platform.machine(), f"{os.cpu_count()} CPUs"])


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise OnnxcompError(f"an attribute of a layer is {type(value).__name__}, not a number or list")
