"""Trains digits_resnet.onnx: residual, depthwise and squeeze-excite blocks on a 24x24 map."""

from __future__ import annotations

from collections import OrderedDict

import torch
from digits import export, make_deterministic, train
from torch import nn


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, group: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=group, bias=False
    )
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels)))


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected by 1x1 where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_norm(in_channels, out_channels, 3, stride)
        self.second = conv_norm(out_channels, out_channels, 3)
        same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(in_channels, out_channels, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.second(self.relu(self.first(x)))
        return self.relu(out + self.shortcut(x))


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole map shows (Hu et al., 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU()
        self.excite = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.excite(self.relu(self.squeeze(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, squeeze-excite, project 1x1, shortcut (MobileNetV3's block)."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        self.expand = conv_norm(channels, expanded, 1)
        self.depthwise = conv_norm(expanded, expanded, 3, group=expanded)
        self.attend = SqueezeExcite(expanded, expanded // 8)
        self.project = conv_norm(expanded, channels, 1)
        self.hardswish = nn.Hardswish()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.hardswish(self.depthwise(self.hardswish(self.expand(x))))
        return x + self.project(self.attend(out))


def build() -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        enlarge=nn.Upsample(scale_factor=3, mode="bilinear", align_corners=False),
        stem=conv_norm(1, 48, 3),
        stem_relu=nn.ReLU(),
        residual1=Residual(48, 48),
        residual2=Residual(48, 64, stride=2),
        residual3=Residual(64, 64),
        inverted=InvertedResidual(64, 160),
        head=conv_norm(64, 128, 1),
        head_hardswish=nn.Hardswish(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classify=nn.Linear(128, 10),
    )
    return nn.Sequential(layers)


if __name__ == "__main__":
    make_deterministic()
    export(train(build(), epochs=20), "digits_resnet")
