"""The original, measured once, and everything that is measured against it."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationError, UnsupportedModel
from onnxcomp.evaluation import Evaluator, Reference, score
from onnxcomp.gates import LOSSLESS_DB, NOISE, NOISE_ALONE, Measured
from onnxcomp.held_out import HELD_EVERY
from onnxcomp.kernel_use import kernel_use
from onnxcomp.macs import count_macs
from onnxcomp.model import Model, graph_bytes
from onnxcomp.runtime import Feed, Session, open_file, open_session
from onnxcomp.timing import interleaved
from onnxcomp.told_shapes import is_the_same, told

LARGE = 2**30  # bytes of a model of which two sessions at a time would take too much memory
COMPARED = 64  # samples that fidelity is measured on, at most
COMPARED_LARGE = 2
COMPARED_MADE_UP = 4  # more of them say nothing more
COMPARED_MACS = 2e11  # of all these together: some ten seconds on one core
ROUNDS = 11
ROUNDS_ALONE = 5
THREADS = 1  # a thread of its own is the least noisy clock, and ratios carry over


class Measurements:
    """A model as it came in, and how its successors compare.

    Attributes:
        calibration: the samples that passes see.
        held_back: those that fidelity is measured on; the same where there are few.
        samples: where all of them came from, in words.
        original: figures of the model as it came.
        large: whether the original's session is closed while another is open. Then times are
            taken one after the other and weights are not packed a second time.
        notes: what a reader of the figures should know.
        carries_state: whether callers are likely to feed an output of one run to the next.
        macs: of the original's run; None where unknown.
        latencies_ms: medians of the original and of the model last measured.
    """

    def __init__(
        self,
        model: Model,
        samples: Any,
        evaluator: Evaluator | None,
        *,
        seed: int = 0,
        compared: bool = True,
    ) -> None:
        self.large, self.evaluator = model.bytes > LARGE, evaluator
        self.macs: int | None = None
        self.latencies_ms: tuple[float | None, float | None] = (None, None)
        session = open_file(model.path, threads=THREADS, lean=self.large)
        whole = open_calibration(samples, model.graph, session, seed)
        self.calibration, self.held_back = whole.split()
        self.samples = whole.description
        if self.held_back is not self.calibration:
            self.samples += f", one in {HELD_EVERY} held back to judge by"
        self.notes = list(self._notes_on_figures())
        feeds = self.held_back.feeds(self._compared(model) if compared else 1)
        self.reference = Reference.of(session, feeds, self.calibration.synthetic)
        self.feed = max(self.reference.feeds, key=lambda f: sum(np.size(v) for v in f.values()))
        self._shapes = [value.shape for value in session.inner.get_outputs()]  # as promised
        self._signature = told(session)
        self.shapes = {name: list(np.shape(value)) for name, value in self.feed.items()}
        self.original = Measured(
            bytes=model.bytes,
            latency_ratio=1.0,
            score=None if evaluator is None else score(evaluator, session),
        )
        self.carries_state = carries_state(self.reference)
        self._session: Session | None = session
        if self.large:
            self.latencies_ms = (_alone(session, self.feed), None)
            self._session = None

    def _notes_on_figures(self) -> Iterator[str]:
        if self.calibration.synthetic:
            yield (
                "no samples were given: fidelity was measured on synthetic inputs; "
                "give real ones with --calibration for figures that mean something"
            )
        if self.large:
            yield (
                "a large model: times were taken one by one, the fastest of "
                f"{ROUNDS_ALONE} runs, with the weights as they are stored"
            )

    def _compared(self, model: Model) -> int:
        """How many samples to compare on: a matter of the model alone, never of the clock."""
        if self.large:
            return COMPARED_LARGE
        feed = next(self.calibration.feeds(1))
        self.macs = count_macs(model.graph, {name: np.shape(v) for name, v in feed.items()})
        affordable = max(2, int(COMPARED_MACS / self.macs)) if self.macs else COMPARED
        return min(COMPARED_MADE_UP if self.calibration.synthetic else COMPARED, affordable)

    def of(self, graph: gs.Graph, path: Path | None = None, *, patience: int = 1) -> Measured:
        """Measures a successor: ``graph``, from the file at ``path`` where there is one.

        Raises:
            UnsupportedModel: it does not load or run.
        """
        session = self._open(graph, path)
        fidelity = self.reference.compare(session)
        if any(output.note for output in fidelity.outputs):
            self._check_answer(session.run(self.feed, self.reference.names))
        ratio, fastest = self._time(session, patience)
        return Measured(
            bytes=graph_bytes(graph),
            latency_ratio=ratio,
            fastest_ratio=fastest,
            noise=NOISE_ALONE if self.large else NOISE,
            fidelity=fidelity,
            score=None if self.evaluator is None else score(self.evaluator, session),
        )

    def answers_of(self, graph: gs.Graph) -> Measured:
        """The same without the time, which is not measured.

        Raises:
            UnsupportedModel: it does not load or run.
        """
        session = self._open(graph, None)
        return Measured(
            bytes=graph_bytes(graph),
            fidelity=self.reference.compare(session),
            score=None if self.evaluator is None else score(self.evaluator, session),
        )

    def timed_again(
        self,
        before: Measured,
        after: Measured,
        old: gs.Graph | None,
        new: gs.Graph,
        path: Path | None,
    ) -> tuple[Measured, Measured]:
        """``before`` and ``after`` with their times measured anew, for longer, and nothing else.

        Where onnxruntime runs the same kernels for both, as after a pass that only stores weights
        in another way, they differ by noise alone: then ``after`` has the times of ``before``.

        Args:
            before: figures of ``old``; kept where that is None.
            after: figures of ``new``.
            old: what ``new`` was made from: both take turns, so that no luck of one run decides.
            new: a successor, in the file at ``path`` where there is one.
            path: a file or None.

        Raises:
            UnsupportedModel: it does not load or run.
        """
        session = self._open(new, path)
        if old is None or self._session is None:
            return before, _timed(after, *self._time(session, 8 if old is None else 4))
        if _kernels(old, self.feed) == _kernels(new, self.feed):
            return before, _timed(after, before.latency_ratio, before.fastest_ratio)
        sessions = [self._session, self._open(old, None), session]
        timing = interleaved(sessions, self.feed, ROUNDS * 4)
        self.latencies_ms = (timing.milliseconds[0], timing.milliseconds[2])
        pairs = list(zip(timing.ratios, timing.fastest_ratios, strict=True))
        return _timed(before, *pairs[1]), _timed(after, *pairs[2])

    def unchanged(self) -> Measured:
        """The original as its own successor: what is reported when no pass was kept."""
        if self._session is not None:
            alone = interleaved([self._session], self.feed, ROUNDS).milliseconds[0]
            self.latencies_ms = (alone, alone)
        else:
            self.latencies_ms = (self.latencies_ms[0],) * 2
        return dataclasses.replace(self.original, fidelity=self.reference.identical())

    def runs(self, graph: gs.Graph, path: Path | None = None) -> None:
        """Loads a successor and runs one sample.

        Raises:
            UnsupportedModel: it does not load or run.
        """
        self._check_answer(self._open(graph, path).run(self.feed, self.reference.names))

    def _check_answer(self, answer: Sequence[Any]) -> None:
        """Compares shapes and dtypes with what the original promises and keeps.

        Raises:
            UnsupportedModel: with the first output that does not keep a promise.
        """
        index = next(i for i, feed in enumerate(self.reference.feeds) if feed is self.feed)
        given = self.reference.answers[index]
        for name, shape, a, b in zip(
            self.reference.names, self._shapes, given, answer, strict=True
        ):
            if not isinstance(a, np.ndarray) or not _has_shape(a, shape):
                continue
            if not isinstance(b, np.ndarray) or not _has_shape(b, shape) or a.dtype != b.dtype:
                found = f"shape {b.shape}, {b.dtype}" if isinstance(b, np.ndarray) else "no tensor"
                raise UnsupportedModel(f"output {name!r} has {found} instead of {shape}, {a.dtype}")

    def same_answers(self, graph: gs.Graph) -> None:
        """Checks that a rewriting that should change nothing did not.

        Raises:
            UnsupportedModel: it does not run, or answers differently.
        """
        sqnr = self.reference.compare(self._open(graph, None)).sqnr_db
        if sqnr < LOSSLESS_DB:
            raise UnsupportedModel(f"the converted model answers differently (SQNR {sqnr:.1f} dB)")

    def _open(self, graph: gs.Graph, path: Path | None) -> Session:
        """A session of a successor.

        Raises:
            UnsupportedModel: it does not load, or callers see other inputs or outputs.
        """
        if self.large:
            gc.collect()  # a graph is full of cycles: weights of one that was undone go only now
        if path is not None:
            session = open_file(path, threads=THREADS, lean=self.large)
        else:
            session = open_session(graph, threads=THREADS, lean=self.large)
        for before, after in zip(self._signature, told(session), strict=True):
            if not is_the_same(before, after, self._session, self.feed):
                raise UnsupportedModel(
                    f"onnxruntime tells {after[0]!r} as {after[1]} {after[2]}, {before[2]} before"
                )
        return session

    def _time(self, session: Session, patience: int) -> tuple[float, float]:
        """Time / time of the original: of medians and of the fastest turns."""
        if self._session is None:
            before, after = self.latencies_ms[0], _alone(session, self.feed)
            self.latencies_ms = (before, after)
            ratio = after / before if before else 1.0
            return ratio, ratio
        timing = interleaved([self._session, session], self.feed, ROUNDS * patience)
        self.latencies_ms = (timing.milliseconds[0], timing.milliseconds[1])
        return timing.ratios[1], timing.fastest_ratios[1]


def _timed(known: Measured, ratio: float | None, fastest: float | None) -> Measured:
    return dataclasses.replace(known, latency_ratio=ratio, fastest_ratio=fastest)


def _kernels(graph: gs.Graph, feed: Feed) -> list[tuple[str, str, int]]:
    """What onnxruntime runs: operator types after its fusions, kinds and counts."""
    return sorted((k.op, k.kind, k.count) for k in kernel_use(graph, feed).kernels)


def carries_state(reference: Reference) -> bool:
    """Whether an output has the shape of a float input, beside other inputs and outputs.

    Recurrent operators are no sign: exporters unroll their cells into MatMul and Sigmoid.
    """
    feed, answer = reference.feeds[0], reference.answers[0]
    if len(feed) < 2 or len(answer) < 2:
        return False
    shapes = {v.shape for v in feed.values() if v.ndim > 1 and v.dtype.kind == "f"}
    return any(np.shape(value) in shapes for value in answer)


def _has_shape(value: np.ndarray[Any, Any], shape: Sequence[Any]) -> bool:
    """Whether an array has a shape, in which symbols stand for any size."""
    if not shape:  # onnxruntime says so of scalars and of what is not known
        return True
    fits = all(not isinstance(n, int) or n == m for n, m in zip(shape, value.shape, strict=False))
    return len(shape) == value.ndim and fits


def open_calibration(samples: Any, graph: gs.Graph, session: Session, seed: int) -> Calibration:
    """The samples; made-up ones are settled by whether the original runs with them."""
    failures: list[UnsupportedModel] = []

    def runs(feed: Feed) -> bool:
        try:
            session.run(feed)
        except UnsupportedModel as error:
            failures.append(error)
            return False
        return True

    try:
        return Calibration.from_source(samples, graph, seed=seed, runs=runs, refined=True)
    except CalibrationError as error:
        if not failures:
            raise
        raise CalibrationError(f"{error}: {failures[-1]}") from error


def _alone(session: Session, feed: Feed) -> float:
    """Least ms of a session that has no other to take turns with."""
    times = []
    for _ in range(ROUNDS_ALONE):
        start = time.perf_counter()
        session.run(feed)
        times.append((time.perf_counter() - start) * 1000)
    return min(times)
