"""The numba engine's threads: the same bits however many there are, from several callers at once, and after a fork."""

import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from samples import same_bits

from lalref import lal_value_and_grad
from lalref.bench.inputs import labels, logits
from lalref.engines import loops, loops_geometry, loops_stage3, loops_threads


@pytest.fixture
def threads():
    """Set the number of threads, and set it back."""
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


def blobs(N=2, C=5, H=37, W=83):
    return logits((N, C, H, W)), labels("blobs", (N, H, W), C)


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize(("p", "kernel_size"), [(5.0, 5), (2.5, 5), (5.0, 31)])
@pytest.mark.parametrize(("dtype", "weighted"), [("float32", False), ("float64", True)])
def test_the_number_of_threads_changes_no_bit(threads, space, p, kernel_size, dtype, weighted, monkeypatch):
    monkeypatch.setattr(loops_stage3, "_BLOCK", 1 << 10)  # many sums to be put together
    x, y = blobs(H=150)
    x = x.astype(dtype)
    w = np.random.default_rng(3).random(y.shape) if weighted else None
    found = []
    for number in sorted({1, 2, numba.config.NUMBA_NUM_THREADS}):
        if number <= numba.config.NUMBA_NUM_THREADS:
            threads(number)
            options = {"space": space, "p": p, "kernel_size": kernel_size}
            found.append(lal_value_and_grad(x, y, pixel_weight=w, engine="numba", **options))
    for value, grad in found[1:]:
        assert same_bits(value, found[0][0])
        assert same_bits(grad, found[0][1])


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("kernel_size", [5, 31])
def test_the_tasks_may_be_done_by_any_number_of_workers_in_any_order(monkeypatch, number, kernel_size):
    monkeypatch.setattr(loops_stage3, "_BLOCK", 1 << 10)
    x, y = blobs(H=500 if kernel_size == 31 else 150)  # bands are 4 radii high
    right = lal_value_and_grad(x, y, kernel_size=kernel_size, engine="numba")
    together = []

    def run(work, tasks):
        """From the last task on, and the first ones not before `number` threads have come for them."""
        backwards, taken, meeting = list(tasks)[::-1], itertools.count(), threading.Barrier(number)

        def at_once(task):
            if len(backwards) >= number and next(taken) < number:
                together.append(meeting.wait(60))
            work(task)

        loops_threads.run(at_once, backwards)

    monkeypatch.setattr(loops_threads, "number_of_threads", lambda: number)
    with ThreadPoolExecutor(max(1, number - 1)) as pool:
        monkeypatch.setattr(loops_threads, "_pool", pool)
        for module in (loops, loops_geometry, loops_stage3):
            monkeypatch.setattr(module, "run", run)
        found = lal_value_and_grad(x, y, kernel_size=kernel_size, engine="numba")
    assert set(together) == set(range(number))
    assert same_bits(found[0], right[0])
    assert same_bits(found[1], right[1])


def test_as_many_threads_as_numba_is_set_to(threads):
    for number in {1, numba.config.NUMBA_NUM_THREADS}:
        threads(number)
        assert loops_threads.number_of_threads() == number


@pytest.mark.parametrize("number", [1, 3])
def test_as_many_threads_as_the_environment_says_and_none_of_numbas_are_started(number):
    """In a process that has set nothing, and at once after it has."""
    program = (
        "import numba; from lalref.engines.loops_threads import number_of_threads, run\n"
        "import threading; print(number_of_threads())\n"
        "run(lambda task: task, range(8)); print(threading.active_count())\n"
        "try: numba.threading_layer()\n"
        "except ValueError: print('none')\n"
        "numba.set_num_threads(1); print(number_of_threads())"
    )
    environment = {**os.environ, "NUMBA_NUM_THREADS": str(number)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told, active, layer, set_to = done.stdout.split()
    assert (told, layer, set_to) == (str(number), "none", "1")
    assert int(active) <= number


def test_callers_that_share_their_work_out_are_together_on_no_more_threads_than_the_limit(monkeypatch):
    """Four Python threads at once, each with a call for two threads."""
    monkeypatch.setattr(loops_threads, "number_of_threads", lambda: 2)
    at_work, most, lock, together = 0, 0, threading.Lock(), threading.Barrier(4)

    def work(_):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.002)
        with lock:
            at_work -= 1

    def caller():
        together.wait(60)
        loops_threads.run(work, range(20))

    with ThreadPoolExecutor(1) as pool:  # as `loops_threads` makes it for a limit of two
        monkeypatch.setattr(loops_threads, "_pool", pool)
        callers = [threading.Thread(target=caller) for _ in range(4)]
        for each in callers:
            each.start()
        for each in callers:
            each.join()
    assert most == 2


def test_several_python_threads_at_once_get_what_each_gets_alone():
    inputs = [blobs(N=1 + i % 2, H=40 + i) for i in range(8)]
    right = [lal_value_and_grad(x, y, engine="numba") for x, y in inputs]
    found = [None] * len(inputs)

    def work(i):
        for _ in range(5):
            found[i] = lal_value_and_grad(*inputs[i], engine="numba")

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for a, b in zip(found, right, strict=True):
        assert same_bits(a[0], b[0])
        assert same_bits(a[1], b[1])


def test_an_error_in_a_worker_is_the_callers():
    def work(task):
        raise RuntimeError(f"task {task}")

    with pytest.raises(RuntimeError, match="task"):
        loops_threads.run(work, range(8))


def _in_child(x, y, out):
    out.put(lal_value_and_grad(x, y, engine="numba"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_workers_of_its_own():
    x, y = blobs(H=150)
    right = lal_value_and_grad(x, y, engine="numba")  # the parent's workers exist now
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    child = context.Process(target=_in_child, args=(x, y, out))
    child.start()
    found = out.get(timeout=60)
    child.join()
    assert same_bits(found[0], right[0])
    assert same_bits(found[1], right[1])
