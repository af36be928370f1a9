"""What a model has to keep when its weights are coded, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxcomp.coding_quantizer import CodedWeight
from onnxcomp.errors import OnnxcompError
from onnxcomp.graph import Graph

NAMED = 3  # weights that a line names
KINDS = {
    "bits": "--bits",
    "min_sqnr_db": "--min-sqnr",
    "target_bytes": "--target-bytes",
    "max_drop": "--max-drop",
}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a quantized model has to keep; one of the first four.

    Attributes:
        bits: payload bits of a weight, on average over all that are quantized.
        min_sqnr_db: of the worst output, before a final Softmax, against the original.
        target_bytes: of the container.
        max_drop: points the evaluator may lose; without one, share of samples, in %, whose best
            class may change.
        trellis: whether codes may depend on each other: fewer bits, slower to find.
    """

    bits: float | None = None
    min_sqnr_db: float | None = None
    target_bytes: int | None = None
    max_drop: float | None = None
    trellis: bool = False

    def __post_init__(self) -> None:
        """Raises OnnxcompError unless exactly one is given, with a value that can be kept."""
        given = {name: getattr(self, name) for name in KINDS if getattr(self, name) is not None}
        if len(given) != 1:
            raise OnnxcompError(f"give one of {', '.join(KINDS.values())}, not {len(given)}")
        ((name, value),) = given.items()
        if not math.isfinite(value) or value < 0 or (value == 0 and name != "max_drop"):
            raise OnnxcompError(f"{KINDS[name]} {value:g}: has to be positive")

    @property
    def is_size(self) -> bool:
        """Whether it limits the size, not the loss."""
        return self.bits is not None or self.target_bytes is not None


@dataclass(frozen=True)
class Quantized:
    """A model whose weights are codes.

    Attributes:
        graph: with the values that a decoder gives.
        codes: by name of the constant.
        errors: that each of them alone causes at the worst output, as shares of its energy.
        level: noise at the outputs that each element was allowed, as a share of their energy.
        bits_per_weight: of the payloads of all weights with codes.
        weights: elements with codes.
        sqnr_db: of the worst output on samples that nothing was fitted to, where there are enough.
        judged: how many those are.
        synthetic: whether they are made up.
        points_lost: what max_drop looks at, where that is the target.
        rounded: weights whose codes are the nearest ones, not fitted to inputs, and why.
    """

    graph: Graph
    codes: Mapping[str, CodedWeight]
    errors: Mapping[str, float]
    level: float
    bits_per_weight: float
    weights: int
    sqnr_db: float
    judged: int
    synthetic: bool
    points_lost: float | None = None
    rounded: Mapping[str, str] = field(default_factory=dict)

    def in_words(self) -> str:
        """Its figures on a line, and one for each reason to round weights to the nearest codes."""
        said = f"{self.bits_per_weight:.2f} bits a weight, {self.sqnr_db:.1f} dB"
        if self.points_lost is not None:
            said += f", {self.points_lost:.2f} points lost"
        of = "made-up samples" if self.synthetic else "samples"
        lines = [f"{said} on {self.judged} {of}"]
        for reason in dict.fromkeys(self.rounded.values()):
            names = [name for name, why in self.rounded.items() if why == reason]
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            lines.append(f"nearest codes: {', '.join(names[:NAMED])}{more}: {reason}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Its figures, for JSON."""
        return {
            "weights": self.weights,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "sqnr_db": round(self.sqnr_db, 3) if math.isfinite(self.sqnr_db) else None,
            "samples": self.judged,
            "synthetic": self.synthetic,
            "points_lost": self.points_lost,
            "rounded": dict(self.rounded),
        }
