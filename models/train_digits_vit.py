"""Trains digits_vit.onnx: a vision transformer over 49 overlapping 2x2 patches."""

from __future__ import annotations

import torch
from digits import export, make_deterministic, train
from torch import nn

TOKENS, WIDTH, HEADS, DEPTH = 7 * 7, 64, 4, 4


class Attention(nn.Module):
    """Softmax attention written out, so that the graph shows its two products."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.query_key_value(x).reshape(-1, TOKENS, 3, HEADS, WIDTH // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
        mixed = scores.softmax(-1) @ value
        return self.project(mixed.transpose(1, 2).reshape(-1, TOKENS, WIDTH))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a GELU network four times as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(WIDTH), Attention())
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        return x + self.feed_forward(x)


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 2)
        self.position = nn.Parameter(torch.randn(1, TOKENS, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).reshape(-1, WIDTH, TOKENS).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


if __name__ == "__main__":
    make_deterministic()
    export(train(VisionTransformer(), epochs=60), "digits_vit")
