"""What the body of an If, Loop or Scan reads, run by run, while the model sees its samples.

The enclosing graph runs up to the node; from there the body runs as a graph of its own, as often
as the node would run it (ONNX operator specifications of If 13, Loop 13 and Scan 11). One run's
values are in memory at a time, and what no sample reaches is never seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.body_graphs import BodyGraph
from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationError, UnsupportedModel
from onnxcomp.graph import Carried, Graph, carried_of, is_constant, opsets, reads
from onnxcomp.runtime import Feed, Session, open_session
from onnxcomp.samples import Samples
from onnxcomp.signature import Array, Signature

BRANCHES = {True: "then_branch", False: "else_branch"}


class BodySamples(Calibration):
    """The feeds of a body: one for each time that it runs."""

    def __init__(self, outer: Calibration, graph: gs.Graph, inside: BodyGraph) -> None:
        """Both graphs as they are now: what changes in them later changes no feed.

        Args:
            outer: samples of ``graph``.
            graph: the enclosing one, sorted, which ``inside`` was taken out of.
            inside: the body.

        Raises:
            CalibrationError: an input of the body is no tensor, or of no known type.
            UnsupportedModel: onnxruntime cannot run the body or what leads to it.
        """
        label = f"runs of {inside.attribute} of {inside.node.name or inside.node.op}"
        signature = Signature.of(inside.graph)
        source = Samples(label, lambda: iter(()), unsuited=outer.unsuited)
        super().__init__(source, signature, synthetic=outer.synthetic)
        self._outer, self._inside = outer, inside
        self._known = {t.name: t.values for t in inside.node.inputs if is_constant(t)}
        self._known |= {n: t.values for n, t in carried_of(graph).defaults.items()}
        self._wanted = list(dict.fromkeys(t.name for t in (*inside.node.inputs, *inside.outside)))
        self._session: Session | None = None
        self._body = open_session(inside.graph)
        inputs = {t.name for t in graph.inputs}
        self._reached = [n for n in self._wanted if n and n not in inputs | self._known.keys()]
        if self._reached:
            part = _leading_to(graph, self._reached)
            self._session = open_session(part, extra_outputs=self._reached)

    def feeds(self, limit: int | None = None) -> Iterator[Feed]:
        """All feeds, or ``limit`` of them spread evenly over all samples and iterations.

        Raises:
            CalibrationError: a sample does not fit the model.
            UnsupportedModel: onnxruntime cannot run a part of it.
        """
        if limit is None or limit == 1 or len(self) <= limit:
            yield from itertools.islice(self._replayed(), limit)
            return
        picked = set(np.linspace(0, len(self) - 1, limit).round().astype(int).tolist())
        yield from (feed for index, feed in enumerate(self._replayed()) if index in picked)

    def __len__(self) -> int:
        """How often the body runs over all samples."""
        if self._count is None:
            self._count = sum(1 for _ in self._replayed())
        return self._count

    def try_body(self) -> bool:
        """Runs the body once; whether any sample reaches it.

        Raises:
            CalibrationError: a sample does not fit the model.
            UnsupportedModel: onnxruntime cannot run a part of it.
        """
        first = next(self.feeds(1), None)
        if first is not None:
            self._body.run(first)
        return first is not None

    def _replayed(self) -> Iterator[Feed]:
        for sample in self._outer.feeds():
            found: dict[str, Array] = {**self._known, **sample}
            if self._session is not None:
                values = self._session.run(sample, self._reached)
                found.update(zip(self._reached, values, strict=True))
            yield from self._runs({name: found[name] for name in self._wanted if name})

    def _runs(self, values: Mapping[str, Array]) -> Iterator[Feed]:
        """The feeds for one sample, by what the node reads."""
        node = self._inside.node
        given = [values[t.name] if t.name else None for t in node.inputs]
        outside = {t.name: values[t.name] for t in self._inside.outside}
        if node.op == "If":
            if (
                given[0] is not None
                and self._inside.attribute == BRANCHES[bool(given[0].ravel()[0])]
            ):
                yield outside
        elif node.op == "Loop":
            yield from self._iterations(given, outside)
        else:
            yield from self._slices([value for value in given if value is not None], outside)

    def _iterations(self, given: list[Array | None], outside: Feed) -> Iterator[Feed]:
        """Of Loop: the number of iterations and the condition come first, either may be absent."""
        trips, condition, *states = given
        names = [t.name for t in self._inside.body.inputs]
        ranks = [0 if t.shape is None else len(t.shape) for t in self._inside.body.inputs[:2]]
        goes_on = condition is None or bool(condition.ravel()[0])
        for index in itertools.count():
            if not goes_on or (trips is not None and index >= int(trips.ravel()[0])):
                return
            first = [np.full([1] * ranks[0], index, np.int64), np.ones([1] * ranks[1], bool)]
            feed = {**dict(zip(names, [*first, *states], strict=True)), **outside}
            yield feed
            answer, *rest = self._body.run(feed)
            goes_on, states = bool(np.ravel(answer)[0]), rest[: len(states)]

    def _slices(self, given: list[Array], outside: Feed) -> Iterator[Feed]:
        """Of Scan: states come first, then what is cut into slices along an axis each."""
        attrs = self._inside.node.attrs
        count = int(attrs["num_scan_inputs"])
        states, scanned = given[: len(given) - count], given[len(given) - count :]
        axes = attrs.get("scan_input_axes", [0] * count)
        backwards = attrs.get("scan_input_directions", [0] * count)
        names = [t.name for t in self._inside.body.inputs]
        for index in range(scanned[0].shape[axes[0]]):
            cut = [
                values.take(values.shape[axis] - 1 - index if back else index, axis)
                for values, axis, back in zip(scanned, axes, backwards, strict=True)
            ]
            feed = {**dict(zip(names, [*states, *cut], strict=True)), **outside}
            yield feed
            states = self._body.run(feed)[: len(states)]


def samples_inside(outer: Calibration, graph: gs.Graph, inside: BodyGraph) -> BodySamples | str:
    """The samples of a body that some sample reaches, or why there are none to measure on."""
    try:
        samples = BodySamples(outer, graph, inside)
        is_reached = samples.try_body()
    except (CalibrationError, UnsupportedModel) as error:
        return f"its body cannot be run on its own: {error}"
    return samples if is_reached else "no sample reaches it: its ranges are unknown"


def _leading_to(graph: gs.Graph, names: list[str]) -> Graph:
    """The part of ``graph`` that computes the tensors called ``names``; it shares the nodes."""
    made = {t.name: node for node in graph.nodes for t in node.outputs if t.name}
    needed: set[int] = set()
    waiting = list(names)
    while waiting:
        node = made.get(waiting.pop())
        if node is not None and id(node) not in needed:
            needed.add(id(node))
            waiting += reads(node)
    nodes = [node for node in graph.nodes if id(node) in needed]
    part = Graph(nodes=nodes, inputs=graph.inputs, opset=graph.opset, import_domains=opsets(graph))
    came = carried_of(graph)
    part.carried = Carried(header=came.header, defaults=came.defaults)
    return part
