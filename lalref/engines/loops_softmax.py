"""Stage 2 of one row of windows: merged vectors in, losses and divided gradients out, `LANES` windows at a time.

Margins come in measured from a typical one (see `loops_margins`) and stay two numbers, high and low, until they
are in the exponential: a rounding of a margin of 60 would be seen 60 times, and p times that in the gradient.
Nothing is pooled here.
"""

from __future__ import annotations

import math

import numpy as np

from lalref.engines.loops_lanes import (
    LANES,
    any_lane,
    fill,
    fma,
    inner,
    largest,
    load,
    select,
    spread,
    store,
    store_first,
)
from lalref.engines.loops_math import MOST_EXPONENT, exp_of_sum, log1p_not_negative


@inner
def typical_of(centres, count, typical, out):
    """out[j] = the typical margin of the class of centres[j]; the last entry where there is no class."""
    last = len(typical) - 1
    for j in range(count):
        kind = centres[j]
        out[j] = typical[kind if kind >= 0 else last]


@inner
def cross_entropy_row(
    z,
    width,
    C,
    alpha,
    unit,
    centres,
    typical,
    powers,
    ell,
    off,
    z_bar,
    z_bar_at,
    z_bar_step,
    count,
    with_gradient,
):
    """Equations (5), (12) and (17) for a row: z (C + 1, width), the last row D; typical, ell, off (width,).

    z holds the pooled differences from the row's typical margins; `powers` is room for (C, LANES).
    """
    share = alpha / C
    zero = fill(z, 0)
    one = fill(z, 1)
    for j in range(0, width, LANES):
        y = load(centres, j)
        if largest(y) < 0:
            continue
        D = load(z, C * width + j)
        inverse = one / D
        inverse_low = fma(zero - D, inverse, one) * inverse
        usual = load(typical, j)
        # z_c - z_y = high + low exactly but for the pooled sum's own rounding. Nothing overflows while no class is
        # far ahead of the target, so the largest is asked for afterwards.
        others = zero  # s' of the specification, divided by exp(z_y - m)
        total = zero
        top = zero
        z_y = zero
        for c in range(C):
            z_c = load(z, c * width + j)
            target = y == spread(np.int32(c))
            z_y = select(target, z_c, z_y)
            high = fma(z_c, inverse, zero - usual)
            low = fma(z_c, inverse_low, fma(z_c, inverse, zero - (high + usual)))
            top = select(high > top, high, top)
            e = select(target, zero, exp_of_sum(high, low))
            store(powers, c * LANES, e)
            others = others + e
            if alpha > 0:
                total = total + select(target, zero, fma(z_c, inverse, zero - usual))
        e_y = one
        d_y = zero
        far = (top > fill(z, MOST_EXPONENT)) | (z_y - z_y != zero)
        if any_lane(far & (y > spread(np.int32(-1)))):  # from the largest on, and an infinite target
            # Lanes that are not far come out as before: a pixel's bits don't depend on its neighbour's NaN.
            d_y = select(z_y == fill(z, -math.inf), z_y, z_y - z_y)
            m = d_y
            for c in range(C):
                high = fma(load(z, c * width + j), inverse, zero - usual)
                m = select((high > m) & far & (y != spread(np.int32(c))), high, m)
            others = zero
            total = zero
            for c in range(C):
                z_c = load(z, c * width + j)
                target = y == spread(np.int32(c))
                high = fma(z_c, inverse, zero - usual)
                low = fma(z_c, inverse_low, fma(z_c, inverse, zero - (high + usual)))
                e = select(target, zero, exp_of_sum(high - m, low))
                store(powers, c * LANES, e)
                others = others + e
                if alpha > 0:
                    total = total + select(target, zero, fma(z_c, inverse, zero - usual) - m)
            d_y = d_y - m
            e_y = exp_of_sum(d_y, zero)
        s = others + e_y
        loss = log1p_not_negative(select(e_y == one, others, s - one))
        if alpha < 1:
            loss = loss - fill(z, 1 - alpha) * d_y if alpha > 0 else loss - d_y
        if alpha > 0:
            loss = loss - fill(z, share) * (total + d_y)
        loss = select(y == spread(np.int32(C)), fill(z, math.nan), loss)  # a label that is no class
        store(ell, j, loss)
        if len(off) > 0:
            store(off, j, select(loss == loss, others / s, loss))
        if with_gradient:
            inverse = inverse * fill(z, unit)
            # A loss that is not finite leaves no gradient but NaN. With off asked for, this is one pixel's softmax
            # on its way to being pooled, and an infinite -log u stands for u = 0, with the gradient that it has.
            good = loss == loss if len(off) > 0 else loss - loss == zero
            q = select(good, inverse / s, fill(z, math.nan))
            for c in range(C):
                target = y == spread(np.int32(c))
                e = select(target, zero - others, load(powers, c * LANES)) * q
                if alpha > 0:
                    e = e + select(target, fill(z, alpha - share), fill(z, -share)) * inverse
                if j + LANES <= count:
                    store(z_bar, z_bar_at + c * z_bar_step + j, e)
                else:
                    store_first(z_bar, z_bar_at + c * z_bar_step + j, count - j, e)
