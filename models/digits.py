"""What the digits models share: the data and its split, the training loop, the export.

scikit-learn's digits are 1797 images of 8x8 pixels with values 0..16. Every array here is
float32 [n, 1, 8, 8], pixel / 16, so values lie in 0..1. Run as a script, this module writes
digits_calibration.npz and digits_test.npz beside itself.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

FOLDER = Path(__file__).resolve().parent
TEST_SAMPLES = 500
CALIBRATION_SAMPLES = 128
OPSET = 17
SPLIT_SEED = 0


def load_split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels; classes are equally frequent in both."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=TEST_SAMPLES, random_state=SPLIT_SEED, stratify=labels
    )
    return train_x, train_y, test_x, test_y


def write_samples() -> None:
    """digits_calibration.npz: unlabelled training images. digits_test.npz: the test split."""
    train_x, _, test_x, test_y = load_split()
    np.savez_compressed(FOLDER / "digits_calibration.npz", input=train_x[:CALIBRATION_SAMPLES])
    np.savez_compressed(FOLDER / "digits_test.npz", input=test_x, label=test_y)


def jitter(images: torch.Tensor) -> torch.Tensor:
    """Each image turned, scaled and moved a little, as handwriting is: [n, 1, 8, 8] to the same."""
    n = len(images)
    angle = (torch.rand(n) - 0.5) * 0.5
    scale = 1 + (torch.rand(n) - 0.5) * 0.3
    shift = (torch.rand(n, 2) - 0.5) * 0.4  # of half the image: up to 0.8 pixel
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train(
    model: nn.Module,
    epochs: int,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.05,
    batch: int = 64,
) -> nn.Module:
    """AdamW under a one-cycle schedule on jittered training images; returns `model` in eval mode.

    The test split plays no part in it: the last epoch is taken, not the best.
    """
    train_x, train_y, _, _ = load_split()
    images, labels = torch.from_numpy(train_x), torch.from_numpy(train_y)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)
    steps = len(images) // batch  # the ragged last batch is left out; the shuffle rotates it
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * steps)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(images))[: steps * batch].view(steps, batch):
            logits = model(jitter(images[index]))
            loss = F.cross_entropy(logits, labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs} loss {total / steps:.4f}", flush=True)
    return model.eval()


def make_deterministic(seed: int = 0) -> None:
    """Fix every source of randomness; call before building the model."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)


def export(model: nn.Module, name: str) -> None:
    """Write `name`.onnx beside this module: input [batch, 1, 8, 8] to logits [batch, 10].

    TrainingMode.PRESERVE on a model in eval mode keeps BatchNormalization a node of its own
    instead of folding it into the Conv before it: folding is the optimizer's work.
    """
    path = FOLDER / f"{name}.onnx"
    # both warnings speak of cases that are not ours: training mode, and a batch that was not 1
    warnings.filterwarnings("ignore", "It is recommended that constant folding be turned off")
    warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size other than 1")
    torch.onnx.export(
        model.eval(),
        (torch.zeros(1, 1, 8, 8),),
        str(path),
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        opset_version=OPSET,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
    )
    proto = onnx.load(path)
    del proto.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
    proto.graph.name = name
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        node.doc_string = ""  # the exporter writes this machine's paths here
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    write_samples()
