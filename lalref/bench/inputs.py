"""What the benchmark runs on: logits from a formula, and three kinds of label maps.

Nothing here is random from run to run, and nothing is timed here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any

VOID = 255
KINDS = ("blobs", "noise", "one class")


def logits(shape: tuple[int, int, int, int]) -> Array:
    """Return float32 logits (N, C, H, W) between -6 and 6, as untidy as a network's.

    Examples
    --------
    >>> from lalref.bench.inputs import logits
    >>> logits((1, 2, 3, 4)).dtype.name
    'float32'
    """
    i = np.arange(np.prod(shape), dtype=np.uint32)
    i = (i ^ (i >> np.uint32(15))) * np.uint32(0x2C1B3C6D)  # a hash of the position
    i = (i ^ (i >> np.uint32(12))) * np.uint32(0x297A2D39)
    i ^= i >> np.uint32(15)
    return (i.astype(np.float32) * np.float32(12 / 2**32) - 6).reshape(shape)


def labels(kind: str, shape: tuple[int, int, int], C: int) -> Array:
    """Return labels (N, H, W), uint8: blobs with void borders as in Pascal VOC, noise (the worst case) or one class.

    Examples
    --------
    >>> from lalref.bench.inputs import labels
    >>> labels("one class", (1, 2, 2), 21).tolist()
    [[[0, 0], [0, 0]]]
    """
    N, H, W = shape
    if kind == "one class":
        return np.zeros(shape, np.uint8)
    if kind == "noise":
        spread = logits((N, 1, H, W))[:, 0]
        return np.clip((spread + 6) / 12 * C, 0, C - 1).astype(np.uint8)
    y = np.zeros(shape, np.uint8)
    i, j = np.mgrid[:H, :W].astype(np.float32)
    for n in range(N):
        for k in range(4):  # four objects on the background, each with a border of void five pixels wide
            turn = 2.4 * (5 * n + k)
            centre_i, centre_j = H * (0.5 + 0.35 * np.sin(turn)), W * (0.5 + 0.35 * np.cos(1.7 * turn))
            radius = min(H, W) * (0.12 + 0.04 * k)
            angle = np.arctan2(i - centre_i, j - centre_j)
            d = np.hypot(i - centre_i, (j - centre_j) * (0.7 + 0.15 * k)) - radius * (
                1 + 0.1 * np.sin(5 * angle)
            )
            y[n][d < 0] = 1 + (3 * n + 5 * k) % (C - 1) if C > 1 else 0
            y[n][abs(d) < 2.5] = VOID
    return y
