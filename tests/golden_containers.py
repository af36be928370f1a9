"""The containers of tests/golden, made again.

    python tests/golden_containers.py FOLDER

writes them into a folder where they are not yet: those of version 1 never change. Together they
hold every back end and profile, every representation and data type, a delta package, a data file,
and errors of tensors. Nothing in them comes from a random generator that a library could change.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from reference_container import decoded

from onnxcomp.container import SMALLEST_ERROR, Entry, cut, stream_dims
from onnxcomp.container_packing import pack
from onnxcomp.container_unpacking import unpack
from onnxcomp.container_writer import ContainerWriter
from onnxcomp.errors import KernelError
from onnxcomp.kernels.coding import CABAC_PROFILES, RANS_PROFILES, encode, xxh3_64
from onnxcomp.number_types import BFLOAT16, BITS, DOUBLE, FLOAT, FLOAT16, FLOATS
from onnxcomp.representations import (
    WHOLE,
    Codebook,
    Grid,
    Integer,
    Planes,
    Representation,
    Same,
    Trellis,
    make_table,
    scale_shape,
)
from onnxcomp.skeleton import point_to

Array = npt.NDArray[Any]
NAMES = ("tiny", "profiles", "representations", "types", "chunks", "model", "external", "delta")
PROFILES = [("raw", "auto"), *(("rans", name) for name in RANS_PROFILES)]
PROFILES += [("cabac", name) for name in CABAC_PROFILES]


def noise(name: str, count: int) -> Array:
    """uint8, the same for ever."""
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(count), np.uint8)


def codes(name: str, *shape: int, spread: int = 9) -> Array:
    """int32 about zero, small ones more often."""
    words = noise(name, 8 * int(np.prod(shape))).view("<u2").astype(np.int64).reshape(-1, 4)
    found = (words[:, :2].sum(1) - words[:, 2:].sum(1)) * spread >> 16
    return found.astype(np.int32).reshape(shape)


def floats(name: str, *shape: int) -> Array:
    """float32 of about 20 bits each: nothing that a packer could find."""
    words = noise(name, 8 * int(np.prod(shape))).view("<u4").astype(np.int64).reshape(-1, 2)
    values = (words[:, 0] - words[:, 1]) * (1 + words[:, 0] % 5)
    return (values / 2.0**33).astype(np.float32).reshape(shape)


# --- written tensor by tensor -----------------------------------------------------------------


class Maker:
    """A container whose representations and profiles are chosen by hand."""

    def __init__(self, skeleton: bytes, *, errors: bool = False) -> None:
        self.file = io.BytesIO()
        self.writer = ContainerWriter(self.file, skeleton, external=False, errors=errors)

    def add(
        self,
        data_type: int,
        dims: tuple[int, ...],
        how: Representation,
        streams: list[Array],
        profile: tuple[str, str] = ("auto", "auto"),
        *,
        name: tuple[int, int] = (0, 0),
        gap: int = 0,
        error: int = 0,
    ) -> None:
        """Codes of each stream; the hash is what the reference decoder makes of them."""
        entry = Entry(gap, True, *name, data_type, dims, how)
        entry.error = error
        payloads, chunks = [], []
        for whole, (shape, bits) in zip(streams, stream_dims(entry), strict=True):
            place, flat = cut(shape, bits), whole.reshape(-1).astype(np.int32)
            starts = [place.start(chunk) for chunk in range(place.chunks)]
            shapes = [place.shape(chunk) for chunk in range(place.chunks)]
            parts = [
                flat[start:][: int(np.prod(shape))].reshape(shape).copy()
                for start, shape in zip(starts, shapes, strict=True)
            ]
            chunks.append(parts)
            back_end, kind = profile
            payloads.append([encode(part, backend=back_end, profile=kind) for part in parts])
            profile = ("auto", "auto")  # of the codes only
        entry.checksum = xxh3_64(decoded(entry, chunks))
        self.writer.add(entry, payloads)

    def finish(self) -> bytes:
        self.writer.finish()
        return self.file.getvalue()


def tiny() -> bytes:
    """A name, a gap and two tensors in under 200 bytes."""
    maker = Maker(b"skeleton: w")
    maker.add(FLOAT, (2, 3), Grid(WHOLE, 0, scale(0.5)), [codes("tiny", 2, 3)], name=(10, 1), gap=9)
    maker.add(TensorProto.INT4, (5,), Integer(), [codes("four", 5)])
    return maker.finish()


def profiles() -> bytes:
    """Every back end and profile, with few lanes and many, escapes, low bits and tails."""
    maker = Maker(b"profiles", errors=True)
    wide = codes("wide", 4, 6, 9, spread=3) ** 5
    cases = {
        "kernels": codes("kernels", 8, 6, 9, spread=6) * (1 + np.arange(8)[:, None, None] // 3),
        "escapes": wide.astype(np.int32),
        "predicted": np.cumsum(codes("steps", 34, 20, 1, spread=2), axis=1).astype(np.int32),
        "vector": codes("vector", 1, 333, 1, spread=30) * 1024 + 5,
        "few": codes("few", 1, 5, 1),
    }
    for index, values in enumerate(cases.values()):
        for profile in PROFILES:
            with contextlib.suppress(KernelError):  # of a profile that such codes cannot have
                maker.add(TensorProto.INT32, values.shape, Integer(), [values], profile,
                          error=index * 4000)  # fmt: skip
    edges = np.array([[[-(2**31), 2**31 - 1, 0]]], np.int32)
    maker.add(TensorProto.INT32, (1, 3, 1), Integer(), [edges], error=SMALLEST_ERROR)
    maker.add(TensorProto.INT32, (2, 2, 2), Integer(), [np.full((2, 2, 2), -9)])
    return maker.finish()


def scale(*values: float) -> Any:
    return make_table(np.array(values, np.float32).view(np.uint32))[0]


def representations() -> bytes:
    """Every representation, with tables in the directory and in streams."""
    maker = Maker(b"representation " * 4)
    for index, (data_type, dims, how, streams) in enumerate(cases_of_representations()):
        maker.add(data_type, dims, how, streams, name=(index % 9, 3), gap=index % 2)
    entries = maker.writer.directory.entries
    same = Entry(0, False, 0, 0, FLOAT, entries[0].dims, Same(0, of_base=False))
    same.checksum = entries[0].checksum
    maker.writer.add(same, [])
    return maker.finish()


Case = tuple[int, tuple[int, ...], Representation, list[Array]]


def cases_of_representations() -> Iterator[Case]:
    dims = (6, 5, 3)
    whole = codes("grid", *dims)
    for data_type in sorted(FLOATS):
        yield data_type, dims, Grid(WHOLE, 0, scale(0.0123)), [whole]
    for kind, along in ((Grid, ()), (Trellis, (0,)), (Trellis, (1,)), (Trellis, (2,))):
        for axis, block in ((0, 0), (1, 0), (2, 0), (0, 4), (1, 2), (2, 1)):
            count = int(np.prod(scale_shape(dims, axis, block)))
            table, stream = make_table((floats("scales", count) + 2).view(np.uint32))
            yield FLOAT, dims, kind(axis, block, table, *along), [whole, *stream_of(table, stream)]
    table, stream = make_table((floats("nine", 9) + 2).view(np.uint32))
    yield FLOAT16, (9, 4), Trellis(0, 0, table, 1), [codes("half", 9, 4), stream]
    for data_type, size in (
        (FLOAT, 5),
        (TensorProto.INT8, 9),
        (TensorProto.COMPLEX128, 3),
        (DOUBLE, 1),
    ):
        bits = BITS[data_type] // 8
        table, stream = make_table(noise("book", size * bits).view(f"<u{bits}"))
        number = codes("which", 40) % size
        if data_type == TensorProto.COMPLEX128:
            yield data_type, (5, 4), Codebook(table), [number, *stream_of(table, stream)]
        else:
            yield data_type, (40,), Codebook(table), [number, *stream_of(table, stream)]
    for data_type, source, widths in (
        (FLOAT, FLOAT, (9, 15, 8)), (FLOAT, FLOAT16, (7, 9)), (FLOAT, BFLOAT16, (16,)),
        (DOUBLE, FLOAT, (11, 21)), (DOUBLE, DOUBLE, (12, 20, 31, 1)), (DOUBLE, FLOAT16, (16,)),
        (FLOAT16, FLOAT16, (6, 10)), (BFLOAT16, BFLOAT16, (9, 7)), (TensorProto.UINT8, 2, (5, 3)),
        (TensorProto.INT64, TensorProto.INT64, (16, 16, 16, 16)),
    ):  # fmt: skip
        fields = [codes(f"field {i}", 7, 6, spread=2**w >> 1) for i, w in enumerate(widths)]
        yield data_type, (7, 6), Planes(source, len(widths) % 2 == 1, widths), fields


def stream_of(table: Any, stream: Array) -> list[Array]:
    return [stream] if table.inline is None else []


def types() -> bytes:
    """Every data type, shapes of every rank to 5, without numbers too."""
    maker = Maker(b"")
    for data_type in sorted(BITS):
        for dims in ((), (0, 3), (7,), (2, 3, 1, 2, 2)):
            entry = Entry(0, True, 0, 0, data_type, dims, Integer())
            maker.add(data_type, dims, Integer(), [codes("types", *entry.number_dims)])
    return maker.finish()


def chunks() -> bytes:
    """Tensors of several chunks, cut at rows and elsewhere; a chunk has one code throughout."""
    maker = Maker(b"")
    for data_type, dims in (
        (TensorProto.INT8, (2**20 + 9,)),
        (TensorProto.INT16, (3, 2**19, 1)),
        (TensorProto.UINT4, (5, 349525)),  # three rows fit, but not eight
        (TensorProto.INT2, (9, 2**17 + 1)),
        (TensorProto.INT8, (2, 3, 2**19 + 1)),
    ):
        place = cut(dims, BITS[data_type])
        starts = [*map(place.start, range(place.chunks)), place.count]
        whole = np.repeat(np.arange(place.chunks) + 3, np.diff(starts))
        maker.add(data_type, dims, Integer(), [whole])
    table, stream = make_table((1 + np.arange(1100, dtype=np.float32)).view(np.uint32))
    whole = np.repeat([5, -4], [1000 * 1048, 1000 * 52])
    maker.add(FLOAT16, (1100, 1000), Grid(0, 0, table), [whole, stream])
    return maker.finish()


# --- packed models ----------------------------------------------------------------------------


def model(**extra: Array) -> onnx.ModelProto:
    """What `pack` looks for: narrower floats, grids, few values, duplicates, special values."""
    plain = floats("plain", 8, 16)
    special = plain.copy().reshape(-1)
    special[:8] = [np.nan, np.inf, -np.inf, 0, -0.0, 1e-40, -1e-40, 3e38]
    special[8:10].view(np.uint32)[:] = [0x7F800001, 0xFFC12345]
    tensors = {
        "plain": plain,
        "again": plain,
        "special": special,
        "half": floats("half", 100).astype(np.float16).astype(np.float32),
        "double": floats("double", 50).astype(np.float64),
        "grid": codes("model grid", 6, 4, 3, 3).astype(np.float32) * np.float32(0.05),
        "rows": codes("rows", 8, 30) * (1 + floats("steps", 8, 1) ** 2),
        "few": np.array([0.1, 0.7, 3, 4], np.float32)[noise("four", 300) % 4],
        "codes": codes("int8", 9, 40).astype(np.int8),
        "shape": noise("long", 320).view("<i8") >> 20,
        **extra,
    }
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "golden", [], [])
    for name, values in tensors.items():
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        graph.initializer.add(
            name=name, data_type=kind, dims=values.shape, raw_data=values.tobytes()
        )
    made = onnx.ModelProto(ir_version=10, producer_name="golden", graph=graph)
    made.opset_import.add(version=21)
    return made


def write_model(folder: Path, name: str, made: onnx.ModelProto) -> Path:
    (folder / f"{name}.onnx").write_bytes(made.SerializeToString(deterministic=True))
    return folder / f"{name}.onnx"


def external(folder: Path) -> onnx.ModelProto:
    """The model with its values in a file of their own."""
    made, data = model(), b""
    for tensor in made.graph.initializer:
        values = tensor.raw_data
        tensor.ClearField("raw_data")
        point_to(tensor, "external.bin", len(data), len(values))
        data += values
    (folder / "external.bin").write_bytes(data)
    return made


def make(folder: Path, base: Path | None = None) -> dict[str, bytes]:
    """The containers by name; models that are packed are written into ``folder``.

    The base of the delta package is ``base``, or the one made here.
    """
    by_hand: dict[str, Callable[[], bytes]] = {
        "tiny": tiny,
        "profiles": profiles,
        "representations": representations,
        "types": types,
        "chunks": chunks,
    }
    found = {name: maker() for name, maker in by_hand.items()}
    pack(write_model(folder, "model", model()), folder / "model.oxc")
    pack(write_model(folder, "external", external(folder)), folder / "external.oxc", prefer="speed")
    changed = model(few=codes("new", 70).astype(np.float32), new=floats("new", 70))
    source = write_model(folder, "delta", changed)
    pack(source, folder / "delta.oxc", base=base or folder / "model.oxc")
    for name in ("model", "external", "delta"):
        found[name] = (folder / f"{name}.oxc").read_bytes()
    assert tuple(found) == NAMES
    return found


def known(folder: Path, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Of each container in ``folder`` the SHA-256 of the files that `unpack` writes as "model"."""
    found = {}
    for name in names:
        base = folder / "model-1.oxc" if name == "delta" else None
        with tempfile.TemporaryDirectory() as target:
            unpack(folder / f"{name}-1.oxc", Path(target) / "model", base=base)
            files = sorted(Path(target).iterdir())
            found[name] = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    return found


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, data in make(Path(scratch)).items():
            with open(target / f"{name}-1.oxc", "xb") as file:
                file.write(data)
            print(f"{name}: {len(data)} bytes")
    text = json.dumps(known(target, NAMES), indent=1)
    (target / "containers-1.json").write_text(text + "\n", encoding="utf-8")
