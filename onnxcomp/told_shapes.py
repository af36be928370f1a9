"""What onnxruntime tells of outputs, beside what it told of the original's.

Folding may let it see a length that it had no number for. That is no other promise to callers if
the original never makes any other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.errors import UnsupportedModel
from onnxcomp.runtime import Feed, Session

Told = tuple[str, str, Any]  # name, type and shape of an input or output


def told(session: Session) -> list[Told]:
    """Of inputs and outputs, in their order."""
    values = (*session.inner.get_inputs(), *session.inner.get_outputs())
    return [(value.name, value.type, value.shape) for value in values]


def is_the_same(before: Told, after: Told, original: Session | None, feed: Feed) -> bool:
    """Whether ``after`` tells callers of the original nothing else than ``before``.

    Args:
        before: of an input or output of the original.
        after: of the same of a successor.
        original: to ask, where a number stands for a symbol; None: it is not at hand.
        feed: that it runs with.
    """
    if before == after:
        return True
    outputs = [] if original is None else [value.name for value in original.inner.get_outputs()]
    if original is None or before[0] not in outputs or before[:2] != after[:2]:
        return False
    if len(before[2]) != len(after[2]):
        return False
    axes = [i for i, pair in enumerate(zip(before[2], after[2], strict=True)) if len(set(pair)) > 1]
    if not all(_is_number(after[2][i]) and not _is_number(before[2][i]) for i in axes):
        return False
    try:
        (answer,) = original.run(_larger(feed, original), [before[0]])
    except UnsupportedModel:
        return False
    return all(np.shape(answer)[i] == after[2][i] for i in axes)


def _larger(feed: Feed, session: Session) -> Feed:
    """``feed`` with one index more along all axes that the inputs leave open."""
    result = dict(feed)
    for value in session.inner.get_inputs():
        for axis, size in enumerate(value.shape if value.name in feed else ()):
            if not _is_number(size):
                array = np.asarray(result[value.name])
                result[value.name] = np.concatenate([array, array.take([-1], axis)], axis)
    return result


def _is_number(size: object) -> bool:
    return isinstance(size, int)
