"""One session of a model in which any of its residual branches can be left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import Names
from onnxcomp.quantization import Array
from onnxcomp.residual_blocks import Branch
from onnxcomp.runtime import Feed, Session, open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.stand_ins import WIDEST, Layout, StandIn, map_nodes


class SwitchedSession(Session):
    """A model whose branches f of y = x + f(x) are, one by one, f(x) or T x + c.

    Every branch passes a Where that an input decides, and T and c are inputs as well. So whatever
    is left out and replaced by whatever, it is one model that is loaded once.

    Attributes:
        dropped: what stands in for the branches that are left out, by index; None for nothing.
    """

    def __init__(
        self,
        graph: gs.Graph,
        branches: Sequence[Branch],
        layouts: Sequence[Layout | None],
        extra_outputs: Iterable[str] = (),
        threads: int | None = None,
    ) -> None:
        """Opens a copy of ``graph`` with switches.

        Args:
            graph: with the branches; not changed.
            branches: of the graph.
            layouts: where their channels are; None for branches that nothing stands in for.
            extra_outputs: names of tensors to return besides the model's outputs.
            threads: as for `open_session`.

        Raises:
            UnsupportedModel: onnxruntime cannot load it.
        """
        twin = graph.copy()
        infer_shapes(twin)
        names = Names(twin)
        self._switches = [
            _Switch(twin, branch, layout, names)
            for branch, layout in zip(branches, layouts, strict=True)
        ]
        session = open_session(twin, extra_outputs=extra_outputs, threads=threads)
        super().__init__(session.inner, session._weights)
        mine = {name for switch in self._switches for name in switch.inputs}
        self.inputs = [name for name in self.inputs if name not in mine]
        self.dropped: Mapping[int, StandIn | None] = {}

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> list[Any]:
        """Runs one feed without the branches ``dropped``; see `Session.run`."""
        whole = dict(feed)
        for index, switch in enumerate(self._switches):
            whole |= switch.feed(index not in self.dropped, self.dropped.get(index))
        return super().run(whole, outputs)


class _Switch:
    """The inputs that decide about one branch.

    Attributes:
        inputs: their names: whether to keep it, c, and T where there is one.
    """

    def __init__(
        self, graph: gs.Graph, branch: Branch, layout: Layout | None, names: Names
    ) -> None:
        index, operand = branch.cut
        node = graph.nodes[index]
        tensor, self._layout = node.inputs[operand], layout
        self._dtype = np.dtype(tensor.dtype or np.float32)
        self._linear = layout is not None and layout.channels <= WIDEST
        self.inputs = [names.fresh(f"{branch.name}.keep"), names.fresh(f"{branch.name}.constant")]
        keep = gs.Variable(self.inputs[0], np.dtype(bool), [])
        stand_in = gs.Variable(self.inputs[1], self._dtype, list(self._nothing(layout)[0].shape))
        graph.inputs.extend([keep, stand_in])
        if layout is not None and self._linear:
            self.inputs.append(names.fresh(f"{branch.name}.map"))
            weight = gs.Variable(self.inputs[2], self._dtype, list(self._nothing(layout)[1].shape))
            graph.inputs.append(weight)
            made = gs.Variable(names.fresh(f"{branch.name}.stand_in"), tensor.dtype, tensor.shape)
            stream = graph.tensors()[branch.stream]
            graph.nodes.extend(map_nodes(stream, weight, stand_in, made, layout, names))
            stand_in = made
        chosen = gs.Variable(names.fresh(f"{branch.name}.chosen"), tensor.dtype, tensor.shape)
        inputs = [keep, tensor, stand_in]
        graph.nodes.append(gs.Node("Where", chosen.name, inputs=inputs, outputs=[chosen]))
        node.inputs[operand] = chosen

    def _nothing(self, layout: Layout | None) -> tuple[Array, Array]:
        """c and T that are 0."""
        if layout is None:
            return np.zeros((), self._dtype), np.zeros((), self._dtype)
        constant = np.zeros(layout.channels, self._dtype)
        if not self._linear:
            return layout.vector(constant), constant
        return constant, layout.matrix(np.zeros((layout.channels,) * 2, self._dtype))

    def feed(self, keep: bool, stand_in: StandIn | None) -> Feed:
        """The inputs of a run with the branch or, without it, with what stands in for it."""
        constant, matrix = self._nothing(self._layout)
        if self._layout is not None and stand_in is not None:
            constant = stand_in.constant.astype(self._dtype).reshape(constant.shape)
            if stand_in.matrix is not None:
                matrix = self._layout.matrix(stand_in.matrix.astype(self._dtype))
        values = (np.asarray(keep), constant, np.ascontiguousarray(matrix))
        return dict(zip(self.inputs, values, strict=False))
