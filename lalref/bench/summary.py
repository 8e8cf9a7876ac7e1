"""What a benchmark's results say together: growth with the window and the size, threads, and other labels' ratios.

Only divisions of medians that `measure` gave; nothing is timed here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from lalref.bench.contestants import OURS, VALUE
from lalref.bench.measure import Result, Setting


def summary(results: list[Result]) -> dict[str, Any]:
    """Return what `show_summary` prints; a part is empty where the settings it needs were not run.

    Returns
    -------
    dict
        "growth": contestant -> kernel_size -> median over that of the smallest window;
        "sizes": "kernel_size, shape" -> nanoseconds a logit of the numba engine;
        "threads": number -> how many times as fast as one thread;
        "labels": "kind, kernel_size" -> time over that of the label map;
        "value_only": kernel_size -> time of the value over that of value and gradient.
    """
    if not results:
        return {"growth": {}, "sizes": {}, "threads": {}, "labels": {}, "value_only": {}}
    first = results[0].setting
    medians = {(r.setting, r.contestant): r.median for r in results}

    def of(name: str, key: Callable[[Setting], Hashable], **like: Any) -> dict[Any, float]:
        """The medians of a contestant by a key, of settings that are `like` this, or else as the first one is."""
        wanted = {"shape": first.shape, "kind": first.kind, "threads": None} | like
        return {
            key(setting): median
            for (setting, contestant), median in medians.items()
            if contestant == name and all(value in (any, getattr(setting, f)) for f, value in wanted.items())
        }

    growth = {}
    for name in dict.fromkeys(r.contestant for r in results):
        by_window = of(name, lambda s: s.kernel_size)
        if len(by_window) > 1:
            base = by_window[min(by_window)]
            growth[name] = {k: median / base for k, median in sorted(by_window.items())}
    shapes = of(OURS, lambda s: (s.kernel_size, s.shape), shape=any)
    others = {k for k, shape in shapes if shape != first.shape}
    sizes = {
        f"{k}, {'×'.join(map(str, shape))}": median / (shape[0] * shape[1] * shape[2] * shape[3]) * 1e9
        for (k, shape), median in sorted(shapes.items())
        if k in others
    }
    numbers = of(OURS, lambda s: s.threads, threads=any)
    threads = {n: numbers[1] / numbers[n] for n in sorted(n for n in numbers if n) if 1 in numbers}
    by_window, value = of(OURS, lambda s: s.kernel_size), of(VALUE, lambda s: s.kernel_size)
    kinds = of(OURS, lambda s: (s.kind, s.kernel_size), kind=any)
    labels = {
        f"{kind}, {k}": median / by_window[k]
        for (kind, k), median in kinds.items()
        if kind != first.kind and k in by_window
    }
    value_only = {k: value[k] / by_window[k] for k in value if k in by_window}
    return {
        "growth": growth,
        "sizes": sizes,
        "threads": threads,
        "labels": labels,
        "value_only": value_only,
    }


def show_summary(results: list[Result], console: Any) -> None:
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
        ("sizes", f"{OURS}, growth with the size", "kernel_size, shape", "ns a logit"),
        ("threads", f"{OURS}, threads", "threads", "times as fast as one"),
        ("labels", f"{OURS}, other labels", "labels, kernel_size", "time / label map's"),
        ("value_only", "the value alone", "kernel_size", "time / value and gradient"),
    ):
        if found[part]:
            made = table(title, left, right)
            for key, number in found[part].items():
                made.add_row(str(key), f"{number:.2f}")
            console.print(made)
