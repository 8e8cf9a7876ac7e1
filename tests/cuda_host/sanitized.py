"""Runs small cases on the CPU under one sanitizer, which ends the process at the first thing it finds.

    python -m cuda_host.sanitized address|undefined|thread [FAULT]

For a process of its own: a sanitizer's library has to be there before Python is. Without one, as for
``coverage``, the cases are the same.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

import numpy as np

import lalref
from cuda_host.engine import on_host
from lalref.engines import kernels_geometry
from lalref.oracle.inputs import VOID, blobs, eighths, scattered, weights

H, W = 9, 13
WINDOWS = ({"kernel_size": 5}, {"kernel_size": (13, 9)}, {"kernel_size": 3, "stride": 2})
OPTIONS = ({"normalize": "count"}, {"label_smoothing": 0.25}, {"sigma": 0.25, "kernel_size": 7})


def run(images: int, dtypes: tuple[str, ...] = ("float32",), **build: Any) -> None:
    """Every kernel: small and large windows, few and many classes, strides, ignored and weightless pixels."""
    shape = (images, H, W)
    few, many = blobs(shape, 2), scattered(shape, 2, 6, VOID)
    few[scattered(shape, 1, 9) == 4] = VOID
    omega = weights(shape, 4)
    for dtype in dtypes:
        x = eighths((images, 6, H, W), 3).astype(dtype)
        with on_host(small_tiles=True, **build):
            for space in ("logits", "probabilities"):
                for window in WINDOWS:
                    lalref.lal_value_and_grad(x, few, space=space, pixel_weight=omega, **window)
                lalref.lal_value_and_grad(x, many, space=space, kernel_size=7, normalize="count")
                lalref.lal_loss(x, np.where(few == 1, 77, few), space=space, check=False)
            lalref.lal_value_and_grad(32 * x, many, space="probabilities", kernel_size=3)  # next to none
            for options in OPTIONS:
                lalref.lal_value_and_grad(x, few, **options)
            with mock.patch.object(kernels_geometry, "SHARED_MEMORY", 2000):  # not for every t at once
                for space in ("logits", "probabilities"):
                    lalref.lal_value_and_grad(x, few, kernel_size=(13, 9), space=space, p=np.inf)


if __name__ == "__main__":
    if sys.argv[1] == "coverage":
        run(2, ("float32", "float16", "bfloat16", "float64"), options=("--coverage", "-O0"))
    else:
        # to ThreadSanitizer every thread of every block is a thread to be made, which takes its time
        images = 1 if sys.argv[1] == "thread" else 2
        run(images, sanitizer=sys.argv[1], fault=sys.argv[2] if len(sys.argv) > 2 else "")
