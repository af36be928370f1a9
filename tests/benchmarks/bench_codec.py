"""Packed models beside nncodec's, at equal quality of the outputs, and lossless ones beside ZipNN.

    python tests/benchmarks/bench_codec.py --nncodec OTHER_ENVIRONMENT/bin/python

Bytes are those of files with everything in: onnxcomp's container; nncodec's bitstream and the
graph without weights, packed by zstd, after the same simplification. One piece of code measures the
SQNR of both, before a final Softmax, on samples that nothing was fitted to. nncodec's bytes are
interpolated between the two nearest qp to the SQNR that onnxcomp's file has there. Mw/s are million
weights per CPU second; nncodec's encoding includes its quantizer, onnxcomp's does not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from onnxcomp import optimize
from onnxcomp.coding_packing import pack_codes
from onnxcomp.coding_search import Quality, Quantized, quantize_for_coding
from onnxcomp.container_packing import pack
from onnxcomp.container_unpacking import unpack, verify
from onnxcomp.lossless import encode_grid
from onnxcomp.recipe import compose, parse_pass
from onnxcomp.zstandard import compress

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("ONNXCOMP_SHARED", HERE.parent.parent.parent / "shared"))
MINILM = Path(os.environ.get("ONNXCOMP_MINILM", Path.home() / ".cache/onnxcomp/minilm_l6_v2.onnx"))
WANTED_DB = {
    "squeezenet11_fp32": (20.0, 24.0, 27.0),
    "mobilenet_v1_075": (25.0,),
    "cifar10_resnet56": (25.0,),
    "minilm_l6_v2": (25.0,),
}
FITTED, JUDGED = 160, 96  # samples
LEAST = 16  # elements; smaller constants are scales of a Resize and the like, not weights
FINEST_QP, COARSEST_QP = -70, -16
Feed = Mapping[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model, what the packer sees and what it is judged on."""

    name: str
    path: Path
    fitted: list[Feed]
    judged: list[Feed]

    @classmethod
    def of(cls, name: str) -> Subject:
        """A model of the kit, or a file with made-up samples."""
        if name.endswith(".onnx"):
            feeds = [_noise(Path(name), seed) for seed in range(32)]
            return cls(Path(name).stem, Path(name), feeds[:16], feeds[16:])
        sys.path.insert(0, str(SHARED / "kit"))
        import evaluate as kit  # type: ignore[import-not-found]

        feeds = kit.calibration(name, FITTED + JUDGED)
        path = MINILM if name == "minilm_l6_v2" else Path(kit.model_path(name))
        return cls(name, path, feeds[:-JUDGED], feeds[-JUDGED:])

    def sqnr_db(self, model: onnx.ModelProto) -> float:
        """Of the first output of another model with the same weights, about."""
        signal = noise = 0.0
        ours, theirs = _logits(onnx.load_model(str(self.path))), _logits(model)
        for feed in self.judged:
            (exact, *_), (other, *_) = ours.run(None, feed), theirs.run(None, feed)
            exact = exact.astype(np.float64)
            signal += float(np.square(exact).sum())
            noise += float(np.square(exact - other).sum())
        return 10 * math.log10(signal / noise) if noise else math.inf


def _noise(path: Path, seed: int) -> Feed:
    rng, feed = np.random.default_rng(seed), {}
    for value in ort.InferenceSession(str(path)).get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        feed[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feed


def _logits(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session whose first output is what a final Softmax reads."""
    makers = {name: node for node in model.graph.node for name in node.output}
    output = model.graph.output[0].name
    while output in makers and makers[output].op_type in ("Softmax", "Reshape", "Flatten"):
        output = makers[output].input[0]
    if output != model.graph.output[0].name:
        model.graph.output.insert(0, onnx.helper.make_empty_tensor_value_info(output))
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    providers = ["CPUExecutionProvider"]
    return ort.InferenceSession(model.SerializeToString(), options, providers=providers)


def _busy(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _row(tool: str, model: str, size: float, weights: int, seconds: tuple[float, float]) -> Row:
    encode, decode = (round(weights / 1e6 / s, 2) for s in seconds)
    row = {"tool": tool, "model": model, "sqnr_db": None, "bytes": round(size)}
    return {
        **row,
        "encode_mws": encode,
        "decode_mws": decode,
        "bits_per_weight": 8 * size / weights,
    }


def packed_to(
    subject: Subject, wanted_db: float, folder: Path, trellis: bool = False
) -> tuple[Row, Quantized]:
    """What onnxcomp makes of a model, and how good its file is."""
    quality, place = Quality(min_sqnr_db=wanted_db, trellis=trellis), folder / "m.oxc"
    found = quantize_for_coding(str(subject.path), quality, calibration=subject.fitted)
    encode = _busy(lambda: pack_codes(found.graph, found.codes, place, threads=1))
    decode = _busy(lambda: verify(place, threads=1))
    unpack(place, folder / "back.onnx")
    tool = "trellis" if trellis else "onnxcomp"
    row = _row(tool, subject.name, place.stat().st_size, found.weights, (encode, decode))
    row["sqnr_db"] = subject.sqnr_db(onnx.load_model(str(folder / "back.onnx")))
    return {**row, "wanted_db": wanted_db}, found


class Rival:
    """nncodec on the weights of a simplified model."""

    def __init__(self, python: str, subject: Subject, folder: Path) -> None:
        self._python, self._subject, self._folder = python, subject, folder
        simple = folder / "simple.onnx"
        recipe = compose([parse_pass("simplify_graph")])
        optimize(str(subject.path), recipe, output=str(simple), verify="off")
        self._model = onnx.load_model(str(simple))
        self._weights = {}
        rest = onnx.ModelProto()
        rest.CopyFrom(self._model)
        for tensor, bare in zip(self._model.graph.initializer, rest.graph.initializer, strict=True):
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.size >= LEAST:
                kind = "weight" if values.ndim > 1 else "bias"
                self._weights[f"p{len(self._weights)}.{kind}"] = tensor.name, values
                bare.ClearField("raw_data")
                bare.ClearField("float_data")
        np.savez(folder / "weights.npz", **{key: v for key, (_, v) in self._weights.items()})
        self._rest = len(compress(rest.SerializeToString()))
        self._known: dict[int, Row] = {}

    def at(self, qp: int) -> Row:
        """Size, speed and quality of one setting."""
        if qp not in self._known:
            decoded = self._folder / "decoded.npz"
            arguments = [str(self._folder / "weights.npz"), str(decoded), str(qp)]
            said = _said(self._python, "nncodec_worker.py", *arguments)
            count = sum(values.size for _, values in self._weights.values())
            size, seconds = said["bytes"] + self._rest, (said["encode_s"], said["decode_s"])
            row = _row("nncodec", self._subject.name, size, count, seconds)
            row["sqnr_db"] = self._subject.sqnr_db(self._with(dict(np.load(decoded))))
            self._known[qp] = row
        return self._known[qp]

    def _with(self, values: dict[str, Any]) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        named = {tensor.name: tensor for tensor in model.graph.initializer}
        for key, (name, exact) in self._weights.items():
            found = np.ascontiguousarray(values[key], np.float32).reshape(exact.shape)
            named[name].CopyFrom(numpy_helper.from_array(found, name))
        return model

    def near(self, sqnr_db: float) -> Row:
        """Interpolated between the coarsest neighbours that do: quality goes to and fro."""
        fine = COARSEST_QP
        while self.at(fine)["sqnr_db"] < sqnr_db and fine > FINEST_QP:
            fine -= 1
        better, worse = self.at(fine), self.at(fine + 1)
        share = (sqnr_db - worse["sqnr_db"]) / (better["sqnr_db"] - worse["sqnr_db"])
        mixed = {
            key: worse[key] + share * (better[key] - worse[key])
            for key in ("bytes", "encode_mws", "decode_mws", "bits_per_weight")
        }
        return {**better, **mixed, "bytes": round(mixed["bytes"]), "sqnr_db": sqnr_db}


def _said(python: str, script: str, *arguments: str) -> Row:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", str(HERE / script), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode:
        raise SystemExit(f"{script} failed: {run.stderr.strip()[-300:]}")
    answer: Row = json.loads(run.stdout.strip().splitlines()[-1])
    return answer


def lossless(subject: Subject, zipnn: str | None, folder: Path) -> list[Row]:
    """onnxcomp on the model file, ZipNN on the bytes of its float32 weights."""
    tensors = onnx.load_model(str(subject.path)).graph.initializer
    floats = [t for t in map(numpy_helper.to_array, tensors) if t.dtype == np.float32]
    count, place = sum(values.size for values in floats), folder / "lossless.oxc"
    encode = _busy(lambda: pack(subject.path, place, threads=1))
    decode = _busy(lambda: verify(place, threads=1))
    rows = [_row("lossless", subject.name, place.stat().st_size, count, (encode, decode))]
    rows[0]["ratio"] = place.stat().st_size / subject.path.stat().st_size
    if zipnn:
        (folder / "floats").write_bytes(b"".join(values.tobytes() for values in floats))
        said = _said(zipnn, "zipnn_worker.py", str(folder / "floats"))
        seconds = said["encode_s"], said["decode_s"]
        rows.append(_row("zipnn", subject.name, said["bytes"], count, seconds))
        rows[1]["ratio"] = said["bytes"] / (4 * count)
    return rows


def integers(subject: Subject, found: Quantized) -> Row:
    """Payloads of the codes of all weights against their zeroth-order entropy."""
    from onnxcomp.container import Entry
    from onnxcomp.number_types import FLOAT
    from onnxcomp.representations import Integer

    size = bits = 0.0
    for coded in found.codes.values():
        entry = Entry(0, True, 0, 0, FLOAT, coded.codes.shape, Integer())
        size += encode_grid(entry, coded.codes, coded.scales, coded.axis).size
        counts = np.unique(coded.codes, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / coded.codes.size)).sum())
    row = {"tool": "integers", "model": subject.name, "sqnr_db": None, "bytes": round(size)}
    return {**row, "entropy_bytes": round(bits / 8), "ratio": 8 * size / bits}


def rows_of(
    name: str,
    wanted: tuple[float, ...],
    nncodec: str | None,
    zipnn: str | None,
    trellis: bool,
) -> Any:
    """All rows of a model, one after the other."""
    with tempfile.TemporaryDirectory() as place:
        subject, folder = Subject.of(name), Path(place)
        rival = Rival(nncodec, subject, folder) if nncodec else None
        for wanted_db, chain in itertools.product(wanted, (True, False) if trellis else (False,)):
            row, found = packed_to(subject, wanted_db, folder, chain)
            yield row
            if rival:
                theirs = rival.near(row["sqnr_db"])
                yield {
                    **theirs,
                    "wanted_db": wanted_db,
                    "smaller": 1 - row["bytes"] / theirs["bytes"],
                }
        yield integers(subject, found)
        yield from lossless(subject, zipnn, folder)


def in_words(row: Row) -> str:
    """A line of the table."""
    line = f"{row['model']:18s} {row['tool']:9s} {row['bytes']:>11,} bytes"
    if row["sqnr_db"] is not None:
        line += f"  {row['sqnr_db']:6.2f} dB"
    if "bits_per_weight" in row:
        line += (
            f"  {row['bits_per_weight']:6.3f} bits a weight, Mw/s {row['encode_mws']:.1f} encode"
        )
        line += f", {row['decode_mws']:.1f} decode"
    if "ratio" in row:
        line += f"  {row['ratio']:.2%} of {'entropy' if 'entropy_bytes' in row else 'it'}"
    return line + (f"  onnxcomp is {row['smaller']:.1%} smaller" if "smaller" in row else "")


def main(arguments: list[str] | None = None) -> None:
    """Prints the table, or with --json a list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print a list of rows")
    parser.add_argument("--trellis", action="store_true", help="pack with --trellis, too")
    parser.add_argument("--model", action="append", help="of the kit, or a file; all of the kit's")
    parser.add_argument("--db", type=float, action="append", help="SQNR asked for")
    for tool in ("nncodec", "zipnn"):
        name = f"ONNXCOMP_{tool.upper()}"
        text = f"Python of an environment with {tool}; {name} else"
        parser.add_argument(f"--{tool}", default=os.environ.get(name), metavar="PYTHON", help=text)
    said = parser.parse_args(arguments)
    found = []
    for name in said.model or WANTED_DB:
        wanted = tuple(said.db or WANTED_DB.get(name, (25.0,)))
        for row in rows_of(name, wanted, said.nncodec, said.zipnn, said.trellis):
            found.append(row)
            if not said.json:
                print(in_words(row), flush=True)
    if said.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
