"""Copies of a graph with some of its weights written thinner, to be counted, run or timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from onnxcomp.factorable_weights import place_of
from onnxcomp.graph import Names, all_nodes
from onnxcomp.rank_planning import Option


def written(options: Sequence[Option], graph: gs.Graph) -> gs.Graph:
    """A copy of ``graph``, for which the options are, with these written."""
    trial = graph.copy()
    names = Names(trial)
    for option in _in_twin(options, graph, trial):
        option.form.write(trial, names, option.rank)
    return trial


def _in_twin(options: Sequence[Option], graph: gs.Graph, twin: gs.Graph) -> Iterator[Option]:
    """Options of ``graph`` as those of its copy, which has the same nodes in the same order."""
    pairs = zip(all_nodes(graph), all_nodes(twin), strict=True)
    twins = {id(node): other for node, other in pairs}
    for option in options:
        nodes = tuple(twins[id(node)] for node in option.form.nodes)
        weight = nodes[0].inputs[place_of(option.form.nodes[0], option.form.weight)]
        yield replace(option, form=replace(option.form, nodes=nodes, weight=weight))
