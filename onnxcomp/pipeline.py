"""The pipeline: passes one after the other, each judged by what it did to the ORIGINAL's answers.

A pass only rewrites. What holds after it is seen to here: the model checks, loads and runs, its
inputs and outputs are as they were, and its fidelity and cost were measured; a pass that breaks a
guarantee or a gate of the recipe is undone, and the report says why.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import onnx_graphsurgeon as gs

from onnxcomp.coding_quality import Quantized
from onnxcomp.errors import GateFailed, OnnxcompError, PassFailed, UnsupportedModel
from onnxcomp.gates import (
    TIME,
    Measured,
    answers_margin,
    asked_for,
    broken_gate,
    unfaithful,
    untimed,
)
from onnxcomp.graph import Graph, sort_nodes
from onnxcomp.inspection import count_macs, count_parameters
from onnxcomp.kernel_use import kernels_of
from onnxcomp.measuring import Measurements
from onnxcomp.mixing import mix
from onnxcomp.model import Model, bytes_on_disk, check_graph, graph_bytes
from onnxcomp.opset import convert_opset
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.progress import Progress
from onnxcomp.promises import check_promises
from onnxcomp.recipe import Gates, Recipe
from onnxcomp.report import Cost, PassResult, Report
from onnxcomp.result_writing import Result, is_packed, save_original, save_result, size_packed
from onnxcomp.runtime import one_line
from onnxcomp.targets import Target
from onnxcomp.versions import versions

Verify = Literal["each", "final", "off"]


class Run:
    """One call of `optimize`: the graph so far, and what has been measured of it."""

    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        measurements: Measurements,
        target: Target,
        seed: int,
        verify: Verify,
        strict: bool,
        progress: Progress,
        output: Path | None = None,
    ) -> None:
        self.model, self.recipe, self.measurements = model, recipe, measurements
        self.gates = recipe.gates.in_force(measurements.carries_state)
        self.verify, self.strict, self.progress = verify, strict, progress
        if verify == "each" and measurements.large:
            self.verify = "final"  # one more session of a model this size costs more than it tells
        self.context = self._context(target, seed)
        self.output = output
        self.packs = recipe.pack if output is None else is_packed(output)
        self.coded: Quantized | None = None  # codes of the graph so far
        self.pending: Quantized | None = None  # those of the candidate
        self.graph = model.graph.copy()
        self.passes: list[PassResult] = []
        self.ran: list[Pass] = []
        self.notes = [*measurements.notes, *self._notes_on_gates()]
        self.current = measurements.original

    def _context(self, target: Target, seed: int) -> PassContext:
        """What passes are told; of the gates only what will be measured."""
        is_judged = self.verify != "off"
        return PassContext(
            calibration=self.measurements.calibration,
            target=target,
            seed=seed,
            advance=self.progress.advance,
            original=self.model.graph,
            must_pay=self.gates.must_pay and is_judged,
            held_back=self.measurements.held_back,
            quality=asked_for(self.gates) if is_judged else None,
            margin=self._margin if is_judged else None,
        )

    def _notes_on_gates(self) -> Iterator[str]:
        if self.verify == "off" and self.gates != Gates():
            yield "nothing was measured, so the gates of the recipe were not checked"
        if self.gates != self.recipe.gates:
            yield (
                "the model carries state from run to run, where errors add up: "
                f"the gate is {self.gates.min_sqnr_db:g} dB"
            )

    def result(self) -> Result:
        """Runs the recipe, measures the end and writes it."""
        self._raise_opset()
        for step in self.recipe.passes:
            self.progress.stage(step.name())
            self.ran.append(self._apply(step))
        kept = [outcome for outcome in self.passes if outcome.status == "kept"]
        try:
            if kept:
                return self._result(self._write())
        except (GateFailed, UnsupportedModel) as error:
            if self.strict:
                raise
            for outcome in kept:
                outcome.status, outcome.reason = "undone", f"the result as a whole: {error}"
        self.notes.append("the output is the original: no pass was kept")
        self.graph = self.model.graph
        self.coded, final = None, self.measurements.unchanged()
        if self.output is not None:
            size = save_original(self.model, self.output)
            final = dataclasses.replace(final, bytes=size if self.packs else final.bytes)
        return self._result(final)

    def _result(self, final: Measured) -> Result:
        recipe = dataclasses.replace(self.recipe, passes=tuple(self.ran))
        external = self.model.external
        return Result(self.graph, self._report(final), external, recipe, self.coded)

    def _margin(self, graph: gs.Graph) -> float:
        """By how much a graph keeps the gates on its answers."""
        measured = self.measurements.answers_of(graph)
        return answers_margin(self.gates, self.measurements.original, measured)

    def _raise_opset(self) -> None:
        """Converts an opset below 13, or says why it had to stay."""
        came = self.graph.opset
        if came >= Pass.minimum_opset:
            return
        try:
            converted = convert_opset(self.graph, Pass.minimum_opset)
            check_graph(converted)
            self.measurements.same_answers(converted)
        except OnnxcompError as error:
            self.notes.append(f"opset {came} stays: converting it failed: {error}")
            return
        self.graph = converted
        self.notes.append(f"opset {came} was converted to {converted.opset} first")

    def _apply(self, step: Pass) -> Pass:
        """Runs one pass on a copy, which becomes the graph if it holds; the pass as it was run."""
        outcome = PassResult(name=step.name(), options=step.settings())
        self.passes.append(outcome)
        if self.graph.opset < step.minimum_opset:
            outcome.status = "unchanged"
            outcome.reason = f"needs opset {step.minimum_opset}, the model has {self.graph.opset}"
            return step
        candidate = self._rewritten(step, outcome)
        if candidate is None:
            return step
        reason, answers = self._judge(candidate, outcome)
        if answers and step.trades_precision:
            step, reason = self._mixed(step, outcome, reason)
        if reason:
            if self.strict:
                raise GateFailed(f"{outcome.name}: {reason}")
            outcome.status, outcome.reason = "undone", reason
        return step

    def _rewritten(self, step: Pass, outcome: PassResult) -> Graph | None:
        """The graph after a pass; None where it changed nothing or raised."""
        candidate, report = self.graph.copy(), PassReport(quantized=self.coded)
        start = time.perf_counter()
        try:
            removed = [e for p in self.passes if p.status == "kept" for e in p.removed]
            step.rewrite(candidate, dataclasses.replace(self.context, removed=removed), report)
            sort_nodes(candidate)
        except Exception as error:
            place = f" at node {report.current!r}" if report.current else ""
            outcome.status = "failed"
            outcome.reason = f"{one_line(error)} ({type(error).__name__}{place})"
            if self.strict:
                raise PassFailed(f"{step.name()}: {outcome.reason}") from error
            return None
        finally:
            outcome.seconds += time.perf_counter() - start
            for name in ("changed", "skipped", "numbers", "notes", "removed", "factorized"):
                setattr(outcome, name, getattr(report, name))
        if not report.changed:
            outcome.status = "unchanged"
            return None
        self.pending = report.quantized
        return candidate

    def _judge(self, candidate: Graph, outcome: PassResult) -> tuple[str, bool]:
        """Takes ``candidate`` over, or says why not, and whether its answers alone are to blame."""
        before = self.current
        answers = False
        try:
            check_promises(self.model.graph, candidate)
            if self.verify == "each":
                after = self.measurements.of(candidate)
                after = dataclasses.replace(after, bytes=self._bytes(candidate))
                after, reason = self._gated(after, before, candidate)
                answers = bool(unfaithful(self.gates, self.measurements.original, after))
            else:
                after, reason = dataclasses.replace(before, bytes=self._bytes(candidate)), ""
            outcome.bytes, outcome.fidelity = after.bytes, after.fidelity
            outcome.latency_ratio, outcome.score = after.latency_ratio, after.score
        except OnnxcompError as error:
            reason = str(error)
        if not reason:
            self.graph, self.current, self.coded = candidate, after, self.pending
        return reason, answers

    def _bytes(self, candidate: Graph) -> int:
        """Of a candidate: as a model until its weights have codes, then as a container."""
        if self.packs and self.pending is not None:
            return size_packed(candidate, self.pending)
        return graph_bytes(candidate)

    def _mixed(self, step: Pass, outcome: PassResult, broken: str) -> tuple[Pass, str]:
        """``step`` with the fewest nodes left in float; why it has to be undone nevertheless."""
        start = time.perf_counter()
        measured = Measured(bytes=0, fidelity=outcome.fidelity, score=outcome.score)
        mixture = None
        try:
            what = self.measurements, self.gates, measured
            mixture = mix(self.graph, step, self.context, *what, self.progress)
        except OnnxcompError as error:
            outcome.notes.append(f"looking for nodes to keep in float failed: {error}")
        outcome.seconds += time.perf_counter() - start
        if mixture is None:
            return step, f"{broken}; no choice of nodes to keep in float helps"
        self.progress.stage(step.name())
        candidate = self._rewritten(mixture.step, outcome)
        if candidate is None:
            return step, broken
        mixture.explain(outcome)
        reason, _ = self._judge(candidate, outcome)
        if reason:
            kept = len(mixture.choice.kept)
            return step, f"{broken}; with {kept} of {mixture.nodes} nodes in float: {reason}"
        outcome.options = mixture.step.settings()
        return mixture.step, ""

    def _write(self) -> Measured:
        """Writes the result where it is wanted, measured before it takes its name.

        Raises:
            GateFailed: it breaks a gate against the original.
            UnsupportedModel: it does not load or run.
        """
        if self.output is None:
            return self._verified(None, size_packed(self.graph, self.coded) if self.packs else None)
        self.progress.stage(f"writing {self.output.name}")
        found: list[Measured] = []
        save_result(
            self.graph,
            self.coded,
            self.output,
            external=self.model.external,
            verify=lambda path, size: found.append(self._verified(path, size)),
        )
        return found[0]

    def _verified(self, path: Path | None, size: int | None) -> Measured:
        size = size or self._size(path)
        if self.verify == "off":
            self.measurements.runs(self.graph, path)
            return dataclasses.replace(self.current, bytes=size)

        measured = self.measurements.of(self.graph, path, patience=2)
        final, reason = self._gated(
            dataclasses.replace(measured, bytes=size),
            self.measurements.original,
            self.graph,
            path,
            final=True,
        )
        if reason:
            raise GateFailed(reason)
        return final

    def _size(self, path: Path | None) -> int:
        """Bytes of the result. With external data that is the input's and the change since: names
        of files and gaps between weights say nothing about what the passes did."""
        if self.model.external:
            return self.model.bytes + graph_bytes(self.graph) - graph_bytes(self.model.graph)
        return graph_bytes(self.graph) if path is None else bytes_on_disk(path)

    def _gated(
        self,
        after: Measured,
        before: Measured,
        graph: Graph,
        path: Path | None = None,
        final: bool = False,
    ) -> tuple[Measured, str]:
        """Figures and the gate they break; before time undoes anything it is measured longer.

        A recipe for containers is about bytes: time undoes nothing there.
        """
        if self.recipe.pack:
            original = self.measurements.original
            return after, broken_gate(self.gates, original, untimed(before), untimed(after), final)
        reason = broken_gate(self.gates, self.measurements.original, before, after, final)
        if TIME in reason:
            old = None if final else self.graph
            before, after = self.measurements.timed_again(before, after, old, graph, path)
            reason = broken_gate(self.gates, self.measurements.original, before, after, final)
        return after, reason

    def _report(self, final: Measured) -> Report:
        measurements, original = self.measurements, self.measurements.original
        before, after = measurements.latencies_ms
        unmeasured = self.verify == "off" or measurements.large
        return Report(
            model=str(self.model.path),
            output="" if self.output is None else str(self.output),
            recipe=self.recipe.name,
            target=self.context.target.name,
            seed=self.context.seed,
            samples=measurements.samples,
            gates=dataclasses.asdict(self.gates),
            before=self._cost(self.model.graph, original, before),
            after=self._cost(self.graph, final, after if final is not original else before),
            latency_ratio=final.latency_ratio,
            fidelity=final.fidelity,
            score_before=original.score,
            score_after=final.score,
            passes=self.passes,
            notes=self.notes,
            versions=versions(),
            kernels=None if unmeasured else kernels_of(self.graph, measurements.feed),
        )

    def _cost(self, graph: gs.Graph, measured: Measured, latency_ms: float | None) -> Cost:
        return Cost(
            bytes=measured.bytes,
            parameters=count_parameters(graph),
            macs=count_macs(graph, self.measurements.shapes),
            latency_ms=latency_ms,
        )
