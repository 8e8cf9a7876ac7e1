"""Check first, then time: every contestant must agree with the array engine before its time means anything.

What is compared is timed in one group, whose rounds are interleaved: whatever else the machine does then falls on
all alike. Medians and minima are reported, and ratios from round to round (`lalref.bench.rounds`). How results are
shown is not said here.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lalref import LocallyAdaptiveLoss
from lalref.bench import inputs, rounds
from lalref.bench.contestants import CONTESTANTS, CROSS_ENTROPY, OURS, VALUE, Call, Contestant
from lalref.bench.rounds import Timed, ratio

Array = Any

COPY = "copy of the logits"
SMALL, LARGE, CITY = (2, 21, 321, 321), (8, 21, 513, 513), (1, 19, 1024, 2048)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is computed: shape (N, C, H, W), kind of labels, window, and the number of threads."""

    shape: tuple[int, int, int, int]
    kind: str
    kernel_size: int
    threads: int

    def arrays(self) -> tuple[Array, Array]:
        """Return logits (N, C, H, W) and labels (N, H, W)."""
        N, C, H, W = self.shape
        return inputs.logits(self.shape), inputs.labels(self.kind, (N, H, W), C)


@dataclasses.dataclass(frozen=True)
class Result:
    """How long one contestant took in one setting.

    Attributes
    ----------
    group : str
        All results of a group were timed in the same rounds.
    setting : Setting
        Shape, labels, window, threads.
    contestant : str
    median, minimum : float
        Seconds a call, over the rounds that it took part in.
    rounds : int
    peak_extra : int or None
        Bytes at the peak beside the caller's arrays, where they were measured.
    bandwidth : float
        Bytes a second: the logits read once and, where there is one, the gradient written once, in a median.
    of_copy : float or None
        Its time over that of copying the logits once. This and the ratios below are medians, over the rounds in
        which both ran, of the ratio within a round: not the ratio of the medians above.
    ratio, speedup : float or None
        To torch's cross_entropy on the same arrays, and over the best torch formulation of this loss in this
        setting; None where there was none.
    times : tuple of float
        Seconds in each round, from the group's first one on.
    """

    group: str
    setting: Setting
    contestant: str
    median: float
    minimum: float
    rounds: int
    peak_extra: int | None
    bandwidth: float
    of_copy: float | None = None
    ratio: float | None = None
    speedup: float | None = None
    times: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A contestant that was not timed, and why: it is wrong, or it fails."""

    setting: Setting
    contestant: str
    reason: str


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A contestant that has been checked, and what its call showed."""

    setting: Setting
    contestant: str
    call: Call
    moved: int  # bytes
    peak: int | None = None

    @property
    def timed(self) -> Timed:
        k = self.setting.kernel_size
        return Timed(f"{self.contestant}, {k} x {k}", self.setting.threads, self.call)


def check(contestant: Contestant, kernel_size: int, kind: str = "blobs") -> float:
    """Return how far a contestant is from the array engine in float64, relative to the largest gradient entry.

    Raises
    ------
    ValueError
        It is off by more than float32 explains.
    """
    N, C, H, W = 2, 5, 37, 300
    x, y = inputs.logits((N, C, H, W)), inputs.labels(kind, (N, H, W), C)
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
    group: str, entries: Sequence[tuple[Setting, str]], seconds: float, tell: Callable[[str], None]
) -> tuple[list[Result], list[Refusal]]:
    """Time a group: contestants by name, each in a setting, in the same rounds, of about `seconds` in all.

    Who is not installed or can't take its setting is left out. One that fails or is wrong costs the others nothing.
    For each shape the copying of its logits is timed too.
    """
    by_name = {c.name: c for c in CONTESTANTS}
    arrays: dict[tuple[Any, str], tuple[Array, Array]] = {}
    ready: list[_Ready] = []
    refused = []
    for setting, name in entries:
        contestant = by_name[name]
        if not contestant.installed or setting.kernel_size > contestant.largest_kernel:
            continue
        tell(f"checking {name}, {setting.kernel_size} x {setting.kernel_size}")
        key = setting.shape, setting.kind
        if key not in arrays:
            arrays[key] = setting.arrays()
        x, y = arrays[key]
        try:
            with rounds.threads(setting.threads):
                check(contestant, setting.kernel_size, setting.kind)
                call = contestant.prepare(x, y, setting.kernel_size)
                both = call()[1] is not None  # compiles
                peak = rounds.peak_of(call)
        except Exception as error:  # whatever a library raises, torch.compile without a compiler too
            refused.append(Refusal(setting, name, f"{type(error).__name__}: {error}"))
        else:
            ready.append(_Ready(setting, name, call, (1 + both) * x.nbytes, peak))
    for shape in dict.fromkeys(setting.shape for setting, _ in entries):
        first = next(setting for setting, _ in entries if setting.shape == shape)
        ready.append(_copying(first))
    times = rounds.in_rounds([each.timed for each in ready], seconds, tell)
    results = [
        Result(
            group, each.setting, each.contestant, statistics.median(taken), min(taken), len(taken), each.peak,
            each.moved / statistics.median(taken), times=tuple(taken),
        )
        for each, taken in zip(ready, times, strict=True)
    ]  # fmt: skip
    return [_compared(result, results) for result in results], refused


def _copying(setting: Setting) -> _Ready:
    x = inputs.logits(setting.shape)
    other = np.empty_like(x)

    def copy() -> tuple[Any, Any]:
        np.copyto(other, x)
        return None, other

    return _Ready(setting, COPY, copy, 2 * x.nbytes)


def beside(result: Result, results: Sequence[Result], contestant: str, **setting: Any) -> Result | None:
    """The contestant's result from the same rounds, in the first setting that has these fields; None if none."""
    for other in results:
        if (other.group, other.contestant) == (result.group, contestant) and all(
            getattr(other.setting, field) == value for field, value in setting.items()
        ):
            return other
    return None


def _compared(result: Result, results: Sequence[Result]) -> Result:
    s = result.setting
    copy = beside(result, results, COPY, shape=s.shape)
    of_copy = None if copy is None else ratio(result.times, copy.times)
    if result.contestant == COPY:
        return dataclasses.replace(result, of_copy=of_copy)
    plain = beside(result, results, CROSS_ENTROPY, shape=s.shape, kind=s.kind, threads=s.threads)
    peers = [
        ratio(other.times, result.times)
        for other in results
        if other.setting == s and other.contestant.startswith("torch") and other.contestant != CROSS_ENTROPY
    ]
    return dataclasses.replace(
        result,
        of_copy=of_copy,
        ratio=None if plain is None else ratio(result.times, plain.times),
        speedup=min(peers, default=None),
    )


def plan(quick: bool) -> dict[str, list[tuple[Setting, str]]]:
    """What the benchmark runs, by group: all contestants at each window, then what is compared across settings."""
    import numba

    number = rounds.number_of_threads()
    windows = (3, 5) if quick else (1, 3, 5, 7, 15, 31)

    def each(names: Sequence[str], *settings: Setting) -> list[tuple[Setting, str]]:
        return [(setting, name) for setting in settings for name in names]

    def on(shape: tuple[int, int, int, int], kind: str, k: int) -> Setting:
        return Setting(shape, kind, k, number)

    everyone = [c.name for c in CONTESTANTS]
    groups = {f"window {k}×{k}": each(everyone, on(SMALL, "blobs", k)) for k in windows}
    plain = each([CROSS_ENTROPY], on(SMALL, "blobs", 1))
    groups["growth"] = plain + each([OURS, VALUE], *(on(SMALL, "blobs", k) for k in windows))
    if quick:
        return groups
    for group, kinds, shapes, ks in (
        ("labels", inputs.KINDS, (SMALL,), (3, 5, 7)),
        ("sizes", ("blobs",), (SMALL, LARGE, CITY), (3, 5)),
    ):
        groups[group] = []
        for shape, kind in itertools.product(shapes, kinds):
            groups[group] += each([CROSS_ENTROPY], on(shape, kind, 1))
            groups[group] += each([OURS], *(on(shape, kind, k) for k in ks))
    numbers = [n for n in (1, 2, 4, 8, 16) if n <= numba.config.NUMBA_NUM_THREADS]
    groups["threads"] = each([CROSS_ENTROPY, OURS], *(Setting(SMALL, "blobs", 5, n) for n in numbers))
    return groups
