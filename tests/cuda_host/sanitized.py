"""Runs small cases on the CPU under one sanitizer, which ends the process at the first thing it finds.

    python -m cuda_host.sanitized address|undefined|thread [FAULT]

For a process of its own: a sanitizer's library has to be there before Python is. Without one, as for
``coverage``, the cases are the same.
"""

from __future__ import annotations

import sys

import numpy as np

import lalref
from cuda_host.engine import on_host
from lalref.oracle.inputs import VOID, blobs, eighths, scattered, weights

SHAPE = (2, 9, 13)
WINDOWS = ({"kernel_size": 5}, {"kernel_size": 7}, {"kernel_size": (9, 13)}, {"stride": 2, "kernel_size": 3})
OTHERS = ({"normalize": "count"}, {"label_smoothing": 0.25}, {"sigma": 0.25})


def run(**build: object) -> None:
    """Every kernel: small and large windows, few and many classes, strides, ignored and weightless pixels."""
    labels = blobs(SHAPE, 2)
    labels[scattered(SHAPE, 1, 5) == 4] = VOID
    few, many = labels, scattered(SHAPE, 2, 6, VOID)
    for dtype in ("float32", "float16") if build.get("options") else ("float32",):
        for y in (few, many):
            x = eighths((2, 6, 9, 13), 3).astype(dtype)
            with on_host(small_tiles=True, **build):  # type: ignore[arg-type]
                for space in ("logits", "probabilities"):
                    for options in WINDOWS:
                        lalref.lal_value_and_grad(
                            x, y, space=space, pixel_weight=weights(SHAPE, 4), **options
                        )
                for options in OTHERS:
                    lalref.lal_value_and_grad(x, y, **options)
                lalref.lal_value_and_grad(x, y, space="probabilities", normalize="count")
                lalref.lal_loss(x, np.where(y == 1, 77, y), check=False)
                lalref.lal_loss(x, np.where(y == 1, 77, y), check=False, space="probabilities")


if __name__ == "__main__":
    if sys.argv[1] == "coverage":
        run(options=("--coverage", "-O0"))
    else:
        run(sanitizer=sys.argv[1], fault=sys.argv[2] if len(sys.argv) > 2 else "")
