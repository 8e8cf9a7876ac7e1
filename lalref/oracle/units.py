"""The error unit, equation (20): how far off an honest float implementation may be, number by number.

A unit is eps of the working dtype times the first-order amplification of the *textbook* algorithm (weighted
sum, divide, log-softmax by log-sum-exp, power mean, and their textbook backward), plus the dtype's
subnormal floor. It is a running error bound over exact intermediates, with these rules, each to first order:

- every input and every operation is off by a relative eps (twice the unit roundoff: exp, log and pow of
  common libraries are good to 1 ulp);
- a sum of n terms, in whatever order: n - 1 additions, each off by eps times at most the sum of |terms|;
- exp(a): the absolute error of a becomes relative; log(v): the relative error of v becomes absolute;
- v^k: k times the relative error of v, and eps (1 + |k log v|) of its own, as exp(k log v) has;
- where the textbook has a choice that people really make (softmax as exp(z - lse) or as exp(a)/s; the
  gradient of max ell followed or detached), the worse one counts;
- every product may underflow: at most the smallest normal number is lost, for many platforms flush.

First order alone says nothing of ell^k where ell is smaller than its own error; there (and only there does
it matter) the finite difference (ell + Δell)^k - ell^k is taken, and a share of stage 3 is never further off
than from its own range. A textbook implementation therefore stays below 1 unit, and engines below 2.

No golden value is decided here, and no verdict: the caller divides errors by units.
"""

from __future__ import annotations

import dataclasses
import math

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lalref.oracle import dense
from lalref.oracle.case import Case
from lalref.oracle.dense import Pooling, Softmax, Wide, powers

WORKING = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}
OMEGA = 3.0  # relative error of omega = class_weight · pixel_weight in eps: two inputs and a product


@dataclasses.dataclass(frozen=True)
class Units:
    """One error unit for the value (or each entry of the map) and for each entry of the gradient."""

    value: npt.NDArray[np.float64]
    grad: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Stages 1 and 2 with their errors, and what stage 2's backward needs."""

    ell: Wide  # (P,)
    ell_error: Wide  # (P,), absolute
    stage: _Merged | _Probable


@dataclasses.dataclass(frozen=True)
class _Merged:
    D_relative: Wide  # (P,) in eps
    w_relative: Wide  # (P, Q) in eps
    slope: Wide  # (P, C), softmax - t
    slope_error: Wide  # (P, C), absolute


@dataclasses.dataclass(frozen=True)
class _Probable:
    rho: Wide  # (P, Q)
    rho_error: Wide  # (P, Q), absolute
    slope: Wide  # (Q, C), u - onehot
    slope_error: Wide  # (Q, C), absolute


@np.errstate(all="ignore")
def error_unit(
    case: Case, dtype: str, value: npt.NDArray[np.float64], grad: npt.NDArray[np.float64]
) -> Units:
    """Work out the error units of `case` for logits of `dtype`.

    Parameters
    ----------
    case : Case
    dtype : str
        "float16", "bfloat16", "float32" or "float64". 16-bit logits are worked out in float32, and their
        gradient pays for one more rounding.
    value, grad : float64 array
        The right answers: only their sizes and shapes are used, in the last rounding and where the case
        asks for relative accuracy.

    Returns
    -------
    Units
        Shaped as `value` and `grad`; in `grad` the class axis is where the case has it.
    """
    working = np.finfo(WORKING[dtype])
    eps, tiny = float(working.eps), float(working.tiny)
    model = _relative if case.accurate else _textbook
    units = model(case, eps, tiny, value, grad)
    if dtype in ("float16", "bfloat16"):
        info = ml_dtypes.finfo(dtype)
        last = float(info.eps) * abs(grad) + float(info.smallest_subnormal)
        units = Units(units.value, units.grad + last)
    return units


def _relative(
    case: Case, eps: float, tiny: float, value: npt.NDArray[np.float64], grad: npt.NDArray[np.float64]
) -> Units:
    """Equations (17) and (18): a merged logit is off by eps max |x|, which is the loss's relative error.

    The gradient has share and slope as factors: (p - 1) times the loss's relative error, and once that.
    """
    options = case.all_options
    powers_of_ell = 1.0 if options["reduction"] == "none" or options["p"] == math.inf else options["p"]
    off = eps * (1.0 + float(abs(case.logits).max(initial=0.0)))
    return Units(off * abs(value) + tiny, off * powers_of_ell * abs(grad) + tiny)


def _textbook(
    case: Case, eps: float, tiny: float, value: npt.NDArray[np.float64], grad: npt.NDArray[np.float64]
) -> Units:
    pool = dense.pooling(case)
    logits = case.all_options["space"] == "logits"
    windows = (_merged if logits else _probable)(case, pool, eps, tiny)
    value_error, upstream, upstream_error = _stage_3(case, pool, windows, eps, tiny)
    backward = _backward_merged if logits else _backward_probable
    x_error = backward(pool, windows, upstream, upstream_error, eps, tiny)  # (Q, C)
    moved = np.moveaxis(grad, case.all_options["axis"], -1).shape  # (N, *S, C)
    grad_unit = np.moveaxis(x_error.reshape(moved), -1, case.all_options["axis"])
    if case.all_options["reduction"] == "none":
        value_unit = _onto_grid(case, pool, value_error, value.shape)
    else:
        value_unit = value_error
    return Units(np.asarray(value_unit, np.float64), grad_unit.astype(np.float64))


def _weights(case: Case, pool: Pooling) -> tuple[Wide, Wide, Wide]:
    """Relative errors of w (P, Q) and D (P,) in eps, and n - 1 (P,) of the window sums."""
    n_1 = pool.member.sum(1) - 1.0
    # exp's own; its argument ½(d/σ)² is a quotient, two products and twice the input σ
    w_relative = 1 + 5 * pool.argument
    if case.all_options["normalize"] == "count":
        return w_relative, np.zeros_like(pool.D), n_1
    return w_relative, (pool.w * w_relative).sum(1) / pool.D + n_1, n_1


def _softmax_errors(soft: Softmax, z_error: Wide, eps: float, tiny: float) -> tuple[Wide, Wide, Wide]:
    """What log-sum-exp adds to z's error (R,), absolute error of P (R, C), and the relative one (R, C)."""
    C = soft.z.shape[1]
    # exp(a): a's subtraction and exp itself; then C - 1 additions
    sum_relative = (soft.P * (eps * (abs(soft.a) + 1))).sum(1) + eps * (C - 1)  # (R,)
    # z's errors reach P_c by its derivative P_c (δ_ck - P_k)
    spread = (soft.P * z_error).sum(1, keepdims=True)
    from_z = (soft.off - soft.P) * z_error + spread  # (R, C), (1 - P_c) of its own, P_k of the others
    own = abs(soft.a) + 2 + abs(soft.lse)[:, None] + abs(soft.log_s)[:, None] + soft.h
    relative = from_z + eps * own + sum_relative[:, None]
    return sum_relative, soft.P * relative + tiny, relative


def _merged(case: Case, pool: Pooling, eps: float, tiny: float) -> Windows:
    """Equations (4) and (5)."""
    C, alpha = pool.x.shape[1], case.all_options["label_smoothing"]
    w_relative, D_relative, n_1 = _weights(case, pool)
    D = pool.D[:, None]
    z = pool.w @ pool.x / D  # (P, C)
    size = pool.w @ abs(pool.x) / D  # (P, C), the average of |x|
    # inputs and products w x, then the sum, then D and the division
    z_error = eps * (((pool.w * w_relative) @ abs(pool.x)) / D + (2 + n_1[:, None]) * size)
    z_error += eps * (D_relative[:, None] + 1) * abs(z)
    z_error += tiny * (pool.member @ abs(pool.x) + pool.member.sum(1, keepdims=True) * (1 + abs(z))) / D
    soft = dense.softmax(z)
    sum_relative, P_error, _ = _softmax_errors(soft, z_error, eps, tiny)

    one = dense.onehot(pool.target, C)
    t = (1 - alpha) * one + np.longdouble(alpha) / C  # (P, C)
    terms = np.where(t > 0, t * soft.h, 0)
    ell = terms.sum(1)
    slope = np.where(one > 0, alpha - np.longdouble(alpha) / C - soft.off, soft.P - t)
    # z's errors reach ell by its derivative, softmax - t
    ell_error = (abs(slope) * z_error).sum(1) + sum_relative
    ell_error += eps * (abs(soft.log_s) + abs(soft.lse))  # log, and adding the maximum back
    # a_c, its log-softmax, t's two roundings and the product; C - 1 additions when every class has a term
    ell_error += eps * (t * abs(soft.a) + (4 + (C - 1) * (alpha > 0)) * terms).sum(1) + eps * ell
    ell_error += tiny * (C + 1)
    slope_error = P_error + eps * (abs(slope) + 2 * t + (2 + (C - 1) * (alpha > 0)) * soft.P)
    return Windows(ell, ell_error, _Merged(D_relative, w_relative, slope, slope_error))


def _probable(case: Case, pool: Pooling, eps: float, tiny: float) -> Windows:
    """Equation (6)."""
    C = pool.x.shape[1]
    w_relative, D_relative, n_1 = _weights(case, pool)
    soft = dense.softmax(pool.x)  # of pixels: (Q, C)
    _, u_error, u_relative = _softmax_errors(soft, eps * abs(pool.x), eps, tiny)
    y = np.clip(pool.y, 0, C - 1)
    pixels = np.arange(y.size)
    u = soft.P[pixels, y]  # (Q,), of the pixel's own class
    relative = u_relative[pixels, y] + eps * soft.h[pixels, y]  # also by way of log u
    T = pool.w @ u  # (P,)
    T_relative = (pool.w * (relative + eps * (w_relative + 2))) @ u / T + eps * n_1 + tiny * (n_1 + 1) / T
    v_relative = T_relative + eps * (D_relative + 1)
    # -log v = log1p of the average of what is missing from 1: no cancellation for v near 1
    off = soft.off[pixels, y]
    short = (pool.w.sum(1) - pool.D + pool.w @ -off) / pool.D
    ell = np.where(T / pool.D > 0.5, -np.log1p(short), -np.log(T / pool.D))
    ell_error = v_relative + 2 * eps * ell + tiny
    rho = pool.w * u / T[:, None]
    rho_error = rho * (relative + T_relative[:, None] + eps * (w_relative + 3)) + tiny
    one = dense.onehot(pool.y, C)
    slope = np.where(one > 0, -soft.off, soft.P)
    slope_error = u_error + eps * (abs(slope) + 2 * soft.P + 2 * one)
    return Windows(ell, ell_error, _Probable(np.where(pool.member, rho, 0), rho_error, slope, slope_error))


def _stage_3(case: Case, pool: Pooling, windows: Windows, eps: float, tiny: float) -> tuple[Wide, Wide, Wide]:
    """Equations (8) to (11): error of the value, upstream of each ell and its error, both (P,)."""
    options, ell, ell_error, omega = case.all_options, windows.ell, windows.ell_error, pool.omega
    M, p = ell.size, options["p"]
    if options["reduction"] == "none":  # (10)
        given = np.asarray(case.grad_output, np.longdouble)
        upstream = (given if given.ndim == 0 else _from_grid(case, pool, given)) * omega
        value_error = omega * ell_error + eps * (OMEGA + 1) * omega * ell + tiny
        return value_error, upstream, eps * (OMEGA + 2) * abs(upstream) + tiny
    zero = np.zeros((), np.longdouble)
    if M == 0:
        return zero + tiny, ell, ell
    if p == math.inf:  # (9)
        tied = ell >= (1 - 16 * eps) * ell.max()
        share = np.where(tied, omega, 0) / omega[tied].sum()
        share_error = eps * (M + 2 * OMEGA) * share
        value_error = ell_error[tied].max() + eps * ell.max() + tiny
    else:
        value_error, share, share_error = _power_mean(
            ell, ell_error, omega, p, options["reduction"], eps, tiny
        )
    scale = abs(float(case.grad_output))
    return value_error, case.grad_output * share, scale * (share_error + 2 * eps * share) + tiny * (scale > 0)


def _power_mean(
    ell: Wide, ell_error: Wide, omega: Wide, p: float, reduction: str, eps: float, tiny: float
) -> tuple[Wide, Wide, Wide]:
    """Equations (8) and (11): error of L, each window's share of the gradient and its error."""
    M, top = ell.size, ell.max()
    B = omega.sum() if reduction == "mean" else np.longdouble(1)
    B_relative = eps * (OMEGA + M - 1) if reduction == "mean" else 0.0
    highest = (omega / B) ** (1 / np.longdouble(p))  # what a share can come to, whatever the losses are
    if top == 0:
        reached = (omega @ ell_error**p / B) ** (1 / np.longdouble(p))
        return reached + tiny, np.zeros_like(ell), highest
    r, r_error = ell / top, ell_error / top

    def power_errors(k: float) -> tuple[Wide, Wide]:
        """Of r^k: what ell's error does, and the roundings of the division and of the power itself."""
        ratio = np.where(r > 0, r_error / r, 0)
        grown = powers(r, k) * np.expm1(k * np.log1p(ratio))
        grown = np.where((r > 0) & (ratio < 1), grown, powers(r + r_error, k) - powers(r, k))
        if 0 < k < 1:  # a concave power falls faster than it grows
            grown = np.maximum(grown, powers(r, k) * (1 - (1 - np.minimum(ratio, 1)) ** k))
        own = powers(r, k) * eps * np.where(r > 0, 1 + k + k * abs(np.log(r)), 0) + tiny
        return grown, own

    S = omega @ powers(r, p)
    s_grown, s_own = power_errors(p)
    S_data = omega @ s_grown / S
    S_own = omega @ (s_own + eps * (OMEGA + 1) * powers(r, p)) / S + eps * (M - 1)
    root = (S / B) ** (1 / np.longdouble(p))
    root_own = (S_own + B_relative + eps) / p + eps * (1 + 2 * abs(np.log(S / B)) / p)

    a_grown, a_own = power_errors(p - 1)
    share = omega * powers(r, p - 1) / S * root
    data = omega * a_grown * root / S + share * (1 - 1 / p) * S_data
    data = np.minimum(data, highest)
    own = omega * a_own * root / S + share * (S_own + root_own + eps * (OMEGA + 5)) + tiny
    # following the gradient of max ell adds and takes away root, leaving the rounding of both sums
    could_be_top = r + r_error >= 1 - r_error.max()
    steep = powers(r, p) * p * (1 + abs(np.log(np.maximum(r, tiny))))
    followed = eps * root * (2 * M + 8 + 2 * omega @ steep / S)
    own = own + np.where(could_be_top, followed, 0)
    L = top * root
    return (share + data) @ ell_error + L * (root_own + 2 * eps) + tiny, share, data + own


def _backward_merged(
    pool: Pooling, windows: Windows, upstream: Wide, upstream_error: Wide, eps: float, tiny: float
) -> Wide:
    """Equations (12) and (13): error of the gradient, (Q, C)."""
    stage = windows.stage
    assert isinstance(stage, _Merged)
    g, g_error = abs(upstream)[:, None], upstream_error[:, None]
    z_bar = g * abs(stage.slope)  # (P, C)
    z_bar_error = g_error * (abs(stage.slope) + stage.slope_error) + g * stage.slope_error
    z_bar_error += eps * z_bar + tiny
    A = pool.w / pool.D[:, None]  # (P, Q)
    rounding = A * (stage.w_relative + stage.D_relative[:, None] + 3)
    n = pool.member.sum(0)[:, None]  # (Q, 1), how many windows read a pixel
    x_error: Wide = A.T @ z_bar_error + eps * (rounding.T @ z_bar + (n - 1) * (A.T @ z_bar))
    x_error += tiny * (pool.member.T @ (z_bar + 1) + 1)
    return x_error


def _backward_probable(
    pool: Pooling, windows: Windows, upstream: Wide, upstream_error: Wide, eps: float, tiny: float
) -> Wide:
    """Equation (14): error of the gradient, (Q, C)."""
    stage = windows.stage
    assert isinstance(stage, _Probable)
    g = abs(upstream)
    R = (g @ stage.rho)[:, None]  # (Q, 1)
    n = pool.member.sum(0)
    rho_error = pool.member * stage.rho_error
    error = upstream_error @ (stage.rho + rho_error) + g @ rho_error
    R_error = (error + eps * (n - 1) * R[:, 0] + tiny * n)[:, None]
    slope_error = stage.slope_error + eps * abs(stage.slope)
    x_error: Wide = R_error * (abs(stage.slope) + stage.slope_error) + R * slope_error + tiny
    return x_error


def _grid_index(case: Case, pool: Pooling) -> tuple[npt.NDArray[np.intp], ...]:
    """Where in the (N, *grid) map each window lies."""
    shape = case.labels.shape
    strides = (1, *dense.per_axis(case.all_options["stride"], len(shape) - 1))
    return tuple(i // s for i, s in zip(np.unravel_index(pool.at, shape), strides, strict=True))


def _onto_grid(case: Case, pool: Pooling, values: Wide, shape: tuple[int, ...]) -> Wide:
    grid = np.full(shape, np.finfo(np.float64).tiny, np.longdouble)  # 0 where not valid, exactly
    grid[_grid_index(case, pool)] = values
    return grid


def _from_grid(case: Case, pool: Pooling, grid: Wide) -> Wide:
    return grid[_grid_index(case, pool)]
