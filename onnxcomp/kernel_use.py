"""Which nodes onnxruntime really runs in integers, and what conversions cost: one profiled run."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx_graphsurgeon as gs

from onnxcomp.errors import UnsupportedModel
from onnxcomp.graph import QUANTIZERS, all_nodes, label
from onnxcomp.runtime import Feed, open_session

Kind = Literal["integer", "float", "conversion", "other"]

RUNS = 4  # of which the first warms up; the fastest of the others counts
CODES = ("int8", "uint8", "int4", "uint4")
REAL = ("float", "float16", "bfloat16", "double")
INTEGER_KERNELS = re.compile(r"QLinear|QGemm|QAttention|.*Integer|DynamicQuantizeLSTM|MatMulNBits")
WITH_BODIES = ("If", "Loop", "Scan")
_SUFFIX = "_kernel_time"


@dataclass(frozen=True, kw_only=True)
class KernelShare:
    """What all kernels of one type take.

    Attributes:
        op: operator type that onnxruntime runs, after its fusions.
        kind: "integer" works on codes, "float" on real numbers, "conversion" goes between them,
            "other" computes shapes, indices or masks.
        count: kernels in the model.
        time_share: of all kernels' time, 0..1.
        nodes: labels of the nodes of the model that they were made of, where that is known.
    """

    op: str
    kind: Kind
    count: int
    time_share: float
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A QuantizeLinear or DequantizeLinear that is left at run time.

    Attributes:
        op: which of them.
        tensor: what it converts, by its name in the model, or as onnxruntime calls the kernel.
        elements: how many numbers it moves.
        time_share: of all kernels' time, 0..1.
    """

    op: str
    tensor: str
    elements: int
    time_share: float


@dataclass(frozen=True, kw_only=True)
class KernelUse:
    """What onnxruntime's CPU provider runs.

    Attributes:
        kernels: by operator type and kind, the largest share of time first.
        conversions: each one left, the largest share of time first.
    """

    kernels: tuple[KernelShare, ...] = ()
    conversions: tuple[Conversion, ...] = ()

    def time_share(self, kind: Kind) -> float:
        """The share of time that all kernels of a kind take."""
        return sum(k.time_share for k in self.kernels if k.kind == kind)


@dataclass
class _Kernel:
    """One kernel in a profile: its type, kind and output elements, and the times it took in us."""

    op: str
    kind: Kind
    elements: int
    times: list[float] = field(default_factory=list)


def kernels_of(graph: gs.Graph, feed: Feed) -> KernelUse | None:
    """`kernel_use` of a graph with operators that make or read codes.

    None without any, and where a profile cannot be had: it only explains.
    """
    if not any(n.op in QUANTIZERS or INTEGER_KERNELS.match(n.op) for n in all_nodes(graph)):
        return None
    try:
        return kernel_use(graph, feed)
    except UnsupportedModel:
        return None


def kernel_use(graph: gs.Graph, feed: Feed) -> KernelUse:
    """Runs a graph on one feed with onnxruntime's profiler, on one thread.

    Times are of kernels one by one and say where the time goes; how long a run takes is measured
    without a profiler.

    Raises:
        UnsupportedModel: onnxruntime cannot load or run the graph.
    """
    twin = graph.copy()
    for node in all_nodes(twin):
        node.name = label(node)  # a kernel keeps the name of what it was made of
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        session = open_session(twin, threads=1, profile=Path(folder) / "profile")
        for _ in range(RUNS):
            session.run(feed)
        events = json.loads(Path(session.inner.end_profiling()).read_text(encoding="utf-8"))
    kernels = _kernels(events)
    return _summary(kernels, twin)


def _kernels(events: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], _Kernel]:
    """By name and index; a kernel in a loop's body has several times for each run."""
    found: dict[tuple[str, str], _Kernel] = {}
    for event in events:
        name, args = str(event.get("name", "")), event.get("args", {})
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX):
            continue
        if args.get("op_name") in WITH_BODIES:  # its time is that of the kernels inside
            continue
        key = (name.removesuffix(_SUFFIX), str(args.get("node_index", "")))
        if key not in found:
            elements = sum(_elements(shape) for shape in args.get("output_type_shape", ())[:1])
            found[key] = _Kernel(str(args["op_name"]), _kind(args), elements)
        found[key].times.append(float(event["dur"]))
    return found


def _elements(shaped: Mapping[str, Iterable[int]]) -> int:
    return sum(math.prod(shape) for shape in shaped.values())


def _kind(args: Mapping[str, Any]) -> Kind:
    op = str(args["op_name"])
    if op in QUANTIZERS:
        return "conversion"
    if INTEGER_KERNELS.match(op):
        return "integer"
    read = [kind for shaped in args.get("input_type_shape", ())[:1] for kind in shaped]
    made = [kind for shaped in args.get("output_type_shape", ())[:1] for kind in shaped]
    if set(made) & set(CODES):
        return "integer"
    return "float" if set(made + read) & set(REAL) else "other"


def _summary(kernels: Mapping[tuple[str, str], _Kernel], graph: gs.Graph) -> KernelUse:
    times = {key: _typical(kernel.times) for key, kernel in kernels.items()}
    total = sum(times.values()) or 1.0
    nodes = {node.name: node for node in all_nodes(graph)}
    groups: dict[tuple[str, Kind], list[tuple[str, str]]] = defaultdict(list)
    for key, kernel in kernels.items():
        groups[kernel.op, kernel.kind].append(key)
    shares = [
        KernelShare(
            op=op,
            kind=kind,
            count=len(keys),
            time_share=round(sum(times[key] for key in keys) / total, 4),
            nodes=tuple(name for name in (_origin(key[0], nodes) for key in keys) if name),
        )
        for (op, kind), keys in groups.items()
    ]
    conversions = [
        Conversion(
            op=kernel.op,
            tensor=_converted(key[0], nodes),
            elements=kernel.elements,
            time_share=round(times[key] / total, 4),
        )
        for key, kernel in kernels.items()
        if kernel.kind == "conversion"
    ]
    return KernelUse(
        kernels=tuple(sorted(shares, key=lambda s: (-s.time_share, s.op, s.kind))),
        conversions=tuple(sorted(conversions, key=lambda c: (-c.time_share, c.tensor, c.op))),
    )


def _typical(times: list[float]) -> float:
    """The time of one run: the fastest of those after the first."""
    each = len(times) // RUNS or 1
    runs = [sum(times[i : i + each]) for i in range(0, len(times), each)]
    return min(runs[1:] or runs)


def _origin(name: str, nodes: Mapping[str, gs.Node]) -> str:
    """The node that a kernel was made of: onnxruntime appends what it did to the name."""
    while name and name not in nodes:
        cut = max(name.rfind(mark) for mark in "/_:.")
        name = name[:cut] if cut > 0 else ""
    return name


def _converted(name: str, nodes: Mapping[str, gs.Node]) -> str:
    """The tensor that a conversion is of; onnxruntime names those it moves by the tensor, too."""
    node = nodes.get(name)
    if node is None or node.op not in QUANTIZERS:
        return re.sub(r"(_pre)?_(q|dq)$", "", name)
    codes = node.inputs[0]
    makers = codes.inputs if node.op == "DequantizeLinear" else []
    quantizes = makers and makers[0].op == "QuantizeLinear"
    return str(makers[0].inputs[0].name if quantizes else codes.name)
