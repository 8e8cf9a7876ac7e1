"""Where the time of one call goes: the numba engine's value and gradient taken apart, part by part.

    python -m lalref.bench.parts [--kernel-size 3] [--calls 41]

The engine's functions are wrapped from outside while this runs; it knows nothing of it. Every second call goes
without wrappers, to show what they cost. `perf` and the like look into the compiled loops; this does not.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from lalref import LocallyAdaptiveLoss
from lalref.bench import inputs, rounds
from lalref.engines import loops, loops_geometry

SHAPE = (2, 21, 321, 321)

DOOR, REST, WHOLE, BARE = (
    "the front door: labels checked, windows found, result handed over",
    "arrays made, Python between the loops",
    "a whole call",
    "a whole call without the wrappers",
)
ENGINE = "the engine"
#: What is wrapped: in which namespace, by which name, and the part that its time belongs to.
WRAPPED = (
    (loops, "value_and_grad", ENGINE),
    (loops, "typical_margins", "typical margins"),
    (loops_geometry.Geometry, "forward", "forward loops: rows in, pooling, softmax, z̄ out"),
    (loops, "parts_of", "stage 3: largest loss, sum of powers, shares"),
    (loops, "shares", "stage 3: largest loss, sum of powers, shares"),
    (loops_geometry.Geometry, "backward", "backward loops: g z̄ in, pooling, gradient out"),
)


@contextlib.contextmanager
def _wrapped(taken: dict[str, float]) -> Iterator[None]:
    """Let each function of `WRAPPED` add its seconds to its part of `taken`."""

    def timing(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **more: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **more)
            finally:
                taken[part] += time.perf_counter() - start

        return call

    before = [(place, name, getattr(place, name)) for place, name, _ in WRAPPED]
    try:
        for place, name, part in WRAPPED:
            setattr(place, name, timing(getattr(place, name), part))
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def one_call(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of each part of a call, which add up to the last, `WHOLE`.

    Examples
    --------
    >>> from lalref import LocallyAdaptiveLoss
    >>> from lalref.bench import inputs, parts
    >>> x, y = inputs.logits((1, 3, 8, 9)), inputs.labels("noise", (1, 8, 9), 3)
    >>> taken = parts.one_call(lambda: LocallyAdaptiveLoss(engine="numba").value_and_grad(x, y))
    >>> whole = taken.pop(parts.WHOLE)
    >>> abs(sum(taken.values()) - whole) < 1e-9
    True
    """
    taken = dict.fromkeys((part for _, _, part in WRAPPED), 0.0)
    with _wrapped(taken):
        start = time.perf_counter()
        call()
        whole = time.perf_counter() - start
    engine = taken.pop(ENGINE)
    return taken | {REST: engine - sum(taken.values()), DOOR: whole - engine, WHOLE: whole}


def main(kernel_size: int = 3, calls: int = 41) -> dict[str, list[float]]:
    """Print a table of the parts of so many calls, each after an untimed one; return their seconds.

    Raises
    ------
    ValueError
        The loss doesn't take such a window.
    """
    from rich.console import Console
    from rich.table import Table

    N, C, H, W = SHAPE
    x, y = inputs.logits(SHAPE), inputs.labels("blobs", (N, H, W), C)
    loss = LocallyAdaptiveLoss(kernel_size=kernel_size, engine="numba")

    def call() -> object:
        return loss.value_and_grad(x, y)

    number = rounds.number_of_threads()
    found: dict[str, list[float]] = {}
    with rounds.threads(number):
        for _ in range(calls):
            call()
            for part, seconds in one_call(call).items():
                found.setdefault(part, []).append(seconds)
            start = time.perf_counter()
            call()
            found.setdefault(BARE, []).append(time.perf_counter() - start)
    title = f"value and gradient, {SHAPE} float32, window {kernel_size}×{kernel_size}, {number} threads, "
    table = Table(title=title + f"{calls} calls")
    for column in ("part", "median ms", "minimum ms"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, times in found.items():
        if part == WHOLE:
            table.add_section()
        table.add_row(part, f"{1e3 * statistics.median(times):.2f}", f"{1e3 * min(times):.2f}")
    Console(width=100).print(table)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Take a call of the numba engine apart.")
    parser.add_argument("--kernel-size", type=int, default=3)
    parser.add_argument("--calls", type=int, default=41)
    given = parser.parse_args()
    main(given.kernel_size, given.calls)
