"""Labels at the door: of any integer dtype and with labels to ignore, made 0..C-1, -1 and C, in few passes and bytes.

What their shape must be is checked in `lalref.inputs`. No logits and no weights may come in.
"""

from __future__ import annotations

import functools
import operator

import numpy as np

from lalref.arrays import Array, Namespace, Refusals, dtype_name, is_torch, native, to_numpy
from lalref.options import Options


def _ignored(xp: Namespace, labels: Array, options: Options) -> Array:
    """Where a label is one of ignore_index; bool, shaped as `labels`."""
    limits = xp.iinfo(labels.dtype)
    # No other label can be equal.
    each = [labels == index for index in options.ignored_labels if limits.min <= index <= limits.max]
    return functools.reduce(operator.or_, each) if each else xp.zeros_like(labels, dtype=xp.bool)


def canonical_labels(xp: Namespace, labels: Array, C: int, options: Options, refusals: Refusals) -> Array:
    """Labels as `Problem` has them; what is no class is C, and refused unless check=False."""
    labels = native(labels)
    if isinstance(labels, np.ndarray) and labels.size:
        y = _numpy_labels(labels, C, options)
        if y is not None:
            return y
    return _checked_labels(xp, labels, C, options, refusals)


def _numpy_labels(labels: np.ndarray, C: int, options: Options) -> np.ndarray | None:
    """`_checked_labels` by the cacheful and in few passes, for it took longer than the loss; None if one must be told.

    One byte a pixel where that will do, as four are a twentieth of the gradient.
    """
    y = np.empty(labels.shape, np.int8 if C <= 127 else np.int32)
    rows = max(1, (1 << 16) * len(labels) // labels.size)
    axis = 1 if labels.ndim > 1 and rows == 1 else 0  # a batch of one image is cut along its rows
    rows = max(1, (1 << 16) * labels.shape[axis] // labels.size)
    for i in range(0, labels.shape[axis], rows):
        here = (slice(None),) * axis + (slice(i, i + rows),)
        part = labels[here]
        ignored = _ignored(np, part, options)
        # A negative number is a large one to the unsigned type of its size.
        bad = part.view(f"u{part.itemsize}") >= C
        y[here] = part
        y[here] |= -ignored.view(np.int8)  # -1 has all bits set, so that no mask need be asked pixel by pixel
        bad = bad > ignored
        if bad.any():
            if options.check:
                return None
            y[here][bad] = C
    return y


def _checked_labels(xp: Namespace, labels: Array, C: int, options: Options, refusals: Refusals) -> Array:
    ignored = _ignored(xp, labels, options)
    if xp.iinfo(labels.dtype).bits < 32:
        labels = xp.astype(labels, xp.int32)  # so that C fits the dtype, and every library can compare it
    elif is_torch(labels) and dtype_name(labels.dtype) in ("uint32", "uint64"):
        labels = xp.astype(labels, xp.int64)  # torch can't compare these
    bad = ~ignored & ((labels < 0) | (labels >= C))
    if options.check:
        refusals.where(
            xp.any(bad),
            lambda: _bad_labels(labels, bad, C, options),
            while_tracing="labels can't be checked while tracing (jax.jit, torch.compile, vmap): pass check=False",
        )
    inside = xp.astype(xp.where(bad | ignored, xp.zeros_like(labels), labels), xp.int32)
    return xp.where(ignored, -1, xp.where(bad, C, inside))


def _bad_labels(labels: Array, bad: Array, C: int, options: Options) -> str:
    labels, bad = (to_numpy(a) for a in (labels, bad))
    values = np.unique(labels[bad])
    shown = ", ".join(str(v) for v in values[:5]) + (", …" if values.size > 5 else "")
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    return (
        f"labels must be in [0, {C}) or ignored (ignore_index={options.ignore_index}); "
        f"{int(bad.sum())} of {labels.size} are not: {shown}, first at {first}. "
        "Name the void label with ignore_index=, or mend the labels"
    )
