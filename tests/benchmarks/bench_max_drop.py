"""The smallest containers that lose half a point of score on the kit.

    python tests/benchmarks/bench_max_drop.py mobilenet_v1_075 cifar10_resnet56

What `onnxcomp pack --max-drop 0.5 --evaluate` writes, the evaluator being the kit's score on all of
its samples; the score printed is that of the unpacked model. Bytes are those of whole files.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from onnxcomp.coding_search import Quality, pack_quantized
from onnxcomp.container_unpacking import unpack
from onnxcomp.model import load_model

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("ONNXCOMP_SHARED", HERE.parent.parent.parent / "shared"))
MINILM = Path(os.environ.get("ONNXCOMP_MINILM", Path.home() / ".cache/onnxcomp/minilm_l6_v2.onnx"))
MODELS = (
    *("mobilenet_v1_075", "squeezenet11_fp32", "cifar10_resnet56", "yolox_nano"),
    "minilm_l6_v2",
)


def measure(kit: Any, name: str, max_drop: float, samples: int) -> dict[str, Any]:
    """Bytes and scores of a model of the kit and of its container."""
    source = MINILM if name == "minilm_l6_v2" else Path(kit.model_path(name))
    with tempfile.TemporaryDirectory() as folder:
        packed, back = Path(folder) / "m.oxc", Path(folder) / "m.onnx"
        found, quantized = pack_quantized(
            source,
            packed,
            Quality(max_drop=max_drop),
            calibration=kit.calibration(name, samples),
            evaluator=lambda session: float(kit.evaluate(session, name)["value"]),
        )
        unpack(packed, back)
        return {
            "model": name,
            "model_bytes": load_model(source).bytes,
            "bytes": found.bytes,
            "bits_per_weight": round(quantized.bits_per_weight, 3),
            "sqnr_db": round(quantized.sqnr_db, 2),
            "score_before": kit.evaluate(str(source), name)["value"],
            "score": kit.evaluate(str(back), name)["value"],
        }


def main() -> None:
    """Prints a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=128, help="that steps are fitted to")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sys.path.insert(0, str(SHARED / "kit"))
    import evaluate as kit  # type: ignore[import-not-found]

    rows = []
    if not given.json:
        print("| model | bytes | container | | bits a weight | SQNR | score before | after |")
        print("|---|---|---|---|---|---|---|---|")
    for name in given.models:
        row = measure(kit, name, given.max_drop, given.samples)
        rows.append(row)
        if not given.json:
            print(
                f"| {name} | {row['model_bytes']:,} | {row['bytes']:,} "
                f"| {row['model_bytes'] / row['bytes']:.1f}x | {row['bits_per_weight']:.2f} "
                f"| {row['sqnr_db']:.1f} dB | {row['score_before']:.2f} | {row['score']:.2f} |",
                flush=True,
            )
    if given.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
