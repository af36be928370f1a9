"""Accuracy of a model on digits_test.npz: `--evaluate models/evaluate_digits.py:evaluate`.

Run as a script, it prints the table of the four reference models that README.md shows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

FOLDER = Path(__file__).resolve().parent
MODELS = ("digits_resnet", "digits_vit", "digits_gru", "digits_bnn")


def evaluate(session: onnxruntime.InferenceSession) -> float:
    """Top-1 accuracy in % on the 500 test images; higher is better."""
    with np.load(FOLDER / "digits_test.npz") as samples:
        images, labels = samples["input"], samples["label"]
    (logits,) = session.run(["logits"], {"input": images})
    return 100 * int(np.count_nonzero(logits.argmax(1) == labels)) / len(labels)


def table_row(name: str) -> str:
    """One line of README.md's table, measured; parameters are elements of float initializers."""
    import onnx

    path = FOLDER / f"{name}.onnx"
    model = onnx.load(path)
    parameters = sum(
        int(np.prod(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    size, opset = path.stat().st_size, model.opset_import[0].version
    return f"| {path.name} | {parameters:,} | {size:,} | {opset} | {evaluate(session):.1f} |"


def main() -> None:
    print("| model | parameters | bytes | opset | top-1 % |")
    print("|---|---:|---:|---:|---:|")
    for name in MODELS:
        print(table_row(name))


if __name__ == "__main__":
    main()
