"""The array engine, the code people come to read: forward, backward, jvp and hvp side by side.

Array-API code, so that it runs on NumPy, CuPy, torch and JAX, is traced by their compilers and differentiated
by their autodiff. It never looks at a value: every choice is a `where`, and what isn't chosen is never read,
since a mask that multiplies would let NaN through. Stage 1 is `lalref.engines.pooling`,
stage 3 `lalref.minkowski`; checks are `lalref.inputs`.

Shapes: x (N, C, *S) logits; labels y (N, *S); z (N, C, *grid) merged vectors; ell, g (N, *grid), where grid
is S[::stride] on each axis. g is the derivative of the loss with respect to each ell, equation (11).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lalref.arrays import Array, Namespace, device_of, namespace
from lalref.engines.pooling import centre, divisor, group_size, lay, lost, merge, neighbours, pool
from lalref.engines.twofold import difference
from lalref.options import Options

# --- Stage 2: cross-entropy of a softmax that is accurate for nearly perfect predictions -----------------


class Softmax(NamedTuple):
    """softmax(z) seen from the target y, by equation (17): nothing near 1 is ever subtracted from 1."""

    xp: Namespace
    onehot: Array  # (N, C, *grid) bool, the target's entry
    P: Array  # (N, C, *grid) softmax
    off: Array  # (N, 1, *grid) 1 - P_y, as the sum of the others
    neg_log_P: Array  # (N, C, *grid) -log P, each >= 0
    nll: Array  # (N, 1, *grid) -log P_y


def softmax(z: Array, y: Array, z_lost: Array | None = None) -> Softmax:
    """Equation (17) for z (N, C, *grid), with what rounding took from it, and y (N, *grid)."""
    xp, C = namespace(z), z.shape[1]
    classes = xp.reshape(xp.arange(C, dtype=y.dtype, device=device_of(y)), (1, C, *(1,) * (z.ndim - 2)))
    onehot = y[:, None, ...] == classes

    def entry(which: Array, a: Array) -> Array:
        return xp.sum(xp.where(which, a, 0.0), axis=1, keepdims=True)

    top = classes == xp.astype(xp.argmax(z, axis=1, keepdims=True), y.dtype)
    top = xp.where(entry(onehot, z) >= entry(top, z), onehot, top)  # in a tie with the target, the target
    peak = entry(top, z)
    peak = xp.where(xp.isfinite(peak), peak, math.nan)  # no softmax is left of +inf, or of -inf throughout
    ahead, lost_ahead = difference(z, peak)
    if z_lost is not None:
        lost_ahead = lost_ahead + (z_lost - entry(top, z_lost))
    # of inf, NaN and logits beyond 1/eps nothing is put back; the top is a constant 0, for compilers and autodiff
    ahead = xp.where(top, xp.where(xp.isnan(peak), peak, 0.0), ahead)  # <= 0
    lost_ahead = xp.where(~top & (xp.abs(lost_ahead) < 1), lost_ahead, 0.0)
    e = xp.exp(ahead) * (1 + lost_ahead)
    s = xp.sum(e, axis=1, keepdims=True)
    log_s = xp.log1p(xp.sum(xp.where(top, 0.0, e), axis=1, keepdims=True))
    neg_log_P = (log_s - lost_ahead) - ahead
    return Softmax(xp, onehot, e / s, entry(~onehot, e) / s, neg_log_P, entry(onehot, neg_log_P))


def cross_entropy(f: Softmax, alpha: float) -> Array:
    """Equation (5): ell = -sum over c of t_c log P_c, t = (1 - alpha) onehot + alpha / C; (N, *grid)."""
    ell = f.nll[:, 0, ...]
    if alpha > 0:
        uniform = f.xp.mean(f.neg_log_P, axis=1)
        ell = uniform if alpha == 1 else (1 - alpha) * ell + alpha * uniform
    return ell


def cross_entropy_vjp(f: Softmax, alpha: float, g: Array) -> Array:
    """Equation (12): z_bar = g (P - t); (N, C, *grid)."""
    return g[:, None, ...] * _residual(f, alpha)


def cross_entropy_jvp(f: Softmax, alpha: float, z_dot: Array) -> Array:
    """Equation (15): ell_dot = sum over c of (P_c - t_c) (z_dot_c - z_dot_y); (N, *grid)."""
    ahead = _ahead(f, z_dot)
    ell_dot = _kappa(f, ahead)[:, 0, ...]
    return ell_dot - alpha * f.xp.mean(ahead, axis=1) if alpha > 0 else ell_dot


def cross_entropy_hvp(f: Softmax, alpha: float, z_dot: Array, g: Array, g_dot: Array) -> Array:
    """Equation (16): the derivative of z_bar = g (P - t) along (g_dot, z_dot); (N, C, *grid)."""
    return g_dot[:, None, ...] * _residual(f, alpha) + g[:, None, ...] * _softmax_jvp(f, z_dot)


def _residual(f: Softmax, alpha: float) -> Array:
    """P - t, whose target's entry is -off, never P_y - 1; (N, C, *grid)."""
    C = f.P.shape[1]
    return f.xp.where(f.onehot, alpha * ((C - 1) / C) - f.off, f.P - alpha / C)


def _softmax_jvp(f: Softmax, z_dot: Array) -> Array:
    """P_dot_c = P_c (z_dot_c - sum of P z_dot) = P_c (ahead_c - kappa); (N, C, *grid)."""
    ahead = _ahead(f, z_dot)
    return f.P * (ahead - _kappa(f, ahead))


def _ahead(f: Softmax, z_dot: Array) -> Array:
    """z_dot_c - z_dot_y; (N, C, *grid)."""
    return z_dot - f.xp.sum(f.xp.where(f.onehot, z_dot, 0.0), axis=1, keepdims=True)


def _kappa(f: Softmax, ahead: Array) -> Array:
    """How fast -log P_y grows: sum over c != y of P_c (z_dot_c - z_dot_y); (N, 1, *grid)."""
    return f.xp.sum(f.xp.where(f.onehot, 0.0, f.P * ahead), axis=1, keepdims=True)


# --- Stages 1 and 2 in probability space: the true class's probability is pooled ---------------------------


class Merged(NamedTuple):
    """The pooled probability of the true class, by equation (18): its logarithm, and the loss."""

    pixel: Softmax  # of every pixel, (N, C, *S)
    log_pooled: Array  # (N, *grid) log sum over the group of w u_y
    ell: Array  # (N, *grid) -log of the pooled probability divided by D


def merged_probability(x: Array, labels: Array, valid: Array, options: Options) -> Merged:
    """Equations (6) and (18): ell = -log((1/D) sum over q of w u_q[y_q]), u = softmax(x)."""
    xp = namespace(x)
    # No ignored pixel is ever read: not its value, nor, in autodiff, its softmax.
    pixel = softmax(xp.where((labels >= 0)[:, None, ...], x, 0.0), labels)
    D, W = divisor(labels, valid, options, x.dtype), _weight_sum(labels, valid, options, x.dtype)
    # Near perfection: 1 - (a mean of numbers near 1) is the mean of what is missing from each.
    missing = xp.where(valid, pool(pixel.off, labels, options)[:, 0, ...] / W, 0.0)
    near = missing < 0.5
    ell_near = -xp.log(W / D) - xp.log1p(-xp.where(near, missing, 0.0))
    # Elsewhere: log-sum-exp of log w + log u, which neither over- nor underflows.
    log_u = -pixel.nll
    top = xp.full_like(missing, -math.inf)
    for w, log_w, member, log_u_q in neighbours(labels, log_u, options):
        if w > 0:
            top = xp.maximum(top, xp.where(member, log_w + log_u_q[:, 0, ...], -math.inf))
    top = xp.where(xp.isfinite(top), top, 0.0)  # a group without any probability has log 0 = -inf
    pooled: Any = 0.0
    for w, log_w, member, log_u_q in neighbours(labels, log_u, options):
        if w > 0:
            pooled = pooled + xp.exp(xp.where(member, log_w + log_u_q[:, 0, ...] - top, -math.inf))
    log_pooled = top + xp.log(xp.where(valid, pooled, 1.0))
    return Merged(pixel, log_pooled, xp.where(near, ell_near, xp.log(D) - log_pooled))


def merged_probability_vjp(merged: Merged, labels: Array, options: Options, g: Array) -> Array:
    """Equation (14): x_bar_q = R_q (u_q - onehot), R_q = sum over p of g_p rho_pq; (N, C, *S)."""
    return _times(_received(merged, labels, options, g), _residual(merged.pixel, 0.0))


def merged_probability_jvp(merged: Merged, labels: Array, options: Options, x_dot: Array) -> Array:
    """Equation (15): ell_dot_p = sum over q of rho_pq kappa_q, kappa_q = -d log u_q[y_q]; (N, *grid)."""
    xp = merged.pixel.xp
    kappa = _kappa(merged.pixel, _ahead(merged.pixel, x_dot))  # (N, 1, *S)
    total: Any = 0.0
    pair = xp.concat([-merged.pixel.nll, kappa], axis=1)
    for w, log_w, member, q in neighbours(labels, pair, options):
        if w > 0:
            rho = xp.exp(xp.where(member, log_w + q[:, 0, ...] - merged.log_pooled, -math.inf))
            total = total + xp.where(member, rho * q[:, 1, ...], 0.0)
    return total


def merged_probability_hvp(
    merged: Merged, labels: Array, options: Options, x_dot: Array, g: Array, g_dot: Array, ell_dot: Array
) -> Array:
    """Equation (16): (14) along (g_dot, x_dot), with rho_dot = rho (ell_dot_p - kappa_q); (N, C, *S)."""
    f = merged.pixel
    R = _received(merged, labels, options, g)
    kappa = _kappa(f, _ahead(f, x_dot))
    R_dot = _received(merged, labels, options, g_dot + g * ell_dot) - _times(R, kappa)
    return _times(R_dot, _residual(f, 0.0)) + _times(R, _softmax_jvp(f, x_dot))


def _times(R: Array, a: Array) -> Array:
    """R a, and 0 where a pixel receives nothing: no valid window reads it, so it may be NaN."""
    xp = namespace(R)
    return xp.where(R != 0, R * a, 0.0)


def _received(merged: Merged, labels: Array, options: Options, g: Array) -> Array:
    """R_q = sum over p of g_p rho_pq, rho_pq = w u_q[y] / sum over q' of w u_q'[y] (14); (N, 1, *S).

    Gathered from q's side, since q is in G_p exactly when p is in G_q.
    """
    xp = merged.pixel.xp
    pair = lay(xp.stack([g, merged.log_pooled], axis=1), labels, options)  # (N, 2, *S)
    log_u = -merged.pixel.nll[:, 0, ...]
    total: Any = 0.0
    for w, log_w, member, p in neighbours(labels, pair, options, stride=False):
        if w > 0:
            g_p, log_pooled_p = p[:, 0, ...], p[:, 1, ...]
            sends = member & (g_p != 0)
            total = total + xp.where(
                sends, g_p * xp.exp(xp.where(sends, log_w + log_u - log_pooled_p, 0.0)), 0.0
            )
    return total[:, None, ...]


def _weight_sum(labels: Array, valid: Array, options: Options, dtype: Any) -> Array:
    """Sum of the group's weights whatever D is; (N, *grid), 1 where not valid."""
    xp = namespace(labels)
    W = pool(xp.ones_like(labels, dtype=dtype)[:, None, ...], labels, options)[:, 0, ...]
    return xp.where(valid, W, 1.0)


# --- The engine: stages 1 and 2 put together ---------------------------------------------------------------


def merged_softmax(x: Array, labels: Array, valid: Array, options: Options) -> tuple[Softmax, Array]:
    """The softmax of the merged vectors z (4), seen from the windows' targets; and D (N, 1, *grid)."""
    z, D = merge(x, labels, valid, options)
    return softmax(z, centre(labels, options), lost(x, z, D, labels, valid, options)), D


def window_losses(logits: Array, labels: Array, valid: Array, options: Options) -> Array:
    """ell of every valid window, 0 elsewhere; (N, *grid)."""
    if options.space == "probabilities":
        ell = merged_probability(logits, labels, valid, options).ell
    else:
        f, _ = merged_softmax(logits, labels, valid, options)
        ell = cross_entropy(f, options.label_smoothing)
    return _only_valid(ell, logits, labels, valid, options)


def window_losses_vjp(logits: Array, labels: Array, valid: Array, options: Options, g: Array) -> Array:
    """The gradient that the windows send back to the logits; (N, C, *S)."""
    if options.space == "probabilities":
        merged = merged_probability(logits, labels, valid, options)
        return merged_probability_vjp(
            merged, labels, options, _poison(g, merged.ell, logits, labels, valid, options)
        )
    f, D = merged_softmax(logits, labels, valid, options)
    alpha = options.label_smoothing
    z_bar = cross_entropy_vjp(f, alpha, _poison(g, cross_entropy(f, alpha), logits, labels, valid, options))
    return pool(lay(z_bar / D, labels, options), labels, options, stride=False)  # (13)


def window_losses_jvp(
    logits: Array, labels: Array, valid: Array, options: Options, tangent: Array
) -> tuple[Array, Array]:
    """ell and its derivative along `tangent` (N, C, *S); both (N, *grid)."""
    if options.space == "probabilities":
        merged = merged_probability(logits, labels, valid, options)
        ell, ell_dot = merged.ell, merged_probability_jvp(merged, labels, options, _read(tangent, labels))
    else:
        f, _ = merged_softmax(logits, labels, valid, options)
        z_dot, _ = merge(tangent, labels, valid, options)
        ell = cross_entropy(f, options.label_smoothing)
        ell_dot = cross_entropy_jvp(f, options.label_smoothing, z_dot)
    ell_dot = namespace(ell).where(namespace(ell).isfinite(ell), ell_dot, math.nan)
    return tuple(_only_valid(a, logits, labels, valid, options) for a in (ell, ell_dot))


def window_losses_hvp(
    logits: Array, labels: Array, valid: Array, options: Options, tangent: Array, g: Array, g_dot: Array
) -> tuple[Array, Array]:
    """The gradient and its derivative along `tangent`, where g moves by g_dot; both (N, C, *S)."""
    grad = window_losses_vjp(logits, labels, valid, options, g)
    if options.space == "probabilities":
        merged = merged_probability(logits, labels, valid, options)
        g, g_dot = (_poison(a, merged.ell, logits, labels, valid, options) for a in (g, g_dot))
        x_dot = _read(tangent, labels)
        ell_dot = merged_probability_jvp(merged, labels, options, x_dot)
        ell_dot = namespace(g).where(valid, ell_dot, 0.0)
        return grad, merged_probability_hvp(merged, labels, options, x_dot, g, g_dot, ell_dot)
    f, D = merged_softmax(logits, labels, valid, options)
    z_dot, _ = merge(tangent, labels, valid, options)
    ell = cross_entropy(f, options.label_smoothing)
    g, g_dot = (_poison(a, ell, logits, labels, valid, options) for a in (g, g_dot))
    z_bar_dot = cross_entropy_hvp(f, options.label_smoothing, z_dot, g, g_dot)
    return grad, pool(lay(z_bar_dot / D, labels, options), labels, options, stride=False)


def merged_distribution(x: Array, labels: Array, valid: Array, options: Options) -> Array:
    """The vectors that `inspect` shows: z, or (1/D) sum of w softmax(x); (N, C, *grid)."""
    if options.space == "probabilities":
        x = softmax(_read(x, labels), labels).P
    return merge(x, labels, valid, options)[0]


def _read(x: Array, labels: Array) -> Array:
    """x with 0 at ignored pixels, which nobody reads; (N, C, *S)."""
    return namespace(x).where((labels >= 0)[:, None, ...], x, 0.0)


def _only_valid(ell: Array, logits: Array, labels: Array, valid: Array, options: Options) -> Array:
    """ell where valid, 0 elsewhere; NaN for a label that is no class (check=False)."""
    xp = namespace(ell)
    no_class = centre(labels, options) == logits.shape[1]
    return xp.where(valid, xp.where(no_class, math.nan, ell), 0.0)


def _poison(g: Array, ell: Array, logits: Array, labels: Array, valid: Array, options: Options) -> Array:
    """g where valid, but NaN for a window whose loss is not a finite number; (N, *grid)."""
    xp = namespace(g)
    real = xp.isfinite(_only_valid(ell, logits, labels, valid, options))
    return xp.where(valid, xp.where(real, g, math.nan), 0.0)


def window_maps(
    logits: Array, labels: Array, valid: Array, options: Options
) -> tuple[Array, Array, Array, Array]:
    """|G|, D, the merged vectors and ell, for `inspect`; 0 where not valid."""
    xp = namespace(logits)
    size = xp.where(valid, group_size(labels, options), 0)
    D = xp.where(valid, divisor(labels, valid, options, logits.dtype), 0.0)
    return (
        size,
        D,
        merged_distribution(logits, labels, valid, options),
        window_losses(logits, labels, valid, options),
    )
