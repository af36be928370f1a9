"""Inputs that fuzz targets start from (kernels/fuzz): small, and together of every kind there is.

    python tests/fuzz_seeds.py FOLDER

writes FOLDER/codec, FOLDER/sparse and one for every other target, an input to a file.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from operator_seeds import CASES

from onnxcomp.container_packing import pack
from onnxcomp.errors import KernelError
from onnxcomp.kernels.coding import CABAC_PROFILES, RANS_PROFILES, Codes, encode
from onnxcomp.zstandard import zstd

GOLDEN = Path(__file__).resolve().parent / "golden"
LARGEST_OPERATOR_SEED = 4096
PROFILES = [("raw", "auto"), *(("rans", name) for name in RANS_PROFILES)]
PROFILES += [("cabac", name) for name in CABAC_PROFILES]


def codes_of_many_kinds() -> Iterator[Codes]:
    """Chunks that every part of the codec has to do with: int32 [rows, columns, kernel]."""
    rng = np.random.default_rng(0)
    for shape in [(1, 3, 1), (2, 9, 9), (33, 5, 1), (40, 4, 9), (3, 200, 1), (64, 33, 1)]:
        rows = rng.uniform(0.3, 6, (shape[0], 1, 1))
        yield np.rint(rng.standard_normal(shape) * rows).astype(np.int32)
    wide = np.rint(rng.standard_normal((8, 16, 9)) ** 5 * 40).astype(np.int32)  # escapes
    yield wide
    yield wide * 2048 + 3  # low bits
    yield np.cumsum(rng.integers(-1, 2, (16, 40, 1)), axis=1).astype(np.int32)  # predicted
    yield (rng.random((20, 12, 9)) < 0.05).astype(np.int32)  # sparse
    yield np.full((2, 8, 3), -77, np.int32)
    yield rng.integers(-(2**31), 2**31, (2, 20, 1)).astype(np.int32)


def codec_seeds() -> Iterator[bytes]:
    """u8 rows, u16 columns, u8 kernel, payload."""
    for codes in codes_of_many_kinds():
        for back_end, profile in PROFILES:
            try:
                payload = encode(codes, backend=back_end, profile=profile)
            except KernelError:  # not of these codes
                continue
            yield struct.pack("<BHB", *codes.shape) + payload


def model(**extra: np.ndarray) -> onnx.ModelProto:
    """A graph of a node, and tensors of every representation."""
    rng = np.random.default_rng(0)
    single = rng.standard_normal(70).astype(np.float32)
    tensors = {
        "half": single.astype(np.float16).astype(np.float32),
        "one": single,
        "two": single,
        "wide": single.astype(np.float64) / 3,
        "grid": (rng.integers(-9, 9, (9, 8, 3)) * np.float32(0.25)).astype(np.float32),
        "rows": rng.integers(-8, 8, (6, 30)).astype(np.float32) * rng.random((6, 1), np.float32),
        "few": rng.choice(np.array([0.1, 0.7, 3, 4, 5, 6], np.float32), 200),
        "codes": rng.integers(-9, 9, (5, 40)).astype(np.int8),
        "shape": rng.integers(0, 2**60, 12),
        "complex": (single[:30] + 1j * single[30:60]).astype(np.complex64),
        **extra,
    }
    initializers = [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    for data_type, size in ((onnx.TensorProto.INT4, 33), (onnx.TensorProto.BFLOAT16, 130)):
        raw = bytearray(rng.bytes(size))
        raw[-1] &= 15
        count = size * 2 - 1 if size == 33 else size // 2
        initializers.append(
            onnx.TensorProto(
                name=f"type {data_type}", data_type=data_type, dims=[count], raw_data=bytes(raw)
            )
        )
    node = helper.make_node("Relu", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
    return helper.make_model(
        helper.make_graph([node], "g", values[:1], values[1:], initializers), producer_name="seeds"
    )


def container_seeds() -> Iterator[bytes]:
    """u16 length of a base, the base, a container."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = folder / "plain.onnx"
        plain.write_bytes(model().SerializeToString())
        for prefer in ("size", "speed"):
            pack(plain, folder / "m.oxc", prefer=prefer)
            yield bytes(2) + (folder / "m.oxc").read_bytes()
        base = (folder / "m.oxc").read_bytes()
        changed = folder / "changed.onnx"
        changed.write_bytes(model(few=np.arange(90, dtype=np.float32)).SerializeToString())
        pack(changed, folder / "d.oxc", base=folder / "m.oxc")
        yield struct.pack("<H", len(base)) + base + (folder / "d.oxc").read_bytes()
        external = model()
        onnx.save(external, folder / "e.onnx", save_as_external_data=True, size_threshold=0)
        pack(folder / "e.onnx", folder / "e.oxc")
        yield bytes(2) + (folder / "e.oxc").read_bytes()
    for path in sorted(GOLDEN.glob("*.oxc")):
        if path.name == "chunks-1.oxc":  # takes long
            continue
        base = (GOLDEN / "model-1.oxc").read_bytes() if path.name == "delta-1.oxc" else b""
        yield struct.pack("<H", len(base)) + base + path.read_bytes()


def zstd_seeds() -> Iterator[bytes]:
    """u24 size, frame."""
    rng = np.random.default_rng(0)
    texts = [b"", b"a" * 3000, rng.bytes(300), rng.geometric(0.2, 2500).astype(np.uint8).tobytes()]
    names = b"".join(b"node_%d/Conv weight [%d]\n" % (i, i * 7 % 13) for i in range(150))
    texts += [names, names[:700] + texts[3] + names[300:]]
    option = zstd.CompressionParameter
    for text in texts:
        for level in (-5, 1, 6, 19, 22):
            options = {option.compression_level: level, option.content_size_flag: level % 2}
            frame: bytes = zstd.compress(text, options=options)
            yield struct.pack("<I", len(text))[:3] + frame


def operator_seeds(target: str) -> Iterator[bytes]:
    """Weights of an operator and what it is applied to; large ones would take changes in vain."""
    return (seed for seed, _ in CASES[target]() if len(seed) <= LARGEST_OPERATOR_SEED)


SEEDS = {"codec": codec_seeds, "container": container_seeds, "zstd": zstd_seeds} | {
    target: partial(operator_seeds, target) for target in CASES
}


def write_seeds(target: str, folder: Path) -> list[Path]:
    """Writes the inputs of one target into a folder, each once; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, seed in enumerate(dict.fromkeys(SEEDS[target]())):
        paths.append(folder / f"{index:03}")
        paths[-1].write_bytes(seed)
    return paths


if __name__ == "__main__":
    for name in SEEDS:
        print(f"{len(write_seeds(name, Path(sys.argv[1]) / name))} inputs for fuzz-{name}")
