"""The coarsest steps that still keep a quality, or the finest that a size allows.

One level serves all weights of a model (`coding_steps`). It is searched on what counts: the SQNR or
the score of the model as it will be unpacked, or the bytes of its payloads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.coding_levels import largest_level
from onnxcomp.coding_packing import exact_bytes, grid_bytes, packed_bytes, with_codes
from onnxcomp.coding_plan import Advance, CodingPlan
from onnxcomp.coding_quality import Quality, Quantized
from onnxcomp.coding_quantizer import CodedWeight
from onnxcomp.coding_steps import relative_noise, step_of
from onnxcomp.errors import OnnxcompError
from onnxcomp.evaluation import Evaluator, Reference, score
from onnxcomp.graph import Graph
from onnxcomp.lossless import Prefer
from onnxcomp.output_noise import OutputNoise
from onnxcomp.quantization import Array
from onnxcomp.runtime import Session, open_session

SAMPLES = 128  # that layers are observed on
JUDGED = 32  # samples that quality is measured on
ALONE = 8  # of them, that the error of each tensor is measured on
TYPICAL_SQNR_DB = 25.0  # where searches for other targets start
FINEST, COARSEST = -80.0, 0.0  # log2 of the level


class PointsLost:
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
        """Of the score, or without evaluator of samples that keep their best class, in %."""
        session = open_session(graph, threads=1)
        if self._evaluator is not None:
            return self._best - score(self._evaluator, session)
        return 100.0 - (self._reference.compare(session).top1_agreement or 0.0)


class LevelSearch:
    """The levels of one model."""

    def __init__(
        self,
        graph: Graph,
        quality: Quality,
        fitted: Calibration,
        held: Calibration,
        *,
        margin: Callable[[gs.Graph], float] | None = None,
        left: Collection[str] = (),
        samples: int = SAMPLES,
        prefer: Prefer = "size",
        advance: Advance = lambda done, total: None,
    ) -> None:
        """Measures what errors of the weights do.

        Args:
            graph: simplified; is not changed.
            quality: what to keep.
            fitted: samples that codes may be fitted to.
            held: samples to judge by.
            margin: what a graph has left of what it must keep besides; of max_drop it alone tells.
            left: names of constants that get no codes.
            samples: that layers are observed on, at most.
            prefer: of coding, for sizes.
            advance: told of runs over samples.

        Raises:
            NothingToCode: there is nothing to quantize.
        """
        self._graph, self._quality, self._extra, self._prefer = graph, quality, margin, prefer
        self._rest: int | None = None  # bytes of a container besides what has codes
        self._kept: Mapping[str, CodedWeight] = {}  # codes of the last level that keeps the quality
        self._plan = CodingPlan(graph, fitted, samples, advance, left=left)
        self._leave_exact()
        names = [*(weight.name for weight in self._plan.weights), *self._plan.vectors]
        self._feeds, self._synthetic = list(held.feeds(JUDGED)), held.synthetic
        self._judge = OutputNoise(graph, names, self._feeds)

    def _leave_exact(self) -> None:
        """Leaves weights alone that take no more as they are: binary ones, for one.

        That is decided where the search starts, as the biases of layers depend on it, and as if
        errors reached the outputs undiminished: trial steps that make none say nothing.
        """
        exact, level = [], self._start
        for weight in self._plan.weights:
            size = exact_bytes(weight.values, self._prefer)
            noise = max(weight.noise, relative_noise(weight.values))
            step = step_of(level, weight.values.size, noise)
            if size is not None and size <= grid_bytes(weight.at(step), self._prefer):
                exact.append(weight.name)
        self._plan.leave(exact)
        sizes = {n: exact_bytes(v, self._prefer) for n, v in self._plan.vectors.items()}
        self._exact = {name: size for name, size in sizes.items() if size is not None}

    @property
    def _start(self) -> float:
        return self._plan.level_for(self._quality.min_sqnr_db or TYPICAL_SQNR_DB)

    def result(self) -> Quantized:
        """Searches the level, and tells what it gives.

        Raises:
            OnnxcompError: no level keeps the quality.
        """
        sign = -1.0 if self._quality.is_size else 1.0  # sizes fall with the level, losses grow
        start = math.log2(self._start)
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
            errors=self._errors(codes),
            level=level,
            bits_per_weight=self._bits(codes),
            weights=self._elements(codes),
            sqnr_db=self._judge.sqnr_db(_values(codes)),
            judged=self._judge.samples,
            synthetic=self._synthetic,
            rounded={name: why for name, why in self._plan.rounded.items() if name in codes},
        )

    def _errors(self, codes: Mapping[str, CodedWeight]) -> dict[str, float]:
        """What each constant alone does to the worst output, as a share of its energy."""
        return {
            name: float(self._judge.shares({name: coded.values}, ALONE).max())
            for name, coded in codes.items()
        }

    def _slope(self) -> tuple[float, float]:
        """How fast the margin falls with each octave of the level, and what is close enough."""
        if self._quality.min_sqnr_db is not None:
            return 3.0, 0.05
        if self._quality.max_drop is not None:
            return 1.0, -1.0  # a score moves in jumps
        return 0.5, 0.005  # bits

    def _margin_at(self, level: float) -> float:
        codes = self._at(level)
        margin = self._margin(codes)
        if margin >= 0:
            self._kept = codes
        return margin

    def _at(self, level: float) -> dict[str, CodedWeight]:
        """Codes of a level, without vectors that are shorter as they are."""
        codes = self._plan.at(level, self._quality.trellis)
        for name, size in self._exact.items():
            if size <= grid_bytes(codes[name], self._prefer):
                del codes[name]
        return codes

    def _margin(self, codes: Mapping[str, CodedWeight]) -> float:
        wanted = self._quality
        if wanted.min_sqnr_db is not None:
            left = self._judge.sqnr_db(_values(codes)) - wanted.min_sqnr_db
            return left if left < 0 else min(left, self._left(codes))
        if wanted.max_drop is not None:
            return self._left(codes)
        if wanted.bits is not None:
            return wanted.bits - self._bits(codes)
        assert wanted.target_bytes is not None
        size = self._packed_bytes(codes)
        return 8 * (wanted.target_bytes - size) / max(1, self._elements(codes))

    def _left(self, codes: Mapping[str, CodedWeight]) -> float:
        """What the codes leave of the margin that somebody else measures."""
        if self._extra is None:
            return math.inf
        return self._extra(with_codes(self._graph, codes))

    def _bits(self, codes: Mapping[str, CodedWeight]) -> float:
        sizes = (grid_bytes(coded, self._prefer) for coded in codes.values())
        return 8 * sum(sizes) / max(1, self._elements(codes))

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
