"""How fast models run: by turns, so that a drift of the machine falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.runtime import Feed, Session, open_session

MEDIAN_ERROR = 1.4826 * 1.2533  # of normal numbers: from median to standard deviation, to median
ROUNDS = 11
Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """Interleaved times of several models.

    Attributes:
        milliseconds: median of each model.
        ratios: median over the rounds of time / time of the first model in the same round.
        fastest_ratios: fastest round / fastest round of the first model.
        errors: standard errors of ``ratios``, from the median deviation of rounds.
        fastest_ms: fastest round of each model.
    """

    milliseconds: tuple[float, ...]
    ratios: tuple[float, ...]
    fastest_ratios: tuple[float, ...]
    errors: tuple[float, ...]
    fastest_ms: tuple[float, ...]


def clock_for(threads: int | None) -> Clock:
    """What times sessions with so many threads: with one, processor time, free of other work."""
    return time.thread_time if threads == 1 else time.perf_counter


def interleaved(
    sessions: Sequence[Session],
    feed: Feed | Sequence[Feed],
    rounds: int = ROUNDS,
    round_ms: float = 10.0,
    budget_s: float = 6.0,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Times models by turns A B A B, so that a drift of the machine falls on all alike.

    Args:
        sessions: of the models, the one to compare with first.
        feed: what to run; of models with other inputs, one for each.
        rounds: turns of each model.
        round_ms: a turn repeats the run until it takes about this long.
        budget_s: slow models get fewer rounds, but three at least, to stay near this time.
        clock: in seconds; the CPU time of this thread where sessions have one thread and others
            share the machine.
    """
    feeds = [feed] * len(sessions) if isinstance(feed, dict) else feed
    once = [_once_ms(session, each, clock) for session, each in zip(sessions, feeds, strict=True)]
    counts = [max(1, min(1000, round(round_ms / ms))) for ms in once]
    per_round = sum(count * ms for count, ms in zip(counts, once, strict=True)) / 1000
    rounds = min(rounds, max(3, int(budget_s / per_round)))
    times = np.zeros((rounds, len(sessions)))
    for row in range(rounds):
        for column in range(len(sessions)):
            at = (column + row) % len(sessions)  # nobody always runs after the same neighbour
            start = clock()
            for _ in range(counts[at]):
                sessions[at].run(feeds[at])
            times[row, at] = (clock() - start) * 1000 / counts[at]
    fastest, ratios = times.min(axis=0), times / times[:, :1]
    medians = np.median(ratios, axis=0)
    deviations = np.median(np.abs(ratios - medians), axis=0)
    return Timing(
        milliseconds=tuple(np.median(times, axis=0).tolist()),
        ratios=tuple(medians.tolist()),
        fastest_ratios=tuple((fastest / fastest[0]).tolist()),
        errors=tuple((MEDIAN_ERROR * deviations / rounds**0.5).tolist()),
        fastest_ms=tuple(fastest.tolist()),
    )


def model_times(
    graphs: Iterable[gs.Graph], feed: Feed, threads: int | None, rounds: int = ROUNDS
) -> Timing:
    """Times of graphs that take turns, by `clock_for` so many threads.

    Raises:
        UnsupportedModel: onnxruntime does not take one of them.
    """
    sessions = [open_session(graph, threads=threads) for graph in graphs]
    return interleaved(sessions, feed, rounds, clock=clock_for(threads))


def _once_ms(session: Session, feed: Feed, clock: Clock) -> float:
    session.run(feed)
    start = clock()
    session.run(feed)
    return max((clock() - start) * 1000, 1e-3)
