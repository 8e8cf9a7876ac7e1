"""Selective pooling of one row of windows, `LANES` columns at a time: (A u) of equation (13) in O(r) per number.

The rows that the windows of a row reach lie in a `Ring`, padded so that no column needs asking whether it is
inside the image; what may not be read (outside, ignored, no window) holds 0 there and the label -1. Two ways
lead to the sum, and `plan_row` chooses for each block of `LANES` columns:

by class
    For each class k among the block's centres, with t = |dj| and x only from k's own pixels,
    U_t[j] = w(t) * sum over |di| <= t of x[i + di, j] + sum over |di| > t of w(|di|) x[i + di, j]
    holds one column of the window under its weights w(max(|di|, t)), and the sum is
    U_0[j] + sum over t of U_t[j - t] + U_t[j + t]. The inner sums grow outwards and the outer ones inwards,
    so all U_t of a column cost O(r), and nothing is ever subtracted. They stay in registers, for `RINGS` of
    the t at a time, and so do those of the next columns: the two are shifted against each other. Where k is the
    only class in reach, the padding's zeros are mask enough, and up to radius `RINGS` labels are not even looked at;
    larger windows (`_large`) add up shells by way of memory first, and mask there always.
by cell
    Where many classes meet (noise), the (2r + 1)**2 cells of the window, each kept or left by its label.

With more than one row axis (3 spatial axes) the rows at the same row distance form a shell, and |di| above is
the number of the shell. No softmax, no loss and no threads may come in.
"""

from __future__ import annotations

import numpy as np

from lalref.engines.loops_columns import all_columns, columns_of_rings, folded_rows, shifted
from lalref.engines.loops_lanes import (
    LANES,
    bits_of,
    fill,
    fma,
    inner,
    load,
    load_any,
    load_members,
    load_of,
    peek,
    select,
    spread,
    store,
)
from lalref.engines.loops_plan import RINGS, plan_row, ring_size

# --- By class: a segment of a row --------------------------------------------------------------------------------


def _small(cell, radius, mixed):
    """Make the function that pools a segment for small windows: columns begin `radius` left of the windows."""
    columns = all_columns(cell, radius, mixed)
    sides = [(t, radius - t) for t in range(radius + 1)] + [(t, radius + t) for t in range(1, radius + 1)]
    total = shifted(sides)

    @inner
    def pool_segment(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width):
        kind, first, last = spread(plan.kind[i]), np.int64(plan.first[i]), np.int64(plan.last[i])
        for c in range(channels):
            at = c * ring_size(ring)
            j = ring.pad + first * LANES - radius
            a = columns(x, at, labels, j, kind, window, rows)
            for block in range(first, last):
                j += LANES
                b = columns(x, at, labels, j, kind, window, rows)
                to = c * out_width + block * LANES
                pooled = total(a, b)
                if mixed:
                    pooled = select(load(centres, block * LANES) == kind, pooled, load(out, to))
                store(out, to, pooled)
                a = b

    return pool_segment


def _medium(cell, mixed):
    """Make the function that pools a segment for windows of up to `RINGS` rings: columns begin where blocks do."""
    columns = all_columns(cell, RINGS, mixed)
    left = shifted([(t, LANES - t) for t in range(1 + RINGS)])
    right = shifted([(t, t) for t in range(1, 1 + RINGS)])

    @inner
    def pool_segment(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width):
        kind, first, last = spread(plan.kind[i]), np.int64(plan.first[i]), np.int64(plan.last[i])
        for c in range(channels):
            at = c * ring_size(ring)
            j = ring.pad + first * LANES
            a = columns(x, at, labels, j, kind, window, rows)
            so_far = left(columns(x, at, labels, j - LANES, kind, window, rows), a)
            for block in range(first, last):
                j += LANES
                b = columns(x, at, labels, j, kind, window, rows)
                to = c * out_width + block * LANES
                pooled = so_far + right(a, b)
                if mixed:
                    pooled = select(load(centres, block * LANES) == kind, pooled, load(out, to))
                store(out, to, pooled)
                so_far = left(a, b)
                a = b

    return pool_segment


@inner
def _members(labels, rows, count, column, step, kind, members):
    """members[i * step // LANES :] = which columns of row i are of class `kind`, a bit each, from `column` on."""
    for i in range(count):
        for j in range(0, step, LANES):
            here = load(labels, rows[i] + column + j) == kind
            members[(i * step + j) // LANES] = bits_of(here)


@inner
def _fold(x, at, rows, column, members, window, scratch, step):
    """scratch[t * step :] = P_t, the rows of shell t added up, for all columns of a segment; 0 beyond the last."""
    shells = len(window.shell) - 1
    across = step // LANES
    left = at + column
    for block in range(across):
        j = block * LANES
        store(scratch, j, load_members(x, left + peek(rows, 0) + j, members, block))
    for t in range(1, shells):
        first = peek(window.shell, t)
        for i in range(first, peek(window.shell, t + 1), 2):
            above, below = left + peek(rows, i), left + peek(rows, i + 1)
            for block in range(across):
                j = block * LANES
                P = load_members(x, above + j, members, i * across + block)
                P = P + load_members(x, below + j, members, (i + 1) * across + block)
                store(scratch, t * step + j, P if i == first else load(scratch, t * step + j) + P)
    for j in range(shells * step, (1 + window.sets * RINGS) * step, LANES):
        store(scratch, j, fill(x, 0))


@inner
def _sums_between(window, scratch, step, to, middle):
    """Of every column U_0, and S before and O beyond each set k of rings, in scratch[to + 2 k step :] and on."""
    for j in range(0, step, LANES):
        S = load(scratch, j)
        U_0 = fill(scratch, window.weight[0]) * S
        for k in range(window.sets):
            store(scratch, to + 2 * k * step + j, S)
            O = fill(scratch, 0)
            for t in range(1 + k * RINGS, 1 + (k + 1) * RINGS):
                P = load(scratch, t * step + j)
                S = S + P
                O = fma(fill(scratch, peek(window.weight, t)), P, O)
            store(scratch, to + (2 * k + 1) * step + j, O)
        O = fill(scratch, 0)
        for k in range(window.sets - 1, -1, -1):
            here = to + (2 * k + 1) * step + j
            further = O + load(scratch, here)
            store(scratch, here, O)
            O = further
        store(scratch, middle + j, U_0 + O)


_folded = folded_rows(RINGS)


def _set(begin):
    """Make the function that adds what a set of rings gives, the first `begin` + 1 columns away beyond some `LANES`."""
    left = shifted([(t, LANES - begin - t - 1) for t in range(RINGS)])
    right = shifted([(t, begin + t + 1) for t in range(RINGS)])

    @inner
    def add_set(window, k, scratch, step, sums, to):
        """scratch[to :] += sums over the U of set k, for every column of the segment that has neighbours."""
        away = k * RINGS // LANES * LANES
        before = sums + 2 * k * step
        beyond = before + step
        first = k * RINGS + 1
        weight, reach = window.weight, window.reach
        P, S, O = _folded(scratch, first * step, step), load(scratch, before), load(scratch, beyond)
        a = columns_of_rings(P, S, O, weight, first, reach)[1]
        for j in range(LANES, step, LANES):
            P, S, O = (
                _folded(scratch, first * step + j, step),
                load(scratch, before + j),
                load(scratch, beyond + j),
            )
            b = columns_of_rings(P, S, O, weight, first, reach)[1]
            here = to + j + away
            store(scratch, here, load(scratch, here) + left(a, b))
            here = to + j - LANES - away
            store(scratch, here, load(scratch, here) + right(a, b))
            a = b

    return add_set


_add_even, _add_odd = _set(0), _set(RINGS)


@inner
def _large(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width):
    """Pool a segment for any window, `RINGS` rings at a time."""
    kind, first, last = spread(plan.kind[i]), np.int64(plan.first[i]), np.int64(plan.last[i])
    mixed = plan.mixed[i]
    blocks = last - first
    # a column of the scratch is one of the ring, from `ring.pad` left of the segment to as many right of it
    column, step = first * LANES, blocks * LANES + 2 * ring.pad
    sums = (1 + window.sets * RINGS) * step
    to = sums + 2 * window.sets * step + ring.pad  # with room on both sides for what falls outside
    _members(labels, rows, len(window.row_a), column, step, kind, plan.members)
    for c in range(channels):
        _fold(x, c * ring_size(ring), rows, column, plan.members, window, scratch, step)
        _sums_between(window, scratch, step, sums, to)
        for k in range(window.sets):
            if k % 2:
                _add_odd(window, k, scratch, step, sums, to)
            else:
                _add_even(window, k, scratch, step, sums, to)
        for block in range(blocks):
            pooled = load(scratch, to + ring.pad + block * LANES)
            here = c * out_width + (first + block) * LANES
            if mixed:
                pooled = select(load(centres, (first + block) * LANES) == kind, pooled, load(out, here))
            store(out, here, pooled)


_pure_0, _mixed_0 = _small(load_any, 0, False), _small(load_of, 0, True)
_pure_1, _mixed_1 = _small(load_any, 1, False), _small(load_of, 1, True)
_pure_2, _mixed_2 = _small(load_any, 2, False), _small(load_of, 2, True)
_pure_3, _mixed_3 = _small(load_any, 3, False), _small(load_of, 3, True)
_pure, _mixed = _medium(load_any, False), _medium(load_of, True)


# --- By cell, and the choice -------------------------------------------------------------------------------------


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
    shells = len(window.shell) - 2
    radius = max(window.reach, shells) if len(window.row_a) == 2 * shells + 1 else RINGS + 1
    for i in range(segments):
        mixed = plan.mixed[i]
        if radius == 0 and mixed:
            _mixed_0(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        elif radius == 0:
            _pure_0(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        elif radius == 1 and mixed:
            _mixed_1(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        elif radius == 1:
            _pure_1(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        elif radius == 2 and mixed:
            _mixed_2(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        elif radius == 2:
            _pure_2(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        elif radius == 3 and mixed:
            _mixed_3(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        elif radius == 3:
            _pure_3(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        elif radius <= RINGS and mixed:
            _mixed(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        elif radius <= RINGS:
            _pure(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
        else:
            _large(x, channels, ring, labels, window, rows, plan, i, centres, scratch, out, out_width)
    for i in range(by_cell):
        _pool_block_by_cell(x, channels, ring, labels, window, rows, plan.by_cell[i], centres, out, out_width)
