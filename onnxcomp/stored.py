"""Values that stay where they were stored: in the model's protobuf or in a file beside it.

They are read whenever somebody looks at them and written again as they came, however often that
was: looking at a weight neither loads it for good nor changes how it is saved.
"""

from __future__ import annotations

import math
import mmap
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from onnxcomp.errors import UnsupportedModel

Array = npt.NDArray[Any]
SUB_BYTE = {  # bits of the types that are packed into bytes; onnx before 1.20 lacks some
    getattr(TensorProto, name): bits
    for bits, names in {
        2: ("INT2", "UINT2"),
        4: ("INT4", "UINT4", "FLOAT4E2M1"),
        6: ("FLOAT6E2M3", "FLOAT6E3M2"),
    }.items()
    for name in names
    if hasattr(TensorProto, name)
}


class StoredConstant(gs.Constant):  # type: ignore[misc]
    """A constant whose values are read anew by everybody who looks, and never kept.

    So what nobody replaces is saved byte for byte, doc strings, sparsity and packing included.
    """

    @property
    def values(self) -> Array:
        """The values, read-only while they are stored ones."""
        current = self._values
        return current.load() if isinstance(current, LazyValues) else current

    @values.setter
    def values(self, values: Array | LazyValues) -> None:
        self._values = values

    def copy(self) -> StoredConstant:
        """Shares the values."""
        return StoredConstant(self.name, self._values)


class StoredValues(LazyValues):  # type: ignore[misc]
    """The values of an initializer as they lie in the file.

    Attributes:
        tensor: the TensorProto, written again as it is while nobody replaces the values.
        dtype: numpy dtype; bfloat16, float8 and types below a byte as those of ml_dtypes.
        folder: where the files of external data are.
    """

    def __init__(self, tensor: TensorProto, folder: Path | None) -> None:
        self.tensor = tensor
        self.shape = list(tensor.dims)
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        self.nbytes = stored_bytes(tensor.data_type, math.prod(self.shape))
        self.folder = folder
        self._loaded: weakref.ref[Array] | None = None

    @property
    def is_external(self) -> bool:
        """Whether the values are in a file of their own."""
        return bool(self.tensor.data_location == TensorProto.EXTERNAL)

    def load(self) -> Array:
        """The values as a read-only array; external ones as a view of the mapped file.

        While somebody holds the array it is the same one.
        """
        array = None if self._loaded is None else self._loaded()
        if array is None:
            array = self._mapped() if self.is_external else numpy_helper.to_array(self.tensor)
            array.flags.writeable = False
            self._loaded = weakref.ref(array)
        return array

    def _mapped(self) -> Array:
        path, offset, length = external_range(self.tensor, self.folder)
        if length == 0:
            return np.zeros(self.shape, self.dtype)
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        with open(path, "rb") as file:
            pages = mmap.mmap(
                file.fileno(), offset - start + length, access=mmap.ACCESS_READ, offset=start
            )
        if self.tensor.data_type in SUB_BYTE:
            data_type = self.tensor.data_type
            packed = TensorProto(data_type=data_type, dims=self.shape, raw_data=pages[-length:])
            return numpy_helper.to_array(packed)
        count = math.prod(self.shape)
        flat = np.frombuffer(pages, self.dtype, count=count, offset=offset - start)
        return flat.reshape(self.shape)


class StoredSparse(SparseValues):  # type: ignore[misc]
    """A sparse initializer: dense for whoever reads it."""

    def __init__(self, tensor: onnx.SparseTensorProto) -> None:
        self.tensor = tensor
        self.shape = list(tensor.dims)
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.values.data_type)
        self.nbytes = stored_bytes(tensor.values.data_type, math.prod(tensor.values.dims))

    def load(self) -> Array:
        """The dense array, read-only. Indices are [n] linear or [n, rank] (ONNX IR)."""
        values = numpy_helper.to_array(self.tensor.values)
        indices = numpy_helper.to_array(self.tensor.indices)
        dense = np.zeros(self.shape, self.dtype)
        where = tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, self.shape)
        dense[where] = values
        dense.flags.writeable = False
        return dense


def stored_bytes(data_type: int, count: int) -> int:
    """Bytes that ``count`` elements of an ONNX data type take in a file; 0 for strings."""
    if data_type == TensorProto.STRING:
        return 0
    if data_type in SUB_BYTE:
        return (count * SUB_BYTE[data_type] + 7) // 8
    return count * int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize)


def constant_bytes(constant: gs.Constant) -> int:
    """Bytes the values of a constant take in a file, types below a byte packed."""
    values = constant._values
    if isinstance(values, (StoredValues, StoredSparse)):
        return int(values.nbytes)
    if isinstance(constant.dtype, int):
        data_type = constant.dtype
    else:
        data_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(constant.dtype))
    return stored_bytes(data_type, math.prod(constant.shape))


def external_range(tensor: TensorProto, folder: Path | None) -> tuple[Path, int, int]:
    """Where the values of an external tensor are: (file, offset, bytes).

    Raises:
        UnsupportedModel: the location leaves the model's folder, the file is missing or short, or
            an offset is no number.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, base = entries.get("location", ""), (folder or Path()).resolve()
    place = f"tensor {tensor.name!r}: external data"
    try:
        path = (base / location).resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL
        raise UnsupportedModel(f"{place} {location[:80]!r} is not the name of a file") from None
    if not location or not path.is_relative_to(base):
        raise UnsupportedModel(f"{place} {location!r} lies outside the model's folder")
    if not is_file:
        raise UnsupportedModel(f"{place} file {path} is missing")
    expected = stored_bytes(tensor.data_type, math.prod(tensor.dims))
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
    except ValueError:
        raise UnsupportedModel(f"{place} has an offset or length that is no number") from None
    if length != expected or offset < 0 or offset + length > path.stat().st_size:
        raise UnsupportedModel(
            f"tensor {tensor.name!r}: needs {expected} bytes at {offset} of {path.name},"
            f" which has {path.stat().st_size} and declares {length}"
        )
    return path, offset, length
