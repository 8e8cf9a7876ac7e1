"""A complete training loop with NumPy and SciPy and no framework: from photographs to a held-out mean IoU.

Three photographs that scikit-image brings along, each with a label map of superpixels clustered by colour, as in
demo.py; on the third, which is never trained on, the model is judged. The model sees smoothed colours and
contrasts of each pixel; one hidden layer and Adam, both written here in a few lines, and the gradient of the loss
from lalref. Run it with

    python examples/train_numpy.py [--steps 150] [--crop 96] [--picture out/train_numpy.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress, TextColumn
from scipy.ndimage import gaussian_filter
from skimage import color, data, segmentation, transform

from lalref import LocallyAdaptiveLoss

CLASSES, VOID, HIDDEN, BATCH = 4, 255, 24, 2
loss = LocallyAdaptiveLoss(kernel_size=5, p=5.0, ignore_index=VOID)
console = Console(highlight=False)


def photographs():
    """Three photographs, (H, W, 3) in [0, 1]; the last is held out."""
    return [
        transform.downscale_local_mean(photo / 255, (k, k, 1))
        for photo, k in ((data.coffee(), 3), (data.chelsea(), 2), (data.astronaut(), 3))
    ]


def label_map(photo):
    """Superpixels by lightness in CLASSES steps, VOID where two meet: (H, W) uint8."""
    superpixel = segmentation.slic(photo, n_segments=150, compactness=10, start_label=0)
    lightness = color.rgb2lab(photo)[..., 0]
    mean = np.bincount(superpixel.ravel(), lightness.ravel()) / np.bincount(superpixel.ravel())
    steps = np.linspace(0, 100, CLASSES + 1)[1:-1]
    labels = np.digitize(mean, steps)[superpixel].astype(np.uint8)
    labels[segmentation.find_boundaries(labels)] = VOID
    return labels


def features(photo):
    """What the model sees of each pixel: colour, and contrast, at three scales, with noise: (F, H, W) float32."""
    lab = np.moveaxis(color.rgb2lab(photo), -1, 0) / 50 - 1
    rows, columns = np.indices(lab.shape[1:])
    noise = (
        np.sin(12.9898 * rows + 78.233 * columns) * 43758.5453 % 1 - 0.5
    )  # from a formula, the same every time
    lab = lab + 0.8 * noise
    maps = []
    for scale in (1, 2, 4):
        smooth = gaussian_filter(lab, (0, scale, scale))
        maps += [smooth, gaussian_filter((lab - smooth) ** 2, (0, scale, scale)) ** 0.5]
    return np.concatenate(maps).astype(np.float32)


class Model:
    """Two layers of weights, seen by every pixel for itself, and Adam."""

    def __init__(self, inputs, seed=0):
        random = np.random.default_rng(seed)
        self.W1 = random.normal(0, (2 / inputs) ** 0.5, (HIDDEN, inputs)).astype(np.float32)
        self.b1 = np.zeros((HIDDEN, 1, 1), np.float32)
        self.W2 = random.normal(0, (1 / HIDDEN) ** 0.5, (CLASSES, HIDDEN)).astype(np.float32)
        self.b2 = np.zeros((CLASSES, 1, 1), np.float32)
        self.moments = dict.fromkeys(vars(self), (0.0, 0.0))
        self.steps = 0

    def forward(self, x):
        """Logits (N, C, H, W) of features (N, F, H, W), and the hidden layer."""
        hidden = np.maximum(np.einsum("hf,nfij->nhij", self.W1, x, optimize=True) + self.b1, 0)
        return np.einsum("ch,nhij->ncij", self.W2, hidden, optimize=True) + self.b2, hidden

    def backward(self, x, hidden, grad):
        """The gradient of every weight, from that of the logits."""
        back = np.einsum("ch,ncij->nhij", self.W2, grad, optimize=True) * (hidden > 0)
        return {
            "W1": np.einsum("nhij,nfij->hf", back, x, optimize=True),
            "b1": back.sum((0, 2, 3))[:, None, None],
            "W2": np.einsum("ncij,nhij->ch", grad, hidden, optimize=True),
            "b2": grad.sum((0, 2, 3))[:, None, None],
        }

    def step(self, grads, rate):
        """One step of Adam."""
        self.steps += 1
        for name, grad in grads.items():
            first, second = self.moments[name]
            first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
            self.moments[name] = first, second
            scaled = first / (1 - 0.9**self.steps) / (np.sqrt(second / (1 - 0.999**self.steps)) + 1e-8)
            setattr(self, name, getattr(self, name) - np.float32(rate) * scaled.astype(np.float32))


def mean_iou(predicted, labels):
    """Intersection over union of the classes that occur, their mean."""
    kept = labels != VOID
    pairs = np.bincount(CLASSES * labels[kept].astype(int) + predicted[kept], minlength=CLASSES**2)
    pairs = pairs.reshape(CLASSES, CLASSES)
    union = pairs.sum(0) + pairs.sum(1) - pairs.diagonal()
    return float((pairs.diagonal()[union > 0] / union[union > 0]).mean())


def train(steps, crop):
    """Train on crops of two photographs; return the losses and the third's mean IoU before and after."""
    photos = photographs()
    seen, labels = [features(p) for p in photos], [label_map(p) for p in photos]
    model = Model(len(seen[0]))
    random = np.random.default_rng(1)

    def judged():
        predicted = model.forward(seen[2][None])[0].argmax(1)[0]
        return mean_iou(predicted, labels[2]), predicted

    before, losses = judged()[0], []
    shown = TextColumn("loss {task.fields[loss]:.3f}")
    with Progress(*Progress.get_default_columns(), shown, console=console) as progress:
        task = progress.add_task("training", total=steps, loss=np.nan)
        for step in range(steps):
            x, y = [], []
            for _ in range(BATCH):
                which = random.integers(2)
                i, j = (random.integers(n - crop + 1) for n in labels[which].shape)
                x.append(seen[which][:, i : i + crop, j : j + crop])
                y.append(labels[which][i : i + crop, j : j + crop])
            x, y = np.stack(x), np.stack(y)
            logits, hidden = model.forward(x)
            value, grad = loss.value_and_grad(logits, y)  # all that lalref has to do with it
            model.step(model.backward(x, hidden, grad), rate=0.02 * (1 - step / steps))
            losses.append(float(value))
            progress.update(task, advance=1, loss=losses[-1])
    after, predicted = judged()
    return losses, before, after, (photos[2], labels[2], predicted)


def draw(losses, judged, file):
    """The losses, and the held-out photograph with its labels and prediction."""
    from matplotlib.figure import Figure

    photo, labels, predicted = judged
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    axes = figure.subplots(1, 4)
    axes[0].plot(losses)
    axes[0].set(xlabel="step", ylabel="loss", title="training")
    maps = {
        "held out": photo,
        "labels (white: void)": np.where(labels == VOID, np.nan, labels),
        "prediction": predicted,
    }
    for axis, (title, image) in zip(axes[1:], maps.items(), strict=True):
        axis.imshow(image, vmin=0, vmax=CLASSES - 1, interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    console.print(f"written: {file}")


def main():
    parser = argparse.ArgumentParser(description="Train without a framework.")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--crop", type=int, default=96, help="length of a crop in pixels, at most 133")
    parser.add_argument("--picture", type=Path, default=Path("out/train_numpy.png"))
    arguments = parser.parse_args()
    losses, before, after, judged = train(arguments.steps, arguments.crop)
    tenth = max(1, len(losses) // 10)
    console.print(f"loss, mean of the first {tenth} steps: {np.mean(losses[:tenth]):.3f}")
    console.print(f"loss, mean of the last {tenth} steps:  {np.mean(losses[-tenth:]):.3f}")
    console.print(f"held-out mean IoU: {before:.3f} before, {after:.3f} after")
    draw(losses, judged, arguments.picture)


if __name__ == "__main__":
    main()
