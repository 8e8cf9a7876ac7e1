"""What a benchmark's results say together: growth with the window and the size, threads, other labels, the value alone.

Every ratio is of times from the same rounds (`lalref.bench.rounds.ratio`); nothing is timed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lalref.bench.contestants import OURS, VALUE
from lalref.bench.inputs import KINDS
from lalref.bench.measure import SMALL, Result, beside
from lalref.bench.rounds import ratio


def summary(results: Sequence[Result]) -> dict[str, dict[Any, Any]]:
    """Return what `show_summary` prints; a part is empty where the group that it needs was not run.

    Returns
    -------
    dict
        "growth": contestant -> kernel_size -> time over that of the smallest window;
        "value_only": kernel_size -> time of the value over that of value and gradient;
        "labels": "kind, kernel_size" -> time over that of the first kind, the label map;
        "sizes": "kernel_size, shape" -> nanoseconds a logit, by the median;
        "per_logit": "kernel_size, shape" -> time a logit over that of the first shape;
        "threads": number -> how many times as fast as one thread.
        All but "growth" are of the numba engine.
    """
    found: dict[str, dict[Any, Any]] = {
        part: {} for part in ("growth", "value_only", "labels", "sizes", "per_logit", "threads")
    }

    def of(group: str, contestant: str = OURS) -> list[Result]:
        return [r for r in results if (r.group, r.contestant) == (group, contestant)]

    for name in (OURS, VALUE):
        line = sorted(of("growth", name), key=lambda r: r.setting.kernel_size)
        if line:
            found["growth"][name] = {r.setting.kernel_size: ratio(r.times, line[0].times) for r in line}
    for r in of("growth", VALUE):
        if whole := beside(r, results, OURS, kernel_size=r.setting.kernel_size):
            found["value_only"][r.setting.kernel_size] = ratio(r.times, whole.times)
    for r in of("labels"):
        s = r.setting
        map_ = beside(r, results, OURS, kernel_size=s.kernel_size, kind=KINDS[0])
        if map_ and s.kind != KINDS[0]:
            found["labels"][f"{s.kind}, {s.kernel_size}"] = ratio(r.times, map_.times)
    for r in of("sizes"):
        s = r.setting
        key = f"{s.kernel_size}, {'×'.join(map(str, s.shape))}"
        found["sizes"][key] = 1e9 * r.median / math.prod(s.shape)
        small = beside(r, results, OURS, kernel_size=s.kernel_size, shape=SMALL)
        if small and s.shape != SMALL:
            times_the_logits = math.prod(s.shape) / math.prod(SMALL)
            found["per_logit"][key] = ratio(r.times, small.times) / times_the_logits
    alone = next((r for r in of("threads") if r.setting.threads == 1), None)
    if alone is not None:
        found["threads"] = {r.setting.threads: ratio(alone.times, r.times) for r in of("threads")}
    return found


def show_summary(results: Sequence[Result], console: Any) -> None:
    """Print `summary` as tables."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    found = summary(results)

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
        for i, column in enumerate(columns):
            made.add_column(column, justify="right" if i else "left", no_wrap=not i)
        return made

    windows = sorted({k for line in found["growth"].values() for k in line})
    if windows:
        made = table(
            "growth with the window", "time over the smallest window's", *(f"{k}×{k}" for k in windows)
        )
        for name, line in found["growth"].items():
            made.add_row(name, *(f"{line[k]:.2f}" if k in line else "-" for k in windows))
        console.print(made)
    for part, title, left, right in (
        ("value_only", "the value alone", "kernel_size", "time / value and gradient"),
        ("labels", f"{OURS}, other labels", "labels, kernel_size", "time / label map's"),
        ("sizes", f"{OURS}, growth with the size", "kernel_size, shape", "ns a logit"),
        ("per_logit", f"{OURS}, growth with the size", "kernel_size, shape", "time a logit / small batch's"),
        ("threads", f"{OURS}, threads", "threads", "times as fast as one"),
    ):
        if found[part]:
            made = table(title, left, right)
            for key, number in found[part].items():
                made.add_row(str(key), f"{number:.2f}")
            console.print(made)
