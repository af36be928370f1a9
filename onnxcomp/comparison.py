"""Two models side by side, or several against the clock."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.calibration import Calibration
from onnxcomp.errors import UnsupportedModel
from onnxcomp.evaluation import Evaluator, Reference, evaluator_of, score
from onnxcomp.inspection import TensorInfo, count_macs, count_parameters, tensor_info
from onnxcomp.memory import peak_memory
from onnxcomp.model import Model, load_model
from onnxcomp.progress import Progress
from onnxcomp.report import Cost, Fidelity, plain
from onnxcomp.runtime import Feed, Session, open_file
from onnxcomp.timing import interleaved

COMPARISON_SCHEMA = "onnxcomp.comparison/1"
BENCHMARK_SCHEMA = "onnxcomp.benchmark/1"
COMPARED = 64  # samples that fidelity is measured on
ROUNDS = 21
Source = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of two models.

    Attributes:
        model: path of the file.
        cost: what it takes.
        peak_memory_bytes: that opening and running it adds to a process; None where unknown.
        score: what the evaluator said; None without one.
    """

    model: str
    cost: Cost
    peak_memory_bytes: int | None
    score: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Model B against model A.

    Attributes:
        a: the reference.
        b: the other.
        samples: what was run, in words.
        fidelity: of B against A.
        latency_ratio: median over rounds of time of B / time of A in the same round.
        threads: of each session.
    """

    a: Side
    b: Side
    samples: str
    fidelity: Fidelity
    latency_ratio: float
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the schema's name first; see docs/report.md."""
        return {"schema": COMPARISON_SCHEMA, **plain(self)}


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Of one model: median of one run, and median ratio to the first model's runs beside it."""

    model: str
    latency_ms: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Latencies of models that took turns on the same feed.

    Attributes:
        latencies: in the order given.
        samples: what was run, in words.
        shapes: of the inputs.
        threads: of each session.
        rounds: turns of each model.
    """

    latencies: tuple[Latency, ...]
    samples: str
    shapes: dict[str, list[int]]
    threads: int
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the schema's name first; see docs/report.md."""
        return {"schema": BENCHMARK_SCHEMA, **plain(self)}


def compare(
    a: Source,
    b: Source,
    *,
    calibration: Any = None,
    evaluator: Evaluator | str | None = None,
    seed: int = 0,
    threads: int = 1,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> Comparison:
    """Runs two models on the same samples.

    Args:
        a: path of the reference.
        b: path of the other; inputs and outputs have the same names, dtypes and sizes.
        calibration: samples, as `Calibration.from_source` takes them; None makes some up.
        evaluator: an onnxruntime session -> score, higher is better; or "FILE.py:FUNCTION".
        seed: of made-up samples.
        threads: of each session.
        rounds: turns of each model on the clock.
        progress: told how far the work is.

    Raises:
        UnsupportedModel: a model cannot be read or run, or they differ in inputs or outputs.
        CalibrationError: the samples do not fit.
    """
    progress = progress or Progress()
    evaluator = evaluator_of(evaluator)
    models = _load([a, b], progress)
    _check_same(models[0], models[1], "inputs")
    _check_same(models[0], models[1], "outputs")
    progress.stage("running both models")
    sessions = [open_file(model.path, threads=threads) for model in models]
    samples = _samples(models[0], sessions, calibration, seed)
    reference = Reference.of(sessions[0], samples.feeds(COMPARED), samples.synthetic)
    fidelity = reference.compare(sessions[1])
    feed = largest(reference.feeds)
    scores = [None if evaluator is None else score(evaluator, s) for s in sessions]
    progress.stage("timing both models by turns")
    timing = interleaved(sessions, feed, rounds)
    del sessions
    progress.stage("measuring peak memory")
    sides = [
        Side(
            model=str(model.path),
            cost=_cost(model, feed, latency),
            peak_memory_bytes=peak_memory(model.path, feed, threads=threads),
            score=said,
        )
        for model, latency, said in zip(models, timing.milliseconds, scores, strict=True)
    ]
    return Comparison(
        a=sides[0],
        b=sides[1],
        samples=samples.description,
        fidelity=fidelity,
        latency_ratio=timing.ratios[1],
        threads=threads,
    )


def benchmark(
    models: Sequence[Source],
    *,
    calibration: Any = None,
    seed: int = 0,
    threads: int = 1,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> Benchmark:
    """Times models by turns on the largest of the same samples.

    Args:
        models: paths; they take the same inputs. Ratios are to the first.
        calibration: samples, as `Calibration.from_source` takes them; None makes some up.
        seed: of made-up samples.
        threads: of each session.
        rounds: turns of each model.
        progress: told how far the work is.

    Raises:
        UnsupportedModel: a model cannot be read or run, or takes other inputs than the first.
        CalibrationError: the samples do not fit.
    """
    progress = progress or Progress()
    loaded = _load(models, progress)
    for other in loaded[1:]:
        _check_same(loaded[0], other, "inputs")
    sessions = [open_file(model.path, threads=threads) for model in loaded]
    samples = _samples(loaded[0], sessions, calibration, seed)
    feed = largest(list(samples.feeds(COMPARED)))
    progress.stage(f"timing {len(loaded)} models by turns")
    timing = interleaved(sessions, feed, rounds)
    pairs = zip(loaded, timing.milliseconds, timing.ratios, strict=True)
    return Benchmark(
        latencies=tuple(
            Latency(model=str(model.path), latency_ms=milliseconds, ratio=ratio)
            for model, milliseconds, ratio in pairs
        ),
        samples=samples.description,
        shapes={name: list(np.shape(value)) for name, value in feed.items()},
        threads=threads,
        rounds=rounds,
    )


def largest(feeds: Sequence[Feed]) -> Feed:
    """The feed with the most elements."""
    return max(feeds, key=lambda feed: sum(int(np.size(value)) for value in feed.values()))


def _load(paths: Sequence[Source], progress: Progress) -> list[Model]:
    models = []
    for path in paths:
        progress.stage(f"reading {Path(path).name}")
        models.append(load_model(path))
    return models


def _samples(model: Model, sessions: Sequence[Session], calibration: Any, seed: int) -> Calibration:
    def runs(feed: Feed) -> bool:
        try:
            for session in sessions:
                session.run(feed)
        except UnsupportedModel:
            return False
        return True

    return Calibration.from_source(calibration, model.graph, seed=seed, runs=runs)


def _cost(model: Model, feed: Feed, latency_ms: float) -> Cost:
    shapes = {name: list(np.shape(value)) for name, value in feed.items()}
    return Cost(
        bytes=model.bytes,
        parameters=count_parameters(model.graph),
        macs=count_macs(model.graph, shapes),
        latency_ms=latency_ms,
    )


def _check_same(a: Model, b: Model, kind: str) -> None:
    """Compares the inputs or outputs of two models.

    Raises:
        UnsupportedModel: with the first difference.
    """
    mine, theirs = (
        {tensor.name: tensor_info(tensor) for tensor in getattr(model.graph, kind)}
        for model in (a, b)
    )
    names = f"{a.path.name} and {b.path.name} cannot be compared"
    if mine.keys() != theirs.keys():
        first, second = (", ".join(map(repr, side)) or "none" for side in (mine, theirs))
        raise UnsupportedModel(f"{names}: {kind} are {first} against {second}")
    for name, info in mine.items():
        if not _fit(info, theirs[name]):
            raise UnsupportedModel(f"{names}: {kind} {info} against {theirs[name]}")


def _fit(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether two tensors can have one value: symbols and unknown sizes fit any."""
    if a.dtype != b.dtype:
        return False
    if a.shape is None or b.shape is None:
        return True
    return len(a.shape) == len(b.shape) and all(
        x == y or not isinstance(x, int) or not isinstance(y, int)
        for x, y in zip(a.shape, b.shape, strict=True)
    )
