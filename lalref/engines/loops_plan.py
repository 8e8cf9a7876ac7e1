"""How a row of windows is to be pooled: where the rows in reach lie, and which block of columns goes which way.

A plan follows from labels alone, so it is made once for a row and all its channels. What the two ways are is said
in `loops_pool`; no logits may come in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lalref.engines.loops_lanes import LANES, any_lane, inner, largest, load, select, spread, store

# Segments that a block can belong to are among the last ones made: no more than two for each class of a block.
LOOK_BACK = 12

RINGS = 8  # columns at so many distances are pooled at a time, see `loops_pool`


class Window(NamedTuple):
    """Which pixels a window reads, and how much each counts.

    Attributes
    ----------
    row_a, row_b : int64 (rows,)
        Offsets on the first two spatial axes of every row of the window; the centre's row first, then shell
        after shell, each with an even number of rows.
    shell : int64 (shells + 1,)
        Where each shell begins in `row_a`; shell 0 is the centre's row.
    weight : (1 + sets * RINGS,)
        w(d) of equation (1), 0 beyond the window.
    reach : int
        r on the last axis.
    sets : int
        So many sets of `RINGS` distances from 1 on hold all that the window has.
    """

    row_a: Any
    row_b: Any
    shell: Any
    weight: Any
    reach: int
    sets: int


class Ring(NamedTuple):
    """The layout of padded rows, the same for every channel and for the labels.

    Row (a, b) begins at ((a % planes) * rows + b) * width, its first column `pad` further on; the last row of
    all is the one outside the image: zeros, or labels -1.
    """

    planes: int
    rows: int
    width: int
    pad: int


@inner
def ring_size(ring):
    """Numbers in one channel of the ring."""
    return (ring.planes * ring.rows + 1) * ring.width


@inner
def find_rows(window, ring, a, b, A, found):
    """Where the rows of the windows of row (a, b) begin in a channel of the ring; any more are the one outside."""
    outside = ring.planes * ring.rows
    found[len(window.row_a) :] = outside * ring.width
    for i in range(len(window.row_a)):
        at_a = a + window.row_a[i]
        at_b = b + window.row_b[i]
        inside = 0 <= at_a < A and 0 <= at_b < ring.rows
        found[i] = ((at_a % ring.planes) * ring.rows + at_b if inside else outside) * ring.width


class Plan(NamedTuple):
    """Room for how a row is to be pooled, see `plan_row`.

    Segment i pools class `kind[i]` in the blocks `first[i]` to `last[i]` (exclusive), looking at labels if
    `mixed[i]`; `by_cell` lists the blocks that go by cell. `high` and `low` hold the largest and smallest
    label of each column of the rows in reach; `members` is room for which pixels in reach are of one class.
    """

    kind: Any
    first: Any
    last: Any
    mixed: Any
    by_cell: Any
    high: Any
    low: Any
    members: Any


@inner
def _column_extremes(labels, rows, count, width, high, low):
    """The largest label of each column, and the smallest but for -1, with -2**31 added."""
    flip = spread(np.int32(-(2**31)))  # turns -1 into the largest int32, and keeps the order of the classes
    for j in range(0, width, LANES):
        top = load(labels, rows[0] + j)
        bottom = top + flip
        for i in range(1, count):
            label = load(labels, rows[i] + j)
            top = select(label > top, label, top)
            flipped = label + flip
            bottom = select(bottom > flipped, flipped, bottom)
        store(high, j, top)
        store(low, j, bottom)


@inner
def _only_class_in_reach(plan, kind, left, reach):
    """Whether no pixel in reach of the block at column `left` of the ring has another class than `kind`."""
    flip = spread(np.int32(-(2**31)))
    wanted = spread(np.int32(kind))
    lowest = wanted + flip
    none = spread(np.int32(-1))
    j = left - reach
    end = left + reach
    others = wanted > wanted
    while True:
        top = load(plan.high, j)
        others = others | ((top != wanted) & (top != none)) | (lowest > load(plan.low, j))
        if j == end:
            return not any_lane(others)
        j = min(j + LANES, end)


@inner
def _add_block(plan, segments, kind, block, mixed, join):
    """Append a block of class `kind` to a segment that ends there and is alike, or with `join` to any."""
    i = segments - 1
    while i >= 0 and i >= segments - LOOK_BACK:
        if plan.kind[i] == kind and plan.last[i] == block and (join or plan.mixed[i] == mixed):
            plan.last[i] = block + 1
            plan.mixed[i] |= mixed
            return segments
        i -= 1
    plan.kind[segments] = kind
    plan.first[segments] = block
    plan.last[segments] = block + 1
    plan.mixed[segments] = mixed
    return segments + 1


@inner
def plan_row(window, ring, centres, labels, rows, blocks, most_classes, plan):
    """Decide how each block of the row is pooled; return the numbers of segments and of blocks by cell.

    `centres` are the labels of the row's windows, `labels` those of the ring, `rows` where the rows in reach begin.
    """
    _column_extremes(labels, rows, len(window.row_a), ring.width, plan.high, plan.low)
    none = spread(np.int32(-1))
    segments = 0
    by_cell = 0
    join = window.sets > 1  # then looking at labels costs less than beginning a segment
    for block in range(blocks):
        rest = load(centres, block * LANES)
        kind = largest(rest)
        if kind < 0:
            continue
        # On the way back a pixel without a window receives too, so the centres are asked as well as what is in reach.
        alone = not any_lane((rest != spread(np.int32(kind))) & (rest != none))
        if alone and _only_class_in_reach(plan, kind, ring.pad + block * LANES, window.reach):
            segments = _add_block(plan, segments, kind, block, False, join)
            continue
        classes = 0
        every = rest
        while kind >= 0 and classes <= most_classes:
            classes += 1
            rest = select(rest == spread(np.int32(kind)), none, rest)
            kind = largest(rest)
        if classes > most_classes:
            plan.by_cell[by_cell] = block
            by_cell += 1
            continue
        kind = largest(every)
        while kind >= 0:
            segments = _add_block(plan, segments, kind, block, True, join)
            every = select(every == spread(np.int32(kind)), none, every)
            kind = largest(every)
    return segments, by_cell
