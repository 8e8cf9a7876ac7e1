"""Pascal VOC 2012 for `train_voc.py` beside it: reading and checking its files, crops, and mIoU as VOC counts it.

NumPy and pillow only: no network, no loss and no framework may come in here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, VOID = 21, 255


class BadFile(Exception):
    """A file of the data set is missing or can't be used; the message names it."""


def read_names(root: Path, split: str) -> list[str]:
    """Return the names of a split."""
    file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        names = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{file}: {error}. Is {root} the folder VOC2012 of VOCdevkit?") from error
    if not names:
        raise BadFile(f"{file} has no names in it")
    return names


def digest(lists: dict[str, list[str]]) -> str:
    """Return the sha256 of the names of all splits, in their order."""
    return hashlib.sha256(json.dumps(lists).encode()).hexdigest()


def sample_name(names: list[str], seed: int, position: int) -> str:
    """Return which image comes at a position of the endless stream: each epoch is a new permutation."""
    epoch, at = divmod(position, len(names))
    return names[np.random.default_rng([seed, 0, epoch]).permutation(len(names))[at]]


def read_pair(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a photograph (H, W, 3) uint8 and its classes (H, W) uint8.

    Raises
    ------
    BadFile
        One of the two is missing, damaged, of another size than the other, or not what VOC has there.
    """
    image = _pixels(root / "JPEGImages" / f"{name}.jpg", lambda opened: opened.convert("RGB"))
    mask_file = root / "SegmentationClass" / f"{name}.png"
    mask = _pixels(mask_file, lambda opened: opened)
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise BadFile(
            f"{mask_file} holds colours or wide numbers, not class numbers: it must be a palette or 8-bit grey PNG"
        )
    if mask.shape != image.shape[:2]:
        raise BadFile(
            f"{mask_file} is {mask.shape}, its photograph {image.shape[:2]}: (height, width) must agree"
        )
    unknown = np.setdiff1d(mask, [*range(CLASSES), VOID])
    if unknown.size:
        raise BadFile(
            f"{mask_file} has the classes {unknown.tolist()}; VOC has 0 to {CLASSES - 1}, and {VOID} for void"
        )
    return image, mask


def _pixels(file: Path, convert: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    try:
        with Image.open(file) as opened:
            return np.asarray(convert(opened))
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # what pillow raises for damage
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
        raise BadFile(f"{file}: {reason}") from error


def crop_and_flip(image: np.ndarray, mask: np.ndarray, crop: int, rng: np.random.Generator) -> tuple:
    """Return a random crop x crop window, mirrored half the time; what lies outside of the image is void."""
    short = [max(0, crop - extent) for extent in mask.shape]
    around = [(extent // 2, extent - extent // 2) for extent in short]
    mask = np.pad(mask, around, constant_values=VOID)
    image = np.pad(image, [*around, (0, 0)], mode="edge")
    top, left = (rng.integers(0, extent - crop + 1) for extent in mask.shape)
    window = np.s_[top : top + crop, left : left + crop]
    step = 1 if rng.random() < 0.5 else -1
    return image[window][:, ::step], mask[window][:, ::step]


def confusion(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return how many pixels of class i were called j, void ones left out: (CLASSES, CLASSES)."""
    kept = truth != VOID
    pairs = truth[kept].astype(np.int64) * CLASSES + predicted[kept]
    return np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def mean_iou(counts: np.ndarray) -> float:
    """Return the mean over classes of intersection over union, of one confusion matrix for the whole set.

    A class that is neither there nor predicted has none, and is left out; VOC's own lists have all classes.
    """
    both = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - both
    return float(np.mean(both[union > 0] / union[union > 0])) if union.any() else float("nan")
