"""Speed and size of the coders: `pytest -m benchmark -s tests/benchmarks/test_codec_speed.py`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from onnx import load_model, numpy_helper

from onnxcomp.container_loading import decoded
from onnxcomp.container_packing import pack
from onnxcomp.container_reader import ContainerReader
from onnxcomp.kernels import _native, coding

pytestmark = pytest.mark.benchmark

ROUNDS = 15
MINILM = Path(os.environ.get("ONNXCOMP_MINILM", Path.home() / ".cache/onnxcomp/minilm_l6_v2.onnx"))


def codes_of(weight: npt.NDArray[np.float32], step: float) -> npt.NDArray[np.int32]:
    """[rows, columns, kernel] in steps of `step` standard deviations."""
    weight = weight.T if weight.ndim == 2 else weight
    codes = np.rint(weight / (weight.std() * step)).astype(np.int32)
    rows, columns = codes.shape[:2]
    return np.ascontiguousarray(codes.reshape(rows, columns, -1))


def layers(shared: Path) -> dict[str, npt.NDArray[np.float32]]:
    """A layer each of minilm and squeezenet, and minilm's first words."""
    model = load_model(str(shared / "kit/models/squeezenet11_fp32.onnx"))
    named = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = {name: named[name] for name in ("fire9/expand3x3_w_0", "conv10_w_0")}
    if MINILM.is_file():
        arrays = [numpy_helper.to_array(t) for t in load_model(str(MINILM)).graph.initializer]
        wide = next(a for a in arrays if a.shape == (384, 1536))
        words = max(arrays, key=lambda a: a.size)
        found |= {"minilm 384x1536": wide, "minilm words": np.asarray(words[:2700]).T}
    return found


def seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def entropy(codes: npt.NDArray[np.int32]) -> float:
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / codes.size)).sum() / codes.size)


def row(codes: npt.NDArray[np.int32], profile: int) -> str:
    """Bits a weight and speeds of one profile, empty where it does not apply."""
    back_end = 1 if profile >= 0 else coding.BACK_ENDS["cabac"]
    payload = _native.encode_codes(codes, back_end, profile, False)
    if not payload:
        return ""
    again, scales = np.empty_like(codes), np.ones(1, np.float32)
    out = np.empty(codes.shape, np.float32)

    def speed(call: Callable[[], object]) -> str:
        return f"{codes.size / seconds(call) / 1e6:5.0f}"

    bits = 8 * len(payload) / codes.size
    line = f"{bits:.3f} {bits / entropy(codes) - 1:+7.2%}  encode "
    line += speed(lambda: _native.encode_codes(codes, back_end, profile, False))
    for isa in coding.available_isas() if profile >= 0 else ["auto"]:
        plain = speed(partial(_native.decode_codes, payload, again, isa))
        fused = speed(partial(_native.decode_scaled, payload, scales, out, isa))
        line += f"  {isa} {plain} / {fused}"
        np.testing.assert_array_equal(again, codes)
        np.testing.assert_array_equal(out, codes)
    return line


def test_million_weights_a_second(shared: Path) -> None:
    print("\nMw/s of one thread: int32 / float32. Bits a weight, and against the entropy.")
    for name, weight in layers(shared).items():
        codes = codes_of(weight, 1 / 3)
        for profile, number in {**coding.RANS_PROFILES, "cabac": -1}.items():
            print(f"{name:20s} {profile:10s} {row(codes, number)}")


def decoding(place: Path) -> dict[int, float]:
    """Seconds that one thread and two take, by turns, for all values, checks included."""
    found: dict[int, list[float]] = {1: [], 2: []}
    with ContainerReader(place) as reader:
        for _ in range(ROUNDS):
            for threads, taken in found.items():
                start = time.perf_counter()
                decoded(reader, threads)
                taken.append(time.perf_counter() - start)
    return {threads: min(taken) for threads, taken in found.items()}


def test_two_threads_beside_one(shared: Path, tmp_path: Path) -> None:
    sources = [MINILM, shared / "kit/models/squeezenet11_fp32.onnx"]
    for source in filter(Path.is_file, sources):
        pack(source, tmp_path / "m.oxc")
        tensors = load_model(str(source)).graph.initializer
        weights = sum(numpy_helper.to_array(tensor).size for tensor in tensors)
        taken = decoding(tmp_path / "m.oxc")
        speeds = "  ".join(f"{n}: {weights / s / 1e6:.0f} Mw/s" for n, s in taken.items())
        print(f"{source.stem:20s} threads {speeds}  {taken[1] / taken[2]:.2f} times")
