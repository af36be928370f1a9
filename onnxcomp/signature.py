"""What a model takes, and whether a feed fits it.

A feed is one run's inputs by name. Everything that comes from outside goes through
`Signature.check`, so that onnxruntime never meets an array it would refuse.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.errors import CalibrationError
from onnxcomp.graph import carried_of
from onnxcomp.runtime import Feed

Array = np.ndarray[Any, np.dtype[Any]]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` with the nearest of ``known``, or nothing when there is none."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.3)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def is_free(size: object) -> bool:
    """Whether a dimension is symbolic or unknown: some exporters write -1 or 0 for that."""
    return not isinstance(size, (int, np.integer)) or int(size) <= 0


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: as the graph calls it.
        dtype: what numpy calls it.
        shape: a size, a symbol or None per axis; None when the model does not say.
        required: whether it has no default value.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None
    required: bool = True

    @property
    def rank(self) -> int | None:
        """Number of axes, None when the model does not say."""
        return None if self.shape is None else len(self.shape)

    def __str__(self) -> str:
        kind = "string" if self.dtype.kind == "O" else str(self.dtype)
        if self.shape is None:
            return f"{self.name!r} {kind}"
        axes = ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name!r} [{axes}] {kind}"

    def check_shape(self, shape: tuple[int, ...], where: str) -> None:
        """Compares with the fixed axes of the signature.

        Raises:
            CalibrationError: another rank, or another size where the model fixes it.
        """
        if self.shape is None:
            return
        fits = len(shape) == len(self.shape) and all(
            is_free(want) or want == got for want, got in zip(self.shape, shape, strict=True)
        )
        if not fits:
            raise CalibrationError(f"{where}: has shape {list(shape)}, the model takes {self}")

    def check(self, value: object, where: str) -> Array:
        """``value`` as the array the model takes, cast where that is safe.

        Raises:
            CalibrationError: another shape, a dtype that does not cast safely, NaN or infinity.
        """
        where = f"{where}, input {self.name!r}"
        try:
            array = np.asarray(value)
        except Exception as error:
            raise CalibrationError(f"{where}: not an array ({error})") from error
        self.check_shape(array.shape, where)
        if array.size == 0 and array.ndim and array.shape[0] == 0:
            raise CalibrationError(f"{where}: is empty, shape {list(array.shape)}")
        array = self._cast(array, where)
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            raise CalibrationError(f"{where}: holds NaN, infinity or values beyond {self.dtype}")
        return np.ascontiguousarray(array).reshape(array.shape)

    def check_dtype(self, dtype: np.dtype[Any], where: str) -> None:
        """Whether values of ``dtype`` may be cast: to a wider type, or between widths of one kind.

        Raises:
            CalibrationError: it may not.
        """
        kinds = {"f": "f", "i": "iu", "u": "iu", "b": "b", "O": "U", "c": "c"}
        safe = dtype.kind in kinds.get(self.dtype.kind, "") or (
            dtype.kind in "iu" and self.dtype.kind == "f" and np.can_cast(dtype, self.dtype)
        )
        if not safe:
            raise CalibrationError(
                f"{where}: has dtype {dtype}, the model takes {self.dtype}; convert it first"
            )

    def _cast(self, array: Array, where: str) -> Array:
        if array.dtype == self.dtype and self.dtype.kind != "O":
            return array
        if self.dtype.kind == "O" and all(isinstance(text, str) for text in array.ravel()):
            return array.astype(object)
        self.check_dtype(array.dtype, where)
        if array.dtype.kind in "iu" and self.dtype.kind in "iu" and array.size:
            limits = np.iinfo(self.dtype)
            if int(array.min()) < limits.min or int(array.max()) > limits.max:
                raise CalibrationError(
                    f"{where}: values {array.min()} to {array.max()} do not fit {self.dtype}"
                )
        with np.errstate(over="ignore"):  # what overflows is found as infinite
            return array.astype(self.dtype)


@dataclass(frozen=True)
class Signature:
    """The inputs of a model that a feed may name, in the graph's order."""

    inputs: tuple[InputSpec, ...]

    @classmethod
    def of(cls, graph: gs.Graph) -> Signature:
        """The inputs of ``graph``; those with a default value are optional.

        Raises:
            CalibrationError: an input is no tensor, or of a type that numpy cannot hold.
        """
        defaults = carried_of(graph).defaults
        return cls(
            tuple(
                _spec(tensor, tensor.name not in defaults)
                for tensor in graph.inputs
                if isinstance(tensor, gs.Variable)
            )
        )

    @property
    def required(self) -> tuple[InputSpec, ...]:
        """The inputs that every feed must have."""
        return tuple(spec for spec in self.inputs if spec.required)

    def __getitem__(self, name: str) -> InputSpec:
        return next(spec for spec in self.inputs if spec.name == name)

    def check_names(self, names: Iterable[str], where: str) -> None:
        """Compares the names of a feed or file with the inputs.

        Raises:
            CalibrationError: with the input that is missing or the name that is unknown.
        """
        given, known = list(names), [spec.name for spec in self.inputs]
        unknown = [name for name in given if name not in known]
        takes = f"the model takes {', '.join(map(repr, known)) or 'no inputs'}"
        for spec in self.required:
            if spec.name not in given:
                hint = f"; {unknown[0]!r} is not one of its inputs" if unknown else ""
                raise CalibrationError(f"{where}: input {spec.name!r} is missing{hint}; {takes}")
        if unknown:
            hint = did_you_mean(unknown[0], set(known) - set(given))
            raise CalibrationError(f"{where}: {unknown[0]!r} is not an input{hint}; {takes}")

    def check(self, feed: object, where: str) -> Feed:
        """``feed`` with every array as the model takes it.

        Raises:
            CalibrationError: wrong names, shapes, dtypes or values, with the input concerned.
        """
        if not isinstance(feed, Mapping):
            raise CalibrationError(
                f"{where}: a feed is a dict of input name to array, not {type(feed).__name__}"
            )
        self.check_names(feed, where)
        return {str(name): self[name].check(value, where) for name, value in feed.items()}


def _spec(tensor: gs.Variable, required: bool) -> InputSpec:
    if tensor.type != "tensor_type":
        raise CalibrationError(f"input {tensor.name!r} is a {tensor.type}; only tensors can be fed")
    dtype = tensor.dtype
    if isinstance(dtype, int) or dtype is None or np.dtype(dtype).type.__module__ != "numpy":
        kind = onnx.TensorProto.DataType.Name(dtype) if isinstance(dtype, int) else str(dtype)
        raise CalibrationError(
            f"input {tensor.name!r} is of type {kind}, which cannot be fed from Python;"
            " convert the model's input to float32"
        )
    shape = None if tensor.shape is None else tuple(tensor.shape)
    return InputSpec(tensor.name, np.dtype(dtype), shape, required)
