"""`lalref bench`: contestants are checked, timed in interleaved rounds, and shown as a table, JSON and a picture.

`inputs` makes the arrays, `contestants` says who takes part, `measure` times, `summary` compares settings; this room
shows. The loss itself is nobody's here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lalref

if TYPE_CHECKING:
    from lalref.bench.measure import Refusal, Result


def main(
    *, quick: bool = False, seconds: float = 8.0, json_file: Path | None = None, picture: Path | None = None
) -> list[Result]:
    """Run the benchmark, print its table, and write its JSON and picture where asked.

    Parameters
    ----------
    quick : bool
        Only 3 x 3 and 5 x 5 windows on the small batch.
    seconds : float
        How long to time each setting, beside checks and compilation.
    json_file, picture : Path, optional
        Where to write all results, and a PNG of time against window size.

    Returns
    -------
    list of Result
        Medians, minima and ratios; see `lalref.bench.measure.Result`.

    Raises
    ------
    ValueError
        A contestant's value or gradient is wrong, or it fails: said when all others are timed and written.

    Examples
    --------
    >>> from lalref.bench import main
    >>> results = main(quick=True, json_file=Path("bench.json"))  # doctest: +SKIP
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from lalref.bench import measure
    from lalref.bench.summary import show_summary

    console = Console()
    results: list[Result] = []
    refused: list[Refusal] = []
    plan = measure.settings(quick)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed}/{task.total} {task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(plan))
        for setting, names in plan:
            found, failed = measure.measure(
                setting, names, seconds, lambda now: progress.update(task, description=now)
            )
            results += found
            refused += failed
            progress.advance(task)
            if json_file is not None:  # after each setting, so that nothing is lost
                json_file.write_text(json.dumps(as_json(results, refused), indent=1) + "\n", encoding="utf-8")
    show(results, console)
    show_summary(results, console)
    if picture is not None:
        draw(results, picture)
    if refused:
        told = (
            f"{r.contestant}, {r.setting.kernel_size}×{r.setting.kernel_size}: {r.reason}" for r in refused
        )
        raise ValueError("not timed:\n" + "\n".join(told))
    return results


def as_json(results: list[Result], refused: Sequence[Refusal] = ()) -> dict[str, Any]:
    """The results with what a reader of them needs to know of the machine."""
    import numba

    from lalref.bench.summary import summary

    machine = {
        "processor": platform.processor() or platform.machine(), "threads": numba.config.NUMBA_NUM_THREADS,
        "python": platform.python_version(), "lalref": lalref.__version__,
    }  # fmt: skip
    for name in ("numpy", "numba", "torch", "jax"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            machine[name] = metadata.version(name)
    return {
        "machine": machine,
        "results": [dataclasses.asdict(result) for result in results],
        "not_timed": [dataclasses.asdict(each) for each in refused],
        "summary": summary(list(results)),
    }


def show(results: list[Result], console: Any) -> None:
    """Print a table for each setting: milliseconds, and ratios as `Result` has them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    for setting in dict.fromkeys(result.setting for result in results):
        N, C, H, W = setting.shape
        threads = "" if setting.threads is None else f", {setting.threads} threads"
        title = (
            f"{N}×{C}×{H}×{W}, {setting.kind}, window {setting.kernel_size}×{setting.kernel_size}{threads}"
        )
        table = Table(
            title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1)
        )  # fits 80 columns
        table.add_column("contestant", no_wrap=True)
        for name in (
            "median\nms",
            "min\nms",
            "/ torch\nCE",
            "best\ntorch /",
            "GB/s",
            "peak /\nlogits",
        ):
            table.add_column(name, justify="right")
        for result in results:
            if result.setting == setting:
                peak = None if result.peak_extra is None else result.peak_extra / (4 * N * C * H * W)
                numbers = (
                    1e3 * result.median,
                    1e3 * result.minimum,
                    result.ratio,
                    result.speedup,
                    result.bandwidth / 1e9,
                )
                table.add_row(result.contestant, *map(_or_blank, (*numbers, peak)))
        console.print(table)


def _or_blank(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:.{2 if number < 100 else 1 if number < 1000 else 0}f}"


def draw(results: list[Result], file: Path) -> None:
    """Draw time against window size, both logarithmic, for the setting with the most windows."""
    from matplotlib.figure import Figure

    from lalref.bench.measure import COPY

    first = results[0].setting
    lines: dict[str, list[tuple[int, float]]] = {}
    for result in results:
        s = result.setting
        like_first = (s.shape, s.kind, s.threads) == (first.shape, first.kind, first.threads)
        if like_first and result.contestant != COPY:
            lines.setdefault(result.contestant, []).append((s.kernel_size, result.median * 1e3))
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        axes.loglog(*zip(*points, strict=True), marker="o", label=name)
    sizes = sorted({k for points in lines.values() for k, _ in points})
    axes.set_xticks(sizes, [str(k) for k in sizes])
    axes.minorticks_off()
    axes.set_xlabel("kernel_size")
    axes.set_ylabel("milliseconds (median)")
    shape = "×".join(map(str, first.shape))
    axes.set_title(f"value and gradient, or as said; {shape}, float32, {first.kind}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=120)
