"""Stage 3 at the speed of the kernels: `lalref.minkowski` for integer p and losses that are numbers, else that itself.

Sums are taken in blocks and put together in their order, so the number of threads changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lalref import minkowski
from lalref.engines import loops_maps as maps
from lalref.engines.loops_geometry import flat_view
from lalref.engines.loops_threads import run
from lalref.minkowski import Parts
from lalref.options import Options

Array = Any

_BLOCK = 1 << 18  # losses that one thread sums up sooner than a second one wakes


def _integer_power(options: Options, maximum: float) -> bool:
    return options.p == int(min(options.p, 1024)) and maps.LEAST < maximum < math.inf


def parts_of(ell: Array, omega: Array | None, valid: Array, options: Options) -> Parts:
    """`minkowski.parts`, by the loops of `loops_maps` where p is an integer and every loss a number."""
    count = np.int64(np.count_nonzero(valid))
    weight = np.float64(count) if omega is None else np.sum(omega)
    flat, w = flat_view(ell), flat_view(omega) if omega is not None else flat_view(np.empty(0))
    blocks = _blocks(flat.size)
    found = np.zeros(
        (2, len(blocks))
    )  # of each block its largest loss, and the sum of powers relative to that

    def work(i: int) -> None:
        found[:, i] = maps.power_sum(flat, w, int(min(options.p, 1024)), *blocks[i])

    run(work, range(len(blocks)))
    maximum = float(np.max(found[0], initial=0.0))
    if not _integer_power(options, maximum) or not weight < math.inf:
        weights = omega if omega is not None else valid.astype(np.float64)
        return minkowski.parts(ell, weights, valid, options)
    S = np.sum(found[1] * (found[0] / maximum) ** options.p)
    return Parts(np.float64(maximum), S, weight, count, options, ell.dtype.name)


def shares(
    ell: Array, omega: Array | None, valid: Array, total: Parts, grad_output: float, over_ell: bool = False
) -> Array:
    """`minkowski.shares` times `grad_output` in the dtype of `ell`; only where valid does it mean anything.

    With `over_ell` they may be written where `ell` is.
    """
    options, p = total.options, total.options.p
    maximum, S = float(total.maximum), float(total.power_sum)
    B = float(total.weight) if options.reduction == "mean" else 1.0
    if p == 1 or not _integer_power(options, maximum):
        weights = omega if omega is not None else valid.astype(np.float64)
        return (minkowski.shares(ell, weights, total) * grad_output).astype(ell.dtype)
    factor = grad_output * ((S / B) ** (1 / p) / S)
    g = ell if over_ell else np.empty_like(ell)
    flat, to = ell.reshape(-1), g.reshape(-1)
    w = flat_view(omega) if omega is not None else flat_view(np.empty(0))
    run(
        lambda block: maps.write_shares(flat, w, 1 / maximum, int(p) - 1, factor, *block, to),
        _blocks(flat.size),
    )
    return g


def _blocks(size: int) -> Sequence[tuple[int, int]]:
    return [(i, min(i + _BLOCK, size)) for i in range(0, size, _BLOCK)]
