"""What a pass must keep: measured figures in, the reason for undoing it out."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from onnxcomp.coding_quality import Quality
from onnxcomp.recipe import Gates
from onnxcomp.report import Fidelity

NOISE = 0.03  # of latency ratios: medians of interleaved runs on a busy machine
NOISE_ALONE = 0.2  # of those of models that cannot be in memory together, timed one by one
SLOWER = 1 + NOISE
LARGER = 1.001  # of the bytes, which are estimated to within a few a tensor until the end
SMALLER = 0.99  # of the bytes: from here on a gain is worth an error
TIME = "times as long"  # what a reason says that rests on times alone
LOSSLESS_DB = 60.0  # rounding of float32 leaves 100 and more, eight bits 20 to 50


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's figures against the original.

    Attributes:
        bytes: of the file.
        latency_ratio: time / time of the original, medians; None where it was not measured.
        fastest_ratio: the same of the fastest turn of each.
        noise: by how much of itself the ratio may be wrong.
        fidelity: None where it was not measured.
        score: of the evaluator; None without one.
    """

    bytes: int
    latency_ratio: float | None = None
    fastest_ratio: float | None = None
    noise: float = NOISE
    fidelity: Fidelity | None = None
    score: float | None = None


def untimed(measured: Measured) -> Measured:
    """The same as if no time had been taken: gates then look at bytes and answers alone."""
    return dataclasses.replace(measured, latency_ratio=None, fastest_ratio=None)


def broken_gate(
    gates: Gates, original: Measured, before: Measured, after: Measured, final: bool = False
) -> str:
    """Why a change has to be undone; empty when it may stay.

    Args:
        gates: of the recipe.
        original: the model that came in.
        before: the model before the change.
        after: the model after it.
        final: judge the whole result, which must not be slower or larger, but need not gain.
    """
    broken = unfaithful(gates, original, after)
    if broken or not gates.must_pay:
        return broken
    if after.bytes > before.bytes * (1 if final else LARGER):
        return f"does not pay: {after.bytes:,} bytes, {before.bytes:,} before"
    slower = _ratio(after) / _ratio(before)
    if slower > 1 + after.noise:
        return f"does not pay: takes {slower:.2f} {TIME} as before"
    if final or _is_lossless(after):
        return ""
    if after.bytes > SMALLER * before.bytes and slower > 1 - after.noise:
        return f"does not pay: {after.bytes / before.bytes:.3f} of the bytes, {slower:.2f} the time"
    return ""


def unfaithful(gates: Gates, original: Measured, after: Measured) -> str:
    """Which gate on the answers is broken, and by how much; empty when all hold."""
    return _fidelity(gates, after) or _drop(gates, original, after)


def asked_for(gates: Gates) -> Quality | None:
    """What gates on the answers ask of a pass that chooses how far to go; None without any."""
    least = max(gates.min_sqnr_db or 0.0, gates.aim_sqnr_db or 0.0)
    if 0 < least < math.inf:
        return Quality(min_sqnr_db=least)
    return None if gates.max_drop is None else Quality(max_drop=gates.max_drop)


def answers_margin(gates: Gates, original: Measured, after: Measured) -> float:
    """By how many dB or points the gates on the answers hold, whichever is less; inf without any.

    Negative where one is broken.
    """
    margin = math.inf
    if gates.min_sqnr_db is not None and after.fidelity is not None:
        margin = after.fidelity.sqnr_db - gates.min_sqnr_db
    lost = points_lost(original, after)
    if gates.max_drop is not None and lost is not None:
        margin = min(margin, gates.max_drop - lost)
    return -math.inf if math.isnan(margin) else margin


def answers_in_words(gates: Gates, original: Measured, after: Measured) -> str:
    """What the gates on the answers look at: "31.2 dB", "0.40 points lost"."""
    said = []
    if gates.min_sqnr_db is not None and after.fidelity is not None:
        said.append(f"{after.fidelity.sqnr_db:.1f} dB")
    lost = points_lost(original, after)
    if gates.max_drop is not None and lost is not None:
        said.append(f"{lost:.2f} points lost")
    return " and ".join(said)


def points_lost(original: Measured, after: Measured) -> float | None:
    """Points of the evaluator's score; without evaluator, samples with another best class, in %.

    None where nothing was scored and no output looks like class scores.
    """
    if original.score is not None and after.score is not None:
        return original.score - after.score
    if original.score is None and after.score is None and after.fidelity is not None:
        agreement = after.fidelity.top1_agreement
        return None if agreement is None else 100.0 - agreement
    return None


def _fidelity(gates: Gates, after: Measured) -> str:
    if after.fidelity is None or gates.min_sqnr_db is None:
        return ""
    if after.fidelity.sqnr_db >= gates.min_sqnr_db:
        return ""
    worst = min(after.fidelity.outputs, key=lambda output: output.sqnr_db)
    note = f" ({worst.note})" if worst.note else ""
    return (
        f"not faithful: SQNR {worst.sqnr_db:.1f} dB at output {worst.output!r}{note},"
        f" the gate is {gates.min_sqnr_db:g} dB"
    )


def _drop(gates: Gates, original: Measured, after: Measured) -> str:
    lost = points_lost(original, after)
    if gates.max_drop is None or lost is None or lost <= gates.max_drop:
        return ""
    if after.score is None:
        return f"{lost:.2f} % of the samples get another class, the gate is {gates.max_drop:g}"
    return (
        f"score {after.score:.2f}, {lost:.2f} points below the original,"
        f" the gate is {gates.max_drop:g}"
    )


def _ratio(measured: Measured) -> float:
    """Time against the original, as the kinder of two estimates has it.

    What else runs on the machine only ever makes a run slower, so a model that is really slower is
    slower in its fastest turn too.
    """
    estimates = (measured.latency_ratio, measured.fastest_ratio)
    return min((ratio for ratio in estimates if ratio is not None), default=1.0)


def _is_lossless(after: Measured) -> bool:
    return after.fidelity is None or after.fidelity.sqnr_db >= LOSSLESS_DB
