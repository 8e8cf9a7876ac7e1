"""Stage 1, selective pooling: the one hard primitive of the loss, and why its backward is itself.

Read this room first. In come maps, labels and the geometry of `Options`; no softmax and no loss may come in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lalref.arrays import Array, device_of, dtype_name, namespace
from lalref.engines.twofold import half_of_the_digits
from lalref.options import Options


def pool(
    u: Array, labels: Array, options: Options, *, stride: bool = True, minus: Array | None = None
) -> Array:
    """Equation (13)'s A: (A u)_p = sum over q in G_p of w(d(p, q)) u_q; u (N, K, *S) -> (N, K, *grid).

    q is in G_p exactly when p is in G_q, and d is symmetric, so A is its own adjoint: the backward of a
    pooling is the same pooling. Being linear it is also its own jvp. With a stride, A is followed by taking
    every s-th row, whose adjoint is `lay`: the backward is then ``pool(lay(u), stride=False)``.
    With ``minus``, r (N, K, *grid), each window pools u_q - r_p.
    """
    xp = namespace(u)
    rings: dict[float, Any] = {}  # w -> sum of the u_q that it weighs, which rounds less than a sum of w u_q
    for w, _, member, u_q in neighbours(labels, u, options, stride=stride):
        if w > 0:
            rings[w] = rings.get(w, 0.0) + xp.where(
                member[:, None, ...], u_q if minus is None else u_q - minus, 0.0
            )
    return sum(w * rings[w] for w in sorted(rings))


def lay(u: Array, labels: Array, options: Options) -> Array:
    """Lay u (N, K, *grid) on the full image (N, K, *S) with zeros between: the adjoint of ``[::stride]``."""
    xp, S = namespace(u), labels.shape[1:]
    for a, (length, s) in enumerate(zip(S, options.strides(len(S)), strict=True), start=2):
        s = max(1, min(s, length))  # a longer stride, too, leaves one window
        if s > 1:
            apart = xp.expand_dims(u, axis=a + 1)  # (..., grid_a, 1, ...)
            gap = xp.zeros(
                (*apart.shape[: a + 1], s - 1, *apart.shape[a + 2 :]), dtype=u.dtype, device=device_of(u)
            )
            laid = xp.concat([apart, gap], axis=a + 1)  # (..., grid_a, s, ...)
            u = xp.reshape(laid, (*u.shape[:a], u.shape[a] * s, *u.shape[a + 1 :]))
            u = u[(*(slice(None),) * a, slice(length), ...)]
    return u


def group_size(labels: Array, options: Options) -> Array:
    """|G_p|, int32 (N, *grid)."""
    xp = namespace(labels)
    return sum(xp.astype(member, xp.int32) for _, _, member, _ in neighbours(labels, None, options))


def divisor(labels: Array, valid: Array, options: Options, dtype: Any) -> Array:
    """Equation (7): D_p, the group's sum of weights or its size, (N, *grid); 1 where not valid."""
    xp = namespace(labels)
    size = xp.astype(group_size(labels, options), dtype)
    D = (
        size
        if options.normalize == "count"
        else pool(xp.ones_like(labels, dtype=dtype)[:, None, ...], labels, options)[:, 0, ...]
    )
    return xp.where(valid, D, 1.0)


def merge(x: Array, labels: Array, valid: Array, options: Options) -> tuple[Array, Array]:
    """Equation (4): z = A x / D (N, C, *grid), 0 where not valid; and D (N, 1, *grid)."""
    D = divisor(labels, valid, options, x.dtype)[:, None, ...]
    z = namespace(x).where(valid[:, None, ...], pool(x, labels, options), 0.0) / D
    return z, D


def lost(x: Array, z: Array, D: Array, labels: Array, valid: Array, options: Options) -> Array:
    """Equation (17): what rounding took from z = A x / D, to be added to it; (N, C, *grid).

    (A x / D)_p = k_p r_p + (1/D_p) sum of w (x_q - r_p), k = A 1 / D, whatever r is. With r next to the mean
    of the group only small numbers are pooled, and so only small ones are rounded.
    """
    xp = namespace(x)
    here = valid[:, None, ...]
    if options.normalize == "weights":  # k = 1, and z is the mean
        r, beyond = z, 0.0
    else:
        one = xp.ones_like(labels, dtype=x.dtype)[:, None, ...]
        k = xp.where(here, half_of_the_digits(pool(one, labels, options) / D), 1.0)
        r = half_of_the_digits(z / k)
        pairs = neighbours(labels, one, options)
        k_lost = sum(xp.where(member[:, None, ...], w - k, 0.0) for w, _, member, _ in pairs) / D
        beyond = (k * r - z) + k_lost * r
    left = beyond + pool(x, labels, options, minus=r) / D
    return xp.where(here & xp.isfinite(left), left, 0.0)  # what is infinite or NaN has lost nothing


def centre(labels: Array, options: Options) -> Array:
    """y_p on the stride grid; (N, *grid)."""
    return labels[(slice(None), *(slice(None, None, s) for s in options.strides(labels.ndim - 1)))]


def neighbours(
    labels: Array, u: Array | None, options: Options, *, stride: bool = True
) -> Iterator[tuple[float, float, Array, Array]]:
    """For each offset: w, log w, whether q = p + offset is in G_p (N, *grid), and u_q (N, K, *grid).

    w is 0 where it rounds to 0 in u's dtype; the pixel then still counts in |G_p|.
    """
    S = labels.shape[1:]
    strides = options.strides(len(S)) if stride else (1,) * len(S)
    radii = [max(0, min(r, length - 1)) for r, length in zip(options.radii(len(S)), S, strict=True)]
    y = labels[(slice(None), *(slice(None, None, s) for s in strides))]
    y_padded, u_padded = _pad(labels, radii, -1), None if u is None else _pad(u, radii, 0)
    tiny = 0.0 if u is None else _smallest(u.dtype)
    for offset in itertools.product(*(range(-r, r + 1) for r in radii)):
        d = max([0, *map(abs, offset)])
        t = 0.0 if options.sigma is None else d / options.sigma
        log_w = -0.5 * (t * t)  # (1); t**2 would raise where t * t is inf
        w = math.exp(log_w)
        at_q = (
            ...,
            *(
                slice(r + o, r + o + length, s)
                for r, o, length, s in zip(radii, offset, S, strides, strict=True)
            ),
        )
        y_q = y_padded[at_q]
        yield (
            w if w >= tiny else 0.0,
            log_w,
            (y_q == y) & (y_q >= 0),
            None if u_padded is None else u_padded[at_q],
        )


def _pad(u: Array, radii: list[int], fill: int) -> Array:
    """Put `fill` around the last len(radii) axes."""
    xp = namespace(u)
    for a, r in enumerate(radii, start=u.ndim - len(radii)):
        if r:
            edge = xp.full((*u.shape[:a], r, *u.shape[a + 1 :]), fill, dtype=u.dtype, device=device_of(u))
            u = xp.concat([edge, u, edge], axis=a)
    return u


def _smallest(dtype: Any) -> float:
    """The least number that does not round to 0: just above half the smallest subnormal."""
    smallest = float(
        np.finfo(dtype_name(dtype)).smallest_subnormal
    )  # halved in float64, where half of it isn't 0
    return float(np.nextafter(smallest / 2, 1))
