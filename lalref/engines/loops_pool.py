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

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from lalref.engines.loops_lanes import LANES, any_lane, fill, fma, largest, load, select, spread, store

# A block whose centres show more classes than this is pooled by cell; from timings, by the window's reach.
MOST_CLASSES = 12


class Window(NamedTuple):
    """Which pixels a window reads, and how much each counts.

    Attributes
    ----------
    row_a, row_b : int64 (rows,)
        Offsets on the first two spatial axes of every row of the window; the centre's row first, then shell
        after shell, each with an even number of rows.
    shell : int64 (shells + 1,)
        Where each shell begins in `row_a`; shell 0 is the centre's row.
    weight : (1 + the largest distance,)
        w(d) of equation (1).
    reach : int
        r on the last axis.
    """

    row_a: Any
    row_b: Any
    shell: Any
    weight: Any
    reach: int


class Ring(NamedTuple):
    """The layout of padded rows, the same for every channel and for the labels.

    Row (a, b) begins at ((a % planes) * rows + b) * width, its first column `pad` further on; the last row of
    all is the one outside the image: zeros, or labels -1.
    """

    planes: int
    rows: int
    width: int
    pad: int


@njit(inline="never")
def ring_size(ring):
    """Numbers in one channel of the ring."""
    return (ring.planes * ring.rows + 1) * ring.width


@njit
def find_rows(window, ring, a, b, A, found):
    """Where the rows of the windows of row (a, b) begin in a channel of the ring."""
    outside = ring.planes * ring.rows
    for i in range(len(window.row_a)):
        at_a = a + window.row_a[i]
        at_b = b + window.row_b[i]
        inside = 0 <= at_a < A and 0 <= at_b < ring.rows
        found[i] = ((at_a % ring.planes) * ring.rows + at_b if inside else outside) * ring.width


class Plan(NamedTuple):
    """Room for how a row is to be pooled, see `plan_row`.

    Segment i pools class `kind[i]` in the blocks `first[i]` to `last[i]` (exclusive), looking at labels if
    `mixed[i]`; `by_cell` lists the blocks that go by cell. `high` and `low` hold the largest and smallest
    label of each column of the rows in reach.
    """

    kind: Any
    first: Any
    last: Any
    mixed: Any
    by_cell: Any
    high: Any
    low: Any


@njit
def _column_extremes(labels, rows, width, high, low):
    """The largest label of each column, and the smallest but for -1, with -2**31 added."""
    flip = spread(np.int32(-(2**31)))  # turns -1 into the largest int32, and keeps the order of the classes
    for j in range(0, width, LANES):
        top = load(labels, rows[0] + j)
        bottom = top + flip
        for i in range(1, len(rows)):
            label = load(labels, rows[i] + j)
            top = select(label > top, label, top)
            flipped = label + flip
            bottom = select(bottom > flipped, flipped, bottom)
        store(high, j, top)
        store(low, j, bottom)


@njit
def _only_class_in_reach(plan, kind, left, reach):
    """Whether no pixel in reach of the block at column `left` of the ring has another class than `kind`."""
    flip = spread(np.int32(-(2**31)))
    wanted = spread(np.int32(kind))
    none = spread(np.int32(-1))
    j = left - reach
    end = left + reach
    others = wanted > wanted
    while True:
        top = load(plan.high, j)
        others = others | ((top != wanted) & (top != none)) | (wanted > load(plan.low, j) - flip)
        if j == end:
            return not any_lane(others)
        j = min(j + LANES, end)


@njit
def _add_block(plan, segments, kind, block, mixed):
    """Append a block of class `kind`, to its segment if the block before belongs to one alike."""
    i = segments - 1
    while i >= 0 and i >= segments - 2 * MOST_CLASSES:
        if plan.kind[i] == kind and plan.last[i] == block and plan.mixed[i] == mixed:
            plan.last[i] = block + 1
            return segments
        i -= 1
    plan.kind[segments] = kind
    plan.first[segments] = block
    plan.last[segments] = block + 1
    plan.mixed[segments] = mixed
    return segments + 1


@njit
def plan_row(window, ring, centres, labels, rows, blocks, most_classes, plan):
    """Decide how each block of the row is pooled; return the numbers of segments and of blocks by cell.

    `centres` are the labels of the row's windows, `labels` those of the ring, `rows` where the rows in reach begin.
    """
    _column_extremes(labels, rows, ring.width, plan.high, plan.low)
    none = spread(np.int32(-1))
    segments = 0
    by_cell = 0
    for block in range(blocks):
        rest = load(centres, block * LANES)
        kind = largest(rest)
        if kind < 0:
            continue
        if _only_class_in_reach(plan, kind, ring.pad + block * LANES, window.reach):
            segments = _add_block(plan, segments, kind, block, False)
            continue
        classes = 0
        every = rest
        while kind >= 0:
            classes += 1
            rest = select(rest == spread(np.int32(kind)), none, rest)
            kind = largest(rest)
        if classes > most_classes:
            plan.by_cell[by_cell] = block
            by_cell += 1
            continue
        kind = largest(every)
        while kind >= 0:
            segments = _add_block(plan, segments, kind, block, True)
            every = select(every == spread(np.int32(kind)), none, every)
            kind = largest(every)
    return segments, by_cell


def _pooling_by_class(mixed):
    """Make `pool_segment` for a segment whose labels must be asked, or need not."""

    @njit
    def cell(x, at, labels, row, kind):
        value = load(x, at + row)
        return select(load(labels, row) == kind, value, fill(x, 0)) if mixed else value

    @njit
    def pool_segment(x, channels, ring, labels, window, rows, kind, first, last, centres, scratch, out, out_width):
        reach, weight, shell = window.reach, window.weight, window.shell
        shells = len(shell) - 2
        size = ring_size(ring)
        left = ring.pad + first * LANES - reach
        vectors = ((last - first) * LANES + 2 * reach + LANES - 1) // LANES
        U_width = vectors * LANES
        outer = (reach + 1) * U_width  # scratch: U_t for each t, then the outer sums and the shells' sums
        kinds = spread(np.int32(kind))
        for c in range(channels):
            at = c * size
            for v in range(vectors):
                column = left + v * LANES
                O = fill(x, 0)
                for s in range(shells, 0, -1):
                    P = cell(x, at, labels, rows[shell[s]] + column, kinds)
                    for i in range(shell[s] + 1, shell[s + 1]):
                        P = P + cell(x, at, labels, rows[i] + column, kinds)
                    store(scratch, outer + 2 * s * LANES, P)
                    store(scratch, outer + (2 * s + 1) * LANES, O)
                    O = fma(fill(x, weight[s]), P, O)
                S = cell(x, at, labels, rows[0] + column, kinds)
                store(scratch, v * LANES, fma(fill(x, weight[0]), S, O))
                for t in range(1, min(reach, shells) + 1):
                    S = S + load(scratch, outer + 2 * t * LANES)
                    O = load(scratch, outer + (2 * t + 1) * LANES)
                    store(scratch, t * U_width + v * LANES, fma(fill(x, weight[t]), S, O))
                for t in range(shells + 1, reach + 1):
                    store(scratch, t * U_width + v * LANES, fill(x, weight[t]) * S)
            for block in range(first, last):
                j = (block - first) * LANES + reach
                total = load(scratch, j)
                for t in range(1, reach + 1):
                    total = total + (load(scratch, t * U_width + j - t) + load(scratch, t * U_width + j + t))
                at_out = c * out_width + block * LANES
                if mixed:
                    mine = load(centres, block * LANES) == kinds
                    total = select(mine, total, load(out, at_out))
                store(out, at_out, total)

    return pool_segment


_pool_pure = _pooling_by_class(False)
_pool_mixed = _pooling_by_class(True)


@njit
def _pool_block_by_cell(x, channels, ring, labels, window, rows, block, centres, out, out_width):
    """The window's cells one by one, four channels at a time, so that a label is asked once for the four."""
    reach, weight, shell = window.reach, window.weight, window.shell
    size = ring_size(ring)
    centre = load(centres, block * LANES)
    left = ring.pad + block * LANES
    zero = fill(x, 0)
    for c in range(0, channels, 4):
        at = c * size
        one = size if c + 1 < channels else 0  # the last four may be fewer: then the first is worked out again
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


@njit
def pool_row(x, channels, ring, labels, window, rows, centres, blocks, most_classes, plan, scratch, out, out_width):
    """Pool every channel of a row for its windows; out[c * out_width + j] is right where centres[j] is a class."""
    segments, by_cell = plan_row(window, ring, centres, labels, rows, blocks, most_classes, plan)
    for i in range(segments):
        kind, first, last = plan.kind[i], plan.first[i], plan.last[i]
        if plan.mixed[i]:
            _pool_mixed(x, channels, ring, labels, window, rows, kind, first, last, centres, scratch, out, out_width)
        else:
            _pool_pure(x, channels, ring, labels, window, rows, kind, first, last, centres, scratch, out, out_width)
    for i in range(by_cell):
        _pool_block_by_cell(x, channels, ring, labels, window, rows, plan.by_cell[i], centres, out, out_width)
