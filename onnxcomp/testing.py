"""For tests of passes: small models from text, and whether two models answer alike."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper, parser

from onnxcomp.calibration import Calibration
from onnxcomp.errors import UnsupportedModel
from onnxcomp.evaluation import Reference
from onnxcomp.exporting import to_proto
from onnxcomp.importing import from_proto
from onnxcomp.model import load_model
from onnxcomp.runtime import Feed, Session, open_file, open_session

AnyModel: TypeAlias = str | os.PathLike[str] | onnx.ModelProto | gs.Graph
HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def model_of(text: str, **constants: Any) -> onnx.ModelProto:
    """A model written in the textual syntax of ONNX, its weights given as arrays by name.

    A header of IR 8 and opset 17 is put before a text that has none of its own:

        model_of("mlp (float[N, 3] x) => (float[N, 2] y) { y = MatMul (x, w) }", w=weights)
    """
    model = parser.parse_model(text if text.lstrip().startswith("<") else f"{HEADER} {text}")
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()
    )
    return model


def graph_of(text: str, **constants: Any) -> gs.Graph:
    """The graph of `model_of`."""
    return from_proto(model_of(text, **constants))


def round_trip(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model after it was read, copied and written, as any pass that changes nothing leaves it."""
    return to_proto(_graph(model).copy())


def small_mlp(seed: int = 0) -> onnx.ModelProto:
    """x [N, 16] -> Gemm, Relu -> MatMul, Add -> y [N, 10]; 714 random weights."""
    rng = np.random.default_rng(seed)
    return model_of(
        """mlp (float[N, 16] x) => (float[N, 10] y) {
            [first] hidden = Gemm <transB = 1> (x, w1, b1)
            [relu] active = Relu (hidden)
            [second] product = MatMul (active, w2)
            [bias] y = Add (product, b2)
        }""",
        w1=_normal(rng, 26, 16),
        b1=_normal(rng, 26),
        w2=_normal(rng, 26, 10),
        b2=_normal(rng, 10),
    )


def small_convnet(seed: int = 0) -> onnx.ModelProto:
    """image [N, 3, 8, 8] -> a residual block with BatchNormalization -> scores [N, 5]."""
    rng = np.random.default_rng(seed)
    return model_of(
        """convnet (float[N, 3, 8, 8] image) => (float[N, 5] scores) {
            [stem] stem_y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>
                (image, stem_w, stem_b)
            [norm] norm_y = BatchNormalization (stem_y, scale, shift, mean, variance)
            [relu] relu_y = Relu (norm_y)
            [depthwise] depth_y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8>
                (relu_y, depth_w)
            [residual] sum = Add (depth_y, relu_y)
            [pool] pooled = GlobalAveragePool (sum)
            [flatten] features = Flatten (pooled)
            [classify] scores = Gemm <transB = 1> (features, class_w, class_b)
        }""",
        stem_w=_normal(rng, 8, 3, 3, 3),
        stem_b=_normal(rng, 8),
        scale=_normal(rng, 8),
        shift=_normal(rng, 8),
        mean=_normal(rng, 8),
        variance=np.abs(_normal(rng, 8)) + 0.5,
        depth_w=_normal(rng, 8, 1, 3, 3),
        class_w=_normal(rng, 5, 8),
        class_b=_normal(rng, 5),
    )


HEADS, HEAD_WIDTH = 4, 8


def small_attention(exporter: Literal["torchscript", "dynamo"], seed: int = 0) -> onnx.ModelProto:
    """x [N, L, 32], mask [N, 1, 1, L] -> self-attention of 4 heads -> y [N, L, 32].

    As PyTorch's two exporters write it: TorchScript divides the scores and adds biases from the
    left; dynamo scales both factors and replaces rows that are masked completely.
    """
    rng, width = np.random.default_rng(seed), HEADS * HEAD_WIDTH
    scaled = {
        "torchscript": """[scores] raw = MatMul (tq, tk) [scale] divided = Div (raw, root)
            [mask_add] masked = Add (divided, mask) [softmax] p = Softmax <axis = -1> (masked)""",
        "dynamo": """sq = Mul (tq, fourth) sk = Mul (tk, fourth)
            [scores] raw = MatMul (sq, sk) [mask_add] masked = Add (raw, mask)
            [softmax] whole = Softmax <axis = -1> (masked)
            bad = IsNaN (whole) p = Where (bad, zero, whole)""",
    }[exporter]
    left = exporter == "torchscript"
    projections = " ".join(
        f"""[{n}] m{n} = MatMul (x, w{n}) a{n} = Add ({f"b{n}, m{n}" if left else f"m{n}, b{n}"})
        r{n} = Reshape (a{n}, heads) t{n} = Transpose <perm = [{perm}]> (r{n})"""
        for n, perm in (("q", "0, 2, 1, 3"), ("k", "0, 2, 3, 1"), ("v", "0, 2, 1, 3"))
    )
    text = f"""attention (float[N, L, {width}] x, float[N, 1, 1, L] mask)
        => (float[N, L, {width}] y) {{
        {projections} {scaled} [context] c = MatMul (p, tv)
        tc = Transpose <perm = [0, 2, 1, 3]> (c) rc = Reshape (tc, flat)
        [out] mo = MatMul (rc, wo) y = Add (mo, bo) }}"""
    constants: dict[str, Any] = {
        "heads": np.asarray([0, 0, HEADS, HEAD_WIDTH]),
        "flat": np.asarray([0, 0, width]),
    }
    if left:
        constants["root"] = np.float32(HEAD_WIDTH**0.5)
    else:
        constants |= {"fourth": np.float32(HEAD_WIDTH**-0.25), "zero": np.float32(0)}
    for n in "qkvo":
        constants |= {f"w{n}": 0.3 * _normal(rng, width, width), f"b{n}": _normal(rng, width)}
    return model_of(text, **constants)


def open_any(model: AnyModel) -> Session:
    """An onnxruntime session of one thread, which gives the same bits at every run."""
    if isinstance(model, (str, os.PathLike)):
        return open_file(model, threads=1)
    if isinstance(model, gs.Graph):
        return open_session(model, threads=1)
    return Session(_inline_session(model))


def feeds_for(model: AnyModel, count: int = 2, seed: int = 0) -> list[Feed]:
    """Synthetic inputs that a model runs with."""
    graph = _graph(model)
    session = open_any(model)

    def runs(feed: Feed) -> bool:
        try:
            session.run(feed)
        except UnsupportedModel:
            return False
        return True

    return list(Calibration.from_source(None, graph, seed=seed, limit=count, runs=runs).feeds())


def answers(model: AnyModel, feed: Feed) -> dict[str, Any]:
    """What a model gives for one feed, by name of the output."""
    session = open_any(model)
    return dict(zip(session.outputs, session.run(feed), strict=True))


def assert_same_answers(
    expected: AnyModel,
    actual: AnyModel,
    feeds: Iterable[Feed] | None = None,
    *,
    min_sqnr_db: float | None = None,
) -> None:
    """Checks that two models have the same outputs and answer alike.

    Args:
        expected: a file, a ModelProto or a graph.
        actual: the same or any other of these.
        feeds: inputs; None makes some up.
        min_sqnr_db: how alike every output has to be; None for equal to the bit.

    Raises:
        AssertionError: with the first output that differs.
    """
    one, other = open_any(expected), open_any(actual)
    assert one.outputs == other.outputs, f"outputs {other.outputs} instead of {one.outputs}"
    given = feeds_for(expected) if feeds is None else list(feeds)
    if min_sqnr_db is not None:
        fidelity = Reference.of(one, given, synthetic=feeds is None).compare(other)
        for output in fidelity.outputs:
            assert output.sqnr_db >= min_sqnr_db, f"{output}: below {min_sqnr_db} dB"
        return
    for number, feed in enumerate(given):
        for name, a, b in zip(one.outputs, one.run(feed), other.run(feed), strict=True):
            assert same_bits(a, b), f"output {name!r} of sample {number} differs"


def same_bits(a: Any, b: Any) -> bool:
    """Whether two answers are equal to the bit: arrays, sequences, maps, strings or None."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return bool((a == b).all()) if a.dtype.kind in "OU" else a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        pairs = itertools.zip_longest(a, b, fillvalue=NotImplemented)
        return all(same_bits(x, y) for x, y in pairs)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


def _graph(model: AnyModel) -> gs.Graph:
    if isinstance(model, gs.Graph):
        return model
    if isinstance(model, (str, os.PathLike)):
        return load_model(Path(model)).graph
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return from_proto(copy)


def _inline_session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    from onnxcomp.runtime import session_options

    return onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(threads=1), providers=["CPUExecutionProvider"]
    )


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return rng.standard_normal(shape, np.float32)
