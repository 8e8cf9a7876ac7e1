"""How a call is timed, and how two are compared: interleaved rounds, warm-ups, threads, and the peak of its memory.

Whose calls they are and what they compute is not known here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

LEAST, MOST = 3, 101  # rounds


class Timed(NamedTuple):
    """A call to be timed: what it is called, on how many threads it runs, and itself."""

    name: str
    threads: int
    call: Callable[[], object]


def in_rounds(timed: Sequence[Timed], seconds: float, tell: Callable[[str], None]) -> list[list[float]]:
    """Seconds of each call in each round that it took part in, its first rounds without a gap.

    A round takes every call once, every second round backwards. A call that has had its share of `seconds`, and
    `LEAST` rounds, sits out for good. Before each timed call goes an untimed one of its own, so that nobody pays
    for the cold cache, the freed memory and the spinning threads that the call before it left behind.

    Examples
    --------
    >>> from lalref.bench.rounds import Timed, in_rounds
    >>> taken = in_rounds([Timed("nothing", 1, lambda: None)], 0.0, lambda now: None)
    >>> len(taken[0])
    3
    """
    times: list[list[float]] = [[] for _ in timed]
    order = list(zip(timed, times, strict=True))
    share, turn = seconds / max(1, len(timed)), 0
    while turn < MOST:
        still = [pair for pair in order if turn < LEAST or (len(pair[1]) == turn and sum(pair[1]) <= share)]
        if not still:
            break
        turn += 1
        for (name, number, call), taken in still:
            tell(f"round {turn}: {name}")
            with threads(number):
                call()
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
        order.reverse()
    return times


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The median, over the rounds in which both ran, of a's time over b's in that round.

    A machine that is faster in one minute than in the next changes both times of a round, and no ratio; medians
    of all rounds would compare different minutes once one of the two sits out.

    Examples
    --------
    >>> from lalref.bench.rounds import ratio
    >>> ratio([2.0, 4.0, 2.0], [1.0, 2.0, 1.0, 5.0, 5.0])
    2.0
    """
    return statistics.median(x / y for x, y in zip(a, b, strict=False))


def number_of_threads() -> int:
    """How many threads everyone gets: the fewer of what numba and torch take by themselves.

    numba takes the processors that this process may use, or NUMBA_NUM_THREADS; torch the physical cores.
    """
    import numba

    number = int(numba.config.NUMBA_NUM_THREADS)
    with contextlib.suppress(ImportError):
        import torch

        number = min(number, torch.get_num_threads())
    return number


def tell_jax(number: int) -> None:
    """Let JAX use `number` threads: only before its first call, and for good, for it has no other way."""
    os.environ["NPROC"] = str(number)  # XLA's own, read when it starts


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Let numba, and with it our engine, and torch use `number` threads."""
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(number)
    try:
        import torch
    except ImportError:
        torch_before = None
    else:
        torch_before = torch.get_num_threads()
        torch.set_num_threads(number)
    try:
        yield
    finally:
        numba.set_num_threads(before)
        if torch_before is not None:
            torch.set_num_threads(torch_before)


def peak_of(call: Callable[[], Any]) -> int | None:
    """How many bytes more than before the call this process held at most; None where the system can't say."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(field: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024

    try:
        _give_back()
        reset.write_text("5")  # the high-water mark starts again from here
        before = read("VmRSS:")
        kept = call()
        peak = read("VmHWM:")
    except (OSError, StopIteration):
        return None
    del kept
    return max(0, peak - before)


def _give_back() -> None:
    """Let the C library give freed memory back, which otherwise would be there for the call to use unseen."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
