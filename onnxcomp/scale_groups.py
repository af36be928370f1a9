"""Which channels of which tensors can be scaled together without changing what a model computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcomp.graph import all_graphs, all_nodes, is_standard, subgraphs
from onnxcomp.homogeneity import (
    LARGEST,
    Port,
    Sweep,
    batch_norm_labels,
    clip_labels,
    extreme_labels,
    is_float,
    layer_labels,
    matmul_labels,
    norm_labels,
    product_labels,
    same_labels,
    sizes,
    sum_labels,
)
from onnxcomp.label_views import (
    concat_labels,
    expand_labels,
    gather_labels,
    pad_labels,
    pool_labels,
    reduce_labels,
    reshape_labels,
    slice_labels,
    split_labels,
    transpose_labels,
)
from onnxcomp.scale_labels import Array, Labels

Rule = Callable[[Sweep, gs.Node], list[Array] | None]

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), layer_labels),
    "MatMul": matmul_labels,
    "BatchNormalization": batch_norm_labels,
    **dict.fromkeys(("InstanceNormalization", "LayerNormalization"), norm_labels),
    **dict.fromkeys(("Abs", "Identity", "LeakyRelu", "Neg", "PRelu", "Relu"), same_labels),
    **dict.fromkeys(("Add", "Sub", "Sum"), sum_labels),
    **dict.fromkeys(("Max", "Min"), extreme_labels),
    **dict.fromkeys(("Div", "Mul"), product_labels),
    "Clip": clip_labels,
    **dict.fromkeys(
        ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Resize"), pool_labels
    ),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), reduce_labels),
    "Concat": concat_labels,
    "Split": split_labels,
    "Slice": slice_labels,
    "Gather": gather_labels,
    "Transpose": transpose_labels,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), reshape_labels),
    "Pad": pad_labels,
    "Expand": expand_labels,
}
BLIND = ("Shape", "Size")  # they read no values
JOINING = ("Add", "Concat", "Div", "MatMul", "Max", "Min", "Mul", "Sub", "Sum")


@dataclass
class ScaleGroups:
    """What may be scaled in a graph.

    A factor belongs to a class of channels; all tensors are divided by the factors of their
    classes. Classes that meet in one tensor form a group, whose factors are chosen together.

    Attributes:
        classes: by tensor name, the class of each channel: int arrays of the tensor's rank, whose
            axes are as long as the tensor's or 1.
        count: classes are below this.
        reasons: why a class keeps the factor 1; classes without a reason are free.
        ports: the nodes whose constants take factors, labelled by classes.
        members: for each group the tensors with a free class, by name of the first.
    """

    classes: dict[str, Array]
    count: int
    reasons: Mapping[int, str]
    ports: list[Port]
    members: dict[str, list[str]] = field(default_factory=dict)

    def is_free(self, classes: Array) -> npt.NDArray[np.bool_]:
        """Which of ``classes`` have no reason to keep the factor 1."""
        if not self.reasons:
            return np.ones(classes.shape, bool)
        return np.isin(classes, np.fromiter(self.reasons, np.int64), invert=True)


def find_groups(graph: gs.Graph) -> ScaleGroups:
    """Walks over the outermost graph once; shapes and dtypes have to be inferred before.

    Inputs and outputs of the model, and what bodies of If and Loop read, keep their scale.
    """
    sweep = Sweep()
    for tensor in graph.inputs:
        sweep.of[tensor.name] = sweep.pinned(tensor, "it is an input of the model")
    for node in graph.nodes:
        if node.op in BLIND:
            continue
        _visit(sweep, node)
        for _, body in subgraphs(node):
            _pin_inside(sweep, body)
    for tensor in graph.outputs:
        if tensor.name in sweep.of:
            sweep.labels.pin(sweep.of[tensor.name], "it is an output of the model")
    root, reasons = sweep.labels.classes()
    ports = [
        Port(p.node, None if p.reads is None else root[p.reads], root[p.makes]) for p in sweep.ports
    ]
    classes = {name: root[labels] for name, labels in sweep.of.items()}
    groups = ScaleGroups(classes, sweep.labels.count, reasons, ports)
    groups.members = _grouped(groups)
    return groups


def _visit(sweep: Sweep, node: gs.Node) -> None:
    """Gives labels to the outputs of ``node``."""
    rule = RULES.get(node.op) if is_standard(node) else None
    known = all(is_float(t) and sizes(t) is not None for t in node.outputs if t.name)
    made = rule(sweep, node) if rule is not None and known else None
    if made is None or any(labels.size > LARGEST for labels in made):
        reason = f"{node.op} does not pass factors on"
        sweep.pin_inputs(node, reason)
        made = []
    for tensor in () if node.op in JOINING else node.inputs[1:]:
        if tensor.name in sweep.of:  # a computed slope, size or bound
            sweep.labels.pin(sweep.of[tensor.name], f"it is a parameter of {node.op}")
    for tensor, labels in zip(node.outputs, made, strict=False):
        sweep.of[tensor.name] = labels
    for tensor in node.outputs[len(made) :]:
        if tensor.name:
            sweep.of[tensor.name] = sweep.pinned(tensor, f"{node.op} decides its scale")


def _pin_inside(sweep: Sweep, body: gs.Graph) -> None:
    read = {t.name for node in all_nodes(body) for t in node.inputs}
    read |= {t.name for inner in all_graphs(body) for t in inner.outputs}
    for name in read & sweep.of.keys():
        sweep.labels.pin(sweep.of[name], "a body of If, Loop or Scan reads it")


def _grouped(groups: ScaleGroups) -> dict[str, list[str]]:
    """Tensors that share classes, directly or by others, with at least one free class."""
    chains = Labels(groups.count)
    free: dict[str, Array] = {}
    for name, classes in groups.classes.items():
        found = np.unique(classes)
        found = found[groups.is_free(found)]
        if found.size:
            chains.same(found, found[:1])
            free[name] = found
    root, _ = chains.classes()
    members: dict[int, list[str]] = {}
    for name, found in free.items():
        members.setdefault(int(root[found[0]]), []).append(name)
    return {names[0]: names for names in members.values()}
