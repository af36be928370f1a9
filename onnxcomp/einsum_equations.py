"""The equation of an Einsum, each axis by a name."""

from __future__ import annotations

from collections.abc import Sequence

Names = list[str]


def einsum_axes(equation: str, ranks: Sequence[int]) -> tuple[list[Names], Names]:
    """The names of the axes of every operand, and of the result.

    A letter is its own name; axes that an ellipsis stands for count from the back, as they
    broadcast. Without an arrow the result has the ellipsis and all letters that occur once.

    Args:
        equation: as ONNX has it.
        ranks: of the operands, in order.
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    letters = left.replace(",", "").replace(".", "")
    spans = [rank - len(term.replace(".", "")) for term, rank in zip(terms, ranks, strict=True)]
    if not arrow:
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        result = ("..." if "..." in left else "") + "".join(once)
    named = [_named(term, span) for term, span in zip(terms, spans, strict=True)]
    return named, _named(result, max(spans))


def _named(term: str, span: int) -> Names:
    front, dots, back = term.partition("...")
    middle = [f"{place}" for place in range(-span, 0)] if dots else []
    return [*front, *middle, *back]
