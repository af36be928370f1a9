"""Samples in, statistics out: streaming, so that memory does not grow with the samples."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.errors import CalibrationError, UnsupportedModel
from onnxcomp.graph import Names
from onnxcomp.held_out import HELD_EVERY, is_held
from onnxcomp.runtime import Feed, Session, open_session
from onnxcomp.samples import Samples, open_samples
from onnxcomp.signature import Array, Signature, did_you_mean, is_free
from onnxcomp.statistics import Statistic
from onnxcomp.synthetic import synthetic_samples

RUN_BYTES = 256 << 20  # of tapped values that one run may return
FEW = 8  # tensors of unknown size that are tapped together without measuring them first
MOST_SAMPLES = 1 << 16  # a source that yields more is taken to be endless
HELD_MOST = 64
HELD_FROM = 16  # with fewer samples all serve both ends

Taps = Mapping[str, Statistic[Any] | Sequence[Statistic[Any]]]
Advance = Callable[[int, int], None]


class Calibration:
    """Feeds that can be iterated any number of times, and what they show of a graph's tensors.

    Attributes:
        synthetic: whether the inputs are made up; a report has to say so.
    """

    def __init__(
        self,
        samples: Samples,
        signature: Signature,
        *,
        synthetic: bool = False,
        limit: int | None = None,
    ) -> None:
        """Takes at most ``limit`` of ``samples``; use `from_source`."""
        self.synthetic = synthetic
        self._samples, self._signature, self._limit = samples, signature, limit
        self._count = samples.count

    @classmethod
    def from_source(
        cls,
        source: str | os.PathLike[str] | Iterable[Feed] | None,
        graph: gs.Graph,
        *,
        seed: int = 0,
        limit: int | None = None,
        runs: Callable[[Feed], bool] | None = None,
        refined: bool = False,
    ) -> Calibration:
        """Opens a source of samples and checks that the first fits the model.

        Args:
            source: an .npz, a folder of .npz files or of images, FILE.py:FUNCTION, feeds, or None
                for synthetic inputs; docs/calibration.md describes each.
            graph: its inputs are the signature that every feed has to fit.
            seed: for synthetic inputs only.
            limit: use the first ``limit`` samples, or make so many synthetic ones.
            runs: whether the model runs with a feed; settles what synthetic inputs look like.
            refined: make up images in the range that the weights tell, for models that take one.

        Raises:
            CalibrationError: no such source, or one that does not fit the model.
        """
        signature = Signature.of(graph)
        if limit is not None and limit < 1:
            raise CalibrationError(f"limit must be at least 1, not {limit}")
        if source is None:
            samples = synthetic_samples(
                graph, signature, seed=seed, count=limit, runs=runs, refined=refined
            )
            return cls(samples, signature, synthetic=True)
        calibration = cls(open_samples(source, signature), signature, limit=limit)
        if next(calibration.feeds(1), None) is None:
            raise CalibrationError(f"{calibration._samples.label}: holds no samples")
        return calibration

    @property
    def unsuited(self) -> str:
        """Why these samples tell no ranges of a model's tensors: made-up ones, unless they are
        images that suit the weights. Empty where they do."""
        return self._samples.unsuited

    @property
    def description(self) -> str:
        """For reports: ``128 samples of digits.npz`` or ``8 synthetic samples (seed 0)``."""
        noun = "sample" if len(self) == 1 else "samples"
        if self.synthetic:
            return f"{len(self)} synthetic {noun} ({self._samples.label})"
        return f"{len(self)} {noun} of {self._samples.label}"

    def __len__(self) -> int:
        """Number of samples; a source that does not know its own is read through once."""
        if self._count is None:
            for _ in self._checked():
                pass
        assert self._count is not None
        return self._count if self._limit is None else min(self._count, self._limit)

    def split(self) -> tuple[Calibration, Calibration]:
        """Samples to choose ranges on, and others to judge the result by.

        One in HELD_EVERY is held back, HELD_MOST at most. Made-up samples, and fewer than
        HELD_FROM, are too few to share: then both are all of them.
        """
        if self.synthetic or sum(1 for _ in self.feeds(HELD_FROM)) < HELD_FROM:
            return self, self
        return self._part(held=False), self._part(held=True)

    def _part(self, held: bool) -> Calibration:
        whole = self._samples

        def judges(index: int) -> bool:
            return is_held(index) and index < HELD_EVERY * HELD_MOST

        def read() -> Iterator[tuple[str, Any]]:
            feeds = enumerate(itertools.islice(whole.read(), self._limit))
            return (feed for index, feed in feeds if judges(index) is held)

        if self._count is None:
            return Calibration(Samples(whole.label, read), self._signature)
        count = sum(judges(index) is held for index in range(len(self)))
        return Calibration(Samples(whole.label, read, count), self._signature)

    def feeds(self, limit: int | None = None) -> Iterator[Feed]:
        """The first ``limit`` feeds, from the start at every call.

        Raises:
            CalibrationError: a sample does not fit the model; says which.
        """
        return itertools.islice(self._checked(), limit)

    def _checked(self) -> Iterator[Feed]:
        index = -1
        for index, (where, feed) in enumerate(itertools.islice(self._samples.read(), self._limit)):
            if index >= MOST_SAMPLES:
                raise CalibrationError(
                    f"{self._samples.label}: yields more than {MOST_SAMPLES} samples; set a limit"
                )
            yield self._signature.check(feed, where)
        if self._count is None:
            self._count = index + 1

    def observe(
        self,
        graph: gs.Graph,
        statistics: Taps,
        *,
        limit: int | None = None,
        advance: Advance | None = None,
    ) -> None:
        """Shows every sample's values of the named tensors to their statistics.

        Tensors are tapped in chunks whose values take at most RUN_BYTES a sample, by one session
        and one pass over the samples per chunk.

        Args:
            graph: the original or one that a pass has changed; its inputs have to be the same.
            statistics: by name of a graph input or of a tensor that a node computes.
            limit: use the first ``limit`` samples.
            advance: called with (runs done, runs in all) after every run.

        Raises:
            CalibrationError: a name is not a tensor of the graph, or is a constant.
            UnsupportedModel: onnxruntime cannot run the graph with these samples.
        """
        taps = {
            name: list(given) if isinstance(given, Sequence) else [given]
            for name, given in statistics.items()
        }
        inputs = {tensor.name for tensor in graph.inputs}
        tensors = graph.tensors()
        for name in taps:
            _check_tap(name, tensors, inputs)
        if not taps:
            return
        chunks = self._chunks(graph, [name for name in taps if name not in inputs], tensors)
        fed = [name for name in taps if name in inputs]
        total = done = 0
        if advance is not None:  # only then: a source may have to be read through to be counted
            total = len(chunks) * (len(self) if limit is None else min(limit, len(self)))
        for index, chunk in enumerate(chunks):
            session = open_session(graph, extra_outputs=chunk) if chunk else None
            for feed in self.feeds(limit):
                seen = {name: feed[name] for name in fed if index == 0 and name in feed}
                if session is not None:
                    seen.update(zip(chunk, session.run(feed, chunk), strict=True))
                for name, values in seen.items():
                    _update(name, taps[name], values)
                done += 1
                if advance is not None:
                    advance(done, total)

    def _chunks(
        self, graph: gs.Graph, names: list[str], tensors: Mapping[str, gs.Tensor]
    ) -> list[list[str]]:
        """Cuts ``names`` so that a run returns at most RUN_BYTES; at least one, possibly empty."""
        feed = next(self.feeds(1))
        bound = {
            symbol: size
            for spec in self._signature.inputs
            if spec.shape is not None and spec.name in feed
            for symbol, size in zip(spec.shape, feed[spec.name].shape, strict=True)
        }
        sizes = {name: _static_bytes(tensors[name], bound) for name in names}
        unknown = [name for name, size in sizes.items() if size is None]
        if len(unknown) > FEW:
            sizes.update(_measured_bytes(graph, unknown, tensors, feed))
        chunks: list[list[str]] = [[]]
        room = RUN_BYTES
        for name in names:
            size = sizes[name] or 0
            if size > room and chunks[-1]:
                chunks.append([])
                room = RUN_BYTES
            chunks[-1].append(name)
            room -= size
        return chunks


def _check_tap(name: str, tensors: Mapping[str, gs.Tensor], inputs: set[str]) -> None:
    if name in inputs:
        return
    tensor = tensors.get(name)
    if tensor is None:
        hint = did_you_mean(name, tensors)
        raise CalibrationError(f"cannot observe {name!r}: the graph has no such tensor{hint}")
    if isinstance(tensor, gs.Constant):
        raise CalibrationError(f"cannot observe {name!r}: it is a constant, read its values")


def _update(name: str, statistics: Sequence[Statistic[Any]], values: Any) -> None:
    if not isinstance(values, np.ndarray):
        raise CalibrationError(f"cannot observe {name!r}: it is not a tensor but a sequence or map")
    for statistic in statistics:
        statistic.update(values)


def _static_bytes(tensor: gs.Tensor, bound: Mapping[Any, int]) -> int | None:
    """Bytes of a value whose shape is known once the symbols of the inputs are bound."""
    if tensor.shape is None:
        return None
    sizes = [bound.get(size) if is_free(size) else int(size) for size in tensor.shape]
    if any(size is None for size in sizes):
        return None
    return int(np.prod([s for s in sizes if s is not None], dtype=np.int64)) * _item_bytes(tensor)


def _item_bytes(tensor: gs.Tensor) -> int:
    unknown = tensor.dtype is None or isinstance(tensor.dtype, int)
    return 4 if unknown else int(np.dtype(tensor.dtype).itemsize)


def _measured_bytes(
    graph: gs.Graph, names: Sequence[str], tensors: Mapping[str, gs.Tensor], feed: Feed
) -> dict[str, int]:
    """Bytes of the values for one feed, told by Shape nodes so that no value is returned."""
    twin = graph.copy()
    inner, fresh = twin.tensors(), Names(twin)
    shapes = {name: fresh.fresh(f"{name}.shape") for name in names}
    for name, shape in shapes.items():
        output = gs.Variable(shape, np.int64)
        twin.nodes.append(gs.Node("Shape", shape, inputs=[inner[name]], outputs=[output]))
    try:
        session: Session = open_session(twin, extra_outputs=shapes.values(), optimize=False)
        found: list[Array] = session.run(feed, list(shapes.values()))
    except UnsupportedModel:  # a sequence has no Shape; the run itself will say what is wrong
        return {}
    return {
        name: int(np.prod(shape)) * _item_bytes(tensors[name])
        for name, shape in zip(names, found, strict=True)
    }
