"""Scenes of real handwritten digits over real photographs, with their labels.

Digits are scikit-learn's copy of the UCI set (1797 images of 8x8), photographs those inside scikit-image's
wheel: nothing is downloaded. The three splits share neither a digit image nor a photograph. No model and no
loss may come in here.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy.ndimage import affine_transform, binary_dilation
from skimage import color, data, transform

CLASSES = ("background", *"0123456789")
VOID = 255
# In the order of the set: its first 55 %, the next 15 %, and the last 30 %.
DIGITS = {"train": (0.0, 0.55), "validation": (0.55, 0.70), "test": (0.70, 1.0)}
PHOTOGRAPHS = {
    "train": ("astronaut", "brick", "camera", "chelsea", "coffee", "motorcycle", "retina"),
    "validation": ("clock", "gravel", "moon", "rocket"),
    "test": ("cell", "coins", "grass", "hubble_deep_field", "immunohistochemistry"),
}
DIMMED = 0.5  # photographs are no brighter, so that light ink can be seen on all of them
# One number a split, so that no two splits draw alike.
STREAM = {"train": 0, "validation": 1, "test": 2}


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Scenes of one split.

    Attributes
    ----------
    images : (N, H, W) float32
        Grey levels in [0, 1].
    labels : (N, H, W) uint8
        0 background, 1 + d for digit d, VOID on the rim of one pixel around each digit: what models are
        trained with and what mIoU is counted on.
    full : (N, H, W) uint8
        The same without VOID: what the rim really is, for the boundary score.
    """

    images: np.ndarray
    labels: np.ndarray
    full: np.ndarray


@functools.cache
def photographs(split: str) -> tuple[np.ndarray, ...]:
    """Return the split's photographs in grey levels up to DIMMED, about 256 pixels along their longer side."""

    def grey(name: str) -> np.ndarray:
        photo = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
        photo = color.rgb2gray(photo) if photo.ndim == 3 else photo / 255
        factor = max(1, round(max(photo.shape) / 256))
        return DIMMED * transform.downscale_local_mean(photo, (factor, factor))

    return tuple(grey(name) for name in PHOTOGRAPHS[split])


@functools.cache
def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the split's digit images (n, 8, 8) in [0, 1] and their classes (n,) in 1..10."""
    from sklearn.datasets import load_digits  # a report, which needs no scenes, does without scikit-learn

    bunch = load_digits()
    first, last = (round(share * len(bunch.images)) for share in DIGITS[split])
    return bunch.images[first:last] / 16, bunch.target[first:last] + 1


def make_scenes(split: str, count: int, *, size: int = 48, seed: int = 0) -> Scenes:
    """Return `count` scenes of a split; the same arguments give the same scenes."""
    rng = np.random.default_rng([STREAM[split], seed])
    made = [_scene(split, size, rng) for _ in range(count)]
    images, labels, full = (np.stack(each) for each in zip(*made, strict=True))
    return Scenes(images.astype(np.float32), labels, full)


def _scene(split: str, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return one image (H, W), its labels with the void rim, and its labels without."""
    shots = photographs(split)
    shot = shots[rng.integers(len(shots))]
    top, left = (rng.integers(0, extent - size + 1) for extent in shot.shape)
    image = shot[top : top + size, left : left + size].copy()
    full = np.zeros((size, size), np.uint8)
    rim = np.zeros((size, size), bool)
    inks, classes = digits(split)
    for _ in range(rng.integers(4, 8)):
        which = rng.integers(len(inks))
        coverage = _pasted(inks[which], size, rng)
        digit = coverage >= 0.5
        if np.mean(full[digit] != 0) > 0.1:
            continue  # too little of the earlier digit would be left to know it by
        image += rng.uniform(0.7, 1) * coverage * (rng.uniform(0.85, 1) - image)
        full[digit] = classes[which]
        rim = (rim & ~digit) | (binary_dilation(digit) & ~digit)
    image += rng.normal(0, 0.02, image.shape)
    return np.clip(image, 0, 1), np.where(rim, VOID, full).astype(np.uint8), full


def _pasted(ink: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the coverage (H, W) in [0, 1] of one digit, 15 to 19 pixels high, turned by up to 10 degrees."""
    height = rng.uniform(15, 19)
    angle = np.deg2rad(rng.uniform(-10, 10))
    centre = rng.uniform(0.45 * height, size - 0.45 * height, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    to_ink = turn * (8 / height)  # from pixels of the scene to pixels of the ink
    return np.clip(affine_transform(ink, to_ink, 3.5 - to_ink @ centre, (size, size), order=3), 0, 1)
