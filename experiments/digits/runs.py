"""All runs of the experiment: which there are, which are done, and what came out of them.

First each loss is tried at each learning rate, scored on the validation scenes. Then the rate with the best mean
is run with every seed, scored on the test scenes. A finished run is a line of runs.csv, and the file is replaced
as a whole after each, so whatever ends the program costs the run it was in and nothing else. Its lines stand in
`place` order, whenever each was made.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.digits.metrics import boundary_f, confusion, iou
from experiments.digits.scenes import CLASSES, VOID
from experiments.digits.training import METHODS, Settings, scenes, train

MODELS = ("unet", "linear")
SHOWN = 6  # of the test scenes, the first ones, are kept as predicted, for the picture


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """What tells one run from the others; `rate` is None for the linear model, which needs none."""

    model: str
    method: str
    stage: str  # "search": scored on validation scenes. "final": scored on test scenes
    rate: float | None
    seed: int


@dataclasses.dataclass(frozen=True)
class Score:
    """What came out of a run: both in [0, 1], the mean IoU over all classes and the boundary F-score."""

    miou: float
    boundary_f: float


Results = dict[Run, Score]


class OtherSettings(Exception):
    """The folder holds results of an experiment with other settings."""


def place(run: Run) -> tuple[bool, int, int, int, float]:
    """Return what runs are sorted by: the search first, then by model, seed, loss and learning rate."""
    loss = list(METHODS).index(run.method)
    return run.stage != "search", MODELS.index(run.model), run.seed, loss, run.rate or 0.0


def search_runs(settings: Settings) -> list[Run]:
    """Return the runs that choose a learning rate."""
    return [
        Run("unet", method, "search", rate, seed)
        for seed in settings.search_seeds
        for method in METHODS
        for rate in settings.rates
    ]


def final_runs(settings: Settings, results: Results) -> list[Run]:
    """Return the runs that the tables are made of; the search has to be done."""
    rates = {model: {method: best_rate(model, method, results) for method in METHODS} for model in MODELS}
    return [
        Run(model, method, "final", rates[model][method], seed)
        for model in MODELS
        for seed in settings.seeds
        for method in METHODS
    ]


def rate_scores(method: str, results: Results) -> dict[float, float]:
    """Return the mean validation mIoU of each learning rate tried with the U-Net."""
    found: dict[float, list[float]] = {}
    for run, score in results.items():
        if run.method == method and run.stage == "search" and run.rate is not None:
            found.setdefault(run.rate, []).append(score.miou)
    return {rate: float(np.mean(scores)) for rate, scores in sorted(found.items())}


def best_rate(model: str, method: str, results: Results) -> float | None:
    """Return the learning rate with the best mean validation mIoU, the smaller one of equals."""
    if model == "linear":
        return None
    tried = rate_scores(method, results)
    return max(tried, key=lambda rate: tried[rate])


def read_results(folder: Path) -> Results:
    """Return the results kept in a folder, in the order of their lines; none for a new folder."""
    file = folder / "runs.csv"
    if not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8") as lines:
        return {
            Run(
                row["model"],
                row["method"],
                row["stage"],
                float(row["rate"]) if row["rate"] else None,
                int(row["seed"]),
            ): Score(float(row["miou"]), float(row["boundary_f"]))
            for row in csv.DictReader(lines)
        }


def write_results(folder: Path, results: Results) -> None:
    """Replace runs.csv, all at once, its lines sorted by `place`."""
    unfinished = folder / "runs.csv.part"
    names = [field.name for kind in (Run, Score) for field in dataclasses.fields(kind)]
    with unfinished.open("w", newline="", encoding="utf-8") as lines:
        table = csv.writer(lines, lineterminator="\n")
        table.writerow(names)
        for run, score in sorted(results.items(), key=lambda kept: place(kept[0])):
            numbers = (f"{each:.6f}" for each in dataclasses.astuple(score))
            table.writerow(["" if each is None else each for each in dataclasses.astuple(run)] + [*numbers])
        lines.flush()
        os.fsync(lines.fileno())
    os.replace(unfinished, folder / "runs.csv")


def read_settings(folder: Path) -> Settings:
    """Return the settings with which a folder's results were made."""
    stored = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return Settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()})


def run_all(folder: Path, settings: Settings, console: Console | None = None) -> Results:
    """Do every run that the folder doesn't hold yet, and return all results.

    Raises
    ------
    OtherSettings
        The folder's results were made with other settings; they are left as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "settings.json").exists():
        if read_settings(folder) != settings:
            raise OtherSettings(
                f"{folder} holds results of {read_settings(folder)}, and asked for is {settings}: "
                "move them away, or name another folder with --results"
            )
    else:
        (folder / "settings.json").write_text(
            json.dumps(dataclasses.asdict(settings), indent=2) + "\n", encoding="utf-8"
        )
    results = read_results(folder)
    began = time.perf_counter()
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console or Console()) as progress:
        search = search_runs(settings)
        count = len(search) + len(MODELS) * len(settings.seeds) * len(METHODS)
        whole = progress.add_task("all runs", total=count)
        step = progress.add_task("", total=None)
        for run in _stages(search, settings, results):
            if run not in results:
                label = f"{run.model} {METHODS[run.method].title} seed {run.seed}"
                total = settings.steps if run.model == "unet" else settings.iterations
                progress.reset(step, description=label, total=total)
                score = score_run(run, settings, folder, lambda: progress.advance(step))
                results[run] = score
                write_results(folder, results)
                minutes = f"{(time.perf_counter() - began) / 60:5.1f} min"
                progress.console.print(
                    f"{minutes}  {label} {run.stage} rate {run.rate}: mIoU {score.miou:.6f}", soft_wrap=True
                )
            progress.advance(whole)
    return results


def _stages(search: list[Run], settings: Settings, results: Results) -> Iterator[Run]:
    """The search, and only then, by what it found, the rest."""
    yield from search
    yield from final_runs(settings, results)


def score_run(run: Run, settings: Settings, folder: Path, step_done=lambda: None) -> Score:  # type: ignore[no-untyped-def]
    """Train and score once; the predictions for the picture go to the folder."""
    predict = train(run.model, METHODS[run.method], run.rate, run.seed, settings, step_done)
    if run.stage == "search":
        which = ("validation", settings.validation_scenes, settings.size, 0)
    else:
        which = ("test", settings.test_scenes, settings.size, 0)
    asked, predicted = scenes(*which), predict(which)
    if run.stage == "final" and run.seed == settings.seeds[0]:
        side_by_side = np.concatenate(list(predicted[:SHOWN]), axis=1)
        Image.fromarray(side_by_side).save(folder / f"masks-{run.model}-{run.method}.png")
    counts = confusion(asked.labels, predicted, len(CLASSES), VOID)
    return Score(float(np.nanmean(iou(counts))), boundary_f(asked.full, predicted, len(CLASSES)))
