"""`onnxcomp run`: one array per input in an .npz, one per output in another."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from onnxcomp.container_loading import load_session
from onnxcomp.container_reader import is_container
from onnxcomp.errors import CalibrationError, OutputError, UnsupportedModel
from onnxcomp.report import plain
from onnxcomp.runtime import Feed, Session, open_file, session_options
from onnxcomp.samples import read_arrays
from onnxcomp.signature import Array, InputSpec, Signature
from onnxcomp.writing import appear, check_target, replacing

SCHEMA = "onnxcomp.run/1"
SUFFIX = ".npz"
SHOWN = 6  # values of an output
DTYPES = {  # of the tensors that an .npz can hold, by what onnxruntime calls them
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "object",
    **{
        f"tensor({name})": name
        for name in (
            *("float16", "bool", "int8", "int16", "int32", "int64"),
            *("uint8", "uint16", "uint32", "uint64"),
        )
    },
}


@dataclass(frozen=True)
class RunOutput:
    """One output of a run.

    Attributes:
        name: as the model calls it.
        dtype: of numpy; of what is no tensor, its ONNX type.
        shape: None for what is no tensor.
        values: the first of them, flat.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Run:
    """What `run_model` did.

    Attributes:
        model: path.
        inputs: path of the arrays that it was given; None without any.
        output: path of the arrays that were written; None for none.
        bytes: of that file.
        outputs: in the model's order.
    """

    model: str
    inputs: str | None
    output: str | None
    bytes: int | None
    outputs: tuple[RunOutput, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the schema's name first; see docs/report.md."""
        return {"schema": SCHEMA, **plain(self)}


def run_model(
    model: Path,
    inputs: Path | None,
    output: Path | None = None,
    *,
    base: Path | None = None,
    threads: int | None = None,
) -> Run:
    """Runs a model once, with our operators known where it has some.

    Args:
        model: an .onnx or a container.
        inputs: an .npz of one array per input; None for a model that needs none.
        output: the .npz to write, one array per output; appears complete or not at all.
        base: the container that a delta package was made from.
        threads: intra-op threads; None for onnxruntime's choice.

    Raises:
        UnsupportedModel: onnxruntime cannot load or run it, or has a type that cannot be stored.
        CorruptContainer: the container is damaged.
        CalibrationError: the arrays do not fit the model: names, dtypes or shapes.
        OutputError: the result cannot be written.
    """
    if output is not None:
        if output.suffix != SUFFIX:
            raise OutputError(f"-o {output}: give a name that ends in {SUFFIX}")
        check_target(output, [path for path in (model, inputs, base) if path is not None], "-o")
    session = _open(model, base, threads)
    if output is not None:
        _check_can_be_stored(session, model)
    feed = _feed(inputs, _signature(session, model), model)
    values = dict(zip(session.outputs, session.run(feed), strict=True))
    size = None if output is None else _write(values, output)
    kinds = [value.type for value in session.inner.get_outputs()]
    return Run(
        model=str(model),
        inputs=None if inputs is None else str(inputs),
        output=None if output is None else str(output),
        bytes=size,
        outputs=tuple(map(_shown, values, kinds, values.values())),
    )


def _open(model: Path, base: Path | None, threads: int | None) -> Session:
    if is_container(model):
        options = session_options(threads=threads)
        return Session(load_session(model, base=base, options=options))
    if base is not None:
        raise UnsupportedModel(f"--base {base}: belongs to delta packages; {model} is no container")
    if not model.is_file():
        raise UnsupportedModel(f"{model}: {'not a file' if model.exists() else 'no such file'}")
    try:
        return open_file(model, threads=threads)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{model}: {error}") from error


def _signature(session: Session, model: Path) -> Signature:
    """The inputs of a session; initializers that may be fed instead are optional."""
    specs = [_spec(value, True, model) for value in session.inner.get_inputs()]
    optional = session.inner.get_overridable_initializers()
    specs += [_spec(value, False, model) for value in optional if value.type in DTYPES]
    return Signature(tuple(specs))


def _spec(value: Any, required: bool, model: Path) -> InputSpec:
    if value.type not in DTYPES:
        raise UnsupportedModel(
            f"{model}: input {value.name!r} is of type {value.type}, which no {SUFFIX} can hold"
        )
    shape = tuple(value.shape) or None  # onnxruntime says [] of a scalar and of an unknown rank
    return InputSpec(value.name, np.dtype(DTYPES[value.type]), shape, required)


def _feed(inputs: Path | None, signature: Signature, model: Path) -> Feed:
    if inputs is None:
        if signature.required:
            takes = ", ".join(map(str, signature.required))
            raise CalibrationError(f"{model}: takes {takes}; give it with --inputs FILE{SUFFIX}")
        return {}
    arrays = read_arrays(inputs)
    signature.check_names(arrays, str(inputs))
    return {name: _fitting(signature[name], array, inputs) for name, array in arrays.items()}


def _fitting(spec: InputSpec, array: Array, inputs: Path) -> Array:
    """An array as onnxruntime takes it; nothing is converted but the order of bytes."""
    where = f"{inputs}, array {spec.name!r}"
    text = spec.dtype.kind == "O"
    if not (array.dtype.kind == "U" if text else array.dtype.newbyteorder("=") == spec.dtype):
        raise CalibrationError(f"{where}: has dtype {array.dtype}, the model takes {spec}")
    spec.check_shape(array.shape, where)
    return np.ascontiguousarray(array, spec.dtype).reshape(array.shape)


def _check_can_be_stored(session: Session, model: Path) -> None:
    """Refuses outputs that no .npz can hold, before the model runs."""
    for value in session.inner.get_outputs():
        if value.type not in DTYPES:
            raise UnsupportedModel(
                f"{model}: output {value.name!r} is of type {value.type}, which no {SUFFIX} can"
                " hold; without -o outputs are shown"
            )


def _write(values: dict[str, Any], target: Path) -> int:
    """Writes an .npz that appears complete or not at all; the same values give the same bytes."""
    for name, value in values.items():
        if not isinstance(value, (np.ndarray, np.generic)):
            raise UnsupportedModel(f"output {name!r} is empty: it holds no tensor")
    with replacing(target) as folder:
        place = folder / target.name
        with zipfile.ZipFile(place, "w", allowZip64=True) as archive:
            for name, value in values.items():
                member = zipfile.ZipInfo(f"{name}.npy")  # without the time of day
                with archive.open(member, "w", force_zip64=True) as stream:
                    npy.write_array(stream, _storable(np.asarray(value)), allow_pickle=False)
        size = os.path.getsize(place)
        appear([place], target.parent, folder)
    return size


def _storable(array: Array) -> Array:
    """Strings as numpy stores them without pickling."""
    return array.astype(np.str_) if array.dtype.kind == "O" else array


def _shown(name: str, kind: str, value: Any) -> RunOutput:
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        dtype = "string" if array.dtype.kind in "OU" else str(array.dtype)
        return RunOutput(name, dtype, array.shape, tuple(array.reshape(-1)[:SHOWN].tolist()))
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return RunOutput(name, kind, None, tuple(map(_in_words, items[:SHOWN])))


def _in_words(item: Any) -> str:
    """An element of a sequence, or a map, on one line."""
    return " ".join(str(item).split())
