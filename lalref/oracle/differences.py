"""Slopes of a function by differences: steps on a ladder, extrapolated, each slope with an error of its own.

What is differenced is the *residual* phi(a) = f(a) - <grad, a - x>, whose slope at x is 0 in every direction
exactly when grad is right. The displacement a - x is the one that was really made, after rounding to the dtype
of x, so the coarse grids of 16-bit numbers cost nothing. Here is arithmetic only; what a slope means, and in
what words it is told, is `gradcheck`.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Callable

import ml_dtypes
import numpy as np

from lalref.oracle.inputs import FloatArray, mix

Phi = Callable[[FloatArray], float]  # displacement from x, before rounding -> phi there

COLUMNS = 4  # of the extrapolation: errors of h^2, h^4, h^6, h^8 are taken out
FEWEST = 6  # rungs before the ladder may end early
SIGMAS = 3.0  # how far noise may lead


@dataclasses.dataclass(frozen=True)
class Slope:
    """A slope found by extrapolation.

    Attributes
    ----------
    value, error : float
        The slope, and how far it may be off: by what is left of the extrapolation, and by noise.
    step : float
        Of the rung that it comes from.
    rungs : tuple of (step, central difference)
    bend : float
        The difference of the slopes on the two sides where it does not go away with the step: a kink; else 0.
    """

    value: float
    error: float
    step: float
    rungs: tuple[tuple[float, float], ...]
    bend: float


def slope(
    phi: Phi, v: FloatArray, first: float, last: float, noise: float, eps: float, *, whole: bool = False
) -> Slope:
    """Slope of `phi` at 0 along `v`, by Richardson's extrapolation of central differences.

    Steps are halved from `first` to `last`. Unless the `whole` ladder is asked for, it ends where `noise` (the
    standard deviation of a value near 0; elsewhere it is at least that of rounding to `eps`) outweighs the best
    found. Rungs where phi is not finite are left out.
    """
    here = phi(np.zeros_like(v))
    table: list[list[float]] = []
    found: list[tuple[float, float, float, int]] = []  # error, slope, step, rung
    rungs: list[tuple[float, float]] = []
    bends: list[tuple[float, float]] = []
    h = first
    while h >= last:
        up, down = phi(h * v), phi(-h * v)
        if not (math.isfinite(up) and math.isfinite(down)):
            table = []  # nothing is extrapolated across a gap
            h /= 2
            continue
        row = [(up - down) / (2 * h)]
        rungs.append((h, row[0]))
        bends.append((h, (up - 2 * here + down) / h))
        lost = SIGMAS * max(noise, 0.3 * eps * max(abs(up), abs(down))) / h
        if table:
            above = table[-1]
            found.append((abs(row[0] - above[0]) + lost, row[0], h, len(rungs)))
            for j in range(1, min(len(above), COLUMNS) + 1):
                row.append(row[j - 1] + (row[j - 1] - above[j - 1]) / (4**j - 1))
                apart = max(abs(row[j] - row[j - 1]), abs(row[j] - above[j - 1]))
                found.append((apart + lost, row[j], h, len(rungs)))
        table.append(row)
        if not whole and len(rungs) >= FEWEST and lost > min(found)[0]:
            break
        h /= 2
    if not found:
        return Slope(math.nan, math.inf, math.nan, tuple(rungs), 0.0)
    best = min(found)
    # two rungs may agree by accident: the next best has its say
    second = min((each for each in found if each[3] != best[3]), default=best)
    error = max(best[0], abs(best[1] - second[1]))
    return Slope(best[1], error, best[2], tuple(rungs), _bend(bends, noise))


def _bend(bends: list[tuple[float, float]], noise: float) -> float:
    """What remains of the second difference over h: of a smooth function it halves from rung to rung."""
    clear = [abs(b) for h, b in bends if abs(b) > 20 * noise / h]
    if len(clear) < 3 or clear[-2] < 0.75 * clear[-3] or clear[-1] < 0.75 * clear[-2]:
        return 0.0
    return clear[-1]


def noise_of(phi: Phi, v: FloatArray, step: float) -> float:
    """Standard deviation of `phi` from higher differences over tiny steps; inf where phi is not finite.

    The k-th difference of independent errors has (2k)!/(k!)² times their variance, that of anything smooth is
    next to nothing (Hamming's table; Moré and Wild, *Estimating computational noise*, 2011).
    """
    differences = np.array([phi(i * step * v) for i in range(-4, 5)])
    deviations = []
    for k in range(1, 7):
        differences = np.diff(differences)
        deviations.append(math.sqrt(np.mean(differences**2) / math.comb(2 * k, k)))
    found = float(np.median(deviations[2:]))
    return found if math.isfinite(found) else math.inf


def direction(shape: tuple[int, ...], salt: int) -> FloatArray:
    """Odd multiples of 1/1024 between -1 and 1 by hash: never 0, and the same for every version of everything."""
    v: FloatArray = (2 * (mix(shape, salt) % 1024) - 1023).astype(np.float64) / 1024
    return v


def coarsest(values: list[float]) -> float:
    """Eps of the coarsest dtype that holds all `values`.

    Values that are all the same say nothing of where they come from: float64 then.
    """
    exact = np.array(values)
    for dtype in () if len(set(values)) <= 1 else (ml_dtypes.bfloat16, np.float16, np.float32):
        with np.errstate(over="ignore"):
            held = exact.astype(dtype).astype(np.float64)
        if np.array_equal(held, exact):
            return float(ml_dtypes.finfo(dtype).eps)
    return float(np.finfo(np.float64).eps)


def search(
    badness: Callable[[FloatArray], float], v: FloatArray, threshold: float, *, most: int, tries: int
) -> list[tuple[int, ...]]:
    """Indices of single entries of `v` whose badness is beyond `threshold`, the worst part halved first.

    `badness` is asked of `v` with all but some of its entries put to 0, at most `tries` times.
    """
    heap: list[tuple[float, int, int]] = [(-math.inf, 0, v.size)]
    found: list[int] = []
    while heap and len(found) < most and tries > 0:
        _, low, high = heapq.heappop(heap)
        if high - low == 1:
            found.append(low)
            continue
        middle = (low + high) // 2
        for part in ((low, middle), (middle, high)):
            alone = np.zeros(v.size)
            alone[slice(*part)] = v.reshape(-1)[slice(*part)]
            tries -= 1
            if (bad := badness(alone.reshape(v.shape))) > threshold:
                heapq.heappush(heap, (-bad, *part))
    return [tuple(int(i) for i in np.unravel_index(each, v.shape)) for each in found]
