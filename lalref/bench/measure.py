"""Check first, then time: every contestant must agree with the array engine before its time means anything.

Times are taken in interleaved rounds, so that whatever else the machine does falls on all alike, and reported
as medians and minima. How results are shown is not said here.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lalref import LocallyAdaptiveLoss
from lalref.bench import inputs
from lalref.bench.contestants import CONTESTANTS, CROSS_ENTROPY, OURS, Call, Contestant

Array = Any

COPY = "copy of the logits"
_SLOW = 0.5  # seconds


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is computed: shape (N, C, H, W), kind of labels, window, and the number of threads (None: as found)."""

    shape: tuple[int, int, int, int]
    kind: str
    kernel_size: int
    threads: int | None = None

    def arrays(self) -> tuple[Array, Array]:
        """Return logits (N, C, H, W) and labels (N, H, W)."""
        N, C, H, W = self.shape
        return inputs.logits(self.shape), inputs.labels(self.kind, (N, H, W), C)


@dataclasses.dataclass(frozen=True)
class Result:
    """How long one contestant took in one setting.

    Attributes
    ----------
    setting : Setting
        Shape, labels, window.
    contestant : str
    median, minimum : float
        Seconds a call, over the rounds.
    rounds : int
    peak_extra : int or None
        Bytes at the peak beside the caller's arrays, where they were measured.
    of_copy : float
        The median over that of copying the logits once.
    ratio, speedup : float or None
        To torch's cross_entropy, and over the best torch formulation of this loss, both in the same rounds; None
        where there was none.
    """

    setting: Setting
    contestant: str
    median: float
    minimum: float
    rounds: int
    peak_extra: int | None
    bandwidth: float
    of_copy: float
    ratio: float | None = None
    speedup: float | None = None


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A contestant that was not timed, and why: it is wrong, or it fails."""

    setting: Setting
    contestant: str
    reason: str


def check(contestant: Contestant, kernel_size: int, kind: str = "blobs") -> float:
    """Return how far a contestant is from the array engine in float64, relative to the largest gradient entry.

    Raises
    ------
    ValueError
        It is off by more than float32 explains.
    """
    x, y = Setting((2, 5, 37, 300), kind, kernel_size).arrays()
    options: dict[str, Any] = {"kernel_size": kernel_size}
    if contestant.name == CROSS_ENTROPY:
        options = {"kernel_size": 1, "p": 1}
    right, right_grad = LocallyAdaptiveLoss(**options, engine="array").value_and_grad(x.astype(np.float64), y)
    value, grad = contestant.prepare(x, y, kernel_size)()
    off = abs(float(value) - float(right)) / float(right)
    if grad is not None:
        off = max(off, float(np.abs(np.asarray(grad) - right_grad).max() / np.abs(right_grad).max()))
    if not off < 1e-4:
        raise ValueError(
            f"{contestant.name} at kernel_size={kernel_size} is off by {off:.1e}: it is not timed"
        )
    return off


def measure(
    setting: Setting, names: Sequence[str], seconds: float, tell: Callable[[str], None]
) -> tuple[list[Result], list[Refusal]]:
    """Time the named contestants that are installed and can take the setting, in rounds of about `seconds` in all.

    One that fails or is wrong costs the others nothing.
    """
    x, y = setting.arrays()
    chosen = [
        c for c in CONTESTANTS if c.name in names and c.installed and setting.kernel_size <= c.largest_kernel
    ]
    with _threads(setting.threads):
        calls: dict[str, Call] = {}
        peaks: dict[str, int | None] = {COPY: None}
        moved = dict.fromkeys([COPY, *names], 2 * x.nbytes)
        refused = []
        for contestant in chosen:
            tell(f"checking {contestant.name}, {setting.kernel_size} x {setting.kernel_size}")
            try:
                check(contestant, setting.kernel_size, setting.kind)
                call = contestant.prepare(x, y, setting.kernel_size)
                if call()[1] is None:  # compiles
                    moved[contestant.name] = x.nbytes
                peaks[contestant.name] = _peak_of(call)
            except Exception as error:  # whatever a library raises, torch.compile without a compiler too
                refused.append(Refusal(setting, contestant.name, f"{type(error).__name__}: {error}"))
            else:
                calls[contestant.name] = call
        other = np.empty_like(x)

        def copy() -> tuple[Any, Any]:
            np.copyto(other, x)
            return None, other

        calls[COPY] = copy
        times = _rounds(calls, seconds, tell)
    medians = {name: statistics.median(t) for name, t in times.items()}
    peers = [medians[name] for name in medians if name.startswith("torch") and name != CROSS_ENTROPY]
    results = [
        Result(
            setting, name, medians[name], min(times[name]), len(times[name]), peaks[name],
            moved[name] / medians[name],
            medians[name] / medians[COPY],
            medians[name] / medians[CROSS_ENTROPY] if CROSS_ENTROPY in medians and name != COPY else None,
            min(peers) / medians[name] if peers and name != COPY else None,
        )
        for name in calls
    ]  # fmt: skip
    return results, refused


def _rounds(calls: dict[str, Call], seconds: float, tell: Callable[[str], None]) -> dict[str, list[float]]:
    """Time all calls in turn until each has had its share of the time, and three rounds; then it sits out.

    An untimed call of its own goes before each timed one, so that nobody pays for the cold cache and the spinning
    threads that the contestant before it left behind; who takes as long as `_SLOW` doesn't feel them.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    share, turn = seconds / len(calls), 0
    while turn < 3 or (turn < 101 and any(sum(taken) <= share for taken in times.values())):
        turn += 1
        for name, call in calls.items():
            if times[name] and sum(times[name]) > share and len(times[name]) >= 3:
                continue
            tell(f"round {turn}: {name}")
            if not times[name] or times[name][-1] < _SLOW:
                call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def _give_back() -> None:
    """Let the C library give freed memory back, which otherwise would be there for the call to use unseen."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _peak_of(call: Call) -> int | None:
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


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let numba and torch use `number` threads."""
    if number is None:
        yield
        return
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


def settings(quick: bool) -> list[tuple[Setting, tuple[str, ...]]]:
    """What the benchmark runs: windows, kinds of labels, sizes, and threads; with whom."""
    import numba

    everyone = tuple(c.name for c in CONTESTANTS)
    fast = (CROSS_ENTROPY, OURS)
    small, large, city = (2, 21, 321, 321), (8, 21, 513, 513), (1, 19, 1024, 2048)
    if quick:
        return [(Setting(small, "blobs", k), everyone) for k in (3, 5)]
    plan = [(Setting(small, "blobs", k), everyone) for k in (1, 3, 5, 7, 15, 31)]
    plan += [(Setting(small, kind, k), fast) for kind in ("noise", "one class") for k in (3, 5, 7)]
    plan += [(Setting(shape, "blobs", k), fast) for shape in (large, city) for k in (3, 5)]
    most = numba.config.NUMBA_NUM_THREADS
    plan += [(Setting(small, "blobs", 5, t), fast) for t in (1, 2, 4, 8, 16) if t <= most]
    return plan
