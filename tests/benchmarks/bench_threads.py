"""What a second thread gains each layer of bench_kernels.py, ours and onnxruntime's.

    python tests/benchmarks/bench_threads.py [--only NAME] [--turns 8]

Sessions on one and on two threads take turns of 50 ms; printed are the median of the turns'
medians, and the ratio of the fastest turns: what the layer can do where nothing else runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from bench_kernels import LAYERS, Layer, bound, fp32_layer, int8_layer
from pinned_threads import staying, warm_s
from sparse_int8_models import float_model, qdq_model, random_codes

TURN_S = 50e-3
SPARSITIES = (0.7, 0.9)


def turn_ms(run: Callable[[], None]) -> float:
    """The median time of the runs of one turn."""
    until = time.perf_counter() + warm_s(2)
    while time.perf_counter() < until:
        run()
    times_ms, until = [], time.perf_counter() + TURN_S
    while (start := time.perf_counter()) < until:
        run()
        times_ms.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times_ms)


def models(layer: Layer) -> Iterator[tuple[str, onnx.ModelProto, Any]]:
    """Ours with more and more zeros, and onnxruntime's once."""
    codes = random_codes(np.random.default_rng(1), *layer.x_shape)
    floats = codes.astype(np.float32)
    for sparsity in SPARSITIES:
        packed, steps, ours = int8_layer(layer, 1 - sparsity)
        if layer.kind == "fp32":
            yield f"{sparsity:.0%}", fp32_layer(layer, 1 - sparsity), floats
        else:
            yield f"{sparsity:.0%}", ours, codes
    yield "fp32", float_model(packed, steps, layer.x_shape, layer.window), floats
    yield "int8", qdq_model(packed, steps, layer.x_shape, True, layer.window), codes


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="layers whose op, name and pattern contain this")
    parser.add_argument("--turns", type=int, default=8)
    arguments = parser.parse_args()
    print("layer | zeros | one ms | two ms | times as fast | fastest turns")
    for layer in LAYERS:
        name = f"{layer.op} {layer.name} {layer.pattern}"
        if arguments.only not in name:
            continue
        for what, model, x in models(layer):
            runs = [bound(model, x, threads) for threads in (1, 2)]
            with staying():
                turns = [[turn_ms(run) for run in runs] for _ in range(arguments.turns)]
            one, two = (statistics.median(times) for times in zip(*turns, strict=True))
            least = [min(times) for times in zip(*turns, strict=True)]
            print(
                f"{name} | {what} | {one:.4f} | {two:.4f} | {one / two:.2f} | "
                f"{least[0] / least[1]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
