"""The three loops over an image: window losses row by row, stage 3 in passing, and the way back.

Forward, a task is a band of rows of one image: rows are pooled into merged vectors z, z becomes ell (5) and,
where the gradient is wanted, the divided gradient z_bar / D of (12) and (13), still without the upstream g,
written where the gradient will be. Backward, a task is a group of channels of one image: each row of
z_bar / D is multiplied by g and pooled again, in place; a ring of rows keeps what is still to be read. Nothing
else of the size of the logits is kept.

Arrays come flat and contiguous but for the logits, of which `x_steps` says how far apart neighbours are. A row
is a row of the last axis; images have three spatial axes A, B, W, unused ones of length 1. Which engine call
needs which loop is said in `lalref.engines.loops`; threads may not come in here.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from lalref.engines.loops_cache import compiled
from lalref.engines.loops_lanes import (
    LANES,
    fetch,
    fill,
    load,
    load_first,
    select,
    spread,
    store,
    store_first,
)
from lalref.engines.loops_plan import RINGS, Plan, find_rows, ring_size
from lalref.engines.loops_pool import pool_row
from lalref.engines.loops_rows import copy_readable, load_labels, origins, put, room, take, windows_of_row
from lalref.engines.loops_softmax import cross_entropy_row, typical_of


@njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
def new_plan(window, ring, blocks, most_classes):
    entries = blocks * (most_classes + 1)
    return Plan(
        np.empty(entries, np.int32),
        np.empty(entries, np.int32),
        np.empty(entries, np.int32),
        np.empty(entries, np.bool_),
        np.empty(blocks, np.int32),
        np.empty(ring.width, np.int32),
        np.empty(ring.width, np.int32),
        np.empty(len(window.row_a) * ring.width // LANES, np.int16),
    )


@njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
def new_scratch(x, ring, window):
    """Room for the folded rows of every shell, the sums between sets of rings, and the result, see `loops_pool`."""
    return room((window.sets * (RINGS + 2) + 4) * ring.width, x, 0)


@njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
def new_rows(window):
    """Room for where the rows of a window begin."""
    return np.empty(max(len(window.row_a), 1 + 2 * RINGS), np.int64)


@compiled
def forward(
    task,
    image,
    x,
    steps,
    y,
    valid,
    typical,
    window,
    counted,
    apart,
    unit,
    ring,
    alpha,
    most_classes,
    ell,
    off,
    z_bar,
    with_gradient,
):
    """Equations (4), (5), (7), (17): ell of the windows of a task and, if asked for, z_bar / D with g = 1.

    x: logits as `steps` says; y: `Labels`; valid, ell: (N, *grid); z_bar: (N, C, A, B, W), where
    rows and blocks without a window are left as they are; off: like ell, or empty; typical: (N, C + 1) margins that
    what is pooled is measured from. `counted` is the window whose weights add up to D, the same as `window` unless
    `apart`.
    """
    C = image.C
    T = task.w1 - task.w0
    blocks = (T + LANES - 1) // LANES
    width = blocks * LANES
    size = ring_size(ring)
    grid_a = (image.A + image.stride_a - 1) // image.stride_a
    grid_b = (image.B + image.stride_b - 1) // image.stride_b
    grid_w = (image.W + image.stride_w - 1) // image.stride_w
    labels = room(size, y.wide, -1)
    logits = room((C + 1) * size, ell, 0)  # the last channel is 1 wherever there is a pixel to read
    centres = room(width, y.wide, -1)
    z = room((C + 1) * width, ell, 0)
    ell_row = room(width, ell, 0)
    off_row = np.empty(width if len(off) > 0 else 0, ell.dtype)
    scratch = new_scratch(ell, ring, counted)
    plan = new_plan(counted, ring, blocks, most_classes)
    rows = new_rows(window)
    counted_rows = new_rows(counted)
    margins = typical[task.n]
    margins_row = room(width, ell, 0)
    origin = room(ring.width, ell, 0)
    powers = room(C * LANES, ell, 0)
    from_w, to_w = max(0, task.w0 - counted.reach), min(image.W, task.w1 + counted.reach)
    at_w = ring.pad + from_w - task.w0
    radius = ring.planes // 2
    for ahead in range(max(0, task.a0 - radius), min(image.A, task.a1 + radius)):
        for b in range(image.B):  # a row of pixels comes in
            to = ((ahead % ring.planes) * ring.rows + b) * ring.width + at_w
            load_labels(
                y, ((task.n * image.A + ahead) * image.B + b) * image.W + from_w, to_w - from_w, labels, to
            )
            start = task.n * steps.n + ahead * steps.a + b * steps.b + from_w * steps.w
            origins(x, start, steps, to_w - from_w, labels, to, margins, origin)
            for c in range(C):
                copy_readable(
                    x,
                    start + c * steps.c,
                    steps.w,
                    steps.a,
                    to_w - from_w,
                    labels,
                    to,
                    origin,
                    logits,
                    c * size + to,
                )
            for j in range(to_w - from_w):
                logits[C * size + to + j] = 1 if labels[to + j] >= 0 else 0
        for a in range(
            ahead - radius, ahead - radius + 1 if ahead + 1 < min(image.A, task.a1 + radius) else task.a1
        ):
            if a < task.a0:
                continue
            for b in range(image.B):  # and the windows go out whose last row it was
                if not windows_of_row(y, valid, image, task.n, a, b, task.w0, task.w1, centres, 0):
                    continue
                find_rows(window, ring, a, b, image.A, rows)
                pool_row(
                    logits,
                    C + 1,
                    ring,
                    labels,
                    window,
                    rows,
                    centres,
                    blocks,
                    most_classes,
                    plan,
                    scratch,
                    z,
                    width,
                )
                if apart:
                    find_rows(counted, ring, a, b, image.A, counted_rows)
                    pool_row(
                        logits[C * size :], np.int64(1), ring, labels, counted, counted_rows, centres, blocks,
                        most_classes, plan, scratch, z[C * width :], width,
                    )  # fmt: skip
                plane = image.A * image.B * image.W
                at = task.n * C * plane + (a * image.B + b) * image.W + task.w0
                typical_of(centres, T, margins, margins_row)
                cross_entropy_row(
                    z, width, C, alpha, unit, centres, margins_row, powers, ell_row, off_row, z_bar, at, plane, T,
                    with_gradient,
                )  # fmt: skip
                row = ((task.n * grid_a + a // image.stride_a) * grid_b + b // image.stride_b) * grid_w
                put(ell_row, centres, image.stride_w, task.w0, T, ell, row)
                if len(off) > 0:
                    put(off_row, centres, image.stride_w, task.w0, T, off, row)


@compiled
def backward(task, image, y, valid, g, up, down, window, ring, most_classes, z_bar, x_bar):
    """Equation (13): x_bar = A(g z_bar / D) for the channels and rows of a task; in place if x_bar is z_bar.

    y: `Labels`; valid, g: (N, *grid); z_bar, x_bar: (N, C, A, B, W). In place a task must take all rows.
    """
    channels = task.c1 - task.c0
    W = image.W
    blocks = (W + LANES - 1) // LANES
    width = blocks * LANES
    size = ring_size(ring)
    plane = image.A * image.B * W
    grid_a = (image.A + image.stride_a - 1) // image.stride_a
    grid_b = (image.B + image.stride_b - 1) // image.stride_b
    grid_w = (W + image.stride_w - 1) // image.stride_w
    labels = room(size, y.wide, -1)  # of windows: -1 where there is none
    sent = room(channels * size, x_bar, 0)
    centres = room(width, y.wide, -1)  # of pixels, which receive
    z = room(channels * width, x_bar, 0)
    g_row = room(width, x_bar, 0)
    scratch = new_scratch(x_bar, ring, window)
    plan = new_plan(window, ring, blocks, most_classes)
    rows = new_rows(window)
    nobody = spread(np.int32(-1))
    radius = ring.planes // 2
    first = (task.n * image.C + task.c0) * plane
    for ahead in range(max(0, task.a0 - radius), min(image.A, task.a1 + radius)):
        for b in range(image.B):
            to = ((ahead % ring.planes) * ring.rows + b) * ring.width + ring.pad
            if windows_of_row(y, valid, image, task.n, ahead, b, 0, W, labels, to):
                row = ((task.n * grid_a + ahead // image.stride_a) * grid_b + b // image.stride_b) * grid_w
                take(g, row, image.stride_w, W, up, g_row)
                for c in range(channels):
                    at = first + c * plane + (ahead * image.B + b) * W
                    for j in range(0, W, LANES):
                        fetch(z_bar, at + j + image.B * W)
                        value = load(z_bar, at + j) if j + LANES <= W else load_first(z_bar, at + j, W - j)
                        value = select(load(labels, to + j) > nobody, value * load(g_row, j), fill(z, 0))
                        store(sent, c * size + to + j, value)
            else:
                for c in range(channels):
                    sent[c * size + to : c * size + to + W] = 0
        for a in range(
            ahead - radius, ahead - radius + 1 if ahead + 1 < min(image.A, task.a1 + radius) else task.a1
        ):
            if a < task.a0:
                continue
            for b in range(image.B):
                load_labels(y, ((task.n * image.A + a) * image.B + b) * W, W, centres, 0)
                find_rows(window, ring, a, b, image.A, rows)
                pool_row(
                    sent,
                    channels,
                    ring,
                    labels,
                    window,
                    rows,
                    centres,
                    blocks,
                    most_classes,
                    plan,
                    scratch,
                    z,
                    width,
                )
                for c in range(channels):
                    at = first + c * plane + (a * image.B + b) * W
                    for j in range(0, W, LANES):
                        value = select(
                            load(centres, j) > nobody, load(z, c * width + j) * fill(z, down), fill(z, 0)
                        )
                        if j + LANES <= W:
                            store(x_bar, at + j, value)
                        else:
                            store_first(x_bar, at + j, W - j, value)
