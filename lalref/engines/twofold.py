"""Numbers in two parts: what rounding takes from a sum or a product, so that it can be put back.

Exact in round-to-nearest arithmetic, which is all that is asked of an array library; nothing of the loss may
come in. Sources: Knuth, The Art of Computer Programming 2, 4.2.2, theorem B; Dekker, Numer. Math. 18 (1971).
"""

from __future__ import annotations

import numpy as np

from lalref.arrays import Array, dtype_name


def difference(a: Array, b: Array) -> tuple[Array, Array]:
    """Return ``a - b`` as rounded, and what rounding took from it: together they are a - b exactly."""
    d = a - b
    minus_b = d - a
    return d, (a - (d - minus_b)) - (b + minus_b)


def half_of_the_digits(a: Array) -> Array:
    """Return `a` rounded to its leading half of digits: a product of two such numbers is exact."""
    big = a * (2.0 ** (np.finfo(dtype_name(a.dtype)).nmant // 2 + 1) + 1)
    return big - (big - a)
