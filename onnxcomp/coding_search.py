"""`pack` to a quality: the coarsest steps that still keep it, or the finest that a size allows.

One level serves all weights of a model (`coding_steps`). It is searched on what counts: the SQNR or
the score of the model as it will be unpacked, or the bytes of its payloads.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.coding_levels import largest_level
from onnxcomp.coding_packing import grid_bytes, pack_codes, packed_bytes, with_codes
from onnxcomp.coding_plan import CodingPlan
from onnxcomp.coding_quantizer import CodedWeight
from onnxcomp.coding_steps import OutputNoise
from onnxcomp.container_contents import Contents
from onnxcomp.errors import OnnxcompError
from onnxcomp.evaluation import Evaluator, Reference, load_evaluator, score
from onnxcomp.graph import Graph
from onnxcomp.lossless import Prefer
from onnxcomp.measuring import open_calibration
from onnxcomp.model import Model, load_model
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.progress import Progress
from onnxcomp.quantization import Array
from onnxcomp.runtime import Session, open_file, open_session
from onnxcomp.targets import resolve_target

SAMPLES = 128  # that layers are observed on
JUDGED = 32  # samples that quality is measured on
TYPICAL_SQNR_DB = 25.0  # where searches for other targets start
FINEST, COARSEST = -80.0, 0.0  # log2 of the level
KINDS = {
    "bits": "--bits",
    "min_sqnr_db": "--min-sqnr",
    "target_bytes": "--target-bytes",
    "max_drop": "--max-drop",
}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a quantized model has to keep; one of these.

    Attributes:
        bits: payload bits of a weight, on average over all that are quantized.
        min_sqnr_db: of the worst output, before a final Softmax, against the original.
        target_bytes: of the container.
        max_drop: points the evaluator may lose; without one, share of samples, in %, whose best
            class may change.
    """

    bits: float | None = None
    min_sqnr_db: float | None = None
    target_bytes: int | None = None
    max_drop: float | None = None

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
        level: noise at the outputs that each element was allowed, as a share of their energy.
        bits_per_weight: of the payloads of all weights with codes.
        weights: elements with codes.
        sqnr_db: of the worst output on samples that nothing was fitted to, where there are enough.
        judged: how many those are.
        synthetic: whether they are made up.
        points_lost: what max_drop looks at, where that is the target.
    """

    graph: Graph
    codes: Mapping[str, CodedWeight]
    level: float
    bits_per_weight: float
    weights: int
    sqnr_db: float
    judged: int
    synthetic: bool
    points_lost: float | None = None

    def in_words(self) -> str:
        """Its figures on a line."""
        said = f"{self.bits_per_weight:.2f} bits a weight, {self.sqnr_db:.1f} dB"
        if self.points_lost is not None:
            said += f", {self.points_lost:.2f} points lost"
        of = "made-up samples" if self.synthetic else "samples"
        return f"{said} on {self.judged} {of}"

    def as_dict(self) -> dict[str, Any]:
        """Its figures, for JSON."""
        return {
            "weights": self.weights,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "sqnr_db": round(self.sqnr_db, 3) if math.isfinite(self.sqnr_db) else None,
            "samples": self.judged,
            "synthetic": self.synthetic,
            "points_lost": self.points_lost,
        }


def quantize_for_coding(
    model: str | os.PathLike[str] | Model,
    quality: Quality,
    *,
    calibration: Any = None,
    evaluator: Evaluator | str | None = None,
    prefer: Prefer = "size",
    seed: int = 0,
    progress: Progress | None = None,
) -> Quantized:
    """Simplifies a model and puts its float32 weights on grids of integers.

    Args:
        model: a path or a loaded model, which is not changed.
        quality: what to keep.
        calibration: samples, as `Calibration.from_source` takes them; None makes some up.
        evaluator: for max_drop: an onnxruntime session -> score; or "FILE.py:FUNCTION".
        prefer: of coding, for sizes.
        seed: of made-up samples.
        progress: told how far the work is.

    Raises:
        UnsupportedModel: the model cannot be read or does not run.
        CalibrationError: the samples do not fit the model.
        OnnxcompError: there is nothing to quantize, or the quality cannot be reached.
    """
    progress = progress or Progress()
    evaluator = load_evaluator(evaluator) if isinstance(evaluator, str) else evaluator
    model = model if isinstance(model, Model) else load_model(model)
    session = open_file(model.path, threads=1)
    fitted, held = open_calibration(calibration, model.graph, session, seed).split()
    lost = None if quality.max_drop is None else _Loss(session, held, evaluator)
    progress.stage("simplifying")
    graph = model.graph.copy()
    SimplifyGraph().rewrite(graph, PassContext(target=resolve_target("auto")), PassReport())
    return _Search(graph, quality, fitted, held, lost, prefer, progress).result()


def pack_quantized(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    quality: Quality,
    *,
    calibration: Any = None,
    evaluator: Evaluator | str | None = None,
    base: str | os.PathLike[str] | None = None,
    prefer: Prefer = "size",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Contents, Quantized]:
    """Packs a model as small as a quality allows, or as good as a size allows.

    Args:
        model: a file.
        output: the container, which appears complete or not at all.
        quality, calibration, evaluator, seed: as for `quantize_for_coding`.
        base, prefer, threads: as for `pack`.
        progress: told how far the work is.

    Raises what `quantize_for_coding` and `pack` raise.
    """
    progress = progress or Progress()
    source = load_model(model)
    found = quantize_for_coding(
        source,
        quality,
        calibration=calibration,
        evaluator=evaluator,
        prefer=prefer,
        seed=seed,
        progress=progress,
    )
    progress.stage("packing")
    packed = pack_codes(
        found.graph,
        found.codes,
        output,
        external=source.external,
        base=base,
        prefer=prefer,
        threads=threads,
        progress=progress,
    )
    return dataclasses.replace(packed, model_bytes=source.bytes), found


class _Loss:
    """Points that a model loses against the original."""

    def __init__(self, session: Session, held: Calibration, evaluator: Evaluator | None) -> None:
        """Scores the original.

        Raises:
            OnnxcompError: without evaluator nothing tells a loss.
        """
        self._evaluator = evaluator
        if evaluator is not None:
            self._best = score(evaluator, session)
            return
        self._reference = Reference.of(session, held.feeds(), held.synthetic)
        if held.synthetic or self._reference.identical().top1_agreement is None:
            raise OnnxcompError(
                "--max-drop needs an evaluator (--evaluate FILE.py:FUNCTION), or samples "
                "(--calibration SRC) and an output of class scores; or use --min-sqnr DB"
            )

    def of(self, graph: gs.Graph) -> float:
        session = open_session(graph, threads=1)
        if self._evaluator is not None:
            return self._best - score(self._evaluator, session)
        return 100.0 - (self._reference.compare(session).top1_agreement or 0.0)


class _Search:
    """The levels of one model."""

    def __init__(
        self,
        graph: Graph,
        quality: Quality,
        fitted: Calibration,
        held: Calibration,
        lost: _Loss | None,
        prefer: Prefer,
        progress: Progress,
    ) -> None:
        self._graph, self._quality, self._lost, self._prefer = graph, quality, lost, prefer
        self._progress = progress
        self._rest: int | None = None  # bytes of a container besides what has codes
        self._kept: Mapping[str, CodedWeight] = {}  # codes of the last level that keeps the quality
        progress.stage("measuring what errors of weights do")
        self._plan = CodingPlan(graph, fitted, SAMPLES, progress.advance)
        if not self._plan.weights:
            raise OnnxcompError("no float32 weights to quantize; --lossless packs what there is")
        names = [*(weight.name for weight in self._plan.weights), *self._plan.vectors]
        self._feeds, self._synthetic = list(held.feeds(JUDGED)), held.synthetic
        self._judge = OutputNoise(graph, names, self._feeds)

    def result(self) -> Quantized:
        """Searches the level, and tells what it gives."""
        self._progress.stage("searching the steps")
        sign = -1.0 if self._quality.is_size else 1.0  # sizes fall with the level, losses grow
        start = math.log2(self._plan.level_for(self._quality.min_sqnr_db or TYPICAL_SQNR_DB))
        bounds = FINEST if sign > 0 else -COARSEST, COARSEST if sign > 0 else -FINEST
        if self._synthetic and self._quality.min_sqnr_db is not None:
            bounds = FINEST, start  # what made-up samples show is too good to be true
        per_octave, close = self._slope()
        found = largest_level(
            lambda x: self._margin_at(2.0 ** (sign * x)),
            sign * start,
            bounds=bounds,
            per_octave=per_octave,
            close=close,
        )
        level, codes = 2.0 ** (sign * found), self._kept
        graph = with_codes(self._graph, codes)
        return Quantized(
            graph=graph,
            codes=codes,
            level=level,
            bits_per_weight=self._bits(codes),
            weights=self._elements(codes),
            sqnr_db=self._judge.sqnr_db(_values(codes)),
            judged=len(self._feeds),
            synthetic=self._synthetic,
            points_lost=None if self._lost is None else self._lost.of(graph),
        )

    def _slope(self) -> tuple[float, float]:
        """How fast the margin falls with each octave of the level, and what is close enough."""
        if self._quality.min_sqnr_db is not None:
            return 3.0, 0.05
        if self._quality.max_drop is not None:
            return 1.0, -1.0  # a score moves in jumps
        return 0.5, 0.005  # bits

    def _margin_at(self, level: float) -> float:
        codes = self._plan.at(level)
        margin = self._margin(codes)
        if margin >= 0:
            self._kept = codes
        return margin

    def _margin(self, codes: Mapping[str, CodedWeight]) -> float:
        wanted = self._quality
        if wanted.min_sqnr_db is not None:
            return self._judge.sqnr_db(_values(codes)) - wanted.min_sqnr_db
        if self._lost is not None and wanted.max_drop is not None:
            return wanted.max_drop - self._lost.of(with_codes(self._graph, codes))
        if wanted.bits is not None:
            return wanted.bits - self._bits(codes)
        assert wanted.target_bytes is not None
        size = self._packed_bytes(codes)
        return 8 * (wanted.target_bytes - size) / self._elements(codes)

    def _bits(self, codes: Mapping[str, CodedWeight]) -> float:
        sizes = (grid_bytes(coded, self._prefer) for coded in codes.values())
        return 8 * sum(sizes) / self._elements(codes)

    @staticmethod
    def _elements(codes: Mapping[str, CodedWeight]) -> int:
        return sum(coded.codes.size for coded in codes.values())

    def _packed_bytes(self, codes: Mapping[str, CodedWeight]) -> int:
        """Of the container; what is not coded here is packed once and remembered."""
        coded = sum(grid_bytes(weight, self._prefer) for weight in codes.values())
        if self._rest is None:
            whole = packed_bytes(with_codes(self._graph, codes), codes, self._prefer)
            self._rest = whole - coded
        return self._rest + coded


def _values(codes: Mapping[str, CodedWeight]) -> dict[str, Array]:
    return {name: coded.values for name, coded in codes.items()}
