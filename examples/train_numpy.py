"""A complete training loop in NumPy and SciPy alone: from images to a mean IoU on one that was held out.

The images are made here: regions of four materials, whose colours overlap under uneven light and noise, and which
differ in texture too. Labels are void where two regions meet. The third image is never trained on; on it the model is
judged. The model sees smoothed colours and contrasts of each pixel; one hidden layer and Adam, both written here in a
few lines, and the gradient of the loss from lalref. Run it with

    python examples/train_numpy.py [--steps 150] [--crop 96] [--picture out/train_numpy.png]

The picture, if asked for, is drawn by Matplotlib; nothing else is imported.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter

from lalref import LocallyAdaptiveLoss

CLASSES, VOID, HIDDEN, BATCH = 4, 255, 24, 2
SIZE = 160, 200
COLOURS = np.array([[0.45, 0.55, 0.7], [0.4, 0.5, 0.35], [0.5, 0.5, 0.4], [0.55, 0.45, 0.4]])
GRAIN = (6.0, 1.0, 2.5, 1.0)  # how wide the specks of a material are, in pixels
loss = LocallyAdaptiveLoss(kernel_size=5, p=5.0, ignore_index=VOID)


def scene(seed):
    """An image (H, W, 3), colours about 0.5, and its labels (H, W) uint8, VOID where two regions meet."""
    random = np.random.default_rng(seed)
    region = gaussian_filter(random.normal(size=(CLASSES, *SIZE)), (0, 14, 14)).argmax(0)  # (H, W)
    light = gaussian_filter(random.normal(size=SIZE), 40)
    image = COLOURS[region] * (1 + 0.15 * light / abs(light).max())[..., None]
    for material, grain in enumerate(GRAIN):
        specks = gaussian_filter(random.normal(size=SIZE), grain)
        image += (0.08 * specks / specks.std() * (region == material))[..., None]
    image += 0.2 * random.normal(size=image.shape)
    labels = region.astype(np.uint8)
    labels[maximum_filter(region, 3) != minimum_filter(region, 3)] = VOID
    return image, labels


def features(image):
    """What the model sees of each pixel: colour and contrast at three scales, (F, H, W) float32."""
    colour = 4 * (np.moveaxis(image, -1, 0) - 0.5)
    maps = []
    for scale in (1, 2, 4):
        smooth = gaussian_filter(colour, (0, scale, scale))
        maps += [smooth, gaussian_filter((colour - smooth) ** 2, (0, scale, scale)) ** 0.5]
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
    """Train on crops of two images; return the losses and the third's mean IoU before and after."""
    scenes = [scene(seed) for seed in (1, 2, 3)]
    seen, labels = [features(image) for image, _ in scenes], [y for _, y in scenes]
    model = Model(len(seen[0]))
    random = np.random.default_rng(1)

    def judged():
        predicted = model.forward(seen[2][None])[0].argmax(1)[0]
        return mean_iou(predicted, labels[2]), predicted

    before, losses = judged()[0], []
    for step in range(steps):
        x, y = [], []
        for _ in range(BATCH):
            which = random.integers(2)
            i, j = (random.integers(n - crop + 1) for n in SIZE)
            x.append(seen[which][:, i : i + crop, j : j + crop])
            y.append(labels[which][i : i + crop, j : j + crop])
        x, y = np.stack(x), np.stack(y)
        logits, hidden = model.forward(x)
        value, grad = loss.value_and_grad(logits, y)  # all that lalref has to do with it
        model.step(model.backward(x, hidden, grad), rate=0.02 * (1 - step / steps))
        losses.append(float(value))
        show(step + 1, steps, losses[-1])
    after, predicted = judged()
    return losses, before, after, (scenes[2][0], labels[2], predicted)


def show(step, steps, value):
    """How far the training is, on one line."""
    done = 30 * step // steps
    end = "\n" if step == steps else ""
    print(
        f"\r[{'#' * done:.<30}] step {step}/{steps}, loss {value:.3f}", end=end, file=sys.stderr, flush=True
    )


def draw(losses, judged, file):
    """The losses, and the held-out image with its labels and prediction."""
    from matplotlib.figure import Figure

    image, labels, predicted = judged
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    axes = figure.subplots(1, 4)
    axes[0].plot(losses)
    axes[0].set(xlabel="step", ylabel="loss", title="training")
    maps = {
        "held out": image.clip(0, 1),
        "labels (white: void)": np.where(labels == VOID, np.nan, labels),
        "prediction": predicted,
    }
    for axis, (title, shown) in zip(axes[1:], maps.items(), strict=True):
        axis.imshow(shown, vmin=0, vmax=CLASSES - 1, interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    print(f"written: {file}")


def main():
    parser = argparse.ArgumentParser(description="Train without a framework.")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--crop", type=int, default=96, help="length of a crop in pixels, at most 160")
    parser.add_argument("--picture", type=Path, help="where to draw the losses and the held-out image")
    arguments = parser.parse_args()
    losses, before, after, judged = train(arguments.steps, arguments.crop)
    tenth = max(1, len(losses) // 10)
    print(f"loss, mean of the first {tenth} steps: {np.mean(losses[:tenth]):.3f}")
    print(f"loss, mean of the last {tenth} steps:  {np.mean(losses[-tenth:]):.3f}")
    print(f"held-out mean IoU: {before:.3f} before, {after:.3f} after")
    if arguments.picture:
        draw(losses, judged, arguments.picture)


if __name__ == "__main__":
    main()
