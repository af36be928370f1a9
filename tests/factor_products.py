"""What the factors of a weight make, and at which rank they lose nothing, by their shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.factored_forms import Form
from onnxcomp.thin_layers import Rank

Array = npt.NDArray[Any]


def full_rank(form: Form) -> Rank:
    """Where nothing is lost, by the shape of the weight alone."""
    shape = tuple(int(size) for size in form.weight.shape)
    if form.nodes[0].op != "Conv":
        return min(shape[-2:])
    (out, width), size = shape[:2], math.prod(shape[2:])
    if form.method == "tucker2":
        return out, width
    if form.method == "spatial":
        return min(out * shape[3], width * shape[2])
    of_method = {"svd": min(out, width), "svd_input": min(out, width * size)}
    return of_method.get(
        form.method, width if form.method == "svd_output" else min(out, width) * size
    )


def product(method: str, factors: Sequence[Array], shape: Sequence[int], of_conv: bool) -> Array:
    """The weight of this shape that a row of thin layers stands for, float64."""
    parts = [np.asarray(factor, np.float64) for factor in factors]
    if not of_conv:
        first, second = parts
        fits = first.shape[-2] == shape[-2] and second.shape[-1] == shape[-1]
        return np.asarray(first @ second if fits else second @ first)
    flat = [part.reshape(part.shape[:2]) for part in parts if math.prod(part.shape[2:]) == 1]
    if method in ("svd", "svd_input"):
        return np.tensordot(flat[-1], parts[0], (1, 0))
    if method == "svd_output":
        return np.einsum("or...,ri->oi...", parts[1], flat[0])
    if method == "tucker2":
        return np.einsum("oa,ab...,bi->oi...", flat[-1], parts[1], flat[0])
    assert method == "spatial"
    return np.einsum("rihx,orxw->oihw", *parts)
