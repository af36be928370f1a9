"""Which nodes a pass has to leave in float so that a gate holds: the fewest, and the cheapest.

A pass edits and never searches. What is found here are overrides for it, which a recipe can hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from onnxcomp.passes.base import Advance, no_progress

MOST_GROWTHS = 9
MOST_PRUNINGS = 16
GROUPS = 8  # that the nodes kept are given up by at first
GROWTH = 1.5
CONFIRMATIONS = 4


@dataclass(frozen=True)
class Verdict:
    """What was measured of one choice.

    Attributes:
        holds: whether every gate does.
        figure: what the gate is about, in words: "24.0 dB", "1.2 points lost".
    """

    holds: bool
    figure: str


Judge = Callable[[Collection[str]], Verdict]  # of the nodes kept in float


@dataclass
class Choice:
    """The nodes to keep in float.

    Attributes:
        kept: in order of what each gives for its cost.
        verdict: with these in float.
        without: of the nodes whose need was tried: what is measured when one is quantized too.
        tries: how often a choice was judged.
        draft: what was measured of the draft of the pass, which ``without`` compares with; None
            where the pass itself was tried.
    """

    kept: list[str]
    verdict: Verdict
    without: dict[str, Verdict] = field(default_factory=dict)
    tries: int = 0
    draft: Verdict | None = None


def by_worth(noise: Mapping[str, float], cost: Mapping[str, float]) -> list[str]:
    """Labels, first those that take away most noise for what they cost.

    Args:
        noise: that each causes at the outputs, as an energy.
        cost: of leaving each in float, as a share of the model, 0 to 1. Being one more node costs
            as much as the mean share, so that few are kept.
    """
    least = 1 / max(1, len(noise))
    return sorted(noise, key=lambda name: -noise[name] / (least + cost.get(name, 0.0)))


def enough_to_keep(
    order: Sequence[str], noise: Mapping[str, float], allowed: float, excess: float = 1.0
) -> int:
    """How many of ``order``, from the first, have to be kept for the noise of the rest to be
    ``allowed``, if noises add up; ``excess`` is by how much all together exceed their sum."""
    left = sum(noise.values()) * excess
    for count, name in enumerate(order):
        if left <= allowed:
            return count
        left -= noise[name] * excess
    return len(order)


def fewest_kept(
    order: Sequence[str], judge: Judge, first: int = 1, advance: Advance = no_progress
) -> Choice | None:
    """The fewest nodes that have to be kept for the judge to be content, as far as few tries tell.

    The first ``first`` of ``order`` are kept, then half as many more again and again until the
    gate holds; then the number is halved back towards the last that failed, and at last whatever
    turns out not to be needed is given up, what is least worth first.

    Args:
        order: candidates, see `by_worth`. Quantizing all of them is known to fail.
        judge: measures a choice.
        first: how many to begin with.
        advance: called with (done, total).

    Returns:
        None where no choice holds.
    """
    tries = 0
    most = 2 * MOST_GROWTHS + MOST_PRUNINGS

    def judged(kept: Collection[str]) -> Verdict:
        nonlocal tries
        tries += 1
        advance(min(tries, most), most)
        return judge(kept)

    failed, count = 0, min(max(1, first), len(order))
    verdict = judged(order[:count])
    growths = 1
    while not verdict.holds:
        if count == len(order):
            return None
        growths += 1
        failed = count
        count = len(order) if growths > MOST_GROWTHS else min(len(order), _grown(count))
        verdict = judged(order[:count])
    for _ in range(MOST_GROWTHS):
        if count - failed <= max(1, count // 16):  # finer than pruning is going to be
            break
        middle = (count + failed) // 2
        found = judged(order[:middle])
        if found.holds:
            count, verdict = middle, found
        else:
            failed = middle
    choice = Choice(list(order[:count]), verdict)
    _prune(choice, judged)
    choice.tries = tries
    return choice


def confirmed(choice: Choice, order: Sequence[str], judge: Judge) -> Choice | None:
    """A choice that a draft of the pass suggested, with as many more as the pass itself needs.

    Returns:
        None where half as many more, CONFIRMATIONS times, are still too few.
    """
    kept = list(choice.kept)
    for _ in range(CONFIRMATIONS):
        verdict = judge(kept)
        choice.tries += 1
        if verdict.holds:
            without = {} if len(kept) > len(choice.kept) else choice.without
            return Choice(kept, verdict, without, choice.tries, choice.verdict)
        rest = [name for name in order if name not in kept]
        if not rest:
            return None
        kept += rest[: _grown(len(kept)) - len(kept)]
    return None


def _grown(count: int) -> int:
    return max(count + 1, math.ceil(count * GROWTH))


def _prune(choice: Choice, judged: Judge) -> None:
    """Gives up what is not needed, the least worth first, by groups that are halved."""
    size = math.ceil(len(choice.kept) / GROUPS)
    groups = [choice.kept[i : i + size] for i in range(0, len(choice.kept), size)]
    for _ in range(MOST_PRUNINGS):
        if not groups:
            break
        group = groups.pop()
        rest = [name for name in choice.kept if name not in group]
        if not rest:
            continue  # with none kept the gate is known to fail
        found = judged(rest)
        if found.holds:
            choice.kept, choice.verdict = rest, found
        elif len(group) == 1:
            choice.without[group[0]] = found
        else:
            middle = len(group) // 2
            groups += [group[:middle], group[middle:]]
    choice.without = {name: found for name, found in choice.without.items() if name in choice.kept}
