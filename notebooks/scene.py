"""What the notebooks look at: one photograph, labels for it, and the scores of a simple classifier.

The photograph and its labels are those of examples/demo.py; the classifier is linear in colour and contrast,
and fitted by plain cross-entropy, so that it knows nothing of the loss that the notebooks are about.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from scipy.ndimage import distance_transform_edt
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from demo import CLASSES, VOID, features, label_map, photograph

COLOURS = ListedColormap(["#3b2a20", "#8c510a", "#d8b365", "#5ab4ac", "#f6e8c3"][:CLASSES])


def coffee():
    """Return photo (H, W, 3) in [0, 1], labels (H, W) uint8 with 255 for void, and scores (1, C, H, W) float64."""
    photo = photograph()
    labels = label_map(photo)
    return photo, labels, scores(features(photo), labels)


def without_void(labels):
    """Give every void pixel (H, W) the label of the nearest pixel that has one, so that classes touch."""
    nearest = distance_transform_edt(labels == VOID, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]


def scores(seen, labels):
    """Scores of the linear classifier after 30 steps of L-BFGS on the cross-entropy of labelled pixels."""
    kept = labels != VOID
    X, y = seen[:, kept], labels[kept]  # (features, M), (M,)
    onehot = y == np.arange(CLASSES)[:, None]  # (C, M)

    def objective(flat):
        x = flat.reshape(CLASSES, len(X)) @ X  # (C, M)
        log_P = x - np.logaddexp.reduce(x, axis=0)
        return -log_P[onehot].mean(), ((np.exp(log_P) - onehot) @ X.T).ravel() / len(y)

    start = np.zeros(CLASSES * len(X))
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 30})
    return np.tensordot(found.x.reshape(CLASSES, len(X)), seen, axes=1)[None]


def show_labels(axis, labels, **options):
    """Draw a label map in the scene's colours, void in white."""
    return axis.imshow(
        np.where(labels == VOID, np.nan, labels), cmap=COLOURS, vmin=0, vmax=CLASSES - 1, **options
    )
