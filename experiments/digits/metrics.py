"""Scores of predicted label maps: mIoU and the boundary F-score. NumPy and SciPy only."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion

SQUARE = np.ones((1, 3, 3), bool)  # a pixel and its eight neighbours, in each scene for itself


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int, void: int = 255) -> np.ndarray:
    """Return how many pixels of class i were called j: (classes, classes), `void` pixels left out."""
    kept = truth != void
    pairs = truth[kept].astype(np.int64) * classes + predicted[kept]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def iou(counts: np.ndarray) -> np.ndarray:
    """Return each class's intersection over union; NaN for a class that is neither there nor predicted.

    Examples
    --------
    >>> iou(np.array([[3, 1], [0, 4]])).round(2)
    array([0.75, 0.8 ])
    """
    both = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - both
    with np.errstate(invalid="ignore"):
        return both / union


def boundary_f(full: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Return the boundary F-score, the mean over the classes 1, 2, ... that have a boundary.

    A boundary pixel belongs to the class and has a neighbour, one of eight, that does not. It is found if the
    other map has one of the same class at most a pixel away. Precision is the found share of the
    predicted ones in all scenes together, recall that of the true ones.

    Parameters
    ----------
    full, predicted : (N, H, W) integers
        True classes, with no void, and predicted ones.
    classes : int
        How many there are; class 0, the background, is left out, since its boundary is that of the others.
    """
    scores = []
    for each in range(1, classes):
        true_line, line = (_boundary(labels == each) for labels in (full, predicted))
        if not (true_line.any() or line.any()):
            continue
        found = (line & binary_dilation(true_line, SQUARE)).sum() / max(1, line.sum())
        recalled = (true_line & binary_dilation(line, SQUARE)).sum() / max(1, true_line.sum())
        scores.append(2 * found * recalled / max(found + recalled, 1e-300))
    return float(np.mean(scores))


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of the mask with a neighbour outside of it; the image's own edge is no boundary."""
    return mask & ~binary_erosion(mask, SQUARE, border_value=1)
