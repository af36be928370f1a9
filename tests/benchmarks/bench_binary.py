"""Binary layers beside onnxruntime's fp32 and U8S8 INT8 on the same layer.

    python tests/benchmarks/bench_binary.py [--json] [--threads 1] [--rounds 15]

Ours is PackSigns and BinaryConv or BinaryGemm, floats in and out, in onnxruntime; with ISAs other
than the best one, and then without onnxruntime, the same calls from Python on one thread. INT8 is
the QDQ graph with weights per channel. Runs are interleaved, and medians compared, with
inputs and outputs that stay where they are; with one thread they are of the thread's processor
time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper
from pinned_threads import options_for, staying, warm_s

from onnxcomp import kernels
from onnxcomp.kernels import binary_layers

CONVS = [(256, 14, 3), (128, 28, 3), (64, 56, 3), (256, 14, 1)]  # channels, size, kernel
GEMMS = [(1, 1024), (64, 1024)]  # batch, features
Run = Callable[[], Any]
Row = dict[str, Any]


def session(
    nodes: list[NodeProto], shape: tuple[int, ...], threads: int, **constants: Any
) -> ort.InferenceSession:
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(kernels.DOMAIN, 1)]
    model = helper.make_model(graph, ir_version=8, opset_imports=opsets)
    options = options_for(threads)
    options.register_custom_ops_library(str(kernels.library_path()))
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def int8_nodes(layer: NodeProto) -> list[NodeProto]:
    """X -> QDQ -> layer -> QDQ -> Y, which onnxruntime runs as one integer kernel."""
    make = helper.make_node
    inner = helper.make_node(layer.op_type, ["x", "w"], ["y"], "layer")
    inner.attribute.extend(layer.attribute)
    return [
        make("QuantizeLinear", ["X", "scale", "zero"], ["x.codes"]),
        make("DequantizeLinear", ["x.codes", "scale", "zero"], ["x"]),
        make("DequantizeLinear", ["codes", "w.scale", "w.zero"], ["w"], axis=layer_axis(layer)),
        inner,
        make("QuantizeLinear", ["y", "y.scale", "zero"], ["y.codes"]),
        make("DequantizeLinear", ["y.codes", "y.scale", "zero"], ["Y"]),
    ]


def layer_axis(layer: NodeProto) -> int:
    """The axis of the weight that has the outputs."""
    return 0 if layer.op_type == "Conv" else 1


def binary_nodes(operator: str, packed: Any) -> list[NodeProto]:
    domain = kernels.DOMAIN
    return [
        helper.make_node("PackSigns", ["X"], ["bits"], domain=domain, comparison=1),
        helper.make_node(operator, ["bits", "w"], ["Y"], domain=domain, **packed.attributes),
    ]


def bound(layer: ort.InferenceSession, x: npt.NDArray[Any]) -> Run:
    """Runs the layer into memory that is there already."""
    binding = layer.io_binding()
    binding.bind_cpu_input("X", x)
    y = ort.OrtValue.ortvalue_from_numpy(layer.run(None, {"X": x})[0])
    binding.bind_ortvalue_output("Y", y)
    return lambda: layer.run_with_iobinding(binding)


def medians_ms(runs: list[Run], rounds: int, threads: int) -> list[float]:
    clock = time.thread_time if threads == 1 else time.perf_counter
    times_ms: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, found in zip(runs, times_ms, strict=True):
            until = clock() + 2 * warm_s(threads)  # its weights are back in the cache then
            while clock() < until:
                run()
            start = clock()
            for _ in range(4):
                run()
            found.append((clock() - start) * 1e3 / 4)
    return [statistics.median(found) for found in times_ms]


def measure(
    name: str, layer: NodeProto, x: npt.NDArray[Any], weight: npt.NDArray[Any], packed: Any,
    threads: int, rounds: int,
) -> list[Row]:  # fmt: skip
    operator = "BinaryConv" if layer.op_type == "Conv" else "BinaryGemm"
    outputs = weight.shape[layer_axis(layer)]
    quantized = {
        "scale": np.float32(1 / 32),
        "zero": np.uint8(128),
        "codes": weight.astype(np.int8),
        "w.scale": np.ones(outputs, np.float32),
        "w.zero": np.zeros(outputs, np.int8),
        "y.scale": np.float32(1),
    }
    ours = session(binary_nodes(operator, packed), x.shape, threads, w=packed.bits)
    dense = session([layer], x.shape, threads, W=weight)
    int8 = session(int8_nodes(layer), x.shape, threads, **quantized)
    signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    np.testing.assert_array_equal(ours.run(None, {"X": x})[0], dense.run(None, {"X": signs})[0])
    sessions = [dense, int8, ours]
    runs = [bound(each, x) for each in sessions]
    isas = list(binary_layers.available_isas())
    function = binary_layers.conv if operator == "BinaryConv" else binary_layers.gemm
    for isa in isas[1:] if threads == 1 else []:
        runs.append(
            lambda isa=isa: function(  # type: ignore[misc, operator]
                binary_layers.pack_signs(x, comparison="greater_or_equal", isa=isa), packed, isa=isa
            )
        )
    with staying():
        fp32_ms, int8_ms, *ours_ms = medians_ms(runs, rounds, threads)
    return [
        {
            "op": f"binary_{operator.removeprefix('Binary').lower()}",
            "layer": name,
            "pattern": "signs",
            "sparsity": 0.0,
            "threads": threads,
            "isa": isa,
            "ours_ms": found,
            "ort_fp32_ms": fp32_ms,
            "ort_int8_ms": int8_ms,
        }
        for isa, found in zip(isas, ours_ms, strict=False)
    ]


def rows(threads: int, rounds: int, only: str = "") -> Iterator[Row]:
    """Of all layers whose op, name and pattern contain ``only``."""
    rng = np.random.default_rng(0)
    for channels, size, kernel in CONVS:
        name = f"{kernel}x{kernel} {channels} @{size}"
        if only not in f"binary_conv {name} signs":
            continue
        pads = (kernel // 2,) * 4
        weight = rng.choice(np.array([-1, 1], np.float32), (channels, channels, kernel, kernel))
        x = rng.standard_normal((1, channels, size, size)).astype(np.float32)
        layer = helper.make_node("Conv", ["X", "W"], ["Y"], pads=pads)
        packed = binary_layers.pack_conv(weight, pads=pads)
        yield from measure(name, layer, x, weight, packed, threads, rounds)
    for batch, features in GEMMS:
        name = f"FC {features} batch {batch}"
        if only not in f"binary_gemm {name} signs":
            continue
        weight = rng.choice(np.array([-1, 1], np.float32), (features, features))
        x = rng.standard_normal((batch, features)).astype(np.float32)
        layer = helper.make_node("MatMul", ["X", "W"], ["Y"])
        packed_gemm = binary_layers.pack_gemm(weight)
        yield from measure(name, layer, x, weight, packed_gemm, threads, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    found = rows(options.threads, options.rounds)
    if options.json:
        print(json.dumps(list(found), indent=1))
        return
    for row in found:
        fp32, int8 = (row[kind] / row["ours_ms"] for kind in ("ort_fp32_ms", "ort_int8_ms"))
        print(
            f"{row['layer']:18} {row['isa']:9} {row['ours_ms']:7.4f} ms, fp32 "
            f"{row['ort_fp32_ms']:7.4f} ms ({fp32:5.1f}x), int8 {row['ort_int8_ms']:7.4f} ms "
            f"({int8:4.1f}x)"
        )


if __name__ == "__main__":
    main()
