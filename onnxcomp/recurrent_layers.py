"""LSTM, GRU and RNN as layers: their gates add up W x and R h, each linear, before any sigmoid.

What a gate is to add up is not a tensor of the graph. It follows from the original's weights and
from what the original reads: x, or h of the step before, which is its own output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.gram import Array
from onnxcomp.graph import Names, consumers, is_constant, is_standard
from onnxcomp.layer_inputs import sampled_rows

RECURRENT = ("GRU", "LSTM", "RNN")
OF_INPUT, OF_STATE, BIAS = 1, 2, 3  # inputs of the node


@dataclass(frozen=True)
class RecurrentPart:
    """y = W x + b of a node's gates, or y = R h + b.

    Attributes:
        node: of the pruned graph.
        index: of its input with the weights.
        source: name of x, or of all h.
        whole: weights of the original for the gates that are left, [directions, gates, d].
    """

    node: gs.Node
    index: int
    source: str
    whole: Array

    @property
    def reads_state(self) -> bool:
        """Whether it multiplies h and not x."""
        return self.index == OF_STATE

    @property
    def reads_channels(self) -> bool:
        """Whether its input is [batch, channels, *spatial]: never."""
        return False

    @property
    def groups(self) -> int:
        """Directions."""
        return int(self.whole.shape[0])

    @property
    def weights(self) -> Array:
        """W or R, float64 [directions, gates, d]."""
        return np.asarray(self.node.inputs[self.index].values, np.float64)

    @property
    def takes_bias(self) -> bool:
        """Whether it has a bias."""
        given = self.node.inputs
        return len(given) > BIAS and is_constant(given[BIAS])

    @property
    def bias(self) -> Array:
        """Its half of the node's, float64 [directions, gates]."""
        if not self.takes_bias:
            return np.zeros(self.weights.shape[:2])
        halves = np.split(self.node.inputs[BIAS].values.astype(np.float64), 2, axis=1)
        return np.asarray(halves[self.index - 1])

    def write(self, weights: Array, bias: Array | None, names: Names) -> None:
        """Puts new constants in place of the weights and, unless None, of their bias."""
        old = self.node.inputs[self.index]
        name = names.fresh(f"{old.name}.refitted")
        self.node.inputs[self.index] = gs.Constant(name, weights.astype(old.dtype))
        if bias is None:
            return
        before = self.node.inputs[BIAS]
        halves = np.split(before.values, 2, axis=1)
        halves[self.index - 1] = bias.astype(before.dtype)
        name = names.fresh(f"{before.name}.refitted")
        self.node.inputs[BIAS] = gs.Constant(name, np.concatenate(halves, axis=1))

    def inputs(self, values: Array, count: int, seed: list[int]) -> Array:
        """Rows x or h of a few samples, [samples, directions, d, at most count].

        Args:
            values: x [samples, steps, batch, d], or all h [samples, steps, directions, batch, d].
            count: at most so many rows of each sample.
            seed: of the choice of rows.
        """
        if not self.reads_state:
            return np.repeat(sampled_rows(values, None, count, seed), self.groups, axis=1)
        before = [values[:, :-1, 0], values[:, 1:, -1]]  # of the last direction if it is reversed
        if self.groups == 1:
            before = before[1:] if self.node.attrs.get("direction") == "reverse" else before[:1]
        return np.concatenate([sampled_rows(h, None, count, seed) for h in before], axis=1)

    def outputs(self, values: Array, count: int, seed: list[int]) -> Array:
        """Rows y that the original makes of the same places, [samples, directions, gates, n]."""
        rows = self.inputs(values, count, seed)
        whole, bias = (a.astype(rows.dtype) for a in (self.whole, self.bias))
        return np.asarray(np.matmul(whole, rows) + bias[:, :, None])


def recurrent_parts(
    node: gs.Node, was: gs.Node, gates_left: Callable[[gs.Tensor], Array]
) -> Iterator[RecurrentPart | str]:
    """What of a node is to be refitted, or a reason against a part.

    Args:
        node: of the pruned graph, without anything against it.
        was: the same in the original.
        gates_left: gives those rows of the original's weights that are left.
    """
    yield RecurrentPart(node, OF_INPUT, node.inputs[0].name, gates_left(was.inputs[OF_INPUT]))
    states = node.outputs[0].name
    if node.inputs[OF_STATE].shape == was.inputs[OF_STATE].shape:
        return
    if not states:
        yield "its weights of the state stay: the graph has no output of all its states"
    elif node.op == "GRU" and not node.attrs.get("linear_before_reset", 0):
        yield "its weights of the state stay: its reset gate comes before the product"
    else:
        yield RecurrentPart(node, OF_STATE, states, gates_left(was.inputs[OF_STATE]))


def reason_against(node: gs.Node) -> str | None:
    """Why the weights of an LSTM, GRU or RNN cannot be fitted, or None."""
    weights = node.inputs[OF_INPUT : OF_STATE + 1]
    if not is_standard(node) or not all(is_constant(tensor) for tensor in weights):
        return "its weights are computed"
    if any(len(consumers(tensor)) > 1 for tensor in weights):
        return "its weights are shared"
    return "its batch comes first" if node.attrs.get("layout", 0) else None
