"""Probability space: one number a pixel is pooled, the true class's probability, in O(r) and in float64.

What is missing from it (1 - u), 1 and u itself are pooled by `loops_pool` like three channels of logits. Where the sum
of u is too small to be trusted, and on the way back where a pixel or a window is, logarithms are added up cell by
cell instead. No logits may come in.
"""

from __future__ import annotations

import math

import numpy as np

from lalref.engines.loops_cache import compiled
from lalref.engines.loops_kernels import new_plan, new_rows, new_scratch
from lalref.engines.loops_lanes import LANES, inner
from lalref.engines.loops_plan import find_rows, ring_size
from lalref.engines.loops_pool import pool_row
from lalref.engines.loops_rows import label_at, load_labels, room, windows_of_row

# exp of less than this is on its way to underflow in float64: such a probability stays a logarithm.
DEEP = -600.0
SURE = 1e-200  # sums beyond this lose nothing by what is DEEP


@inner
def _log_pooled_by_cell(task, image, y, a, b, w, log_u, radii, weight, log_weight):
    """log of the sum over the group of w u, by log-sum-exp."""
    A, B, W = image.A, image.B, image.W
    kind = label_at(y, ((task.n * A + a) * B + b) * W + w)
    top = -math.inf
    pooled = 0.0
    for again in range(2):
        for aa in range(max(0, a - radii[0]), min(A, a + radii[0] + 1)):
            for bb in range(max(0, b - radii[1]), min(B, b + radii[1] + 1)):
                row = ((task.n * A + aa) * B + bb) * W
                for ww in range(max(0, w - radii[2]), min(W, w + radii[2] + 1)):
                    d = max(abs(aa - a), abs(bb - b), abs(ww - w))
                    if label_at(y, row + ww) == kind and weight[d] > 0 and log_u[row + ww] != -math.inf:
                        term = log_weight[d] + log_u[row + ww]
                        if again:
                            pooled += math.exp(term - top)
                        else:
                            top = max(top, term)
    return top + math.log(pooled) if pooled != 0 else -math.inf


@compiled
def pool_probability(
    task, image, y, valid, log_u, off, window, counted, apart, unit, ring, most_classes, radii, weight, log_weight,
    ell, log_pooled,
):  # fmt: skip
    """Equations (6) and (18) for the windows of a task's rows: ell, and log of the sum over the group of w u.

    y, log_u, off: (N, A, B, W), of each pixel log u[y] and 1 - u[y]; valid, ell, log_pooled: (N, *grid). The windows
    are as in `loops_kernels.forward`, float64. A weight that is 0 in `weight` reads nothing but counts.
    """
    A, B, W = image.A, image.B, image.W
    blocks = (W + LANES - 1) // LANES
    width = blocks * LANES
    size = ring_size(ring)
    grid_a = (A + image.stride_a - 1) // image.stride_a
    grid_b = (B + image.stride_b - 1) // image.stride_b
    grid_w = (W + image.stride_w - 1) // image.stride_w
    labels = room(size, y.wide, -1)
    maps = room(3 * size, log_weight, 0)
    centres = room(width, y.wide, -1)
    z = room(4 * width, log_weight, 0)
    scratch = new_scratch(maps, ring, counted)
    plan = new_plan(counted, ring, blocks, most_classes)
    rows = new_rows(window)
    counted_rows = new_rows(counted)
    radius = ring.planes // 2
    for ahead in range(max(0, task.a0 - radius), min(A, task.a1 + radius)):
        for b in range(B):  # a row of pixels comes in
            to = ((ahead % ring.planes) * ring.rows + b) * ring.width + ring.pad
            at = ((task.n * A + ahead) * B + b) * W
            load_labels(y, at, W, labels, to)
            for j in range(W):
                there = labels[to + j] >= 0
                maps[to + j] = off[at + j] if there else 0
                maps[size + to + j] = 1 if there else 0
                maps[2 * size + to + j] = math.exp(log_u[at + j]) if there and not log_u[at + j] < DEEP else 0
        for a in range(
            ahead - radius, ahead - radius + 1 if ahead + 1 < min(A, task.a1 + radius) else task.a1
        ):
            if a < task.a0:
                continue
            for b in range(B):  # and the windows go out whose last row it was
                if not windows_of_row(y, valid, image, task.n, a, b, 0, W, centres, 0):
                    continue
                find_rows(window, ring, a, b, A, rows)
                pool_row(
                    maps,
                    np.int64(3),
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
                    find_rows(counted, ring, a, b, A, counted_rows)
                    pool_row(
                        maps[size:], np.int64(1), ring, labels, counted, counted_rows, centres, blocks, most_classes,
                        plan, scratch, z[3 * width :], width,
                    )  # fmt: skip
                row = ((task.n * grid_a + a // image.stride_a) * grid_b + b // image.stride_b) * grid_w
                for j in range(0, W, image.stride_w):
                    if centres[j] < 0:
                        continue
                    p = row + j // image.stride_w
                    total = z[width + j] / unit
                    D = z[3 * width + j] / unit if apart else total
                    missing = z[j] / z[width + j]
                    if missing < 0.5:
                        ell[p] = -math.log(total / D) - math.log1p(-missing)
                        log_pooled[p] = math.log(total) + math.log1p(-missing)
                        continue
                    pooled = z[2 * width + j] / unit
                    if pooled < SURE:
                        log_pooled[p] = _log_pooled_by_cell(
                            task, image, y, a, b, j, log_u, radii, weight, log_weight
                        )
                    else:
                        log_pooled[p] = math.log(pooled)
                    ell[p] = math.log(D) - log_pooled[p]


@inner
def _received_by_cell(task, image, y, valid, a, b, w, log_u, log_pooled, g, radii, weight, log_weight):
    """R of one pixel whose windows all have finite losses."""
    A, B, W = image.A, image.B, image.W
    sa, sb, sw = image.stride_a, image.stride_b, image.stride_w
    grid_b, grid_w = (B + sb - 1) // sb, (W + sw - 1) // sw
    q = ((task.n * A + a) * B + b) * W + w
    kind = label_at(y, q)
    received = 0.0
    for i in range((max(0, a - radii[0]) + sa - 1) // sa, (min(A, a + radii[0] + 1) + sa - 1) // sa):
        for k in range((max(0, b - radii[1]) + sb - 1) // sb, (min(B, b + radii[1] + 1) + sb - 1) // sb):
            row = ((task.n * ((A + sa - 1) // sa) + i) * grid_b + k) * grid_w
            row_y = ((task.n * A + i * sa) * B + k * sb) * W
            for m in range((max(0, w - radii[2]) + sw - 1) // sw, (min(W, w + radii[2] + 1) + sw - 1) // sw):
                p = row + m
                d = max(abs(i * sa - a), abs(k * sb - b), abs(m * sw - w))
                if label_at(y, row_y + m * sw) == kind and valid[p] and weight[d] > 0 and g[p] != 0:
                    received += g[p] * math.exp(log_weight[d] + log_u[q] - log_pooled[p])
    return received


@compiled
def receive(
    task,
    image,
    y,
    valid,
    ell,
    log_pooled,
    g,
    log_u,
    window,
    unit,
    ring,
    most_classes,
    radii,
    weight,
    log_weight,
    R,
):
    """Equation (14) for the pixels of a task's rows: R_q = sum over p of g_p rho_pq, rho_pq = w u_q[y] / sum of w u.

    Shapes as in `pool_probability`; g: (N, *grid) float64; R: (N, A, B, W), 0 where nothing is received.
    """
    A, B, W = image.A, image.B, image.W
    blocks = (W + LANES - 1) // LANES
    width = blocks * LANES
    grid_a = (A + image.stride_a - 1) // image.stride_a
    grid_b = (B + image.stride_b - 1) // image.stride_b
    grid_w = (W + image.stride_w - 1) // image.stride_w
    labels = room(ring_size(ring), y.wide, -1)  # of windows
    sent = room(ring_size(ring), log_weight, 0)  # g over the sum of w u; inf asks for the sum by cell
    centres = room(width, y.wide, -1)  # of pixels
    z = room(width, log_weight, 0)
    scratch = new_scratch(sent, ring, window)
    plan = new_plan(window, ring, blocks, most_classes)
    rows = new_rows(window)
    radius = ring.planes // 2
    for ahead in range(max(0, task.a0 - radius), min(A, task.a1 + radius)):
        for b in range(B):
            to = ((ahead % ring.planes) * ring.rows + b) * ring.width + ring.pad
            windows_of_row(y, valid, image, task.n, ahead, b, 0, W, labels, to)
            row = ((task.n * grid_a + ahead // image.stride_a) * grid_b + b // image.stride_b) * grid_w
            for j in range(W):
                value = 0.0
                if labels[to + j] >= 0:
                    p = row + j // image.stride_w
                    if not math.isfinite(ell[p]):
                        value = math.nan
                    elif g[p] != 0:
                        value = math.inf if log_pooled[p] < DEEP else g[p] * math.exp(-log_pooled[p])
                        value = math.inf if math.isinf(value) else value
                sent[to + j] = value
        for a in range(
            ahead - radius, ahead - radius + 1 if ahead + 1 < min(A, task.a1 + radius) else task.a1
        ):
            if a < task.a0:
                continue
            for b in range(B):
                at = ((task.n * A + a) * B + b) * W
                load_labels(y, at, W, centres, 0)
                find_rows(window, ring, a, b, A, rows)
                pool_row(
                    sent,
                    np.int64(1),
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
                for j in range(W):
                    if centres[j] < 0 or z[j] == 0:
                        continue
                    if math.isinf(z[j]) or (log_u[at + j] < DEEP and z[j] == z[j]):
                        R[at + j] = _received_by_cell(
                            task, image, y, valid, a, b, j, log_u, log_pooled, g, radii, weight, log_weight
                        )
                    else:
                        R[at + j] = z[j] / unit * math.exp(log_u[at + j])
