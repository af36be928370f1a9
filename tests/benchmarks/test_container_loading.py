"""Opening packed models beside opening plain ones: `pytest -m benchmark -s tests/benchmarks`.

Seconds and CPU seconds of `load_session` over those of an onnxruntime session of the same model,
taken by turns in one process: the files are in the page cache, onnxruntime is loaded.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import onnxcomp
from onnxcomp.coding_quantizer import quantize_vector
from onnxcomp.container_packing import pack

pytestmark = pytest.mark.benchmark

ROUNDS = 15
MINILM = Path(os.environ.get("ONNXCOMP_MINILM", Path.home() / ".cache/onnxcomp/minilm_l6_v2.onnx"))
LARGE = 4096  # elements


def coarse(source: Path, target: Path) -> None:
    """Packs a model whose weights are steps of a sixth of their standard deviation."""
    model, grids = onnx.load_model(str(source)), {}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= LARGE and values.std() > 0:
            coded = quantize_vector(values, float(values.std()) / 6)
            grids[tensor.name] = coded
            tensor.raw_data = np.ascontiguousarray(coded.values, np.float32).tobytes()
    place = target.with_suffix(".onnx")
    onnx.save_model(model, str(place))
    pack(place, target, grids=grids)


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of all threads."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - busy


def row(plain: Path, packed: Path) -> str:
    """Median ratios of both kinds of seconds."""

    def opened() -> object:
        return ort.InferenceSession(str(plain), providers=["CPUExecutionProvider"])

    taken = [
        (seconds(opened), seconds(lambda: onnxcomp.load_session(packed))) for _ in range(ROUNDS)
    ]
    of_clock, of_cpu = (
        statistics.median(ours[i] / theirs[i] for theirs, ours in taken) for i in (0, 1)
    )
    plain_ms, packed_ms = (1e3 * statistics.median(pair[i][0] for pair in taken) for i in (0, 1))
    return (
        f"{packed.stat().st_size:>11,} bytes  {packed_ms:5.0f} ms, plain {plain_ms:5.0f} ms: "
        f"{of_clock:.2f} times; CPU {of_cpu:.2f} times"
    )


def test_opening_packed_models_beside_plain_ones(shared: Path, tmp_path: Path) -> None:
    sources = [MINILM, shared / "kit/models/mobilenet_v1_075.onnx"]
    for source in filter(Path.is_file, sources):
        pack(source, tmp_path / "lossless.oxc")
        coarse(source, tmp_path / "coarse.oxc")
        for kind in ("lossless", "coarse"):
            print(f"{source.stem:18s} {kind:9s} {row(source, tmp_path / f'{kind}.oxc')}")
