"""Which layers lose most when they are quantized, and what leaving them in float would cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.errors import OnnxcompError, RecipeError
from onnxcomp.evaluation import Evaluator, Reference, evaluator_of, score
from onnxcomp.graph import Graph, all_nodes, is_constant, label, sort_nodes
from onnxcomp.local_error import local_sqnr_db
from onnxcomp.macs import macs_by_node
from onnxcomp.measuring import open_calibration
from onnxcomp.model import load_model
from onnxcomp.opset import convert_opset
from onnxcomp.passes import PASSES
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.probing import Probe, decibel, measure_nodes
from onnxcomp.progress import Progress
from onnxcomp.recipe import parse_pass
from onnxcomp.report import plain
from onnxcomp.runtime import Session, open_file, open_session
from onnxcomp.stored import constant_bytes
from onnxcomp.targets import resolve_target

SENSITIVITY_SCHEMA = "onnxcomp.sensitivity/1"
SAMPLES = 8  # more of them change the figures by a dB or less
SCORED = 10  # layers that an evaluator is asked about
DEFAULT_PASS = "quantize_static"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One node that the pass changes.

    Attributes:
        rank: 1 for the one that loses most.
        name: its label.
        op: its operator type.
        estimated_db: SQNR of its own output, from moments of its input; None where unknown.
        measured_db: SQNR of the model's worst output with nothing else quantized; None where it
            was not measured, or the error was too small to be.
        error_share: of the sum of all nodes' error energies at the outputs, 0 to 1; from the
            estimate where it was not measured.
        macs_share: of the model's MACs, about the share of the time that leaving it in float
            would cost; None where unknown.
        bytes_share: of the bytes of the model's weights.
        score: of the evaluator with nothing else quantized; None where it was not asked.
    """

    rank: int
    name: str
    op: str
    estimated_db: float | None
    measured_db: float | None
    error_share: float
    macs_share: float | None
    bytes_share: float
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The layers of a model, those first that lose most.

    Attributes:
        model: path.
        target: name of the target.
        step: the pass, as its name.
        options: of the pass, in its draft form.
        samples: in words.
        measured_on: how many samples the outputs were compared on.
        all_db: SQNR of the worst output with all layers quantized.
        score_float: of the evaluator for the model as it is; None without one.
        score_all: of the evaluator with all layers quantized.
        layers: ranked.
        notes: what else a person should know.
    """

    model: str
    target: str
    step: str
    options: dict[str, Any]
    samples: str
    measured_on: int
    all_db: float
    score_float: float | None
    score_all: float | None
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the schema's name first; see docs/sensitivity.md."""
        return {"schema": SENSITIVITY_SCHEMA, **plain(self)}


def sensitivity(
    model: str | os.PathLike[str],
    *,
    calibration: Any = None,
    step: Pass | str = DEFAULT_PASS,
    evaluator: Evaluator | str | None = None,
    samples: int = SAMPLES,
    target: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Sensitivity:
    """Ranks the nodes that a quantizing pass changes by what that does to the model's outputs.

    The model is simplified first, as the built-in recipes do, and the pass runs in its draft form.

    Args:
        model: path.
        calibration: samples, as `Calibration.from_source` takes them; None makes some up.
        step: the pass: ``quantize_static``, with options as ``--pass`` takes them, or a `Pass`.
        evaluator: an onnxruntime session -> score, higher is better; or "FILE.py:FUNCTION". It
            is asked about the SCORED worst layers.
        samples: how many samples to compare the outputs on.
        target: what the result is for: auto, x86-avx2, x86-vnni or arm64.
        seed: of every random choice.
        progress: told how far the work is.

    Raises:
        UnsupportedModel: the model cannot be read or does not run.
        CalibrationError: the samples do not fit the model.
        RecipeError: the pass or an option is unknown, or the pass changes nothing.
        PassFailed: the pass raised.
    """
    progress = progress or Progress()
    step = parse_pass(step) if isinstance(step, str) else step
    evaluator = evaluator_of(evaluator)
    if samples < 1:
        raise RecipeError(f"samples must be at least 1, not {samples}")
    aim = resolve_target(target)
    progress.stage(f"reading {Path(model).name}")
    loaded = load_model(model)
    session = open_file(loaded.path, threads=1)
    whole = open_calibration(calibration, loaded.graph, session, seed)
    used, held = whole.split()
    reference = Reference.of(session, held.feeds(samples), whole.synthetic)
    context = PassContext(calibration=used, target=aim, seed=seed, advance=progress.advance)
    graph, notes = _simplified(loaded.graph, context, reference)
    progress.stage(step.name())
    step = step.draft()
    probe = Probe(graph, step, context, reference)
    if not probe.labels:
        raise RecipeError(f"{step.name()} changes no node of {Path(model).name}")
    layers = _ranked(probe, context, progress)
    scores = _scores(probe, layers, evaluator, session, progress)
    if whole.synthetic:
        notes.append("no samples were given: the figures are of made-up inputs")
    return Sensitivity(
        model=str(model),
        target=aim.name,
        step=step.name(),
        options=plain(step.settings()),
        samples=whole.description,
        measured_on=len(reference.feeds),
        all_db=probe.full_db,
        score_float=scores.float_model,
        score_all=scores.all_layers,
        layers=tuple(replace(layer, score=scores.alone.get(layer.name)) for layer in layers),
        notes=tuple(notes),
    )


def _ranked(probe: Probe, context: PassContext, progress: Progress) -> tuple[Layer, ...]:
    """The nodes that the pass changes, without scores, those first that cause most noise."""
    progress.stage("estimating each layer's error")
    samples, weight_bits = context.samples(), context.target.weight_bits
    estimates = local_sqnr_db(probe.graph, set(probe.labels), samples, weight_bits)
    progress.stage(f"measuring {len(probe.labels)} layers")
    noise, measured = measure_nodes(probe, estimates, advance=progress.advance)
    costs = node_costs(probe.graph, probe.reference)
    total = sum(noise.values()) or 1.0
    ops = {label(node): node.op for node in all_nodes(probe.graph)}
    return tuple(
        Layer(
            rank=rank,
            name=name,
            op=ops[name],
            estimated_db=estimates.get(name),
            measured_db=decibel(noise[name]) if name in measured and noise[name] > 0 else None,
            error_share=noise[name] / total,
            macs_share=costs[name].macs_share,
            bytes_share=costs[name].bytes_share,
        )
        for rank, name in enumerate(sorted(probe.labels, key=lambda name: -noise[name]), 1)
    )


@dataclass(frozen=True)
class NodeCost:
    """What leaving a node in float costs, as shares of the whole model, 0 to 1."""

    macs_share: float | None
    bytes_share: float


def node_costs(graph: gs.Graph, reference: Reference) -> dict[str, NodeCost]:
    """Shares of MACs and of weight bytes, by label; a weight counts for its first reader."""
    shapes = {name: list(np.shape(value)) for name, value in reference.feeds[0].items()}
    macs = {node.name: node.macs for node in macs_by_node(graph, shapes)}
    known = sum(count for count in macs.values() if count is not None)
    seen: set[str] = set()
    held: dict[str, int] = {}
    for node in all_nodes(graph):
        fresh = [t for t in node.inputs if is_constant(t) and t.name not in seen]
        seen |= {tensor.name for tensor in fresh}
        held[label(node)] = held.get(label(node), 0) + sum(map(constant_bytes, fresh))
    total = sum(held.values()) or 1
    return {
        name: NodeCost(_share(macs.get(name, 0), known), size / total)
        for name, size in held.items()
    }


def _share(count: int | None, total: int) -> float | None:
    return None if count is None else count / total if total else 0.0


def _simplified(
    graph: Graph, context: PassContext, reference: Reference
) -> tuple[Graph, list[str]]:
    """The graph as quantization wants it, and what went wrong on the way there."""
    notes: list[str] = []
    for name in ("opset", "simplify_graph"):
        try:
            twin = graph.copy()
            if name == "opset":
                if twin.opset >= Pass.minimum_opset:
                    continue
                twin = convert_opset(twin, Pass.minimum_opset)
            else:
                simplify = next(kind for kind in PASSES if kind.name() == name)
                simplify().rewrite(twin, context, PassReport())
                sort_nodes(twin)
            reference.compare(open_session(twin, threads=1))
            graph = twin
        except OnnxcompError as error:
            notes.append(f"the model was taken as it is, without {name}: {error}")
    return graph, notes


@dataclass(frozen=True)
class _Scores:
    """What the evaluator says of the model, of all layers quantized and of some alone, by label."""

    float_model: float | None = None
    all_layers: float | None = None
    alone: Mapping[str, float] = field(default_factory=dict)


def _scores(
    probe: Probe,
    layers: Sequence[Layer],
    evaluator: Evaluator | None,
    session: Session,
    progress: Progress,
) -> _Scores:
    """Asks about the worst layers."""
    if evaluator is None:
        return _Scores()
    progress.stage("evaluating")
    before = score(evaluator, session)
    after = score(evaluator, probe.open(probe.run(probe.step, PassReport())))
    found = {}
    for index, layer in enumerate(layers[:SCORED]):
        progress.advance(index, min(SCORED, len(layers)))
        alone = probe.alone([layer.name])
        if alone is not None:
            found[layer.name] = score(evaluator, alone)
    return _Scores(before, after, found)
