"""Trains digits_gru.onnx: the eight rows of an image read as a sequence by a two-layer GRU."""

from __future__ import annotations

import torch
from digits import export, make_deterministic, train
from torch import nn

HIDDEN = 128


class RowReader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, HIDDEN, num_layers=2, batch_first=True)
        self.head = nn.Linear(HIDDEN, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(x.reshape(-1, 8, 8))
        return self.head(states[:, -1])


if __name__ == "__main__":
    make_deterministic()
    export(train(RowReader(), epochs=60, learning_rate=4e-3), "digits_gru")
