"""Divides the input of layers by a constant that their weights were multiplied with."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import (
    Names,
    consumers,
    is_constant,
    is_output,
    is_standard,
    producer,
)
from onnxcomp.quantization import Array


def divide_input(
    body: gs.Graph, x: gs.Tensor, readers: Collection[gs.Node], scale: Array, names: Names
) -> None:
    """Lets ``readers`` read x / scale; where all that read x do, at no cost.

    A LayerNormalization, or a Mul by a constant with or without an Add of one behind it, takes the
    division into its constants. Elsewhere one Mul is added for all readers.

    Args:
        body: the graph or body that the readers are in.
        x: of shape [..., d].
        readers: nodes that read x.
        scale: positive, [d].
        names: for what is added.
    """
    mine = {id(node) for node in readers}
    if all(id(node) in mine for node in consumers(x)) and not is_output(body, x):
        found = _constants_behind(body, x)
        if found:
            for node, index in found:
                old = node.inputs[index]
                new = names.fresh(f"{old.name}.divided")
                node.inputs[index] = gs.Constant(new, (old.values / scale).astype(np.float32))
            return
    factor = gs.Constant(names.fresh(f"{x.name}.factor"), (1 / scale).astype(np.float32))
    divided = gs.Variable(names.fresh(f"{x.name}.divided"), x.dtype, x.shape)
    node = gs.Node("Mul", names.fresh(f"{x.name}.divide"), {}, [x, factor], [divided])
    for reader in readers:
        for index, tensor in enumerate(reader.inputs):
            if tensor is x:
                reader.inputs[index] = divided
    body.nodes.append(node)


def _constants_behind(body: gs.Graph, x: gs.Tensor) -> list[tuple[gs.Node, int]]:
    """(node, input) of constants [d] whose division by the scale divides x by it; or none."""
    maker = producer(x)
    if maker is None or not is_standard(maker):
        return []
    if maker.op == "LayerNormalization" and maker.attrs.get("axis", -1) == -1:
        found = [(maker, i) for i in (1, 2) if i < len(maker.inputs) and maker.inputs[i].name]
        return found if all(_is_vector(node.inputs[i]) for node, i in found) else []
    if maker.op == "Add":
        index = next((i for i in (0, 1) if _is_vector(maker.inputs[i])), None)
        if index is None:
            return []
        product = maker.inputs[1 - index]
        inner = producer(product)
        alone = len(consumers(product)) == 1 and not is_output(body, product)
        if inner is None or inner.op != "Mul" or not alone or not is_standard(inner):
            return []
        factor = next((i for i in (0, 1) if _is_vector(inner.inputs[i])), None)
        return [] if factor is None else [(maker, index), (inner, factor)]
    if maker.op == "Mul":
        index = next((i for i in (0, 1) if _is_vector(maker.inputs[i])), None)
        return [] if index is None else [(maker, index)]
    return []


def _is_vector(tensor: gs.Tensor) -> bool:
    return is_constant(tensor) and tensor.dtype == np.float32 and len(tensor.shape) == 1
