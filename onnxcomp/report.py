"""What a run found, as plain data. docs/report.md describes the JSON; `SCHEMA` is its version."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from onnxcomp.kernel_use import KernelUse

SCHEMA = "onnxcomp.report/1"
Status = Literal["kept", "unchanged", "undone", "failed"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model takes.

    Attributes:
        bytes: of the file and its external data.
        parameters: elements of all float and quantized weights.
        macs: multiply-accumulates of one run at the samples' shape; None where unknown.
        latency_ms: median of one run; None where it was not measured.
    """

    bytes: int
    parameters: int
    macs: int | None = None
    latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class OutputFidelity:
    """How alike two models answer at one output, over all samples.

    Attributes:
        output: its name.
        sqnr_db: 10 log10(sum a^2 / sum (a - b)^2); inf when equal.
        cosine: of the outputs of all samples taken as one vector.
        max_abs_difference: largest difference of any element.
        top1_agreement: share of rows with the same largest element, in percent, where the
            output looks like class scores; None elsewhere.
        note: what could not be compared and why.
    """

    output: str
    sqnr_db: float
    cosine: float
    max_abs_difference: float
    top1_agreement: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How alike two models answer.

    Attributes:
        samples: how many were compared.
        synthetic: whether they were made up instead of given.
        outputs: one entry an output.
    """

    samples: int
    synthetic: bool
    outputs: tuple[OutputFidelity, ...]

    @property
    def sqnr_db(self) -> float:
        """Of the worst output."""
        return min((output.sqnr_db for output in self.outputs), default=math.inf)

    @property
    def top1_agreement(self) -> float | None:
        """Of the worst output that looks like class scores."""
        known = [o.top1_agreement for o in self.outputs if o.top1_agreement is not None]
        return min(known, default=None)


@dataclass(kw_only=True)
class PassResult:
    """What became of one pass.

    Attributes:
        name: of the pass.
        options: as used.
        status: kept, unchanged (found nothing to do), undone (broke a gate) or failed (raised).
        reason: why it was undone or failed.
        changed: labels of the nodes it changed.
        skipped: label -> why the pass left it alone.
        numbers: figures of the pass itself, units in the names.
        notes: anything else a person should know.
        removed: of each channel group that lost units, what left, in names of the original model.
        factorized: of each weight that was taken apart, how.
        bytes: of the model after the pass.
        latency_ratio: time after the pass / time of the original; None where not measured.
        fidelity: of the model after the pass against the original; None where not measured.
        score: of the evaluator after the pass.
        seconds: the pass took, measuring not counted.
    """

    name: str
    options: dict[str, Any]
    status: Status = "kept"
    reason: str = ""
    changed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    removed: list[dict[str, Any]] = field(default_factory=list)
    factorized: list[dict[str, Any]] = field(default_factory=list)
    bytes: int | None = None
    latency_ratio: float | None = None
    fidelity: Fidelity | None = None
    score: float | None = None
    seconds: float = 0.0


@dataclass(kw_only=True)
class Report:
    """The whole run.

    Attributes:
        model: path of the input.
        output: path of the result; empty where none was written.
        recipe: name of the recipe.
        gates: as in force.
        target: name of the target.
        seed: of every random choice.
        samples: where they came from, in words.
        before: cost of the original.
        after: cost of the result.
        latency_ratio: time of the result / time of the original, medians of interleaved runs.
        fidelity: of the result against the original.
        score_before: what the evaluator said of the original; None without evaluator.
        score_after: what it said of the result.
        passes: in order.
        notes: anything else a person should know, such as a converted opset.
        versions: of onnxcomp, onnx, onnxruntime and the machine's CPU.
        kernels: what onnxruntime runs of the result, in integers and in float; None where the
            result has no codes, or nothing was measured.
    """

    model: str
    recipe: str
    target: str
    seed: int
    samples: str
    gates: dict[str, Any]
    before: Cost
    after: Cost
    output: str = ""
    latency_ratio: float | None = None
    fidelity: Fidelity | None = None
    score_before: float | None = None
    score_after: float | None = None
    passes: list[PassResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    kernels: KernelUse | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the schema's name first."""
        return {"schema": SCHEMA, **plain(self)}

    def to_json(self) -> str:
        """The report as JSON; see docs/report.md."""
        return json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples and arrays as lists; infinity as "inf", NaN as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # of numpy, scalars included
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
