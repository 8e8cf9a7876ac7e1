"""From kept results to the tables and pictures of docs/experiment.md. Nothing is trained here."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from experiments.digits.runs import (
    MODELS,
    SHOWN,
    Results,
    best_rate,
    rate_scores,
    read_results,
    read_settings,
)
from experiments.digits.scenes import CLASSES, VOID
from experiments.digits.training import METHODS, scenes

BASELINE = "ce"
MODEL_TITLES = {"unet": "U-Net", "linear": "linear model"}
SCORE_TITLES = {"miou": "mIoU", "boundary_f": "boundary F"}
COLOURS = ListedColormap(["#202020", *colormaps["tab10"].colors])  # ten, whatever the reader's own style


def scores(results: Results, model: str, method: str, which: str) -> np.ndarray:
    """Return the test scores of one loss in percent, one a seed, in the order of the seeds."""
    found = {
        run.seed: 100 * getattr(score, which)
        for run, score in results.items()
        if (run.model, run.method, run.stage) == (model, method, "final")
    }
    return np.array([found[seed] for seed in sorted(found)])


def holm(p_values: list[float]) -> list[float]:
    """Return p values adjusted for how many there are, by Holm's step-down rule.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    so_far = 0.0
    for rank, i in enumerate(np.argsort(p_values)):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = so_far
    return adjusted


def compared(results: Results, model: str, which: str) -> dict[str, tuple[float, float, float, float]]:
    """Return for each loss but cross-entropy: mean difference to it, both ends of its 95 % interval, Holm's p."""
    base = scores(results, model, BASELINE, which)
    others = [name for name in METHODS if name != BASELINE]
    tests = [stats.ttest_rel(scores(results, model, name, which), base) for name in others]
    adjusted = holm([float(test.pvalue) for test in tests])
    rows = {}
    for name, test, p in zip(others, tests, adjusted, strict=True):
        ends = test.confidence_interval(0.95)
        rows[name] = (float(np.mean(scores(results, model, name, which) - base)), ends.low, ends.high, p)
    return rows


def score_table(results: Results, model: str) -> str:
    """Return mean and standard deviation of each loss, and the paired comparison with cross-entropy."""
    head = ["loss"]
    for title in SCORE_TITLES.values():
        head += [f"{title}, %", "minus cross-entropy [95 %]", "p (Holm)"]
    lines = [head, ["---"] * len(head)]
    tested = {which: compared(results, model, which) for which in SCORE_TITLES}
    for name, method in METHODS.items():
        row = [method.title]
        for which in SCORE_TITLES:
            found = scores(results, model, name, which)
            row.append(f"{found.mean():.1f} ± {found.std(ddof=1):.1f}")
            if name == BASELINE:
                row += ["–", "–"]  # an empty cell looks forgotten
            else:
                mean, low, high, p = tested[which][name]
                row += [f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]", "< 0.001" if p < 0.001 else f"{p:.3f}"]
        lines.append(row)
    return _markdown(lines)


def rate_table(results: Results) -> str:
    """Return the search: mean validation mIoU of each loss at each learning rate, the chosen one in bold."""
    tried = {name: rate_scores(name, results) for name in METHODS}
    rates = list(tried[BASELINE])
    lines = [["loss", *(f"{rate:g}" for rate in rates)], ["---"] * (1 + len(rates))]
    for name, method in METHODS.items():
        best = best_rate("unet", name, results)
        cells = [
            f"**{100 * v:.1f}**" if rate == best else f"{100 * v:.1f}" for rate, v in tried[name].items()
        ]
        lines.append([method.title, *cells])
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(folder: Path) -> dict[str, str]:
    """Return every table of the page by its name."""
    results = read_results(folder)
    settings = read_settings(folder)
    listed = [["setting", "value"], ["---", "---"]]
    listed += [
        [f"`{name}`", ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value}"]
        for name, value in vars(settings).items()
    ]
    return {
        **{model: score_table(results, model) for model in MODELS},
        "rates": rate_table(results),
        "settings": _markdown(listed),
    }


def filled_in(page: str, made: dict[str, str]) -> str:
    """Return the page with each table put between its two marks, <!-- table: name --> and <!-- end -->."""
    for name, table in made.items():
        mark = f"<!-- table: {name} -->"
        between = re.compile(re.escape(mark) + r"\n.*?(?=<!-- end -->)", re.DOTALL)
        page, count = between.subn(lambda _, text=f"{mark}\n\n{table}\n\n": text, page)
        if count != 1:
            raise ValueError(
                f"the page must have {mark!r} and '<!-- end -->' once; it has them {count} times"
            )
    return page


def draw_scores(folder: Path) -> Figure:
    """Draw each seed's difference to cross-entropy, for both models and both scores."""
    results = read_results(folder)
    others = [name for name in METHODS if name != BASELINE]
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    for row, model in zip(figure.subplots(2, 2, sharex="row"), ("unet", "linear"), strict=True):
        for axis, (which, title) in zip(row, SCORE_TITLES.items(), strict=True):
            base = scores(results, model, BASELINE, which)
            tested = compared(results, model, which)
            for i, name in enumerate(others):
                difference = scores(results, model, name, which) - base
                axis.plot(difference, np.full(len(difference), i), "o", color="C0", alpha=0.4, ms=5)
                mean, low, high, _ = tested[name]
                axis.errorbar(mean, i, xerr=[[mean - low], [high - mean]], fmt="k|", capsize=4, ms=10)
            axis.axvline(0, color="0.5", lw=1)
            axis.set_yticks(range(len(others)), [METHODS[name].title for name in others])
            axis.invert_yaxis()
            axis.set_title(f"{MODEL_TITLES[model]}: {title}, points above cross-entropy", fontsize=10)
    return figure


def kept_masks(folder: Path, model: str, method: str) -> np.ndarray:
    """Return the predictions that were kept, of the first test scenes at the first seed: (scenes, H, W)."""
    side_by_side = np.asarray(Image.open(folder / f"masks-{model}-{method}.png"))
    size = len(side_by_side)  # scenes are square
    return side_by_side.reshape(size, -1, size).swapaxes(0, 1)


def draw_masks(folder: Path, ours: tuple[str, ...] = ("k5-p1", "k5-p5"), model: str = "unet") -> Figure:
    """Draw the first test scenes: image, truth, and what cross-entropy and this loss predict, at the first seed."""
    settings = read_settings(folder)
    shown = scenes("test", settings.test_scenes, settings.size, 0)
    count = min(SHOWN, settings.test_scenes)

    truth = [np.where(y == VOID, np.nan, y) for y in shown.labels[:count].astype(float)]
    rows = {
        "image": list(shown.images[:count]),
        "truth\n(white: void)": truth,
        **{METHODS[name].title: kept_masks(folder, model, name) for name in (BASELINE, *ours)},
    }
    figure = Figure(figsize=(1.6 * count + 1.2, 1.6 * len(rows) + 0.6), layout="constrained")
    for axes, (title, pictures) in zip(figure.subplots(len(rows), count), rows.items(), strict=True):
        for axis, picture in zip(axes, pictures, strict=True):
            if title == "image":
                axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            else:
                last = axis.imshow(
                    picture, cmap=COLOURS, vmin=-0.5, vmax=len(CLASSES) - 0.5, interpolation="nearest"
                )
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(title)
    bar = figure.colorbar(last, ax=figure.axes, ticks=range(len(CLASSES)), shrink=0.7)
    bar.ax.set_yticklabels(["none", *CLASSES[1:]])
    return figure


def source_hash(folder: Path) -> str:
    """Return the sha256 of what the pictures are drawn from: the results, the settings and the kept predictions."""
    drawn = [folder / "runs.csv", folder / "settings.json", *sorted(folder.glob("masks-*.png"))]
    each = [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in drawn]
    return hashlib.sha256("".join(each).encode()).hexdigest()


def write_report(folder: Path, page: Path) -> None:
    """Put the tables into the page and draw its pictures into the folder images beside it."""
    text = filled_in(page.read_text(encoding="utf-8"), tables(folder))
    pictures = {"experiment-scores.png": draw_scores(folder), "experiment-masks.png": draw_masks(folder)}
    images = page.parent / "images"
    images.mkdir(exist_ok=True)
    for name, figure in pictures.items():
        figure.savefig(images / name, dpi=90, metadata={"Software": None, "Source": source_hash(folder)})
    page.write_text(text, encoding="utf-8")
