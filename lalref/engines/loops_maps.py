"""Loops of stage 3, one number a window, at full speed.

Stage 3 is defined in `lalref.minkowski`; here are its two loops for integer p and finite losses, in blocks that are
put together in order. No logits may come in.
"""

from __future__ import annotations

import math

import numpy as np

from lalref.engines.loops_cache import compiled
from lalref.engines.loops_lanes import LANES, fill, inner, load, round_like, select, store, widen

LEAST = 1e-290  # 1 / LEAST is a number


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
def power_sum(ell, omega, n, start, stop):
    """The largest of ell[start:stop], all >= 0, and the sum of omega (ell / largest)**n, in float64.

    Both are NaN if an ell is. `omega` is empty where it is 1; a largest below `LEAST` is taken to be that.
    """
    lanes = np.zeros(2 * LANES)
    top = fill(ell, 0)
    good = top == top
    i = start
    while i + LANES <= stop:
        value = load(ell, i)
        top = select(value > top, value, top)
        good = good & (value == value)
        i += LANES
    store(lanes, 0, widen(select(good, top, fill(ell, math.nan))))
    for j in range(i, stop):
        lanes[LANES + j - i] = ell[j]
    largest = lanes.max()
    if largest < LEAST:
        largest = LEAST
    scale = 1 / largest
    total = fill(omega, 0)
    i = start
    while i + LANES <= stop:
        term = _power(widen(load(ell, i)) * fill(omega, scale), n)
        if len(omega) > 0:
            term = term * load(omega, i)
        total = total + term
        i += LANES
    lanes[LANES:] = 0
    store(lanes, 0, total)
    for j in range(i, stop):
        r = np.float64(ell[j]) * scale
        term = 1.0
        for _ in range(n):
            term *= r
        lanes[LANES + j - i] = term * omega[j] if len(omega) > 0 else term
    return largest, lanes.sum()


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
