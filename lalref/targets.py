"""What a scene's gradient may be written to: memory, a file or a data set of its own, for floating-point numbers.

Everything here is told before any work. Nothing is read or written.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.lib.array_utils import byte_bounds

from lalref.arrays import FLOATS, Array, dtype_name


def check_target(grad: Array, logits: Array, labels: Array, pixel_weight: Array | None) -> None:
    """Refuse a `grad` that can't take the gradient, before any work, or would spoil what is still to be read."""
    shape = tuple(logits.shape)
    if tuple(grad.shape) != shape:
        raise ValueError(f"grad must have the shape of logits, {shape}; got {tuple(grad.shape)}")
    if dtype_name(grad.dtype) not in FLOATS:
        raise TypeError(f"grad must be of dtype {', '.join(FLOATS)}; got {dtype_name(grad.dtype)}")
    flags, file = getattr(grad, "flags", None), getattr(grad, "file", None)  # NumPy's; HDF5's
    read_only = not getattr(flags, "writeable", True) or getattr(file, "mode", "") == "r"
    if read_only or getattr(grad, "read_only", False):  # Zarr's
        raise ValueError('grad is read-only: open it for writing, a memmap with mode "r+" or "w+"')
    for name, array in {"logits": logits, "labels": labels, "pixel_weight": pixel_weight}.items():
        if array is not None and _overlap(grad, array):
            raise ValueError(
                f"grad overlaps {name}, or may, of which tiles are read after others are written: "
                "give it memory or a file of its own"
            )


def _overlap(a: Array, b: Array) -> bool:
    """Whether writing to `a` may change `b`, as far as can be told."""
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        # h5py and Zarr tell two handles of one data set; what computes with == is not asked
        return a is b or (type(a) is type(b) and not hasattr(a, "__array_ufunc__") and (a == b) is True)
    if np.may_share_memory(a, b):  # by their bounds, between which each may leave out what the other has
        try:
            return np.shares_memory(a, b, max_work=10**5)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True
    here, there = _in_file(a), _in_file(b)
    if here is None or there is None or here[0] != there[0]:
        return False
    return here[1] < there[2] and there[1] < here[2]


def _in_file(array: np.ndarray) -> tuple[str, int, int] | None:
    """The file that a memmap, or a view of one, lies in, and from and to which byte; None for other arrays."""
    mapped = array
    while isinstance(mapped.base, np.ndarray):
        mapped = mapped.base
    if not isinstance(mapped, np.memmap) or mapped.filename is None:
        return None
    start = byte_bounds(mapped)[0] - mapped.offset
    first, last = byte_bounds(array)
    return os.path.realpath(mapped.filename), first - start, last - start
