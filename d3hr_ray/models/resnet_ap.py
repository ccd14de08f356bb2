"""ResNetAP, the student of IDC's and Minimax's tables (Kim et al., ICML 2022): a ResNet that pools where others stride.

Written from the layout of vimar-gu/MinimaxDiffusion, train_models/resnet_ap.py.
"""

from collections import OrderedDict
from math import sqrt

import torch
from torch import nn
from torch.nn import functional

from d3hr_ray.models.classifiers import Norm, norm_layer

LAYERS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # basic blocks of each stage
WIDTHS = (64, 128, 256, 512)


class ResNetAP(nn.Module):
    """Images (B, C, S, S) => logits (B, K), by instance norm ("in") or batch norm.

    Its first layer is a 7x7 convolution pooled by 4 above 128 pixels, a 3x3 one pooled by 2 above 64, or not pooled.
    """

    def __init__(self, num_classes: int, image_size: int, depth: int, norm: Norm = "in", channels: int = 3) -> None:
        super().__init__()
        kernel, pool = (7, 4) if image_size > 128 else (3, 2) if image_size > 64 else (3, 1)
        self.stem = nn.Sequential(
            _conv(channels, WIDTHS[0], kernel), norm_layer(WIDTHS[0], norm), nn.ReLU(), _pool(pool)
        )
        body, width = list[nn.Module](), WIDTHS[0]
        for stage, (blocks, out) in enumerate(zip(LAYERS[depth], WIDTHS, strict=True)):
            for place in range(blocks):
                body.append(PooledBlock(width, out, 2 if stage and not place else 1, norm))
                width = out
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images => logits."""
        out: torch.Tensor = self.head(self.body(self.stem(images)).mean((2, 3)))
        return out


class PooledBlock(nn.Module):
    """ResNet's basic block; its first half, and the way round it, are pooled by `pool` instead of strided."""

    def __init__(self, width: int, out: int, pool: int, norm: Norm) -> None:
        super().__init__()
        half = OrderedDict(conv=_conv(width, out, 3), norm=norm_layer(out, norm), relu=nn.ReLU(), pool=_pool(pool))
        self.first, self.second = nn.Sequential(half), nn.Sequential(_conv(out, out, 3), norm_layer(out, norm))
        same = pool == 1 and width == out
        self.round = nn.Identity() if same else nn.Sequential(_conv(width, out, 1), _pool(pool), norm_layer(out, norm))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) => (B, C', H / pool, W / pool)."""
        return functional.relu(self.second(self.first(x)) + self.round(x))


def _conv(width: int, out: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False)


def _pool(by: int) -> nn.Module:
    return nn.Identity() if by == 1 else nn.AvgPool2d(by)
