"""Sparse and binary operators beside onnxruntime's own, float32 and U8S8 QDQ, on the same layers.

    python tests/benchmarks/bench_kernels.py --json speeds.json

All sessions of a layer take turns in one process; a figure is the median of its single runs, by
wall time, with inputs and outputs bound in place. int8 models read and write codes, those of
float32 floats; patterns are outputs x inputs. Binary layers are those of bench_binary.py. The json
is a list of {op, layer, pattern, sparsity, threads, isa, ours_ms, ort_fp32_ms, ort_int8_ms}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from bench_binary import rows as binary_rows
from pinned_threads import options_for, staying, warm_s

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sparse_float_models import block_sparse_floats, sparse_conv_model, sparse_matmul_model
from sparse_int8_models import (
    Steps,
    block_sparse,
    float_model,
    qdq_model,
    random_codes,
    random_steps,
    sparse_model,
)

from onnxcomp import kernels
from onnxcomp.kernels.sparse_conv import pack_conv
from onnxcomp.kernels.sparse_int8 import PackedInt8, Window, available_isas, pack_int8

Row = dict[str, Any]
ROW_NAMES = ("op", "layer", "pattern", "isa")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer and the zeros it is measured with."""

    x_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    block_rows: int
    kind: str = "int8"
    sparsities: tuple[float, ...] = (0.7, 0.8, 0.9)

    @property
    def op(self) -> str:
        return f"sparse_{self.kind}_{'conv' if len(self.weight_shape) == 4 else 'matmul'}"

    @property
    def pattern(self) -> str:
        return f"{self.block_rows}x{4 if self.kind == 'int8' else 1}"

    @property
    def name(self) -> str:
        out, in_channels, *kernel = self.weight_shape
        if not kernel:
            return f"{self.x_shape[0]}x{in_channels}x{out}"
        return f"{kernel[0]}x{kernel[1]} {in_channels}->{out} @{self.x_shape[2]}"

    @property
    def window(self) -> Window | None:
        if len(self.weight_shape) == 2:
            return None
        rows, columns = self.weight_shape[2] // 2, self.weight_shape[3] // 2
        return Window(pads=(rows, columns, rows, columns))


LAYERS = [
    Layer(x_shape=(128, 768), weight_shape=(768, 768), block_rows=4),
    Layer(x_shape=(128, 768), weight_shape=(768, 768), block_rows=1),
    Layer(x_shape=(1, 128, 28, 28), weight_shape=(128, 128, 3, 3), block_rows=4),
    Layer(x_shape=(1, 128, 28, 28), weight_shape=(128, 128, 3, 3), block_rows=1),
    Layer(x_shape=(1, 128, 28, 28), weight_shape=(256, 128, 1, 1), block_rows=4),
    Layer(x_shape=(1, 128, 28, 28), weight_shape=(256, 128, 1, 1), block_rows=1),
    Layer(x_shape=(1, 256, 14, 14), weight_shape=(512, 256, 1, 1), block_rows=1),
    *(
        Layer(x_shape=x_shape, weight_shape=weight_shape, block_rows=rows, kind="fp32")
        for x_shape, weight_shape, every_rows in (
            ((128, 768), (768, 768), (16, 4, 1)),
            ((1, 768), (768, 768), (16, 4, 1)),
            ((1, 128, 28, 28), (128, 128, 3, 3), (16, 4, 1)),
            ((1, 128, 28, 28), (256, 128, 1, 1), (16, 4, 1)),
            ((1, 256, 14, 14), (512, 256, 1, 1), (4,)),
        )
        for rows in every_rows
    ),
]


def bound(model: onnx.ModelProto, x: np.ndarray[Any, Any], threads: int) -> Callable[[], None]:
    """Runs the model into memory that is there already."""
    options = options_for(threads)
    options.log_severity_level = 3
    options.register_custom_ops_library(str(kernels.library_path()))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    (y,) = session.run(None, {"X": x})
    binding.bind_ortvalue_input("X", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("Y", onnxruntime.OrtValue.ortvalue_from_numpy(y))
    return lambda: session.run_with_iobinding(binding)


def interleaved_medians_ms(
    runs: list[Callable[[], None]], rounds: int, threads: int
) -> list[float]:
    """The median time of each."""
    times_ms: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, found in zip(runs, times_ms, strict=True):
            # Brings these weights back into the cache, and outlasts another session's workers,
            # which spin for a while after their last run.
            until = time.perf_counter() + warm_s(threads)
            while time.perf_counter() < until:
                run()
            start = time.perf_counter()
            run()
            found.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(found) for found in times_ms]


def int8_layer(layer: Layer, density: float) -> tuple[PackedInt8, Steps, onnx.ModelProto]:
    """The weight, its scales, and our operator on codes."""
    rng, rows = np.random.default_rng(0), layer.block_rows if layer.kind == "int8" else 4
    weight = block_sparse(rng, *layer.weight_shape, density=density, rows=rows)
    packed = pack_int8(weight, block_rows=rows)
    steps = random_steps(rng, weight.shape[0], biased=bool(packed.kernel_shape))
    scaling = steps.scaling(to_codes=True)
    return packed, steps, sparse_model(packed, scaling, layer.x_shape, layer.window)


def fp32_layer(layer: Layer, density: float) -> onnx.ModelProto:
    """Our operator on floats."""
    rng, rows = np.random.default_rng(0), layer.block_rows
    weight = block_sparse_floats(rng, *layer.weight_shape, density=density, rows=rows)
    if len(layer.weight_shape) == 4:
        packed = pack_conv(weight, block_size=rows)
        return sparse_conv_model(packed, layer.x_shape, None, layer.window)
    matrix = np.ascontiguousarray(weight.T)
    return sparse_matmul_model(kernels.pack(matrix, block_size=rows), layer.x_shape)


def measure(layer: Layer, sparsity: float, threads: int, rounds: int) -> Row:
    """One row of the table."""
    codes = random_codes(np.random.default_rng(1), *layer.x_shape)
    floats = codes.astype(np.float32)
    packed, steps, ours = int8_layer(layer, 1 - sparsity)
    x: np.ndarray[Any, Any] = codes
    if layer.kind == "fp32":
        ours, x = fp32_layer(layer, 1 - sparsity), floats
    shape, window = layer.x_shape, layer.window
    runs = [
        bound(ours, x, threads),
        bound(float_model(packed, steps, shape, window), floats, threads),
        bound(qdq_model(packed, steps, shape, True, window), codes, threads),
    ]
    with staying():
        ours_ms, fp32_ms, int8_ms = interleaved_medians_ms(runs, rounds, threads)
    return {
        "op": layer.op,
        "layer": layer.name,
        "pattern": layer.pattern,
        "sparsity": sparsity,
        "threads": threads,
        "isa": (available_isas() if layer.kind == "int8" else kernels.available_isas())[0],
        "ours_ms": ours_ms,
        "ort_fp32_ms": fp32_ms,
        "ort_int8_ms": int8_ms,
    }


def measured(only: str, threads: list[int], rounds: int) -> Iterator[Row]:
    """The rows of all layers whose op, name and pattern contain ``only``."""
    for layer in LAYERS:
        if only in f"{layer.op} {layer.name} {layer.pattern}":
            for sparsity in layer.sparsities:
                for count in threads:
                    yield measure(layer, sparsity, count, rounds)
    for count in threads:
        yield from binary_rows(count, rounds, only)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=120, help="runs that a median is of")
    parser.add_argument("--only", default="", help="layers whose op, name and pattern contain this")
    arguments = parser.parse_args()
    rows = []
    print("op | layer | pattern | isa | zeros | threads | ours ms | x fp32 | x int8")
    for row in measured(arguments.only, arguments.threads, arguments.rounds):
        rows.append(row)
        ours_ms, named = row["ours_ms"], " | ".join(row[k] for k in ROW_NAMES)
        print(
            f"{named} | {row['sparsity']:.0%} | {row['threads']} | {ours_ms:.3f} | "
            f"{row['ort_fp32_ms'] / ours_ms:.1f} | {row['ort_int8_ms'] / ours_ms:.1f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
