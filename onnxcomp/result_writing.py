"""Results of `optimize` on disk: as a model, or packed where the name ends in .oxc."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnxcomp.coding_packing import pack_codes, packed_bytes
from onnxcomp.coding_quality import Quantized
from onnxcomp.container_packing import pack
from onnxcomp.container_unpacking import unpack
from onnxcomp.graph import Graph, carried_of
from onnxcomp.model import Model, check_output, copy_model, save_model
from onnxcomp.recipe import Recipe
from onnxcomp.report import Report
from onnxcomp.writing import appear, check_target, replacing

SUFFIX = ".oxc"


@dataclass(frozen=True)
class Result:
    """What `optimize` returns.

    Attributes:
        graph: the optimized model.
        report: what was done and what it cost.
        external: whether `save` puts weights into a file of their own.
        recipe: as it was run, with the nodes that were found to have to stay in float.
        coded: codes of its weights, where a pass made some.
    """

    graph: Graph
    report: Report
    external: bool
    recipe: Recipe
    coded: Quantized | None = None

    def save(self, path: str | os.PathLike[str]) -> int:
        """Writes the model, packed where the name ends in .oxc, complete or not at all.

        Returns:
            Bytes written.

        Raises:
            OutputError: it cannot be written.
        """
        return save_result(self.graph, self.coded, path, external=self.external)


def is_packed(path: str | os.PathLike[str] | None) -> bool:
    """Whether a result of that name is a container."""
    return path is not None and Path(path).suffix == SUFFIX


def check_result(graph: Graph, path: Path, external: bool) -> None:
    """Refuses, before any work is done, a place where the result could not be written.

    Raises:
        OutputError: it is an input or a folder, or its folder is missing or not writable.
    """
    if is_packed(path):
        check_target(path, carried_of(graph).sources, "output")
    else:
        check_output(graph, path, external)


def save_result(
    graph: Graph,
    coded: Quantized | None,
    path: str | os.PathLike[str],
    *,
    external: bool,
    verify: Callable[[Path, int | None], None] = lambda model, size: None,
) -> int:
    """Writes a graph so that it appears complete or not at all; returns the bytes.

    Args:
        graph: what to write.
        coded: codes of its weights, where they have some: a container keeps those.
        path: a name that ends in .oxc is that of a container.
        external: weights of the model, or of what is unpacked, are in a file of their own.
        verify: called with the complete model, unpacked where the result is a container, and with
            the container's bytes, before anything takes its name; what it raises stops everything.

    Raises:
        OutputError: it cannot be written.
    """
    target = Path(path)
    if not is_packed(target):
        return save_model(
            graph, target, external=external, verify=lambda place: verify(place, None)
        )
    check_result(graph, target, external)
    with replacing(target) as folder:
        place, model = folder / target.name, folder / "unpacked.onnx"
        codes, errors = (coded.codes, coded.errors) if coded else ({}, {})
        size = pack_codes(graph, codes, place, external=external, errors=errors).bytes
        unpack(place, model)
        verify(model, size)
        appear([place], target.parent, folder)
    return size


def save_original(model: Model, path: Path) -> int:
    """Writes a model as it came, packed without loss where that is asked for.

    Raises:
        OutputError: it cannot be written.
    """
    return pack(model.path, path).bytes if is_packed(path) else copy_model(model, path)


def size_packed(graph: Graph, coded: Quantized | None) -> int:
    """Bytes of the container that `save_result` would write."""
    return packed_bytes(graph, coded.codes if coded else {}, "size")
