"""Threads for the kernels: one pool of workers for the process, as many as numba is set to use.

numba's own threading layers either may not be entered from two Python threads at once or die after a fork, so
the kernels here release the GIL and plain Python threads run them. What a task computes does not depend on
which worker takes it, nor on how many there are. No arithmetic may come in.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numba

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()
_seat = threading.Lock()  # of the one caller at a time who works too


def _forget_pool() -> None:
    """After a fork: the workers are not in the child."""
    global _pool, _lock, _seat
    _pool, _lock, _seat = None, threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def number_of_threads() -> int:
    """What numba.set_num_threads said in this thread, else NUMBA_NUM_THREADS; starts none of numba's threads."""
    try:
        numba.threading_layer()
    except ValueError:  # numba has started no threads, so nothing was set either
        return int(numba.config.NUMBA_NUM_THREADS)
    return int(numba.get_num_threads())


def run(work: Callable[[Any], object], tasks: Sequence[Any]) -> None:
    """Call work(task) for every task, by a pool that all callers share.

    The caller does its part, so that nobody waits for a thread to wake up. One caller at a time does, while others
    only wait: calls that share their work out are never on more threads than numba's limit. Besides them work only
    callers that keep to their own thread, because they have a single task or are set to one thread.
    """
    workers = min(number_of_threads(), len(tasks))
    if workers <= 1:
        for task in tasks:
            work(task)
        return
    left = iter(tasks)

    def take() -> None:
        for task in left:  # a list's iterator gives each task to one thread
            work(task)

    done: list[Future[None]] = []
    helps = _seat.acquire(blocking=False)
    try:
        done += [_workers().submit(take) for _ in range(workers - helps)]
        if helps:
            take()
    finally:
        if helps:
            _seat.release()
        wait(done)
    for future in done:
        future.result()


def _workers() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(numba.config.NUMBA_NUM_THREADS - 1, thread_name_prefix="lalref")
        return _pool
