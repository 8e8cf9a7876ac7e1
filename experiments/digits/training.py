"""One training run: a model, a loss, a learning rate and a seed in; predicted label maps out.

Every loss gets the same scenes, the same initial weights and the same order of batches for a seed, so that runs of
one seed are pairs. Both models are trained from scratch. Nothing is stored and nothing is scored here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize

from experiments.digits.models import features, unet
from experiments.digits.scenes import CLASSES, VOID, Scenes, make_scenes
from lalref import LocallyAdaptiveLoss

Which = tuple[str, int, int, int]  # the arguments of `scenes`: split, count, size, seed
Predict = Callable[[Which], np.ndarray]  # -> the predicted classes (N, H, W) of these scenes


@dataclasses.dataclass(frozen=True)
class Method:
    """A loss to train with: cross-entropy, or this loss at a kernel size and a Minkowski exponent."""

    kernel_size: int | None = None
    p: float = 1.0

    @property
    def title(self) -> str:
        """How tables and pictures call it."""
        if self.kernel_size is None:
            return "cross-entropy"
        return f"{self.kernel_size}×{self.kernel_size}, p = {self.p:g}"

    @property
    def options(self) -> dict[str, Any]:
        """Options of this loss; everything else is at its default."""
        return {"kernel_size": self.kernel_size or 1, "p": self.p, "ignore_index": VOID}


METHODS = {
    "ce": Method(),
    "k1-p5": Method(1, 5.0),
    "k3-p5": Method(3, 5.0),
    "k5-p1": Method(5, 1.0),
    "k5-p2": Method(5, 2.0),
    "k5-p5": Method(5, 5.0),
    "k7-p5": Method(7, 5.0),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The size of the experiment; the same for every loss.

    Attributes
    ----------
    size : int
        Height and width of a scene, in pixels.
    unet_scenes, linear_scenes : int
        Training scenes of each seed.
    validation_scenes, test_scenes : int
        The same for all seeds. Learning rates are chosen on the first, results are of the second.
    steps, batch : int
        Of the U-Net, by Adam from random weights; the learning rate falls to 0 as (1 - step/steps)^0.9.
    widths : tuple of int
        Maps of the U-Net at each resolution.
    rates : tuple of float
        Learning rates that are tried for each loss, with each of the search seeds.
    iterations : int
        Of the linear model, by L-BFGS, which needs no learning rate.
    search_seeds, seeds : tuple of int
    """

    size: int = 48
    unet_scenes: int = 2000
    linear_scenes: int = 40
    validation_scenes: int = 60
    test_scenes: int = 150
    steps: int = 500
    batch: int = 8
    widths: tuple[int, ...] = (24, 48)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    iterations: int = 80
    search_seeds: tuple[int, ...] = (100,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


@functools.lru_cache(maxsize=4)
def scenes(split: str, count: int, size: int, seed: int = 0) -> Scenes:
    """`make_scenes`, the last few kept."""
    return make_scenes(split, count, size=size, seed=seed)


def train(
    model: str,
    method: Method,
    rate: float | None,
    seed: int,
    settings: Settings,
    step_done: Callable[[], None] = lambda: None,
) -> Predict:
    """Train `model`, "unet" or "linear", and return what predicts with it."""
    if model == "unet":
        assert rate is not None, "a U-Net is trained by Adam, which needs a learning rate"
        return _train_unet(method, rate, seed, settings, step_done)
    return _train_linear(method, seed, settings, step_done)


def _train_unet(
    method: Method, rate: float, seed: int, settings: Settings, step_done: Callable[[], None]
) -> Predict:
    import torch

    from lalref.adapters.torch import LocallyAdaptiveLoss as TorchLoss

    torch.set_num_threads(1)  # the scenes are too small for two, and one thread adds up in one order
    torch.manual_seed(seed)
    net = unet(len(CLASSES), widths=settings.widths).to(memory_format=torch.channels_last)  # a third faster
    if method.kernel_size is None:
        criterion = torch.nn.CrossEntropyLoss(ignore_index=VOID)
    else:
        criterion = TorchLoss(**method.options)
    given = scenes("train", settings.unet_scenes, settings.size, seed)
    images, labels = torch.from_numpy(given.images)[:, None] - 0.5, torch.from_numpy(given.labels).long()
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    falling = torch.optim.lr_scheduler.PolynomialLR(optimiser, settings.steps, power=0.9)
    rng = np.random.default_rng(seed)
    for _ in range(settings.steps):
        chosen = rng.choice(len(images), settings.batch, replace=False)
        optimiser.zero_grad()
        criterion(net(images[chosen]), labels[chosen]).backward()
        optimiser.step()
        falling.step()
        step_done()
    net.eval()

    def predict(which: Which) -> np.ndarray:
        images = torch.from_numpy(scenes(*which).images)[:, None] - 0.5
        with torch.no_grad():
            return net(images).argmax(1).numpy().astype(np.uint8)

    return predict


@functools.lru_cache(maxsize=2)
def _seen(split: str, count: int, size: int, seed: int = 0) -> np.ndarray:
    """The features of `scenes`, the last ones kept."""
    return features(scenes(split, count, size, seed).images)


def _train_linear(method: Method, seed: int, settings: Settings, step_done: Callable[[], None]) -> Predict:
    """Minimise the loss of logits linear in `features`: a convex problem, with lalref's own gradient."""
    loss = LocallyAdaptiveLoss(**method.options)
    given: Which = ("train", settings.linear_scenes, settings.size, seed)
    labels = scenes(*given).labels
    mean = _seen(*given).mean((1, 2, 3), keepdims=True)
    deviation = _seen(*given).std((1, 2, 3), keepdims=True)
    mean[0], deviation[0] = 0, 1  # the constant stays as it is

    def standardised(which: Which) -> np.ndarray:
        return (_seen(*which) - mean) / deviation  # (F, N, H, W)

    seen = standardised(given)
    shape = (len(CLASSES), len(seen))

    def logits(flat: np.ndarray, seen: np.ndarray) -> np.ndarray:
        weights = flat.reshape(shape).astype(np.float32)
        return np.moveaxis(np.tensordot(weights, seen, axes=1), 0, 1)  # (N, C, H, W)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = loss.value_and_grad(logits(flat, seen), labels)
        return float(value), np.tensordot(grad, seen, axes=((0, 2, 3), (1, 2, 3))).ravel().astype(float)

    from threadpoolctl import threadpool_limits  # comes with scikit-learn, which reading results needs not

    with threadpool_limits(1):  # as for the U-Net
        found = minimize(
            objective,
            np.zeros(shape).ravel(),
            jac=True,
            method="L-BFGS-B",
            callback=lambda intermediate_result: step_done(),
            options={"maxiter": settings.iterations},
        )
    return lambda which: logits(found.x, standardised(which)).argmax(1).astype(np.uint8)
