"""Formulas for the inputs of the cases: logits, labels and weights from an integer hash of the index.

Nothing here may depend on a random stream (its values may change between library versions) or on
floating point that rounds: every number is k/8 with |k| <= 255 or a small integer, so float16 and bfloat16
hold it exactly and one truth serves every dtype. The hash is plain 32-bit arithmetic, so that any
language can make the same arrays.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

VOID = 255  # the label that VOC and Cityscapes give to border pixels


def mix(shape: tuple[int, ...], salt: int) -> IntArray:
    """32-bit hash of the C-order index of every element: the source of all irregularity."""
    mask = np.uint64(0xFFFFFFFF)
    i = np.arange(1, math.prod(shape) + 1, dtype=np.uint64)  # (size,)
    h = (i * np.uint64(2654435761) + np.uint64(salt * 40503)) & mask
    h = ((h ^ (h >> np.uint64(15))) * np.uint64(2246822519)) & mask
    h = ((h ^ (h >> np.uint64(13))) * np.uint64(3266489917)) & mask
    return (h ^ (h >> np.uint64(16))).astype(np.int64).reshape(shape)


def eighths(shape: tuple[int, ...], salt: int, limit: int = 31) -> FloatArray:
    """Multiples of 1/8 from -limit/8 to limit/8."""
    x: FloatArray = (mix(shape, salt) % (2 * limit + 1) - limit).astype(np.float64) / 8
    return x


def weights(shape: tuple[int, ...], salt: int) -> FloatArray:
    """Weights 0, 1/8, ..., 15/8; about one in sixteen is zero."""
    omega: FloatArray = (mix(shape, salt) % 16).astype(np.float64) / 8
    return omega


def thousands(shape: tuple[int, ...], salt: int) -> FloatArray:
    """Logits of -1000, 0 and 1000."""
    x: FloatArray = 1000.0 * (mix(shape, salt) % 3 - 1).astype(np.float64)
    return x


def scattered(shape: tuple[int, ...], salt: int, classes: int, void: int | None = None) -> IntArray:
    """Labels with no structure; one in eight is `void` where a void label is given."""
    h = mix(shape, salt)
    y: IntArray = h % classes
    return y if void is None else np.where((h >> 9) % 8 == 0, void, y)


def blobs(shape: tuple[int, ...], classes: int, height: int = 2, width: int = 3) -> IntArray:
    """Labels (N, H, W) in blocks of `height` by `width` pixels, shifted by one class from image to image."""
    n, i, j = np.indices(shape)
    y: IntArray = (i // height + j // width + n) % classes
    return y


def checkerboard(shape: tuple[int, ...]) -> IntArray:
    """Labels of two classes (N, H, W): same-class neighbours touch only at corners."""
    _, i, j = np.indices(shape)
    y: IntArray = (i + j) % 2
    return y


def singles(shape: tuple[int, ...], period: int) -> IntArray:
    """Labels (N, H, W) of period**2 classes: two pixels of one class are at least `period` apart."""
    _, i, j = np.indices(shape)
    y: IntArray = (i % period) * period + j % period
    return y


def edges(shape: tuple[int, ...]) -> IntArray:
    """Class 1 on all four borders, class 0 inside: a window that wraps around would find company."""
    _, i, j = np.indices(shape)
    _, h, w = shape
    y: IntArray = ((i == 0) | (i == h - 1) | (j == 0) | (j == w - 1)).astype(np.int64)
    return y


def objects(shape: tuple[int, ...], void: int = VOID) -> IntArray:
    """Two objects on a background, each outlined by one pixel of `void`, as VOC's annotations are."""
    _, h, w = shape
    n, i, j = np.indices(shape)
    first = np.maximum(abs(i - h // 3), abs(j - w // 3 - n))
    second = np.maximum(h - 1 - i, w - 1 - j)
    y = np.where(first < 2, 1, np.where(first == 2, void, 0))
    y = np.where((second == 2) & (y == 0), void, y)
    return np.where(second < 2, 2, y)


def certain(labels: IntArray, classes: int, salt: int, low: int, high: int) -> FloatArray:
    """Logits (N, C, *S) whose label wins by `low` to `high`: nearly perfect predictions, in whole numbers.

    The margin is split between the winner and the others, so that no entry is beyond 255.
    """
    onehot = labels[:, None] == np.arange(classes).reshape(1, -1, *[1] * (labels.ndim - 1))
    # every entry has its own margin: the classes that lose do not lose by the same amount
    margin = low + mix(onehot.shape, salt) % (high - low + 1)
    half = high // 2
    return np.where(onehot, float(half), half - margin.astype(np.float64))
