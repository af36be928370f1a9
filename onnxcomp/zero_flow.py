"""Where removed channels are zero once the weights that make them are.

Zeros pass through a Relu and a product, not through a Sigmoid; a sum is zero where all its terms
are. Whoever checks a pruned model zeroes weights along whole axes; where heads lose different
indices of a view, that is only a proof if the view holds zeros there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channel_rules import POOLS
from onnxcomp.graph import input_at, is_constant

ZERO_AT_ZERO = (
    *("Abs", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Dropout", "Elu", "Erf"),
    *("Floor", "Gelu", "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "QuickGelu", "Relu"),
    *("Round", "Selu", "Sign", "Sin", "Sinh", "Softsign", "Sqrt", "Swish", "Tan", "Tanh"),
    "ThresholdedRelu",
)
VIEWS = (
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Reshape", "Resize", "Slice"),
    *("SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Upsample"),
    *("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
    "ReduceSumSquare",
)


def stays_zero(
    graph: gs.Graph,
    carried: Mapping[str, Mapping[int, list[int]]],
    zeroed: Iterable[tuple[str, int]],
) -> set[tuple[str, int]]:
    """Tensors, with the number of a kind of units, that are zero at whatever units left.

    Args:
        graph: in order.
        carried: by tensor and number the axes that have such units.
        zeroed: constants, with the number, that are.
    """
    zero = set(zeroed)
    for node in graph.nodes:
        rule = RULES.get(node.op)
        for tensor in node.outputs if rule is not None else ():
            for number in carried.get(tensor.name, ()):
                read = [t for t in node.inputs if number in carried.get(t.name, ())]
                holds = {t.name: (t.name, number) in zero for t in read}
                if read and rule is not None and rule(node, holds):
                    zero.add((tensor.name, number))
    return zero


Rule = Callable[[gs.Node, Mapping[str, bool]], bool]


def _all(node: gs.Node, holds: Mapping[str, bool]) -> bool:
    """All that has the units; a constant factor has zero rows or columns."""
    return all(holds.values())


def _any(node: gs.Node, holds: Mapping[str, bool]) -> bool:
    return any(holds.values())


def _every_term(node: gs.Node, holds: Mapping[str, bool]) -> bool:
    """Also what is broadcast."""
    return all(holds.get(tensor.name, False) for tensor in node.inputs)


def _either(node: gs.Node, holds: Mapping[str, bool]) -> bool:
    """Where, of the two that it takes from."""
    return all(holds.get(tensor.name, False) for tensor in node.inputs[1:])


def _numerator(node: gs.Node, holds: Mapping[str, bool]) -> bool:
    return holds.get(node.inputs[0].name, False) and node.inputs[1].name not in holds


def _made(node: gs.Node, holds: Mapping[str, bool]) -> bool:
    """By weights and a bias that have the units, unless one of them is computed."""
    present = [tensor for tensor in node.inputs[1:3] if tensor.name]
    return all(is_constant(tensor) and holds.get(tensor.name, False) for tensor in present)


def _gemm(node: gs.Node, holds: Mapping[str, bool]) -> bool:
    term = input_at(node, 2)
    return all(holds.values()) and (term is None or term.name in holds)


def _clipped(node: gs.Node, holds: Mapping[str, bool]) -> bool:
    bounds = [node.attrs.get("min", -np.inf), node.attrs.get("max", np.inf)]
    for i in (1, 2):
        tensor = input_at(node, i)
        if tensor is not None:
            if not is_constant(tensor):
                return False
            bounds[i - 1] = float(np.asarray(tensor.values))
    return holds.get(node.inputs[0].name, False) and bounds[0] <= 0 <= bounds[1]


def _padded(node: gs.Node, holds: Mapping[str, bool]) -> bool:
    value = input_at(node, 2)
    filled = node.attrs.get("value", 0.0) if value is None else None
    if value is not None and is_constant(value):
        filled = float(np.asarray(value.values))
    return filled == 0 and all(holds.values())


RULES: dict[str, Rule] = {
    **dict.fromkeys((*ZERO_AT_ZERO, *VIEWS, *POOLS, "MatMul"), _all),
    **dict.fromkeys(("Add", "Sub", "Sum", "Mean", "Max", "Min", "BiasGelu"), _every_term),
    "Where": _either,
    "Mul": _any,
    "Div": _numerator,
    "Clip": _clipped,
    "Pad": _padded,
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _made),
    **dict.fromkeys(("GroupNormalization", "Conv", "ConvTranspose"), _made),
    "Gemm": _gemm,
}
