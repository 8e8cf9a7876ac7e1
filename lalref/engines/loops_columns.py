"""The columns of windows for `loops_pool`: all U_t of `LANES` columns, in registers, and their shifted sum.

U_t[j] is one column of a window under the weights that it has t columns away from the centre, see `loops_pool`. Which
segments and channels are pooled is not said here.
"""

from __future__ import annotations

import numpy as np

from lalref.engines.loops_lanes import between, fill, fma, inner, load, peek, select, spread


def _two_rows(cell):
    """Make the function that adds up the rows of an image at distance t, of which `rows` says where they begin."""

    @inner
    def two_rows(x, at, labels, j, kind, rows, t):
        above, below = peek(rows, 2 * t - 1) + j, peek(rows, 2 * t) + j
        return cell(x, at + above, labels, above, kind) + cell(x, at + below, labels, below, kind)

    return two_rows


@inner
def folded(x, at, labels, j, kind, step, t):
    """Rows at distance t that `_fold` has added up."""
    return load(x, at + t * step + j)


@inner
def _no_rings(x, at, labels, j, kind, window, rows, first, S, O):
    return O, ()


def rings(rows_at, t, end):
    """Make the function that goes outwards from S_{t-1} to U_t, ..., U_{end-1}, and inwards from O_{end-1} to O_{t-1}.

    S_t is the sum over |di| <= t and O_t the weighted one over |di| > t, so that U_t = w(t) S_t + O_t. `first` is added
    to every t, so that a window of any size can be worked out some rings at a time.
    """
    if t == end:
        return _no_rings
    outwards = rings(rows_at, t + 1, end)

    @inner
    def ring_and_beyond(x, at, labels, j, kind, window, rows, first, S, O):
        w = fill(x, peek(window.weight, first + t))
        P = rows_at(x, at, labels, j, kind, rows, first + t)
        S = S + P
        O, U = outwards(x, at, labels, j, kind, window, rows, first, S, O)
        # beyond the window's last column nothing may be read, were it only to be multiplied by 0
        outside = spread(np.int32(first + t)) > spread(np.int32(window.reach))
        U_t = select(outside, fill(x, 0), fma(w, S, O))
        return fma(w, P, O), (U_t, *U)

    return ring_and_beyond


def shifted(lanes):
    """Make the function that adds up, for every (t, lane), U[t] from that lane on; U for two neighbouring vectors."""
    (t, lane), *others = lanes

    @inner
    def one(a, b):
        return between(a[t], b[t], lane)

    if not others:
        return one
    rest = shifted(others)

    @inner
    def one_and_rest(a, b):
        return one(a, b) + rest(a, b)

    return one_and_rest


def all_columns(cell, radius):
    """Make the function that works out U_0 to U_radius of a window of an image that is no larger, in one go."""
    outwards = rings(_two_rows(cell), 1, radius + 1)

    @inner
    def columns(x, at, labels, j, kind, window, rows):
        centre = peek(rows, 0) + j
        S = cell(x, at + centre, labels, centre, kind)
        O, U = outwards(x, at, labels, j, kind, window, rows, 0, S, fill(x, 0))
        return (fma(fill(x, peek(window.weight, 0)), S, O), *U)

    return columns
