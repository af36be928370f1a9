"""Which weights become codes without samples, and in which form each runs."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import (
    consumers,
    is_constant,
    is_output,
    label,
)
from onnxcomp.weight_sites import Weight, find_weights, refused_nodes

FEW_ROWS = 4  # of an input: up to here float weights that fit a cache are as fast as codes
FEW_ROWS_NEED = 8  # times as many weights for codes to pay
RECURRENT = ("GRU", "LSTM", "RNN")
SLOW = {
    "Conv": "onnxruntime's ConvInteger is slower than its float Conv",
    "ConvTranspose": "onnxruntime has no integer kernel for it",
    "GRU": "onnxruntime has no integer kernel for it",
    "RNN": "onnxruntime has no integer kernel for it",
}
PARTS = "its weight is put together when the model is loaded"


class Form(enum.Enum):
    """How a weight is used once it is codes."""

    PRODUCT = "multiplied in integers"
    LSTM = "recurrent in integers"
    LOOKUP = "looked up by rows"
    STORED = "stored as codes, float when the model is loaded"


@dataclass(frozen=True)
class Choice:
    """What is to become of a node.

    Attributes:
        form: None where it is left alone.
        reason: why it is left alone, or why it keeps float arithmetic; else empty.
    """

    form: Form | None
    reason: str = ""


@dataclass
class WeightPlan:
    """A weight and its form."""

    weight: Weight
    form: Form
    reason: str = ""

    @property
    def nodes(self) -> list[gs.Node]:
        """The layers that compute with it."""
        return [site.layer for site in self.weight.sites]


def form_of(node: gs.Node, smallest_product: int) -> Choice:
    """The fastest form of a node with a constant weight.

    Args:
        node: its shapes should have been inferred.
        smallest_product: weights of a MatMul from which integers are faster.
    """
    if node.op == "Gather":
        rank = len(node.inputs[0].shape)
        if node.attrs.get("axis", 0) not in (0, -rank) or rank != 2:
            return Choice(None, "not a lookup of rows")
        return Choice(Form.LOOKUP)
    if node.op in SLOW:
        return Choice(Form.STORED, SLOW[node.op])
    if node.op == "LSTM":
        if node.attrs.get("layout", 0):
            return Choice(Form.STORED, "its batch comes first")
        return Choice(Form.LSTM)
    return _form_of_product(node, smallest_product)


def _form_of_product(node: gs.Node, smallest: int) -> Choice:
    weight = node.inputs[1]
    if not is_constant(weight):
        left = is_constant(node.inputs[0])
        return Choice(Form.STORED, "its weight is the left factor" if left else PARTS)
    if len(weight.shape) != 2:
        return Choice(Form.STORED, f"its weight has {len(weight.shape)} axes, not 2")
    if node.attrs.get("transA", 0):
        return Choice(Form.STORED, "its input is transposed")
    count, rows = math.prod(weight.shape), rows_of(node.inputs[0])
    if rows is not None and rows <= FEW_ROWS:
        smallest *= FEW_ROWS_NEED
    if count < smallest:
        return Choice(Form.STORED, f"with fewer than {smallest:,} weights float is as fast")
    return Choice(Form.PRODUCT)


def rows_of(tensor: gs.Tensor) -> int | None:
    """How many vectors along the last axis a tensor holds; None where that is not known."""
    if tensor.shape is None or not all(isinstance(n, int) for n in tensor.shape[:-1]):
        return None
    return int(math.prod(tensor.shape[:-1]))


def plan_dynamic(
    graph: gs.Graph, choose: Callable[[gs.Node], Choice], smallest: Callable[[gs.Node], int]
) -> tuple[list[WeightPlan], dict[str, str]]:
    """Forms of the weights, in the order of the graph, and why other nodes stay as they are.

    A weight has one form in all that reads it, and is stored once. An LSTM runs in integers if
    both its weights can.

    Args:
        graph: shapes should have been inferred; it is not changed.
        choose: the form of one node.
        smallest: the least elements of a weight that a node reads.
    """
    plans: list[WeightPlan] = []
    refused = {label(node): reason for node, reason in refused_nodes(graph)}
    for weight in find_weights(graph):
        plan, reasons = _planned(graph, weight, choose, smallest)
        refused |= {name: reason for name, reason in reasons.items() if reason}
        if plan is not None:
            plans.append(plan)
            for node in plan.nodes:
                refused.pop(label(node), None)
    while _demote(plans):
        pass
    return plans, refused


def _planned(
    graph: gs.Graph,
    weight: Weight,
    choose: Callable[[gs.Node], Choice],
    smallest: Callable[[gs.Node], int],
) -> tuple[WeightPlan | None, dict[str, str]]:
    """The plan of a weight, or reasons by label of the nodes that read it."""
    nodes = [site.layer for site in weight.sites]
    moved = any(site.node is not site.layer for site in weight.sites)
    count = math.prod(weight.constant.shape)
    if any(count < smallest(node) for node in nodes):
        small = f"only {count:,} weights"
        return None, {label(n): "" if n.op == "Gather" else small for n in nodes}
    choices = [choose(node) for node in nodes]
    alone = {label(n): c.reason for n, c in zip(nodes, choices, strict=True) if c.form is None}
    if alone:
        shared = f"its weight is that of {next(iter(alone))!r}, which is left alone"
        return None, {label(n): shared for n in nodes} | alone
    outsider = _outsider(weight)
    if outsider or is_output(graph, weight.constant):
        reader = f"{outsider} too" if outsider else "callers: it is an output"
        return None, {label(n): f"its weight is read by {reader}" for n in nodes}
    if not np.isfinite(weight.constant.values).all():
        return None, {label(n): "its weights are not finite" for n in nodes}
    forms = {choice.form for choice in choices}
    form = forms.pop() if len(forms) == 1 and not moved else Form.STORED
    if form is Form.PRODUCT and not weight.is_product:
        form = Form.STORED
    mixed = PARTS if moved else "its weight is read in several ways"
    reason = next((c.reason for c in choices if c.form is Form.STORED), mixed)
    return WeightPlan(weight, form or Form.STORED, reason if form is Form.STORED else ""), {}


def _demote(plans: list[WeightPlan]) -> bool:
    """Stores the other weight of LSTMs of which only one can be in integers; whether any was."""
    integer = {(id(s.node), s.index) for p in plans if p.form is Form.LSTM for s in p.weight.sites}
    for plan in plans:
        halves = [(id(site.node), 3 - site.index) for site in plan.weight.sites]  # inputs 1 and 2
        if plan.form is Form.LSTM and not all(half in integer for half in halves):
            plan.form, plan.reason = Form.STORED, "one of its weights cannot be in integers"
            return True
    return False


def _outsider(weight: Weight) -> str:
    """A reader of a weight that neither computes with it nor moves it; empty for none."""
    sites = {id(site.node) for site in weight.sites}
    return next((label(n) for n in consumers(weight.constant) if id(n) not in sites), "")
