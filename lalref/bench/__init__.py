"""`lalref bench`: contestants are checked, timed in interleaved rounds, and shown as a table, JSON and a picture.

`inputs` makes the arrays, `contestants` says who takes part, `measure` what is compared with what, `rounds` times,
`summary` says what it comes to; this room shows. `parts` takes one call apart, `adapters` is about training in
PyTorch, `scenes` about what is larger than memory, `gpu` about the kernels. The loss itself is nobody's here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lalref

if TYPE_CHECKING:
    from lalref.bench.measure import Refusal, Result, Setting


def main(
    *, quick: bool = False, seconds: float = 6.0, json_file: Path | None = None, picture: Path | None = None
) -> list[Result]:
    """Run the benchmark, print its table, and write its JSON and picture where asked.

    Parameters
    ----------
    quick : bool
        Only 3 x 3 and 5 x 5 windows on the small batch.
    seconds : float
        How long to time each group of calls that take turns, beside checks, warm-ups and compilation.
    json_file, picture : Path, optional
        Where to write all results, and a PNG of time against window size.

    Returns
    -------
    list of Result
        Medians, minima and ratios; see `lalref.bench.measure.Result`. Everyone has as many threads:
        the fewer of what numba and torch take by themselves, so NUMBA_NUM_THREADS and OMP_NUM_THREADS may lower it.

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

    from lalref.bench import measure, rounds
    from lalref.bench.summary import show_summary

    console = Console()
    results: list[Result] = []
    refused: list[Refusal] = []
    rounds.tell_jax(rounds.number_of_threads())
    plan = measure.plan(quick)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed}/{task.total} {task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(plan))
        for group, entries in plan.items():

            def tell(now: str, group: str = group) -> None:
                progress.update(task, description=f"{group}: {now}")

            found, failed = measure.measure(group, entries, seconds, tell)
            results += found
            refused += failed
            progress.advance(task)
            if json_file is not None:  # after each group, so that nothing is lost
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
    from lalref.bench.rounds import number_of_threads
    from lalref.bench.summary import summary

    machine = {
        "processor": platform.processor() or platform.machine(), "threads": number_of_threads(),
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
    """Print a table for each group: milliseconds, and ratios as `Result` has them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    console.print(
        "ms: a call's median and minimum, of all its rounds. Ratios are medians of the ratios within a round, over "
        "the rounds in which both ran.\nBefore each timed call goes one that is not."
    )
    for group in dict.fromkeys(result.group for result in results):
        rows = [result for result in results if result.group == group]
        varies = {field for field in _SAID if len({getattr(r.setting, field) for r in rows}) > 1}
        same = ", ".join(say(rows[0].setting) for field, say in _SAID.items() if field not in varies)
        title = f"{group}: {same}"
        table = Table(
            title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1)
        )  # fits 80 columns
        table.add_column("contestant", no_wrap=True)
        columns: dict[str, list[float | None]] = {
            "median\nms": [1e3 * r.median for r in rows],
            "min\nms": [1e3 * r.minimum for r in rows],
            "/ torch\nCE": [r.ratio for r in rows],
            "best\ntorch /": [r.speedup for r in rows],
            "GB/s": [r.bandwidth / 1e9 for r in rows],
            "peak /\nlogits": [
                None if r.peak_extra is None else r.peak_extra / (4 * math.prod(r.setting.shape))
                for r in rows
            ],
        }
        told = {name: numbers for name, numbers in columns.items() if any(n is not None for n in numbers)}
        for name in told:
            table.add_column(name, justify="right")
        for i, r in enumerate(rows):
            table.add_row(_row_name(r, varies), *(_or_blank(numbers[i]) for numbers in told.values()))
        console.print(table)


#: How a table says the fields of a setting.
_SAID: dict[str, Callable[[Setting], str]] = {
    "shape": lambda s: "×".join(map(str, s.shape)),
    "kind": lambda s: s.kind,
    "kernel_size": lambda s: f"{s.kernel_size}×{s.kernel_size}",
    "threads": lambda s: f"{s.threads} thread{'s' * (s.threads > 1)}",
}


def _row_name(result: Result, varies: set[str]) -> str:
    from lalref.bench.contestants import CROSS_ENTROPY
    from lalref.bench.measure import COPY

    means_nothing = {CROSS_ENTROPY: {"kernel_size"}, COPY: {"kind", "kernel_size", "threads"}}
    fields = varies - means_nothing.get(result.contestant, set())
    return ", ".join([result.contestant, *(say(result.setting) for f, say in _SAID.items() if f in fields)])


def _or_blank(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:.{2 if number < 100 else 1 if number < 1000 else 0}f}"


def draw(results: list[Result], file: Path) -> None:
    """Draw time against window size, both logarithmic, from the groups in which all contestants take part."""
    from matplotlib.figure import Figure

    from lalref.bench.measure import COPY

    first = results[0].setting
    lines: dict[str, list[tuple[int, float]]] = {}
    for result in results:
        if result.group.startswith("window") and result.contestant != COPY:
            point = result.setting.kernel_size, result.median * 1e3
            lines.setdefault(result.contestant, []).append(point)
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
