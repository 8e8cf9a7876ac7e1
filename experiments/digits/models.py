"""The two models: a small U-Net in torch, and a classifier linear in fixed features, in NumPy and SciPy.

torch is imported only when a U-Net is asked for. How they are trained is said in `training`.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter


def unet(classes: int, channels: int = 1, widths: tuple[int, ...] = (24, 48)) -> Any:
    """Return a U-Net that takes (N, channels, H, W), any H and W, and gives (N, classes, H, W).

    Its first convolution halves the resolution, which is most of what a full one would cost. At the end the maps are
    enlarged to that of the image, smoothly, and a last convolution sees them and the image: a score for each pixel.

    Parameters
    ----------
    classes, channels : int
        Of what comes out and of what goes in.
    widths : tuple of int
        How many maps at each resolution, the first half the image's, each half the one before it.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    def twice(into: int, out: int, stride: int = 1) -> nn.Sequential:
        layers: list[nn.Module] = []
        for maps, step in ((into, stride), (out, 1)):
            layers += [nn.Conv2d(maps, out, 3, stride=step, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            deeper = (twice(a, b) for a, b in itertools.pairwise(widths))
            self.down = nn.ModuleList([twice(channels, widths[0], stride=2), *deeper])
            self.up = nn.ModuleList(twice(a + b, a) for a, b in itertools.pairwise(widths))
            self.head = nn.Conv2d(widths[0] + channels, classes, 3, padding=1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x, kept = image, []
            for level, block in enumerate(self.down):
                x = block(F.max_pool2d(x, 2, ceil_mode=True) if level else x)
                kept.append(x)
            for block, finer in zip(reversed(self.up), reversed(kept[:-1]), strict=True):
                x = F.interpolate(x, size=finer.shape[-2:], mode="nearest")
                x = block(torch.cat([finer, x], dim=1))
            x = F.interpolate(x, size=image.shape[-2:], mode="bilinear")
            return self.head(torch.cat([x, image], dim=1))

    return UNet()


def features(images: np.ndarray, directions: int = 4) -> np.ndarray:
    """Return what the linear model sees of each pixel: (F, N, H, W) float32, the first a constant.

    Oriented first and second derivatives at three scales, rectified, then averaged over two neighbourhoods: fixed
    filters, nothing learnt.
    """
    maps = [np.ones_like(images)]
    angles = np.pi * np.arange(directions) / directions
    for scale in (1.0, 2.0, 4.0):
        width = (0, scale, scale)
        dy, dx = (scale * gaussian_filter(images, width, order) for order in ((0, 1, 0), (0, 0, 1)))
        yy, xx, xy = (
            scale**2 * gaussian_filter(images, width, order) for order in ((0, 2, 0), (0, 0, 2), (0, 1, 1))
        )
        maps.append(gaussian_filter(images, width))
        for c, s in zip(np.cos(angles), np.sin(angles), strict=True):
            for answer in (c * dx + s * dy, c * c * xx + 2 * c * s * xy + s * s * yy):
                for part in (np.maximum(answer, 0), np.maximum(-answer, 0)):
                    maps += [part, gaussian_filter(part, (0, 4, 4))]
    return np.stack(maps).astype(np.float32)
