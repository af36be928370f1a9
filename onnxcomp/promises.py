"""What an optimized model has in common with the one that came in."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxcomp.errors import UnsupportedModel
from onnxcomp.exporting import value_info
from onnxcomp.model import check_graph


def check_promises(original: gs.Graph, candidate: gs.Graph) -> None:
    """A candidate is valid ONNX, and takes and gives what the original does.

    Raises:
        UnsupportedModel: with the first difference.
    """
    for kind in ("inputs", "outputs"):
        pairs = zip(getattr(original, kind), getattr(candidate, kind), strict=False)
        if len(getattr(original, kind)) != len(getattr(candidate, kind)):
            raise UnsupportedModel(f"the number of {kind} changed")
        for a, b in pairs:
            if value_info(a) != value_info(b):
                raise UnsupportedModel(f"the name, dtype or shape of {a.name!r} in {kind} changed")
    check_graph(candidate)
