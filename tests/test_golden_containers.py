"""The golden containers of version 1: what they hold, how they are made, damage to every byte."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden_containers import NAMES, PROFILES, make
from reference_container import Reference

from onnxcomp.container import FOOTER, HEADER, VERSION, read_directory
from onnxcomp.container_reader import ContainerReader
from onnxcomp.container_unpacking import unpack, verify
from onnxcomp.errors import CorruptContainer, UnsupportedModel
from onnxcomp.kernels.coding import BACK_ENDS, CABAC_PROFILES, RANS_PROFILES
from onnxcomp.number_types import BITS
from onnxcomp.representations import Codebook, Grid, Integer, Planes, Same, Trellis

GOLDEN = Path(__file__).resolve().parent / "golden"
HASHES: dict[str, dict[str, str]] = json.loads((GOLDEN / "containers-1.json").read_text("utf-8"))
BASES = {"delta": "model"}


def golden(name: str) -> Path:
    return GOLDEN / f"{name}-1.oxc"


def base_of(name: str) -> Path | None:
    return golden(BASES[name]) if name in BASES else None


@contextlib.contextmanager
def opened(path: Path, base: Path | None) -> Iterator[ContainerReader]:
    with contextlib.ExitStack() as stack:
        older = stack.enter_context(ContainerReader(base)) if base else None
        yield stack.enter_context(ContainerReader(path, older))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- what they hold ---------------------------------------------------------------------------


def test_together_they_hold_every_kind_there_is() -> None:
    starts, kinds, types, features = set(), set(), set(), set()
    for name in NAMES:
        with opened(golden(name), base_of(name)) as reader:
            features.add(HEADER.unpack(golden(name).read_bytes()[: HEADER.size])[3])
            for index, entry in enumerate(reader.directory.entries):
                kinds.add(type(entry.representation))
                types.add(entry.data_type)
                starts |= {tuple(start) for start in reader.payload_starts(index)}
    assert kinds == {Integer, Planes, Grid, Codebook, Same, Trellis}
    assert types == set(BITS)
    assert features == {0, 1, 2, 4}
    profiles = {"rans": RANS_PROFILES, "cabac": CABAC_PROFILES}
    expected = {(BACK_ENDS[end], profiles[end][kind]) for end, kind in PROFILES if end != "raw"}
    assert {start for start in starts if start[0]} == expected
    assert {width for end, width in starts if end == 0} >= {0, 32}


def test_they_have_version_1() -> None:
    assert VERSION == 1
    assert {golden(name).read_bytes()[8:10] for name in NAMES} == {b"\1\0"}
    assert sorted(path.name for path in GOLDEN.glob("*.oxc")) == sorted(
        golden(name).name for name in NAMES
    )
    assert set(HASHES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_reader_gives_back_the_known_bytes(name: str, tmp_path: Path) -> None:
    path, base = golden(name), base_of(name)
    unpack(path, tmp_path / "model", base=base)
    files = sorted(tmp_path.iterdir())
    assert {file.name: sha256(file.read_bytes()) for file in files} == HASHES[name]
    with opened(path, base) as reader:
        assert verify(path, base=base) == len(reader.directory.entries)


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_gives_back_the_known_bytes(name: str) -> None:
    base = base_of(name)
    reference = Reference(golden(name).read_bytes(), Reference(base.read_bytes()) if base else None)
    key = "model.data" if reference.directory.external else "model"
    assert sha256(reference.file()) == HASHES[name][key]


# --- how they were made -----------------------------------------------------------------------


def parts(data: bytes, skeleton: bytes) -> dict[str, Any]:
    """All of a container but how zstd packs the skeleton, which depends on the release of zstd."""
    features = HEADER.unpack_from(data)[3]
    offset, length, *_ = FOOTER.unpack(data[-FOOTER.size :])
    directory = read_directory(data[offset : offset + length], features)
    first = HEADER.size + directory.skeleton_packed
    entries = [shifted(entry, first) for entry in directory.entries]
    return {
        "header": data[: HEADER.size],
        "skeleton": skeleton,
        "payloads": data[first:offset],
        "entries": entries,
        "others": (directory.skeleton_size, directory.base, directory.external, directory.errors),
    }


def shifted(entry: Any, first: int) -> tuple[Any, ...]:
    fields = {key: value for key, value in vars(entry).items() if key != "streams"}
    chunks = [(c.offset - first, c.length, c.checksum) for s in entry.streams for c in s]
    return (*fields.items(), tuple(chunks))


@pytest.fixture(scope="module")
def made_again(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return make(tmp_path_factory.mktemp("golden"), golden("model"))


@pytest.mark.parametrize("name", NAMES)
def test_they_are_written_again_in_the_same_bytes(
    name: str, made_again: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "m.oxc").write_bytes(made_again[name])
    with opened(golden(name), base_of(name)) as a, opened(tmp_path / "m.oxc", base_of(name)) as b:
        expected, found = a.skeleton(), b.skeleton()
    assert parts(made_again[name], found) == parts(golden(name).read_bytes(), expected)


# --- damage -----------------------------------------------------------------------------------


def owners(reader: ContainerReader) -> list[int | None]:
    """Of each byte of the file the tensor whose payload it is; None elsewhere."""
    found: list[int | None] = [None] * reader.size
    for index, entry in enumerate(reader.directory.entries):
        for stream in entry.streams:
            for chunk in stream:
                found[chunk.offset : chunk.offset + chunk.length] = [index] * chunk.length
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_damaged_byte_is_noticed(name: str, tmp_path: Path) -> None:
    """All 255 others of the smallest; a payload is read by a reader that was open before."""
    data, base, copy = golden(name).read_bytes(), base_of(name), tmp_path / "m.oxc"
    copy.write_bytes(data)
    flips = range(1, 256) if name == "tiny" else (0x01, 0x80, 0xFF)
    with opened(copy, base) as reader, open(copy, "r+b", buffering=0) as file:
        places = owners(reader)
        for position, byte in enumerate(data):
            for flip in flips:
                file.seek(position)
                file.write(bytes([byte ^ flip]))
                index = places[position]
                with pytest.raises((CorruptContainer, UnsupportedModel)) as caught:
                    ContainerReader(copy) if index is None else reader.read(index)
                assert str(caught.value).startswith(f"{copy}: ")
            file.seek(position)
            file.write(bytes([byte]))
        for index in range(len(reader.names)):
            reader.read(index)


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_is_noticed(name: str, tmp_path: Path) -> None:
    data, copy = golden(name).read_bytes(), tmp_path / "m.oxc"
    copy.write_bytes(data + b"\0")
    with open(copy, "r+b", buffering=0) as file:
        for length in [len(data) + 1, *reversed(range(len(data)))]:
            file.truncate(length)
            with pytest.raises((CorruptContainer, UnsupportedModel)):
                ContainerReader(copy)
