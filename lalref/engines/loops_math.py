"""exp and log1p of `LANES` numbers at once, accurate to about one rounding, right for NaN and infinities.

Only what the loss needs: exp of a number and a small correction to it, and log1p of what is not negative.
The loss itself may not come in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from lalref.engines.loops_lanes import bits, fma, select, shift_left, shift_right, spread, to_float

# Adding 1.5 * 2**23 to a float32 rounds it to an integer, which then stands in the low bits; 127 + 100 more
# makes them the exponent bits of 2**(n + 100), a normal number for every n >= -150.
_ROUND_32, _LIFT_32 = np.float32(1.5 * 2**23 + 227), np.float32(2.0**-100)
_ROUND_64, _LIFT_64 = np.float64(1.5 * 2**52 + 1623), np.float64(2.0**-600)
_LOG2_E = 1.4426950408889634
_LN2 = 0.6931471805599453
# ln 2 in two parts, the first short enough that its product with n is exact.
_LN2_HIGH_32, _LN2_LOW_32 = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LN2_HIGH_64, _LN2_LOW_64 = np.float64(6.93145751953125e-1), np.float64(1.42860682030941723212e-6)
_ROOT_HALF_32 = int(np.float32(0.5**0.5).view(np.int32))
_ROOT_HALF_64 = int(np.float64(0.5**0.5).view(np.int64))

#: Beyond this the exponent bits of `exp_of_sum` overflow, in float32 soon.
MOST_EXPONENT = 16.0


def exp_of_sum(x: Any, low: Any) -> Any:
    """exp(x + low) for x <= `MOST_EXPONENT` or NaN, and |low| a rounding or two of x.

    Subnormal results are right too; with x = -inf `low` may be anything; exp(inf) is NaN.
    """
    raise NotImplementedError("for numba alone")


@overload(exp_of_sum)
def _exp(x: Any, low: Any) -> Any:
    def in_float32(x: Any, low: Any) -> Any:
        lowest = spread(np.float32(-104.0))  # exp of it rounds to 0
        too_low = lowest > x  # a comparison, so that NaN stays
        x, low = select(too_low, lowest, x), select(too_low, lowest - lowest, low)
        rounded = fma(x, spread(np.float32(_LOG2_E)), spread(_ROUND_32))
        n = rounded - spread(_ROUND_32)
        r = fma(n, spread(-_LN2_HIGH_32), x)  # |r| <= ln(2) / 2
        r = fma(n, spread(-_LN2_LOW_32), r) + low
        q = fma(r, spread(np.float32(1.9875691500e-4)), spread(np.float32(1.3981999507e-3)))  # Cephes, expf
        q = fma(r, q, spread(np.float32(8.3334519073e-3)))
        q = fma(r, q, spread(np.float32(4.1665795894e-2)))
        q = fma(r, q, spread(np.float32(1.6666665459e-1)))
        q = fma(r, q, spread(np.float32(5.0000001201e-1)))
        q = fma(r * r, q, r) + spread(np.float32(1.0))
        return q * bits(shift_left(bits(rounded), 23)) * spread(_LIFT_32)

    def in_float64(x: Any, low: Any) -> Any:
        lowest = spread(np.float64(-746.0))
        too_low = lowest > x
        x, low = select(too_low, lowest, x), select(too_low, lowest - lowest, low)
        rounded = fma(x, spread(np.float64(_LOG2_E)), spread(_ROUND_64))
        n = rounded - spread(_ROUND_64)
        r = fma(n, spread(-_LN2_HIGH_64), x)
        r = fma(n, spread(-_LN2_LOW_64), r) + low
        q = spread(np.float64(1 / 6227020800))  # Taylor to r**13 / 13!; the next term is below 5e-18
        q = fma(r, q, spread(np.float64(1 / 479001600)))
        q = fma(r, q, spread(np.float64(1 / 39916800)))
        q = fma(r, q, spread(np.float64(1 / 3628800)))
        q = fma(r, q, spread(np.float64(1 / 362880)))
        q = fma(r, q, spread(np.float64(1 / 40320)))
        q = fma(r, q, spread(np.float64(1 / 5040)))
        q = fma(r, q, spread(np.float64(1 / 720)))
        q = fma(r, q, spread(np.float64(1 / 120)))
        q = fma(r, q, spread(np.float64(1 / 24)))
        q = fma(r, q, spread(np.float64(1 / 6)))
        q = fma(r, q, spread(np.float64(0.5)))
        q = fma(r * r, q, r) + spread(np.float64(1.0))
        return q * bits(shift_left(bits(rounded), 52)) * spread(_LIFT_64)

    return in_float32 if x.scalar == types.float32 else in_float64


def log1p_not_negative(a: Any) -> Any:
    """log(1 + a) for finite a >= 0 or NaN, with the relative accuracy of a where a is tiny."""
    raise NotImplementedError("for numba alone")


@overload(log1p_not_negative)
def _log1p(a: Any) -> Any:
    # With u = 1 + a rounded, log(1 + a) = log u + (what rounding lost) / u. With u = 2**k m and
    # 1/sqrt 2 <= m < sqrt 2, log m = 2 artanh t = 2 (t + t**3/3 + t**5/5 + ...), t = (m - 1) / (m + 1).
    def in_float32(a: Any) -> Any:
        one = spread(np.float32(1.0))
        u = one + a
        lost = (a - (u - one)) / u
        k = shift_right(bits(u) - spread(np.int32(_ROOT_HALF_32)), 23)
        m = bits(bits(u) - shift_left(k, 23))
        t = (m - one) / (m + one)
        z = t * t
        q = fma(z, spread(np.float32(2 / 11)), spread(np.float32(2 / 9)))
        q = fma(z, q, spread(np.float32(2 / 7)))
        q = fma(z, q, spread(np.float32(2 / 5)))
        q = fma(z, q, spread(np.float32(2 / 3)))
        log_m = fma(t * z, q, t + t)
        return select(u == u, fma(to_float(k), spread(np.float32(_LN2)), log_m + lost), u)

    def in_float64(a: Any) -> Any:
        one = spread(np.float64(1.0))
        u = one + a
        lost = (a - (u - one)) / u
        k = shift_right(bits(u) - spread(np.int64(_ROOT_HALF_64)), 52)
        m = bits(bits(u) - shift_left(k, 52))
        t = (m - one) / (m + one)
        z = t * t
        q = fma(z, spread(np.float64(2 / 23)), spread(np.float64(2 / 21)))
        q = fma(z, q, spread(np.float64(2 / 19)))
        q = fma(z, q, spread(np.float64(2 / 17)))
        q = fma(z, q, spread(np.float64(2 / 15)))
        q = fma(z, q, spread(np.float64(2 / 13)))
        q = fma(z, q, spread(np.float64(2 / 11)))
        q = fma(z, q, spread(np.float64(2 / 9)))
        q = fma(z, q, spread(np.float64(2 / 7)))
        q = fma(z, q, spread(np.float64(2 / 5)))
        q = fma(z, q, spread(np.float64(2 / 3)))
        log_m = fma(t * z, q, t + t)
        return select(u == u, fma(to_float(k), spread(np.float64(_LN2)), log_m + lost), u)

    return in_float32 if a.scalar == types.float32 else in_float64
