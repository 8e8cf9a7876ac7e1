"""Large images with a right answer: a golden case, repeated.

A mean over a million windows makes gradients so small that a checker with an absolute tolerance takes zeros
for right. Truth could not work such an image out in any time, and no engine may decide here. So the two
images of one golden case stand side by side on a canvas, again and again, with ignored pixels between them
as wide as a window reaches. No window then sees two copies, all K copies have the same losses, and by
equations (8) and (11) the mean is the case's own value and each gradient the case's own over K: the large
answer has the proof of the small one.
"""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import sys
import time

import numpy as np

from lalref.oracle.case import Case
from lalref.oracle.command import Command
from lalref.oracle.golden import Golden
from lalref.oracle.judge import measure, told
from lalref.oracle.subjects import Subject, UsageError
from lalref.oracle.units import WORKING, Units, error_unit

SIZES = (321, 1024)
FIRST = (17, 33, 49, 97)  # tried before, to see how time and memory grow
SECONDS = 20.0  # that one large image may take, by that growth
WORST_SUM = 1 / 16  # the relative error that summing may bring, however many terms there are


@dataclasses.dataclass(frozen=True)
class Tiled:
    """A large case, its right answer, and how often the small one is in it."""

    case: Case
    right: Golden
    unit: Units
    copies: int


def tile(case: Case, right: Golden, dtype: str, size: int) -> Tiled | None:
    """Repeat a case of two images on `size` by `size` pixels; None where its options do not allow that.

    The unit is the case's own, and for sums of M terms 2 eps M more, but never beyond `WORST_SUM`: a sum of
    a million float32, one by one, may be off by a tenth, yet a gradient that is off by half is wrong.
    """
    options = case.all_options
    ignored = options["ignore_index"]
    void = ignored if isinstance(ignored, int) else next(iter(ignored or ()), None)
    if (
        options["reduction"] != "mean"
        or void is None
        or case.pixel_weight is not None
        or case.labels.ndim != 3
    ):
        return None

    def per_axis(value: int | tuple[int, int]) -> tuple[int, ...]:
        return (value, value) if isinstance(value, int) else tuple(value)

    images, h, w = case.labels.shape
    gap = [k // 2 for k in per_axis(options["kernel_size"])]
    stride = per_axis(options["stride"])
    # each copy begins on the stride grid
    down, across = (-(-(n + g) // s) * s for n, g, s in zip((h, w), gap, stride, strict=True))
    corners = [
        (i, j + n * across, n)
        for i in range(0, size - h + 1, down)
        for j in range(0, size - (images - 1) * across - w + 1, images * across)
        for n in range(images)
    ]
    copies = len(corners) // images
    if copies == 0:
        return None
    C = case.logits.shape[options["axis"]]
    unit = error_unit(case, dtype, right.value[0], right.grad[0])
    small = [np.moveaxis(a, options["axis"] - case.logits.ndim * (options["axis"] > 0), -3)
             for a in (case.logits, right.grad, unit.grad)]  # fmt: skip
    logits, grad = np.zeros((1, C, size, size)), np.zeros((2, 1, C, size, size))
    grad_unit = np.full((1, C, size, size), np.finfo(WORKING[dtype]).tiny, np.float64)
    labels = np.full((1, size, size), void, case.labels.dtype)
    eps = float(np.finfo(WORKING[dtype]).eps)
    summed = min(2 * eps * copies * case.labels.size, WORST_SUM)
    for i, j, n in corners:
        at = (slice(i, i + h), slice(j, j + w))
        logits[0, :, *at] = small[0][n]
        labels[0, *at] = case.labels[n]
        grad[:, 0, :, *at] = small[1][:, n] / copies
        grad_unit[0, :, *at] = (small[2][n] + summed * abs(small[1][0, n])) / copies
    value_unit = unit.value + summed * abs(right.value[0])
    axis = options["axis"]
    large = dataclasses.replace(
        case,
        name=f"{case.name}, {copies} times on {size} by {size} pixels",
        logits=np.ascontiguousarray(np.moveaxis(logits, 1, axis)),
        labels=labels,
    )
    moved = (np.moveaxis(grad, 2, axis + (axis >= 0)), np.moveaxis(grad_unit, 1, axis))
    return Tiled(large, Golden(right.value, moved[0]), Units(value_unit, moved[1]), copies)


def check(subject: Subject, case: Case, right: Golden, dtype: str) -> list[tuple[str, str, str]]:
    """Put a golden case to `subject` as large images: rows (name, holds | differs | unsupported, note).

    Sizes that would take too long or too much memory are unsupported, by how both grow on small ones.
    """
    rows: list[tuple[str, str, str]] = []
    seen: list[tuple[int, float, float]] = []  # pixels, seconds, bytes
    for size in (*FIRST, *SIZES):
        target = size if size in SIZES else SIZES[0]
        if (why := _too_much(seen, target)) or (tiled := tile(case, right, dtype, size)) is None:
            why = why or "not asked with what it has built in"
            return rows + [(_name(s), "unsupported", why) for s in SIZES if s >= target]
        name = _name(size)
        seconds, before = math.inf, _peak(subject)
        try:
            for _ in range(2 if size in FIRST else 1):  # the first one may compile
                began = time.perf_counter()
                answer = subject(tiled.case, dtype)
                seconds = min(seconds, time.perf_counter() - began)
        except UsageError:
            raise
        except Exception as error:
            rows.append((name, "unsupported" if isinstance(error, MemoryError) else "differs", told(error)))
            return rows
        seen.append((size**2, seconds, _peak(subject) - before))
        result, _ = measure(answer, tiled.case, dtype, "", tiled.right, tiled.unit)
        if size in SIZES or result.outcome == "differs":
            compared = f"held against the golden case {case.name!r}, {tiled.copies} copies of it"
            rows.append((name, result.outcome, result.note or f"{result.units:.2g} units, {compared}"))
        if result.outcome == "differs":
            return rows
    return rows


def _name(size: int) -> str:
    return f"an image of {size} by {size} pixels"


def _too_much(seen: list[tuple[int, float, float]], size: int) -> str:
    """Why an image of that size is too much, by how the last two grew; empty where nothing says so."""
    if len(seen) < 2:
        return ""
    (n0, t0, b0), (n1, t1, b1) = seen[-2:]

    def there(before: float, last: float) -> float:
        power = math.log(last / before) / math.log(n1 / n0) if before > 0 and last > 0 else 1.0
        return float(last * (size**2 / n1) ** min(max(power, 1.0), 3.0))

    seconds, needed = there(t0, t1), there(b0, b1)
    if seconds > SECONDS:
        return f"it took {t1:.2g} s for {n1} pixels, and by its growth would take {seconds:.0f} s here"
    if needed > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4:
        return f"it took {b1 / 2**30:.2g} GiB for {n1} pixels, and by its growth would take {needed / 2**30:.0f} GiB"
    return ""


def _peak(subject: Subject) -> float:
    """Bytes of memory that this process, or any program that it ran, has had at most."""
    who = resource.RUSAGE_CHILDREN if isinstance(subject, Command) else resource.RUSAGE_SELF
    return resource.getrusage(who).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
