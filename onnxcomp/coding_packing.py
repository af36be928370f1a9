"""Codes of weights into containers, and what they take there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.coding_quantizer import CodedWeight
from onnxcomp.container import Entry
from onnxcomp.container_contents import Contents
from onnxcomp.container_packing import pack
from onnxcomp.graph import Graph, replace_constants
from onnxcomp.lattices import codebook, grids
from onnxcomp.lossless import Prefer, encode_grid, encode_lossless
from onnxcomp.model import save_model
from onnxcomp.number_types import FLOAT
from onnxcomp.progress import Progress
from onnxcomp.quantization import Array
from onnxcomp.representations import Integer

Path_ = str | os.PathLike[str]


def with_codes(graph: Graph, codes: Mapping[str, CodedWeight]) -> Graph:
    """A copy of a graph whose constants have the values that codes give, under the same names."""
    twin = graph.copy()
    replace_constants(twin, {n: gs.Constant(n, coded.values) for n, coded in codes.items()})
    return twin


def grid_bytes(coded: CodedWeight, prefer: Prefer) -> int:
    """What a constant takes in a container, about."""
    entry = Entry(0, True, 0, 0, FLOAT, coded.codes.shape, Integer())
    return encode_grid(
        entry, coded.codes, coded.scales, coded.axis, coded.along, prefer=prefer
    ).size


def exact_bytes(values: Array, prefer: Prefer) -> int | None:
    """What a float32 constant takes as it is, where it lies on a grid or has few values.

    None elsewhere: then codes are always shorter.
    """
    numbers = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
    if codebook(numbers) is None and next(grids(numbers, values.shape), None) is None:
        return None
    entry = Entry(0, True, 0, 0, FLOAT, values.shape, Integer())
    return encode_lossless(entry, numbers.view(np.uint8), prefer=prefer).size


def pack_codes(
    graph: Graph,
    codes: Mapping[str, CodedWeight],
    output: Path_,
    *,
    external: bool = False,
    base: Path_ | None = None,
    prefer: Prefer = "size",
    threads: int | None = None,
    errors: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Contents:
    """Packs the graph that `with_codes` made, its constants as those codes.

    Args:
        graph: what `with_codes` made.
        codes: by name of the constant.
        output: the container.
        external: unpack with the weights in a file of their own.
        base, prefer, threads, errors, progress: as for `pack`.
    """
    with tempfile.TemporaryDirectory(prefix="onnxcomp") as folder:
        place = Path(folder) / "model.onnx"
        save_model(graph, place, external=external)
        return pack(
            place,
            output,
            base=base,
            prefer=prefer,
            threads=threads,
            grids=codes,
            errors=errors,
            progress=progress,
        )


def packed_bytes(graph: Graph, codes: Mapping[str, CodedWeight], prefer: Prefer) -> int:
    """Of the container of such a graph."""
    with tempfile.TemporaryDirectory(prefix="onnxcomp") as folder:
        place, errors = Path(folder) / "model.oxc", dict.fromkeys(codes, 1e-3)  # of two bytes
        return pack_codes(graph, codes, place, prefer=prefer, errors=errors).bytes
