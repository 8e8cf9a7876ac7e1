"""Stage 3, Minkowski pooling: from the map of window losses to one number, and its shares back.

Every engine ends here, or in loops or kernels of its own that tests hold to this. It works on small maps in float64.
In come ell and omega on the stride grid; no logits, no labels, no windows may come in.

With r = ell / max ell, S = sum(omega r^p) and B = sum(omega) (mean) or 1 (sum), equation (8) is
L = max ell (S/B)^(1/p): the powers are taken of numbers in [0, 1], so they can't overflow, and at least
one of them is 1, so S can't underflow.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from lalref.arrays import Array, Namespace, as_scalar, at_home, dtype_name, epsilon, namespace, wide_dtype
from lalref.options import Options, differing


@dataclasses.dataclass(frozen=True)
class Parts:
    """What one part of a batch contributes to the loss of the whole: equation (19).

    Parts come from `LocallyAdaptiveLoss.parts` and are put together by `combine`; a mean of the parts'
    values would be another loss (a Minkowski mean of means is not the mean of the whole).

    Attributes
    ----------
    maximum, power_sum, weight : 0-d array, float64
        max ell, S = sum(omega (ell / max ell)^p) (at p = inf: omega summed over the ties), sum(omega).
    count : 0-d integer array
        The number of valid windows, M.
    options : LocallyAdaptiveLoss
        The loss that the part belongs to.
    dtype : str
        Name of the dtype the part was worked out in, ``"float32"`` or ``"float64"``.

    Examples
    --------
    >>> import numpy as np, lalref
    >>> x = np.arange(32.0).reshape(2, 2, 2, 4) % 5
    >>> y = np.arange(16).reshape(2, 2, 4) // 3 % 2
    >>> loss = lalref.LocallyAdaptiveLoss(kernel_size=3)
    >>> whole = lalref.combine(*(loss.parts(x[i : i + 1], y[i : i + 1]) for i in range(2)))
    >>> bool(np.isclose(whole.value, loss(x, y), rtol=1e-14))
    True
    """

    maximum: Array
    power_sum: Array
    weight: Array
    count: Array
    options: Options
    dtype: str

    @property
    def value(self) -> Array:
        """The loss of the part: equation (8), or what `empty` says where no window is valid."""
        xp = namespace(self.maximum)
        with at_home(xp, self.maximum):
            L = xp.where(self.count == 0, math.nan if self.options.empty == "nan" else 0.0, power_mean(self))
            return as_scalar(xp.astype(L, getattr(xp, self.dtype)))


def parts(ell: Array, omega: Array, valid: Array, options: Options, maximum: Array | None = None) -> Parts:
    """Sum up the window losses `ell` with weights `omega`, all of shape (N, *grid).

    Powers are taken relative to `maximum`: that of a whole which these are a part of, else their own.
    """
    xp, ell_wide = _widen(ell)
    ell_wide = xp.where(xp.isnan(omega), math.nan, ell_wide)  # a weight that isn't allowed, check=False
    if maximum is None:
        maximum = xp.max(ell_wide) if math.prod(ell.shape) else xp.sum(ell_wide)  # ell = 0 where not valid
    found = Parts(
        maximum, maximum, xp.sum(omega), xp.sum(xp.astype(valid, xp.int32)), options, dtype_name(ell.dtype)
    )
    return dataclasses.replace(found, power_sum=xp.sum(_powers(ell_wide, omega, found, options.p)))


def combine(*parts: Parts) -> Parts:
    """Put the parts of a batch together: equation (19).

    Parameters
    ----------
    *parts : Parts
        One or more, of the same loss; parts without a valid window are welcome.

    Returns
    -------
    Parts
        Of the whole; its ``value`` is the whole's loss, and ``value_and_grad(..., total=whole)`` on one
        part's arrays gives the whole's value and that part's gradient.

    Raises
    ------
    TypeError
        An argument is no Parts.
    ValueError
        No part was given, or they belong to different losses or dtypes.

    Examples
    --------
    See `Parts`.
    """
    if not parts:
        raise ValueError("combine() needs at least one Parts, got none")
    first = parts[0]
    for i, part in enumerate(parts):
        if not isinstance(part, Parts):
            hint = ": pass combine(*parts)" if isinstance(part, list | tuple | Iterator) else ""
            raise TypeError(
                f"combine() takes Parts, each an argument; argument {i} is of type {type(part).__name__}{hint}"
            )
        if part.options != first.options:
            here, there = differing(first.options, part.options)
            raise ValueError(
                f"combine() needs parts of one loss; part 0 is of one with {here}, part {i} of one with {there}"
            )
        if part.dtype != first.dtype:
            raise ValueError(
                f"combine() needs parts of one dtype; part 0 is in {first.dtype}, part {i} in {part.dtype}"
            )
    xp = namespace(*(part.maximum for part in parts))

    def gather(field: str) -> Array:
        return xp.stack([getattr(part, field) for part in parts])  # (number of parts,)

    with at_home(xp, first.maximum):
        maxima, sums = gather("maximum"), gather("power_sum")
        whole = dataclasses.replace(
            first, maximum=xp.max(maxima), weight=xp.sum(gather("weight")), count=xp.sum(gather("count"))
        )
        return dataclasses.replace(whole, power_sum=xp.sum(_powers(maxima, sums, whole, first.options.p)))


def power_mean(total: Parts) -> Array:
    """Equation (8), or (9) at p = inf; not yet told what an empty batch is worth."""
    xp, p = namespace(total.maximum), total.options.p
    if p == math.inf:
        return total.maximum
    S = xp.where(
        total.power_sum == 0, 1.0, total.power_sum
    )  # keeps 0^(1/p), whose slope is inf, out of autodiff
    mean = S / _divisor(total)
    return xp.where(total.maximum == 0, 0.0, total.maximum * (mean if p == 1 else mean ** (1 / p)))


def shares(ell: Array, omega: Array, total: Parts) -> Array:
    """Equation (11): the derivative of L with respect to each ell, float64 (N, *grid); 0 where not valid."""
    xp, ell_wide = _widen(ell)
    p = total.options.p
    if p == 1:  # linear: a NaN or infinite ell stays with its own window
        return omega / _divisor(total)
    if p == math.inf:
        share = _powers(ell_wide, omega, total, p) / total.power_sum
    else:
        mean = (total.power_sum / _divisor(total)) ** (1 / p)
        share = _powers(ell_wide, omega, total, p - 1) / total.power_sum * mean
    finite = xp.where(total.maximum == 0, xp.zeros_like(share), share)
    return xp.where(omega != 0, xp.where(xp.isfinite(total.maximum), finite, math.nan), xp.zeros_like(share))


def shares_dot(
    g: Array, ell: Array, ell_dot: Array, value: Array, value_dot: Array, options: Options
) -> Array:
    """Equation (16), stage 3: how g, (11) of each ell, moves when the losses move by `ell_dot`.

    At p = inf and where ell = 0 the shares are held fixed.
    """
    xp, ell_wide = _widen(ell)
    if options.p in (1, math.inf):
        return xp.zeros_like(g)
    moving = (ell_wide != 0) & (g != 0)
    safe_ell = xp.where(moving, ell_wide, xp.ones_like(ell_wide))
    safe_value = xp.where(value == 0, 1.0, value)
    relative = xp.astype(ell_dot, ell_wide.dtype) / safe_ell - value_dot / safe_value
    return xp.where(moving, g * ((options.p - 1) * relative), xp.zeros_like(g))


def _powers(ell: Array, omega: Array, total: Parts, exponent: float) -> Array:
    """omega (ell / max ell)^exponent; at p = inf omega where ell ties with the maximum (9), else 0."""
    xp = namespace(ell)
    zero = xp.zeros_like(ell)
    if total.options.p == math.inf:
        return xp.where(ell >= (1 - 16 * epsilon(total.dtype)) * total.maximum, omega, zero)
    safe = xp.where(total.maximum == 0, 1.0, total.maximum)
    r = xp.where(ell == math.inf, xp.ones_like(ell), ell / safe)
    moving = (omega != 0) & (r != 0)  # keeps 0^(exponent - 2), which may be inf, out of second derivatives
    return xp.where(moving, omega * xp.where(moving, r, xp.ones_like(r)) ** exponent, zero)


def _divisor(total: Parts) -> Array:
    """B of equation (8); 1 for an empty batch, whose value is not a mean."""
    xp = namespace(total.weight)
    B = total.weight if total.options.reduction == "mean" else xp.ones_like(total.weight)
    return xp.where(B == 0, 1.0, B)


def _widen(ell: Array) -> tuple[Namespace, Array]:
    xp = namespace(ell)
    return xp, xp.astype(ell, wide_dtype(xp))
