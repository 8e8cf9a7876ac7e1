"""Selective pooling of one row of windows, `LANES` columns at a time: (A u) of equation (13) in O(r) per number.

The rows that the windows of a row reach lie in a `Ring`, padded so that no column needs asking whether it is
inside the image; what may not be read (outside, ignored, no window) holds 0 there and the label -1. Two ways
lead to the sum, and `plan_row` chooses for each block of `LANES` columns:

by class
    For each class k among the block's centres, with t = |dj| and x only from k's own pixels,
    U_t[j] = w(t) * sum over |di| <= t of x[i + di, j] + sum over |di| > t of w(|di|) x[i + di, j]
    holds one column of the window under its weights w(max(|di|, t)), and the sum is
    U_0[j] + sum over t of U_t[j - t] + U_t[j + t]. The inner sums grow outwards and the outer ones inwards,
    so all U_t of a column cost O(r), and nothing is ever subtracted. Where k is the only class in reach, the
    padding's zeros are mask enough and labels are not even looked at.
by cell
    Where many classes meet (noise), the (2r + 1)**2 cells of the window, each kept or left by its label.

With more than one row axis (3 spatial axes) the rows at the same row distance form a shell, and |di| above is
the number of the shell. No softmax, no loss and no threads may come in.
"""

from __future__ import annotations

import numpy as np

from lalref.engines.loops_lanes import (
    LANES,
    between,
    fill,
    fma,
    inner,
    load,
    load_any,
    load_of,
    peek,
    select,
    spread,
    store,
)
from lalref.engines.loops_plan import plan_row, ring_size


def _small(cell, radius, mixed):
    """Make the function that pools a segment for 3 x 3, 5 x 5 or 7 x 7 windows of images, all U_t in registers."""

    @inner
    def column(x, at, labels, j, kind, weight, rows):
        """U_0 to U_3 (as many as there are) of `LANES` columns from j on."""
        r0, r1, r2 = rows[0] + j, rows[1] + j, rows[2] + j
        w0, w1 = fill(x, weight[0]), fill(x, weight[1])
        S = cell(x, at + r0, labels, r0, kind)
        P = cell(x, at + r1, labels, r1, kind) + cell(x, at + r2, labels, r2, kind)
        if radius == 1:
            U_1 = w1 * (S + P)
            return fma(w0, S, w1 * P), U_1, U_1, U_1
        r3, r4 = rows[3] + j, rows[4] + j
        w2 = fill(x, weight[2])
        P_2 = cell(x, at + r3, labels, r3, kind) + cell(x, at + r4, labels, r4, kind)
        if radius == 2:
            O = w2 * P_2
            U_0 = fma(w0, S, fma(w1, P, O))
            S = S + P
            U_2 = w2 * (S + P_2)
            return U_0, fma(w1, S, O), U_2, U_2
        r5, r6 = rows[5] + j, rows[6] + j
        w3 = fill(x, weight[3])
        P_3 = cell(x, at + r5, labels, r5, kind) + cell(x, at + r6, labels, r6, kind)
        O_2 = w3 * P_3
        O = fma(w2, P_2, O_2)
        U_0 = fma(w0, S, fma(w1, P, O))
        S = S + P
        U_1 = fma(w1, S, O)
        S = S + P_2
        return U_0, U_1, fma(w2, S, O_2), w3 * (S + P_3)

    @inner
    def total(a, b):
        """U_0[j] + U_1[j - 1] + U_1[j + 1] + ..., where column j is `radius` lanes into a, and b goes on from a."""
        if radius == 1:
            return between(a[0], b[0], 1) + (a[1] + between(a[1], b[1], 2))
        if radius == 2:
            near = between(a[0], b[0], 2) + (between(a[1], b[1], 1) + between(a[1], b[1], 3))
            return near + (a[2] + between(a[2], b[2], 4))
        near = between(a[0], b[0], 3) + (between(a[1], b[1], 2) + between(a[1], b[1], 4))
        near = near + (between(a[2], b[2], 1) + between(a[2], b[2], 5))
        return near + (a[3] + between(a[3], b[3], 6))

    @inner
    def pool_pure(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width):
        kind, first, last = spread(plan.kind[i]), np.int64(plan.first[i]), np.int64(plan.last[i])
        size = ring_size(ring)
        for c in range(channels):
            j = ring.pad + first * LANES - radius
            a = column(x, c * size, labels, j, kind, window.weight, rows)
            for block in range(first, last):
                j += LANES
                b = column(x, c * size, labels, j, kind, window.weight, rows)
                store(out, c * out_width + block * LANES, total(a, b))
                a = b

    @inner
    def pool_mixed(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width):
        """Two channels at a time, so that labels are compared once for the two."""
        kind, first, last = spread(plan.kind[i]), np.int64(plan.first[i]), np.int64(plan.last[i])
        size = ring_size(ring)
        for c in range(0, channels, 2):
            more = 1 if c + 1 < channels else 0  # else the last is worked out twice
            at, at_next = c * size, (c + more) * size
            j = ring.pad + first * LANES - radius
            a = column(x, at, labels, j, kind, window.weight, rows)
            a_next = column(x, at_next, labels, j, kind, window.weight, rows)
            for block in range(first, last):
                j += LANES
                b = column(x, at, labels, j, kind, window.weight, rows)
                b_next = column(x, at_next, labels, j, kind, window.weight, rows)
                to = c * out_width + block * LANES
                to_next = to + more * out_width
                own = load(centres, block * LANES) == kind
                here = select(own, total(a, b), load(out, to))
                here_next = select(own, total(a_next, b_next), load(out, to_next))
                store(out, to, here)
                store(out, to_next, here_next)
                a, a_next = b, b_next

    return pool_mixed if mixed else pool_pure


def _all_columns(cell):
    """Make the function that works out all U_t of a segment for any window."""

    @inner
    def columns(x, at, labels, rows, column, end, kind, window, scratch, step):
        weight, shell, reach = window.weight, window.shell, window.reach
        shells = len(shell) - 2
        sums = (
            reach + 1
        ) * step  # where scratch keeps, two vectors each, a shell's sum and the sum outside of it
        for j in range(column, end, 2 * LANES):
            to = j - column
            O = fill(x, 0)
            O_next = O
            for s in range(shells, 0, -1):
                P = fill(x, 0)
                P_next = P
                for i in range(peek(shell, s), peek(shell, s + 1), 2):
                    q, r = peek(rows, i) + j, peek(rows, i + 1) + j
                    P = P + (cell(x, at + q, labels, q, kind) + cell(x, at + r, labels, r, kind))
                    q, r = q + LANES, r + LANES
                    P_next = P_next + (cell(x, at + q, labels, q, kind) + cell(x, at + r, labels, r, kind))
                keep = sums + 4 * s * LANES
                store(scratch, keep, P)
                store(scratch, keep + LANES, P_next)
                store(scratch, keep + 2 * LANES, O)
                store(scratch, keep + 3 * LANES, O_next)
                w = fill(x, peek(weight, s))
                O = fma(w, P, O)
                O_next = fma(w, P_next, O_next)
            q = peek(rows, 0) + j
            S = cell(x, at + q, labels, q, kind)
            S_next = cell(x, at + q + LANES, labels, q + LANES, kind)
            w = fill(x, peek(weight, 0))
            store(scratch, to, fma(w, S, O))
            store(scratch, to + LANES, fma(w, S_next, O_next))
            for t in range(1, reach + 1):
                to += step
                w = fill(x, peek(weight, t))
                if t <= shells:
                    keep = sums + 4 * t * LANES
                    S = S + load(scratch, keep)
                    S_next = S_next + load(scratch, keep + LANES)
                    store(scratch, to, fma(w, S, load(scratch, keep + 2 * LANES)))
                    store(scratch, to + LANES, fma(w, S_next, load(scratch, keep + 3 * LANES)))
                else:
                    store(scratch, to, w * S)
                    store(scratch, to + LANES, w * S_next)

    return columns


def _large(columns, mixed):
    """Make the function that pools a segment, from the one that works out its U_t."""

    @inner
    def pool_segment(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width):
        kind, first, last = spread(plan.kind[i]), np.int64(plan.first[i]), np.int64(plan.last[i])
        reach = window.reach
        size = ring_size(ring)
        column = ring.pad + first * LANES - reach
        step = ((last - first) * LANES + 2 * reach + 2 * LANES - 1) // (2 * LANES) * (2 * LANES)
        end = column + (last - first) * LANES + 2 * reach
        for c in range(channels):
            columns(x, c * size, labels, rows, column, end, kind, window, scratch, step)
            for block in range(first, last):
                j = (block - first) * LANES + reach
                total = load(scratch, j)
                for t in range(1, reach + 1):
                    total = total + (load(scratch, t * step + j - t) + load(scratch, t * step + j + t))
                to = c * out_width + block * LANES
                if mixed:
                    total = select(load(centres, block * LANES) == kind, total, load(out, to))
                store(out, to, total)

    return pool_segment


_pure_1, _mixed_1 = _small(load_any, 1, False), _small(load_of, 1, True)
_pure_2, _mixed_2 = _small(load_any, 2, False), _small(load_of, 2, True)
_pure_3, _mixed_3 = _small(load_any, 3, False), _small(load_of, 3, True)
_pure, _mixed = _large(_all_columns(load_any), False), _large(_all_columns(load_of), True)


@inner
def _pool_block_by_cell(x, channels, ring, labels, window, rows, block, centres, out, out_width):
    """The window's cells one by one, four channels at a time, so that a label is asked once for the four."""
    reach, weight, shell = window.reach, window.weight, window.shell
    size = ring_size(ring)
    centre = load(centres, block * LANES)
    left = ring.pad + block * LANES
    zero = fill(x, 0)
    for c in range(0, channels, 4):
        at = c * size
        one = (
            size if c + 1 < channels else 0
        )  # the last four may be fewer: then the first is worked out again
        two = 2 * size if c + 2 < channels else 0
        three = 3 * size if c + 3 < channels else 0
        z0 = z1 = z2 = z3 = zero
        for s in range(len(shell) - 1):
            for i in range(shell[s], shell[s + 1]):
                for d in range(-reach, reach + 1):
                    q = rows[i] + left + d
                    member = load(labels, q) == centre
                    w = fill(x, weight[max(s, abs(d))])
                    z0 = fma(select(member, load(x, at + q), zero), w, z0)
                    z1 = fma(select(member, load(x, at + one + q), zero), w, z1)
                    z2 = fma(select(member, load(x, at + two + q), zero), w, z2)
                    z3 = fma(select(member, load(x, at + three + q), zero), w, z3)
        at_out = c * out_width + block * LANES
        store(out, at_out, z0)
        if c + 1 < channels:
            store(out, at_out + out_width, z1)
        if c + 2 < channels:
            store(out, at_out + 2 * out_width, z2)
        if c + 3 < channels:
            store(out, at_out + 3 * out_width, z3)


@inner
def pool_row(
    x, channels, ring, labels, window, rows, centres, blocks, most_classes, plan, scratch, out, out_width
):
    """Pool every channel of a row for its windows; out[c * out_width + j] is right where centres[j] is a class."""
    segments, by_cell = plan_row(window, ring, centres, labels, rows, blocks, most_classes, plan)
    small = window.reach if window.reach == len(window.shell) - 2 and len(rows) == 2 * window.reach + 1 else 0
    for i in range(segments):
        if plan.mixed[i]:
            if small == 1:
                _mixed_1(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
            elif small == 2:
                _mixed_2(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
            elif small == 3:
                _mixed_3(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
            else:
                _mixed(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        elif small == 1:
            _pure_1(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        elif small == 2:
            _pure_2(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        elif small == 3:
            _pure_3(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        else:
            _pure(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
    for i in range(by_cell):
        _pool_block_by_cell(x, channels, ring, labels, window, rows, plan.by_cell[i], centres, out, out_width)
