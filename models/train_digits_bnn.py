"""Trains digits_bnn.onnx: hidden layers whose weights and inputs are all -1 or +1.

The first and the last layer stay in float, as is usual (Hubara et al., 2016, XNOR-Net). Binary
convolutions are unpadded: a padded zero would be a third value. In the file a binary layer is
Sign -> Conv or MatMul with weights of exactly -1 and +1 -> BatchNormalization.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from digits import export, make_deterministic, train
from torch import nn
from torch.nn.utils import parametrize

CHANNELS, FEATURES = 64, 128


class StraightThrough(torch.autograd.Function):
    """The sign, with the gradient of a clip to [-1, 1] (Hubara et al., 2016)."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = context.saved_tensors
        return gradient * (x.abs() <= 1)


class BinaryActivation(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return StraightThrough.apply(x) if self.training else x.sign()  # exported as Sign


class BinaryWeight(nn.Module):
    """A parametrization: the layer computes with the signs of a latent float weight."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return StraightThrough.apply(latent)


def binary(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", BinaryWeight())


def build() -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False),
        stem_norm=nn.BatchNorm2d(CHANNELS),
        sign1=BinaryActivation(),
        conv1=binary(nn.Conv2d(CHANNELS, CHANNELS, 3, bias=False)),
        norm1=nn.BatchNorm2d(CHANNELS),
        sign2=BinaryActivation(),
        conv2=binary(nn.Conv2d(CHANNELS, CHANNELS, 3, bias=False)),
        norm2=nn.BatchNorm2d(CHANNELS),
        sign3=BinaryActivation(),
        flatten=nn.Flatten(),
        linear3=binary(nn.Linear(CHANNELS * 4 * 4, FEATURES, bias=False)),
        norm3=nn.BatchNorm1d(FEATURES),
        sign4=BinaryActivation(),
        classify=nn.Linear(FEATURES, 10),
    )
    return nn.Sequential(layers)


def freeze_signs(model: nn.Module) -> None:
    """Replace each binary layer's latent float weight by its signs."""
    for layer in model.modules():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


if __name__ == "__main__":
    make_deterministic()
    model = train(build(), epochs=60, learning_rate=1e-2, weight_decay=0.0)
    freeze_signs(model)
    export(model, "digits_bnn")
