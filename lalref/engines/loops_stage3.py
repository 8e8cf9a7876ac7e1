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
_NUMPY_BLOCK = 1 << 15  # losses of which a few float64 copies are little


def _integer_power(options: Options, maximum: float) -> bool:
    return options.p == int(min(options.p, 1024)) and maps.LEAST < maximum < math.inf


def parts_of(ell: Array, omega: Array | None, valid: Array, options: Options) -> Parts:
    """`minkowski.parts`, by the loops of `loops_maps` where p is an integer and every loss a number."""
    count = np.int64(np.count_nonzero(valid))
    weight = np.float64(count) if omega is None else np.sum(omega)
    flat, w = flat_view(ell), flat_view(omega) if omega is not None else flat_view(np.empty(0))
    blocks = _blocks(flat.size, _BLOCK)
    # Of each block its largest loss, and the sum of powers relative to that.
    found = np.zeros((2, len(blocks)))

    def work(i: int) -> None:
        found[:, i] = maps.power_sum(flat, w, int(min(options.p, 1024)), *blocks[i])

    run(work, range(len(blocks)))
    maximum = np.max(found[0], initial=0.0)
    if _integer_power(options, float(maximum)) and weight < math.inf:
        S = np.sum(found[1] * (found[0] / maximum) ** options.p)
        return Parts(maximum, S, weight, count, options, ell.dtype.name)
    maximum = np.float64(np.nan if np.isnan(weight) else np.max(flat, initial=0))
    sums = np.zeros(len(blocks := _blocks(flat.size, _NUMPY_BLOCK)))

    def by_numpy(i: int) -> None:
        here = slice(*blocks[i])
        some = flat[here], _weights(omega, valid, here), flat_view(valid)[here]
        with np.errstate(all="ignore"):  # threads have settings of their own
            sums[i] = minkowski.parts(*some, options, maximum).power_sum

    run(by_numpy, range(len(blocks)))
    return Parts(maximum, np.sum(sums), weight, count, options, ell.dtype.name)


def shares(
    ell: Array, omega: Array | None, valid: Array, total: Parts, grad_output: float, over_ell: bool = False
) -> Array:
    """`minkowski.shares` times `grad_output` in the dtype of `ell`; only where valid does it mean anything.

    With `over_ell` they may be written where `ell` is.
    """
    options, p = total.options, total.options.p
    maximum, S = float(total.maximum), float(total.power_sum)
    B = float(total.weight) if options.reduction == "mean" else 1.0
    g = ell if over_ell else np.empty_like(ell)
    flat, to = ell.reshape(-1), g.reshape(-1)
    w = flat_view(omega) if omega is not None else flat_view(np.empty(0))

    def by_numpy(block: tuple[int, int]) -> None:
        here = slice(*block)
        with np.errstate(all="ignore"):
            to[here] = minkowski.shares(flat[here], _weights(omega, valid, here), total) * grad_output

    if p != 1 and not _integer_power(options, maximum):
        run(by_numpy, _blocks(flat.size, _NUMPY_BLOCK))
        return g
    if p == 1:  # linear: no loss is asked for
        scale, factor = 1.0, grad_output / (B or 1.0)
    else:
        scale, factor = 1 / maximum, grad_output * ((S / B) ** (1 / p) / S)
    run(
        lambda block: maps.write_shares(flat, w, scale, int(p) - 1, factor, *block, to),
        _blocks(flat.size, _BLOCK),
    )
    return g


def _weights(omega: Array | None, valid: Array, here: slice) -> Array:
    return flat_view(valid)[here].astype(np.float64) if omega is None else flat_view(omega)[here]


def _blocks(size: int, step: int) -> Sequence[tuple[int, int]]:
    return [(i, min(i + step, size)) for i in range(0, size, step)]
