"""Every gate at its edge: what breaks it, what just does not, and what the reason says."""

from __future__ import annotations

import math
from typing import Any

import pytest

from onnxcomp.coding_quality import Quality
from onnxcomp.gates import (
    LARGER,
    LOSSLESS_DB,
    NOISE,
    NOISE_ALONE,
    TIME,
    Measured,
    answers_in_words,
    answers_margin,
    asked_for,
    broken_gate,
    points_lost,
    unfaithful,
)
from onnxcomp.recipe import Gates, Recipe
from onnxcomp.report import Fidelity, OutputFidelity

PAY = Gates(must_pay=True)


def fidelity(*sqnr_db: float, note: str = "") -> Fidelity:
    outputs = tuple(
        OutputFidelity(output=f"y{i}", sqnr_db=db, cosine=1.0, max_abs_difference=0.0, note=note)
        for i, db in enumerate(sqnr_db)
    )
    return Fidelity(samples=1, synthetic=False, outputs=outputs)


def measured(bytes: int = 1000, time: float | None = 1.0, **others: Any) -> Measured:
    return Measured(bytes=bytes, latency_ratio=time, **others)


def verdict(gates: Gates, after: Measured, before: Measured | None = None, **others: Any) -> str:
    original = others.pop("original", measured())
    return broken_gate(gates, original, before or original, after, **others)


LOSSY = fidelity(30.0)
EQUAL = fidelity(math.inf)


@pytest.mark.parametrize(
    ("gates", "after", "broken"),
    [
        (Gates(), measured(9000, 9.0, fidelity=fidelity(-math.inf), score=0.0), ""),
        (Gates(min_sqnr_db=20), measured(fidelity=fidelity(20.0)), ""),
        (Gates(min_sqnr_db=20), measured(fidelity=fidelity(19.99)), "not faithful"),
        (Gates(min_sqnr_db=20), measured(fidelity=fidelity(50.0, 19.0)), "19.0 dB at output 'y1'"),
        (Gates(min_sqnr_db=20), measured(fidelity=fidelity(-math.inf, note="NaN")), "(NaN)"),
        (Gates(min_sqnr_db=20), measured(fidelity=fidelity(math.nan)), "not faithful"),
        (Gates(min_sqnr_db=20), measured(), ""),
        (Gates(min_sqnr_db=-5), measured(fidelity=fidelity(-4.0)), ""),
        (PAY, measured(1000, 1 + NOISE, fidelity=EQUAL), ""),
        (PAY, measured(1000, 1.04, fidelity=EQUAL), f"1.04 {TIME} as before"),
        (PAY, measured(1000, 1 + NOISE_ALONE, noise=NOISE_ALONE, fidelity=EQUAL), ""),
        (PAY, measured(1000, 1.21, noise=NOISE_ALONE, fidelity=EQUAL), TIME),
        (PAY, measured(1000, 1.5, fastest_ratio=1.0, fidelity=EQUAL), ""),
        (PAY, measured(1000, 1.0, fastest_ratio=1.5, fidelity=EQUAL), ""),
        (PAY, measured(int(1000 * LARGER), fidelity=EQUAL), ""),
        (PAY, measured(1002, fidelity=EQUAL), "1,002 bytes, 1,000 before"),
        (PAY, measured(1000, None, fidelity=EQUAL), ""),
        (PAY, measured(1000, 1.0, fidelity=fidelity(LOSSLESS_DB)), ""),
        (
            PAY,
            measured(1000, 1.0, fidelity=LOSSY),
            "pay: 1.000 of the bytes, 1.00 the time",
        ),
        (PAY, measured(991, 0.98, fidelity=LOSSY), "does not pay"),
        (PAY, measured(990, 1.0, fidelity=LOSSY), ""),
        (PAY, measured(1000, 0.96, fidelity=LOSSY), ""),
        (PAY, measured(500, 1.04, fidelity=LOSSY), TIME),
        (PAY, measured(2000, 0.1, fidelity=LOSSY), "2,000 bytes"),
    ],
)
def test_gates_break_at_their_edge(gates: Gates, after: Measured, broken: str) -> None:
    reason = verdict(gates, after)
    assert broken in reason
    assert bool(reason) is bool(broken)
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("came", "became", "max_drop", "broken"),
    [
        (90.0, 89.0, 1.0, False),
        (90.0, 88.99, 1.0, True),
        (90.0, 95.0, 0.0, False),
        (90.0, 90.0, 0.0, False),
        (None, 88.0, 1.0, False),
        (90.0, None, 1.0, False),
    ],
)
def test_points_may_be_lost_against_the_original_only(
    came: float | None, became: float | None, max_drop: float, broken: bool
) -> None:
    gates, original = Gates(max_drop=max_drop), measured(score=came)
    before = measured(score=10.0)  # the model before the pass does not matter
    reason = verdict(gates, measured(score=became), before, original=original)
    assert bool(reason) is broken
    assert not broken or "1.01 points below the original, the gate is 1" in reason


def test_a_pass_is_compared_with_the_model_before_it_and_the_result_with_the_original() -> None:
    before = measured(500, 0.5)
    assert verdict(PAY, measured(510, 0.5, fidelity=EQUAL), before)
    assert TIME in verdict(PAY, measured(500, 0.6, fidelity=EQUAL), before)
    assert not verdict(PAY, measured(510, 0.6, fidelity=EQUAL), final=True)


def test_the_result_need_not_gain_but_may_not_lose_a_byte() -> None:
    assert not verdict(PAY, measured(1000, 1.0, fidelity=LOSSY), final=True)
    assert verdict(PAY, measured(1001, 1.0, fidelity=LOSSY), final=True)
    assert TIME in verdict(PAY, measured(1000, 1.04, fidelity=LOSSY), final=True)


def test_models_that_carry_state_have_the_stricter_gate() -> None:
    gates = Gates(min_sqnr_db=10, min_state_sqnr_db=30)
    assert gates.in_force(False).min_sqnr_db == 10
    assert gates.in_force(True).min_sqnr_db == 30
    assert Gates(min_sqnr_db=40, min_state_sqnr_db=30).in_force(True).min_sqnr_db == 40
    assert Gates(min_state_sqnr_db=30).in_force(True).min_sqnr_db == 30
    assert Gates().in_force(True) == Gates()


def test_a_score_takes_the_place_of_sqnr_and_whoever_asks_of_both() -> None:
    gates = Gates(min_sqnr_db=10, min_state_sqnr_db=35, aim_sqnr_db=25, max_scored_drop=0.5)
    recipe = Recipe(passes=(), gates=gates)
    assert asked_for(gates.for_score(False)) == Quality(min_sqnr_db=25)
    assert asked_for(gates.for_score(False).in_force(True)) == Quality(min_sqnr_db=35)
    assert gates.for_score(True) == Gates(max_drop=0.5)
    assert asked_for(gates.for_score(True)) == Quality(max_drop=0.5)
    asked = recipe.with_gates(min_sqnr_db=15).gates
    assert asked.for_score(True) == Gates(min_sqnr_db=15)
    assert asked_for(asked) == Quality(min_sqnr_db=15)
    assert recipe.with_gates(max_drop=2).gates.for_score(False) == Gates(max_drop=2)
    both = recipe.with_gates(max_drop=2, min_sqnr_db=12).gates
    assert both == Gates(max_drop=2, min_sqnr_db=12)
    assert asked_for(Gates()) is None


def test_the_margin_is_that_of_the_gate_that_breaks_first() -> None:
    after = measured(500, 1.0, fidelity=agreeing(97.0))
    original = measured(1000, 1.0)
    assert answers_margin(Gates(), original, after) == math.inf
    assert answers_margin(Gates(min_sqnr_db=18), original, after) == 2.0
    assert answers_margin(Gates(min_sqnr_db=18, max_drop=4), original, after) == 1.0
    assert answers_margin(Gates(min_sqnr_db=18, max_drop=2), original, after) == -1.0


def agreeing(*top1: float | None) -> Fidelity:
    outputs = tuple(
        OutputFidelity(
            output=f"y{i}", sqnr_db=20.0, cosine=1.0, max_abs_difference=0.0, top1_agreement=share
        )
        for i, share in enumerate(top1)
    )
    return Fidelity(samples=8, synthetic=False, outputs=outputs)


@pytest.mark.parametrize(
    ("came", "became", "shares", "lost"),
    [
        (90.0, 88.5, (50.0,), 1.5),  # the evaluator's word counts
        (90.0, 91.0, (50.0,), -1.0),
        (None, None, (97.5, None, 96.0), 4.0),  # the worst output that looks like scores
        (None, None, (None,), None),
        (90.0, None, (97.5,), None),
    ],
)
def test_points_are_those_of_the_evaluator_or_changed_classes(
    came: float | None, became: float | None, shares: tuple[float | None, ...], lost: float | None
) -> None:
    original, after = measured(score=came), measured(score=became, fidelity=agreeing(*shares))
    assert points_lost(original, after) == lost
    assert bool(unfaithful(Gates(max_drop=1.25), original, after)) is (lost in (1.5, 4.0))
    assert not unfaithful(Gates(max_drop=4.0), original, after)


def test_only_answers_make_a_change_unfaithful() -> None:
    slow = measured(9000, 9.0, fidelity=fidelity(30.0))
    assert unfaithful(PAY, measured(), slow) == ""
    assert "the gate is 31 dB" in unfaithful(Gates(min_sqnr_db=31), measured(), slow)
    other = measured(fidelity=agreeing(96.0))
    assert "4.00 % of the samples" in unfaithful(Gates(max_drop=3.0), measured(), other)


def test_words_name_what_the_gates_look_at() -> None:
    after = measured(fidelity=agreeing(96.0))
    assert answers_in_words(Gates(min_sqnr_db=1), measured(), after) == "20.0 dB"
    both = Gates(min_sqnr_db=1, max_drop=1)
    assert answers_in_words(both, measured(), after) == "20.0 dB and 4.00 points lost"
    assert answers_in_words(Gates(), measured(), after) == ""
