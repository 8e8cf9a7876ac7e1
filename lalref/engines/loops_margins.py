"""The origin that logits are measured from, so that what is pooled is small: accuracy for nearly perfect predictions.

A loss near 0 is about exp(-margin), and its gradient about exp(-p margin): whatever is rounded in a margin of 60
counts 60 p times. Softmax doesn't change when one number is taken from all logits of a pixel, so from each
pixel's logits its target's is taken, and a typical margin of its class is given back: what is pooled is how much
a margin differs from the typical one, and its roundings are as small as it is. The typical margin goes in
exactly, after pooling. Any number would do that is no larger than margins are: what is pooled is rounded relative to
it. So it is the margin over the strongest other class, for a logit of -1e9 may stand for a class that is left out; the
median of a few pixels, one of which may be odd; and never beyond `_MOST`, where a loss rounds to 0.

It is found from a few pixels of each class in each image: those of windows alone, which may be read, and of one
class for one class, so that a NaN reaches no other. Nothing is pooled here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lalref.engines.loops_cache import compiled
from lalref.engines.loops_lanes import inner
from lalref.engines.loops_rows import Image, Labels, label_at

Array = Any

_PIXELS = 4  # of each class in each image
_GRID = (
    16.0  # typical margins are multiples of 1/16: few digits, so that subtracting one is nearly always exact
)
_MOST = 128.0
_RUN = 64  # pixels that are asked at once


@inner
def _any_open(labels, is_open):
    """Whether the bit of a label may be set in `is_open`: one for each class, shared by those 64 apart."""
    found = np.uint64(0)
    for j in range(len(labels)):
        found |= is_open >> np.uint64(labels[j] & 63)
    return found & np.uint64(1) != np.uint64(0)


@compiled
def first_windows(n, image, y, valid, found):
    """The first windows of each class in image n, row by row: found (C, most) int64, at pixels, -1 for none left.

    y: (N, A, B, W); valid: (N, *grid).
    """
    C, most = found.shape
    found[:] = -1
    counts = np.zeros(C, np.int64)
    is_open, open_of_bit = np.uint64(0), np.zeros(64, np.int64)
    for kind in range(C):
        is_open |= np.uint64(1) << np.uint64(kind & 63)
        open_of_bit[kind & 63] += 1
    left = C
    grid_b = (image.B + image.stride_b - 1) // image.stride_b
    grid_w = (image.W + image.stride_w - 1) // image.stride_w
    at = n * ((image.A + image.stride_a - 1) // image.stride_a) * grid_b * grid_w
    for a in range(0, image.A, image.stride_a):
        for b in range(0, image.B, image.stride_b):
            here = (a * image.B + b) * image.W
            start = n * image.A * image.B * image.W + here
            for w0 in range(0, image.W, _RUN):  # most runs hold no class of which a window is still wanted
                w1 = min(w0 + _RUN, image.W)
                if len(y.narrow) > 0:
                    wanted = _any_open(y.narrow[start + w0 : start + w1], is_open)
                else:
                    wanted = _any_open(y.wide[start + w0 : start + w1], is_open)
                if not wanted:
                    continue
                for w in range(w0 + -w0 % image.stride_w, w1, image.stride_w):
                    kind = label_at(y, start + w)
                    if 0 <= kind < C and counts[kind] < most and valid[at + w // image.stride_w]:
                        found[kind, counts[kind]] = here + w
                        counts[kind] += 1
                        if counts[kind] == most:
                            left -= 1
                            open_of_bit[kind & 63] -= 1
                            if open_of_bit[kind & 63] == 0:
                                is_open &= ~(np.uint64(1) << np.uint64(kind & 63))
                if left == 0:
                    return
            at += grid_w


@compiled
def typical_of_pixels(logits, n, kind, typical):
    """typical[n, kind] = a margin typical of the pixels (pixels, C) that `n` and `kind` say; one after the other."""
    margins = np.empty(_PIXELS)
    known = 0  # of which the margin is a number, smallest first
    for i in range(len(n)):
        own, strongest = logits[i, kind[i]], -np.inf
        for c in range(logits.shape[1]):
            if c != kind[i] and strongest < logits[i, c] < np.inf:
                strongest = logits[i, c]
        margin = own - strongest
        if margin - margin == 0:
            j = known
            while j > 0 and margins[j - 1] > margin:
                margins[j] = margins[j - 1]
                j -= 1
            margins[j] = margin
            known += 1
        if i + 1 == len(n) or n[i] != n[i + 1] or kind[i] != kind[i + 1]:
            if known > 0:
                median = (margins[(known - 1) // 2] + margins[known // 2]) / 2
                typical[n[i], kind[i]] = np.rint(min(max(median, -_MOST), _MOST) * _GRID) / _GRID
            known = 0


def typical_margins(x: Array, image: Image, y: Labels, valid: Array, working: Any) -> Array:
    """A margin typical of each class of each image, 0 where none is known or it is no class: (N, C + 1).

    x: logits (N, C, A, B, W); y: (N, A, B, W); valid: flat (N, *grid).
    """
    N, C = x.shape[:2]
    typical = np.zeros((N, C + 1), working)
    if x.size == 0 or C < 2:
        return typical
    found = np.empty((N, C, _PIXELS), np.int64)
    for image_n in range(N):  # one after the other: most often a few rows hold all that is looked for
        first_windows(image_n, image, y, valid, found[image_n])
    n, kind, i = np.nonzero(found >= 0)
    a, b, w = np.unravel_index(found[n, kind, i], x.shape[2:])
    typical_of_pixels(x[n, :, a, b, w].astype(np.float64), n, kind, typical)
    return typical
