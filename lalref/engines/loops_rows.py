"""Rows of an image, brought in for the kernels and put back: who may be read, and where a stride has windows.

Moving only; nothing is worked out here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from lalref.engines.loops_lanes import (
    LANES,
    fetch,
    fill,
    inner,
    load,
    load_first,
    peek,
    select,
    spread,
    store,
)

_LINE = 64  # bytes of a cache line


class Image(NamedTuple):
    """Sizes: C channels, A x B x W pixels, and a window at every `stride_*`-th of each axis."""

    C: int
    A: int
    B: int
    W: int
    stride_a: int
    stride_b: int
    stride_w: int


class Labels(NamedTuple):
    """Labels (N, A, B, W), flat: int8 in `narrow`, or int32 in `wide` if that is empty; one type, so compiled once."""

    narrow: Any
    wide: Any


class Steps(NamedTuple):
    """How many numbers lie between neighbours of the logits on each axis."""

    n: int
    c: int
    a: int
    b: int
    w: int


class Task(NamedTuple):
    """Image `n`, rows a0 <= a < a1, columns w0 <= w < w1, channels c0 <= c < c1."""

    n: int
    a0: int
    a1: int
    w0: int
    w1: int
    c0: int
    c1: int


@njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
def room(count, like, value):
    """`count` numbers of the dtype of `like`, all `value`, from the beginning of a cache line on.

    Elsewhere every other load of `LANES` numbers would touch two lines.
    """
    raw = np.empty(count + _LINE // like.itemsize, like.dtype)
    first = -raw.ctypes.data % _LINE // like.itemsize
    aligned = raw[first : first + count]
    aligned[:] = value
    return aligned


@inner
def origins(x, start, steps, count, labels, to, typical, out):
    """out[j] = the target's logit less its class's typical margin, 0 where there is no target or it isn't finite."""
    C = len(typical) - 1
    for j in range(count):
        kind = labels[to + j]
        origin = typical[C]
        if 0 <= kind < C:
            origin = peek(x, start + kind * steps.c + j * steps.w) - typical[kind]
        out[j] = origin if origin - origin == 0 else 0


@inner
def copy_readable(x, start, step, next_row, count, labels, to, origin, out, out_to):
    """out[out_to :] = x[start :: step][:count] - origin, 0 where the label says that it may not be read."""
    nobody = spread(np.int32(-1))
    if step == 1:
        for j in range(0, count, LANES):
            fetch(x, start + j + next_row)
            value = load(x, start + j) if j + LANES <= count else load_first(x, start + j, count - j)
            store(
                out, out_to + j, select(load(labels, to + j) > nobody, value - load(origin, j), fill(out, 0))
            )
    else:
        for j in range(count):
            out[out_to + j] = (
                peek(x, start + j * step) - origin[j] if labels[to + j] >= 0 else 0
            )  # indices may be negative


@inner
def load_labels(y, at, count, labels, to):
    """labels[to :] = y[at : at + count]."""
    out = labels[to : to + count]
    if len(y.narrow) > 0:
        narrow = y.narrow[at : at + count]
        for j in range(count):
            out[j] = narrow[j]
    else:
        wide = y.wide[at : at + count]
        for j in range(count):
            out[j] = wide[j]


@inner
def label_at(y, i):
    """One of the labels."""
    return np.int32(y.narrow[i]) if len(y.narrow) > 0 else y.wide[i]


@inner
def windows_of_row(y, valid, image, n, a, b, w0, w1, centres, to):
    """centres[to + j] = the label of the window at column w0 + j, -1 where there is none; whether any is there."""
    found = np.int32(-1)
    rows_a = (image.A + image.stride_a - 1) // image.stride_a
    rows_b = (image.B + image.stride_b - 1) // image.stride_b
    columns = (image.W + image.stride_w - 1) // image.stride_w
    if a % image.stride_a or b % image.stride_b:
        for j in range(w1 - w0):
            centres[to + j] = -1
        return False
    at = ((n * image.A + a) * image.B + b) * image.W + w0
    at_valid = ((n * rows_a + a // image.stride_a) * rows_b + b // image.stride_b) * columns
    load_labels(y, at, w1 - w0, centres, to)
    if image.stride_w == 1:
        mask, out = valid[at_valid + w0 : at_valid + w1], centres[to : to + w1 - w0]
        for j in range(w1 - w0):
            label = np.int32(out[j] if mask[j] else -1)
            out[j] = label
            found = max(found, label)
    else:
        for j in range(w1 - w0):
            inside = (w0 + j) % image.stride_w == 0 and valid[at_valid + (w0 + j) // image.stride_w]
            centres[to + j] = centres[to + j] if inside else -1
            found = max(found, centres[to + j])
    return found >= 0


@inner
def put(row, centres, stride, w0, count, out, at):
    """Write what belongs to a window to the row of the grid that begins at out[at]."""
    if stride == 1:
        source, labels, to = row[:count], centres[:count], out[at + w0 : at + w0 + count]
        for j in range(count):
            to[j] = source[j] if labels[j] >= 0 else to[j]
    else:
        for j in range(-w0 % stride, count, stride):
            if centres[j] >= 0:
                out[at + (w0 + j) // stride] = row[j]


@inner
def take(source, at, stride, count, factor, row):
    """Spread a row of the grid over the columns where it has windows."""
    if stride == 1:
        here, to = source[at : at + count], row[:count]
        for j in range(count):
            to[j] = here[j] * factor
    else:
        for j in range(0, count, stride):
            row[j] = source[at + j // stride] * factor
