"""The main job on a photograph, then ports of the loss judged: what `make demo` runs.

1. A photograph (scikit-image's cup of coffee), and a label map made from it: superpixels, their colours in
   clusters, and the pixels where two clusters meet left without a label, as the Pascal VOC borders are.
2. A per-pixel classifier, linear in colour and texture, fitted by minimising the locally adaptive loss with
   the gradient that lalref gives.
3. The loss of its logits and the gradient, drawn and written to out/.
4. `lalref verify` on the ports in examples/ports/: right ones accepted, a broken one refused.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress, TextColumn
from scipy.cluster.vq import kmeans2
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize
from skimage import color, data, segmentation, transform

from lalref import LocallyAdaptiveLoss
from lalref.oracle.verify import LIMIT

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out"
CLASSES, VOID = 5, 255
ITERATIONS = 40
loss = LocallyAdaptiveLoss(kernel_size=5, sigma=1.0, p=5.0, ignore_index=VOID)
console = Console(highlight=False)


def photograph():
    """The cup of coffee at half its size: (H, W, 3) in [0, 1]."""
    return transform.downscale_local_mean(data.coffee() / 255, (2, 2, 1))


def label_map(photo):
    """Superpixels, clustered by colour into classes: (H, W) uint8, VOID where two classes meet."""
    superpixel = segmentation.slic(photo, n_segments=250, compactness=10, start_label=0)  # (H, W)
    size = np.bincount(superpixel.ravel())
    channels = color.rgb2lab(photo).reshape(-1, 3).T
    mean = np.stack([np.bincount(superpixel.ravel(), c) / size for c in channels], axis=1)  # (superpixels, 3)
    by_lightness = mean[np.argsort(mean[:, 0])]
    start = by_lightness[np.linspace(0, len(mean) - 1, CLASSES).astype(int)]
    cluster = kmeans2(mean, start, minit="matrix")[1]
    labels = cluster[superpixel].astype(np.uint8)
    labels[segmentation.find_boundaries(labels)] = VOID
    return labels


def features(photo):
    """What the classifier sees of each pixel: colour and local contrast at three scales, and a constant."""
    lab = np.moveaxis(color.rgb2lab(photo), -1, 0)  # (3, H, W)
    maps = []
    for scale in (1, 2, 4):
        smooth = gaussian_filter(lab, (0, scale, scale))
        contrast = gaussian_filter((lab[:1] - smooth[:1]) ** 2, (0, scale, scale)) ** 0.5
        maps += [smooth, contrast]
    stack = np.concatenate(maps)  # (12, H, W)
    stack = (stack - stack.mean((1, 2), keepdims=True)) / stack.std((1, 2), keepdims=True)
    return np.concatenate([stack, np.ones_like(stack[:1])])


def fit(seen, labels):
    """Weights (C, features) of the classifier that minimises the loss, by L-BFGS."""
    shape = (CLASSES, len(seen))

    def objective(flat):
        logits = np.tensordot(flat.reshape(shape), seen, axes=1)[None]  # (1, C, H, W)
        value, grad = loss.value_and_grad(logits, labels[None])
        return float(value), np.tensordot(grad[0], seen, axes=((1, 2), (1, 2))).ravel()

    console.print("compiling the numba engine, where this has not been done before: half a minute, once")
    before = objective(np.zeros(shape).ravel())[0]
    shown = TextColumn(
        "iteration {task.completed:.0f} of at most {task.total:.0f}, loss {task.fields[loss]:.4f}"
    )
    with Progress(*Progress.get_default_columns()[:2], shown, console=console) as progress:
        task = progress.add_task("fitting", total=ITERATIONS, loss=before)

        def step(intermediate_result):
            progress.update(task, advance=1, loss=intermediate_result.fun)

        found = minimize(
            objective,
            np.zeros(shape).ravel(),
            jac=True,
            method="L-BFGS-B",
            callback=step,
            options={"maxiter": ITERATIONS},
        )
    return found.x.reshape(shape)


def draw(photo, labels, logits, grad):
    """Photograph, labels, prediction, group sizes, window losses and gradient magnitude: out/demo.png."""
    maps = loss.inspect(logits, labels[None])
    kept = np.where(labels == VOID, np.nan, 1)  # (H, W)
    magnitude = np.linalg.norm(grad[0], axis=0)  # (H, W)
    figure = Figure(figsize=(13, 6), layout="constrained")
    top, bottom = figure.subplots(2, 3)
    classes = {
        "photograph": photo,
        "labels (white: void)": labels * kept,
        "prediction": np.argmax(logits[0], axis=0),
    }
    for axis, (title, image) in zip(top, classes.items(), strict=True):
        axis.imshow(image, cmap="viridis", vmin=0, vmax=CLASSES - 1, interpolation="nearest")
        axis.set_title(title)
    decades = LogNorm(magnitude.max() / 1e6, magnitude.max(), clip=True)
    numbers = {
        "group size |G|": (maps.group_size[0], None),
        "window loss ℓ": (maps.window_loss[0], None),
        "gradient magnitude": (magnitude, decades),
    }
    for axis, (title, (image, norm)) in zip(bottom, numbers.items(), strict=True):
        shown = axis.imshow(image * kept, cmap="magma", norm=norm, interpolation="nearest")
        figure.colorbar(shown, ax=axis, shrink=0.8)
        axis.set_title(title)
    for axis in figure.axes[:6]:
        axis.set_axis_off()
    figure.savefig(OUT / "demo.png", dpi=110)


def main_job():
    """Fit, then work out the loss and its gradient and write them to out/."""
    console.rule("The loss on a photograph")
    OUT.mkdir(exist_ok=True)
    photo = photograph()  # (H, W, 3)
    labels = label_map(photo)  # (H, W)
    seen = features(photo)  # (features, H, W)
    console.print(
        f"photograph {photo.shape}, {CLASSES} classes, {np.mean(labels == VOID):.1%} of the pixels void"
    )
    weights = fit(seen, labels)

    logits = np.tensordot(weights, seen, axes=1)[None]  # (1, C, H, W)
    value, grad = loss.value_and_grad(logits, labels[None])
    kept = labels != VOID
    result = {
        "loss": repr(loss),
        "value": float(value),
        "largest gradient entry": float(np.abs(grad).max()),
        "pixels classified as labelled": float(np.mean(np.argmax(logits[0], axis=0)[kept] == labels[kept])),
    }
    draw(photo, labels, logits, grad)
    (OUT / "loss.json").write_text(json.dumps(result, indent=2) + "\n")
    np.save(OUT / "gradient.npy", grad)
    for name, number in result.items():
        console.print(f"{name}: {number}")
    console.print("written: out/demo.png, out/gradient.npy, out/loss.json")


def judge(port, *options, expected):
    """Run `lalref verify` on a port and return its report; an exit code that isn't expected ends the demo."""
    file = OUT / Path(port).with_suffix(".json").name
    command = ["lalref", "verify", f"examples/ports/{port}", *options]
    console.print(f"\n[bold]$ {shlex.join(command)}[/bold]")
    code = subprocess.run(
        [sys.executable, "-m", *command, "--json", str(file)], cwd=ROOT, check=False
    ).returncode
    if code != expected:
        sys.exit(f"This is a defect of lalref: exit code {code}, expected {expected}.")
    return json.loads(file.read_text())


def judge_ports():
    """The ports, right and wrong."""
    console.rule("Ports judged")
    judge("numpy_port.py:value_and_grad", expected=0)
    for framework in ("torch", "jax"):
        if importlib.util.find_spec(framework):
            judge(f"{framework}_port.py:loss", "--framework", framework, expected=0)
        else:
            console.print(f"\n{framework} is not installed in this environment: its port is not judged here")
    console.print("\nNow a port with a mistake in its gradient, which has to be refused:")
    report = judge("broken_port.py:value_and_grad", expected=1)
    off = {
        what: sum(case[key] is None or case[key] > LIMIT for case in report["cases"])
        for what, key in [("value", "value_units"), ("gradient", "grad_units")]
    }
    console.print(
        f"\nRefused, as it should be: of {len(report['cases'])} answers to core cases {off['value']} have a "
        f"wrong value, {off['gradient']} a wrong gradient. So its loss is right and the mistake is in its "
        "backward: the docstring of broken_port.py tells which one."
    )


if __name__ == "__main__":
    main_job()
    judge_ports()
