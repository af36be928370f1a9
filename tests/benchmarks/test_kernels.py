"""SparseMatMul against onnxruntime's dense MatMul: `pytest -m benchmark -s tests/benchmarks`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnx import ModelProto, helper, numpy_helper, parser

from onnxcomp import kernels

pytestmark = pytest.mark.benchmark

ROUNDS = 40

LAYERS = [  # tokens, in_features, out_features
    (128, 768, 768),
    (128, 768, 3072),
    (16, 1024, 1024),
    (1, 1024, 1024),
]


def block_sparse(
    in_features: int, out_features: int, sparsity: float, block_size: int
) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(0)
    kept = rng.random((in_features, out_features // block_size)) >= sparsity
    weight = rng.standard_normal((in_features, out_features))
    return (weight * kept.repeat(block_size, axis=1)).astype(np.float32)


def matmul_model(
    call: str, tokens: int, weight: npt.NDArray[np.float32], **constants: npt.NDArray[np.generic]
) -> ModelProto:
    in_features, out_features = weight.shape
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17, "{kernels.DOMAIN}" : 1]>
        matmul (float[{tokens}, {in_features}] X) => (float[{tokens}, {out_features}] Y)
        {{ Y = {call} (X, {", ".join(constants)}) }}""")
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return model


def runner(model: ModelProto, x: npt.NDArray[np.float32], threads: int) -> Callable[[], Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(kernels.library_path()))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(["Y"], {"X": x})[0]


def interleaved_medians_ms(runs: list[Callable[[], Any]]) -> list[float]:
    times_ms: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, found in zip(runs, times_ms, strict=True):
            # Brings these weights back into the cache, and outlasts the other session's workers,
            # which spin for a while after their last run.
            until = time.perf_counter() + 2e-3
            while time.perf_counter() < until:
                run()
            start = time.perf_counter()
            run()
            found.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(found) for found in times_ms]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("tokens", "in_features", "out_features"), LAYERS)
def test_sparse_against_dense(
    tokens: int, in_features: int, out_features: int, threads: int
) -> None:
    x = np.random.default_rng(1).standard_normal((tokens, in_features)).astype(np.float32)
    for block_size in (1, 4):
        for sparsity in (0.8, 0.9, 0.95):
            weight = block_sparse(in_features, out_features, sparsity, block_size)
            packed = kernels.pack(weight, block_size=block_size)
            sparse = matmul_model(
                f"{kernels.DOMAIN}.SparseMatMul",
                tokens,
                weight,
                values=packed.values,
                indices=packed.indices,
                offsets=packed.offsets,
            )
            for name, number in packed.attributes.items():
                sparse.graph.node[0].attribute.append(helper.make_attribute(name, number))
            dense = matmul_model("MatMul", tokens, weight, W=weight)
            runs = [runner(dense, x, threads), runner(sparse, x, threads)]
            np.testing.assert_allclose(runs[0](), runs[1](), rtol=1e-4, atol=1e-4)
            dense_ms, sparse_ms = interleaved_medians_ms(runs)
            print(
                f"\n{tokens}x{in_features}x{out_features} {threads} threads, "
                f"block_size {block_size}, {sparsity:.0%} zeros: dense {dense_ms:.3f} ms, "
                f"sparse {sparse_ms:.3f} ms, {dense_ms / sparse_ms:.2f} times as fast, "
                f"bytes x{packed.nbytes / weight.nbytes:.2f}",
                end="",
            )
