"""Loops over maps, one number a pixel: pooling of the true class's probability, and stage 3 at full speed.

In probability space only log u_q[y_q] is ever pooled, so a plain loop over the window's cells, in float64, costs
no more than the softmax beside it. Stage 3 is defined in `lalref.minkowski`; here are its two loops for integer
p and finite losses, in blocks whose sums are added up in order. No logits may come in.
"""

from __future__ import annotations

import math

import numpy as np

from lalref.engines.loops_cache import compiled
from lalref.engines.loops_lanes import LANES, fill, inner, load, round_like, select, store, widen
from lalref.engines.loops_rows import label_at

# exp of less than this is on its way to underflow in float64; beyond it probabilities stay logarithms.
DEEP = -600.0


@inner
def _grid(length, stride):
    return (length + stride - 1) // stride


@compiled
def pool_probability(task, image, y, valid, log_u, off, radii, weight, log_weight, by_count, ell, log_pooled):
    """Equations (6) and (18) for the windows of a task's rows: ell, and log of the sum over the group of w u.

    y, log_u, off: (N, A, B, W), of each pixel log u[y] and 1 - u[y]; valid, ell, log_pooled: (N, *grid).
    A weight that is 0 in `weight` reads nothing but counts.
    """
    A, B, W = image.A, image.B, image.W
    grid_a, grid_b, grid_w = _grid(A, image.stride_a), _grid(B, image.stride_b), _grid(W, image.stride_w)
    for i in range(_grid(task.a0, image.stride_a), _grid(task.a1, image.stride_a)):
        a = i * image.stride_a
        for k in range(grid_b):
            b = k * image.stride_b
            for m in range(grid_w):
                w = m * image.stride_w
                p = ((task.n * grid_a + i) * grid_b + k) * grid_w + m
                if not valid[p]:
                    continue
                kind = label_at(y, ((task.n * A + a) * B + b) * W + w)
                size = 0
                total = 0.0
                missing = 0.0
                top = -math.inf
                for aa in range(max(0, a - radii[0]), min(A, a + radii[0] + 1)):
                    for bb in range(max(0, b - radii[1]), min(B, b + radii[1] + 1)):
                        row = ((task.n * A + aa) * B + bb) * W
                        for ww in range(max(0, w - radii[2]), min(W, w + radii[2] + 1)):
                            if label_at(y, row + ww) == kind:
                                d = max(abs(aa - a), abs(bb - b), abs(ww - w))
                                size += 1
                                if weight[d] > 0:
                                    total += weight[d]
                                    missing += weight[d] * off[row + ww]
                                    top = max(top, log_weight[d] + log_u[row + ww])
                D = float(size) if by_count else total
                missing /= total
                if missing < 0.5:
                    ell[p] = -math.log(total / D) - math.log1p(-missing)
                    log_pooled[p] = math.log(total) + math.log1p(-missing)
                    continue
                pooled = 0.0
                for aa in range(max(0, a - radii[0]), min(A, a + radii[0] + 1)):
                    for bb in range(max(0, b - radii[1]), min(B, b + radii[1] + 1)):
                        row = ((task.n * A + aa) * B + bb) * W
                        for ww in range(max(0, w - radii[2]), min(W, w + radii[2] + 1)):
                            if label_at(y, row + ww) == kind:
                                d = max(abs(aa - a), abs(bb - b), abs(ww - w))
                                if weight[d] > 0 and log_u[row + ww] != -math.inf:
                                    pooled += math.exp(log_weight[d] + log_u[row + ww] - top)
                log_pooled[p] = top + math.log(pooled) if pooled != 0 else -math.inf
                ell[p] = math.log(D) - log_pooled[p]


@compiled
def receive(task, image, y, valid, ell, log_pooled, g, log_u, radii, weight, log_weight, R):
    """Equation (14) for the pixels of a task's rows: R_q = sum over p of g_p rho_pq, rho_pq = w u_q[y] / sum of w u.

    Shapes as in `pool_probability`; g: (N, *grid) float64; R: (N, A, B, W), 0 where nothing is received.
    """
    A, B, W = image.A, image.B, image.W
    sa, sb, sw = image.stride_a, image.stride_b, image.stride_w
    grid_a, grid_b, grid_w = _grid(A, sa), _grid(B, sb), _grid(W, sw)
    for a in range(task.a0, task.a1):
        for b in range(B):
            for w in range(W):
                q = ((task.n * A + a) * B + b) * W + w
                kind = label_at(y, q)
                if kind < 0:
                    continue
                plain = 0.0
                deep = 0.0
                for i in range(_grid(max(0, a - radii[0]), sa), _grid(min(A, a + radii[0] + 1), sa)):
                    for k in range(_grid(max(0, b - radii[1]), sb), _grid(min(B, b + radii[1] + 1), sb)):
                        row = ((task.n * grid_a + i) * grid_b + k) * grid_w
                        row_y = ((task.n * A + i * sa) * B + k * sb) * W
                        for m in range(_grid(max(0, w - radii[2]), sw), _grid(min(W, w + radii[2] + 1), sw)):
                            p = row + m
                            if label_at(y, row_y + m * sw) != kind or not valid[p]:
                                continue
                            d = max(abs(i * sa - a), abs(k * sb - b), abs(m * sw - w))
                            if weight[d] == 0:
                                continue
                            if not math.isfinite(ell[p]):
                                deep += math.nan
                            elif g[p] == 0:
                                continue
                            elif log_u[q] < DEEP or log_pooled[p] < DEEP:
                                deep += g[p] * math.exp(log_weight[d] + log_u[q] - log_pooled[p])
                            else:
                                plain += weight[d] * (g[p] * math.exp(-log_pooled[p]))
                R[q] = plain * math.exp(log_u[q]) + deep if plain != 0 else deep


@inner
def _power(r, n):
    """r**n by squaring, n >= 0; lanes of float64."""
    result = fill(r, 1)
    while n > 0:
        if n & 1:
            result = result * r
        r = r * r
        n >>= 1
    return result


@compiled
def largest_of(ell, start, stop):
    """The largest of ell[start:stop], all >= 0; NaN if one is NaN."""
    top = fill(ell, 0)
    good = top == top
    i = start
    while i + LANES <= stop:
        value = load(ell, i)
        top = select(value > top, value, top)
        good = good & (value == value)
        i += LANES
    lanes = np.zeros(2 * LANES)
    store(lanes, 0, widen(select(good, top, fill(ell, math.nan))))
    for j in range(i, stop):
        lanes[LANES + j - i] = ell[j]
    return lanes.max()


@compiled
def power_sum(ell, omega, scale, n, start, stop):
    """Sum of omega (scale ell)**n over start <= i < stop, in float64; omega is empty where it is 1."""
    total = fill(omega, 0)
    i = start
    while i + LANES <= stop:
        term = _power(widen(load(ell, i)) * fill(omega, scale), n)
        if len(omega) > 0:
            term = term * load(omega, i)
        total = total + term
        i += LANES
    lanes = np.zeros(2 * LANES)
    store(lanes, 0, total)
    for j in range(i, stop):
        r = np.float64(ell[j]) * scale
        term = 1.0
        for _ in range(n):
            term *= r
        lanes[LANES + j - i] = term * omega[j] if len(omega) > 0 else term
    return lanes.sum()


@compiled
def write_shares(ell, omega, scale, n, factor, start, stop, g):
    """g = factor omega (scale ell)**n over start <= i < stop, rounded to the type of g, which may be ell."""
    i = start
    while i + LANES <= stop:
        share = _power(widen(load(ell, i)) * fill(omega, scale), n) * fill(omega, factor)
        if len(omega) > 0:
            share = share * load(omega, i)
        store(g, i, round_like(share, load(g, i)))
        i += LANES
    for j in range(i, stop):
        share = factor
        for _ in range(n):
            share *= np.float64(ell[j]) * scale
        g[j] = share * omega[j] if len(omega) > 0 else share
