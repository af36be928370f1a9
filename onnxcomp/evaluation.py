"""How alike two models answer, and what an evaluator of the user's says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.errors import CalibrationError, OnnxcompError, UnsupportedModel
from onnxcomp.report import Fidelity, OutputFidelity
from onnxcomp.runtime import Feed, Session, one_line
from onnxcomp.samples import load_function

LARGEST_REFERENCE = 2**28  # bytes of outputs of the original that are kept for comparing
MOST_CLASSES = 2**17
Evaluator = Callable[[Any], float]  # an onnxruntime.InferenceSession -> score, higher is better


@dataclass
class Reference:
    """What the original answers: computed once, compared with after every pass.

    Attributes:
        feeds: the samples kept, as many as `LARGEST_REFERENCE` allows.
        answers: outputs of each sample.
        names: of the outputs.
        synthetic: whether the samples were made up.
    """

    feeds: list[Feed]
    answers: list[list[Any]]
    names: list[str]
    synthetic: bool

    @classmethod
    def of(cls, session: Session, feeds: Iterable[Feed], synthetic: bool) -> Reference:
        """Runs ``feeds`` through the original.

        Raises:
            CalibrationError: there are no feeds.
            UnsupportedModel: the original does not run.
        """
        kept: list[Feed] = []
        answers: list[list[Any]] = []
        size = 0
        for feed in feeds:
            answer = [_owned(value) for value in session.run(feed)]
            size += sum(x.nbytes for x in (*answer, *feed.values()) if isinstance(x, np.ndarray))
            if kept and size > LARGEST_REFERENCE:
                break
            kept.append(feed)
            answers.append(answer)
        if not kept:
            raise CalibrationError("no samples to compare the models on")
        return cls(kept, answers, session.outputs, synthetic)

    def compare(self, session: Session) -> Fidelity:
        """Runs the samples through ``session`` and compares output by output.

        Raises:
            UnsupportedModel: the model does not run.
        """
        accumulators = [_Difference(name) for name in self.names]
        for feed, wanted in zip(self.feeds, self.answers, strict=True):
            got = session.run(feed, self.names)
            for accumulator, a, b in zip(accumulators, wanted, got, strict=True):
                accumulator.update(a, b)
        return self._fidelity(accumulators)

    def identical(self) -> Fidelity:
        """What comparing the original with itself gives."""
        accumulators = [_Difference(name) for name in self.names]
        for answer in self.answers:
            for accumulator, value in zip(accumulators, answer, strict=True):
                accumulator.update(value, value)
        return self._fidelity(accumulators)

    def _fidelity(self, accumulators: Sequence[_Difference]) -> Fidelity:
        outputs = tuple(accumulator.result() for accumulator in accumulators)
        return Fidelity(samples=len(self.feeds), synthetic=self.synthetic, outputs=outputs)


def _owned(value: Any) -> Any:
    """A copy of an array: what onnxruntime returns keeps all memory of its session alive."""
    return value.copy() if isinstance(value, np.ndarray) else value


class _Difference:
    """Streams one output of two models; sums in float64."""

    def __init__(self, name: str) -> None:
        self.name, self.note = name, ""
        self.signal = self.noise = self.dot = self.other = self.largest = 0.0
        self.rows = self.same = 0

    def update(self, a: Any, b: Any) -> None:
        """Adds one answer of each: an array, or a sequence or map of answers."""
        if isinstance(a, (list, tuple)):
            if not isinstance(b, (list, tuple)) or len(a) != len(b):
                return self._differ("lengths differ")
            for x, y in zip(a, b, strict=True):
                self.update(x, y)
        elif isinstance(a, dict):
            if not isinstance(b, dict) or a.keys() != b.keys():
                return self._differ("keys differ")
            self.update(list(a.values()), [b[key] for key in a])
        elif isinstance(a, np.ndarray) and (not isinstance(b, np.ndarray) or a.shape != b.shape):
            self._differ("shapes differ")
        elif isinstance(a, (np.ndarray, float)) and np.asarray(a).dtype.kind in "fiub":
            self._numbers(np.asarray(a), np.asarray(b))
        else:
            self._all_or_nothing(bool(np.all(a == b)))

    def _differ(self, note: str) -> None:
        self.note, self.noise = note, math.inf

    def _numbers(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
        if b.dtype.kind not in "fiub":
            return self._differ("kinds differ")
        if a.dtype.kind == "f":
            self._scores(a, b)
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        finite = np.isfinite(x)
        if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
            return self._differ("not finite where the original is, or the reverse")
        x, y = x[finite], y[finite]
        if not np.isfinite(y).all():
            return self._differ("not finite where the original is")
        difference = x - y
        if a.dtype.kind != "f":  # float64 takes neighbours beyond 2^53 for equal
            difference = np.where((a == b).ravel(), 0.0, np.maximum(np.abs(difference), 1.0))
        self.signal += float(x @ x)
        self.other += float(y @ y)
        self.dot += float(x @ y)
        self.noise += float(difference @ difference)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))

    def _all_or_nothing(self, same: bool) -> None:
        """Strings and labels: right or wrong, as one element of size one."""
        self.signal += 1
        self.other += 1
        self.dot += float(same)
        self.noise += float(not same)
        self.largest = max(self.largest, float(not same))

    def _scores(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
        """Class scores are float [batch, classes], perhaps with axes of length 1 behind."""
        trailing = a.shape[2:]
        if a.ndim < 2 or any(n != 1 for n in trailing) or not 2 <= a.shape[1] <= MOST_CLASSES:
            return
        if not len(a):  # a detector that found nothing
            return
        self.rows += len(a)
        best = [x.reshape(len(x), -1).argmax(1) for x in (a, b)]
        self.same += int((best[0] == best[1]).sum())

    def result(self) -> OutputFidelity:
        norm = math.sqrt(self.signal) * math.sqrt(self.other)
        return OutputFidelity(
            output=self.name,
            sqnr_db=sqnr_db(self.signal, self.noise),
            cosine=self.dot / norm if norm else float(self.noise == 0),
            max_abs_difference=self.largest if math.isfinite(self.noise) else math.inf,
            top1_agreement=100.0 * self.same / self.rows if self.rows else None,
            note=self.note,
        )


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two energies; inf without noise, -inf without signal."""
    if noise == 0:
        return math.inf
    if signal == 0 or math.isinf(noise):
        return -math.inf
    return 10 * math.log10(signal / noise)


def evaluator_of(given: Evaluator | str | None) -> Evaluator | None:
    """An evaluator as it is given, or the one of ``FILE.py:FUNCTION``; see `load_evaluator`."""
    return load_evaluator(given) if isinstance(given, str) else given


def load_evaluator(source: str) -> Evaluator:
    """The function of ``FILE.py:FUNCTION``: an onnxruntime session -> score, higher is better.

    Raises:
        OnnxcompError: no such file or function, or the file raises when it is run.
    """
    path, colon, name = source.rpartition(":")
    if not colon:
        raise OnnxcompError(f"--evaluate {source}: write FILE.py:FUNCTION")
    try:
        return load_function(path, name)
    except CalibrationError as error:
        raise OnnxcompError(f"--evaluate {source}: {error}") from error


def score(evaluator: Evaluator, session: Session) -> float:
    """What the evaluator says of a model.

    Raises:
        UnsupportedModel: the evaluator raised, or returned something that is no number.
    """
    try:
        value = float(evaluator(session.inner))
    except Exception as error:
        raise UnsupportedModel(f"the evaluator failed: {one_line(error)}") from error
    if not math.isfinite(value):
        raise UnsupportedModel(f"the evaluator returned {value}")
    return value
