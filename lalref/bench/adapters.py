"""What the loss costs inside PyTorch: the adapter beside the bare engine, and a training step beside cross-entropy.

    python -m lalref.bench.adapters [--seconds 60]

Results are checked before times are taken, in interleaved rounds. No GPU may come in: `lalref.bench.gpu`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import lalref
from lalref.adapters.torch import LocallyAdaptiveLoss
from lalref.bench import inputs

SHAPE = (2, 21, 321, 321)


class UNet(nn.Module):  # type: ignore[misc]
    """A small U-Net: two levels down and up, 16 channels at the top, logits of the size of the image."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(3, width), _block(width, 2 * width), _block(2 * width, 4 * width)])
        self.up = nn.ModuleList([_block(6 * width, 2 * width), _block(3 * width, width)])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Any) -> Any:
        """Logits (N, classes, H, W) of images (N, 3, H, W)."""
        a = self.down[0](x)
        b = self.down[1](nn.functional.max_pool2d(a, 2))
        c = self.down[2](nn.functional.max_pool2d(b, 2))
        for block, skip in zip(self.up, (b, a), strict=True):
            c = nn.functional.interpolate(c, size=skip.shape[2:], mode="nearest")
            c = block(torch.cat([c, skip], 1))
        return self.head(c)


def _block(channels: int, out: int) -> Any:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1), nn.ReLU()
    )


class _Least(torch.autograd.Function):  # type: ignore[misc]
    """The least that autograd asks for: what the engine gives, handed over, for an upstream gradient of 1."""

    @staticmethod
    def forward(ctx: Any, x: Any, y: Any, loss: lalref.LocallyAdaptiveLoss) -> Any:
        value, grad = loss.value_and_grad(x.detach().numpy(), y.numpy())
        ctx.grad = torch.from_numpy(grad)
        return torch.tensor(value)

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> tuple[Any, None, None]:
        grad, ctx.grad = ctx.grad, None
        return grad, None, None


def adapter_and_engine() -> dict[str, Callable[[], Any]]:
    """Value and gradient by the numba engine itself, by the least of an autograd.Function, and the adapter; checked."""
    N, C, H, W = SHAPE
    x, y = inputs.logits(SHAPE), inputs.labels("blobs", (N, H, W), C)
    loss, criterion = lalref.LocallyAdaptiveLoss(), LocallyAdaptiveLoss()
    tensor, target = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)
    kept: list[Any] = [None]  # as x.grad is kept, so that memory is given back at the same moment

    def engine() -> Any:
        kept[0] = None
        kept[0] = loss.value_and_grad(x, y)
        return kept[0]

    def by_autograd(function: Callable[[Any, Any], Any]) -> Callable[[], Any]:
        def call() -> Any:
            tensor.grad = None
            value = function(tensor, target)
            value.backward()
            return value.detach(), tensor.grad

        return call

    found = {
        "numba engine": engine,
        "least autograd.Function": by_autograd(lambda x, y: _Least.apply(x, y, loss)),
        "torch adapter": by_autograd(criterion),
    }
    value, grad = engine()
    for name, call in found.items():
        answer = [np.asarray(each) for each in call()]
        if answer[0] != value or not np.array_equal(answer[1], grad):
            raise ValueError(f"{name}: its answer is not the engine's: it is not timed")
    return found


def training_steps() -> dict[str, Callable[[], Any]]:
    """One step of SGD of a small U-Net with each criterion; each checked to lower its loss."""
    N, C, H, W = SHAPE
    images = torch.from_numpy(inputs.logits((N, 3, H, W)))
    target = torch.from_numpy(inputs.labels("blobs", (N, H, W), C)).to(torch.int64)
    steps: dict[str, Callable[[], Any]] = {}
    for name, criterion in {
        "U-Net step, cross_entropy": nn.CrossEntropyLoss(ignore_index=255),
        "U-Net step, lalref": LocallyAdaptiveLoss(),
    }.items():
        torch.manual_seed(0)
        model = UNet(C)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step(model: Any = model, optimizer: Any = optimizer, criterion: Any = criterion) -> float:
            optimizer.zero_grad(set_to_none=True)
            value = criterion(model(images), target)
            value.backward()
            optimizer.step()
            return float(value.detach())

        first, *_, last = (step() for _ in range(4))
        if not last < first:
            raise ValueError(f"{name} does not learn, {first} then {last}: it is not timed")
        steps[name] = step
    return steps


def timed(contestants: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, in rounds that take each contestant once, every second one backwards.

    Before each timed call goes one that is not, so that nobody is charged for another's leftovers: threads that
    still spin, memory and caches that were somebody else's.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants.items())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[order[0][0]]) < 5:
        for name, call in order:
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
        order.reverse()
    return times


def main(seconds: float = 60.0) -> dict[str, float]:
    """Print both comparisons; return the ratio of the second to the first of each, by the second's name."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{SHAPE} float32, {torch.get_num_threads()} threads")
    for column in (
        "",
        "median ms",
        "minimum ms",
        "rounds",
        "ratio of medians",
        "median of the rounds' ratios",
    ):
        table.add_column(column, justify="right" if column else "left")
    ratios = {}
    for contestants, share in ((adapter_and_engine(), 1 / 4), (training_steps(), 3 / 4)):
        times = timed(contestants, share * seconds)
        base = next(iter(times.values()))
        for name, taken in times.items():
            ratio = float(np.median(taken) / np.median(base))
            paired = float(np.median(np.divide(taken, base)))
            row = (f"{1e3 * np.median(taken):.1f}", f"{1e3 * min(taken):.1f}", str(len(taken)))
            table.add_row(name, *row, f"{ratio:.3f}", f"{paired:.3f}")
            ratios[name] = ratio
    Console(width=110).print(table)
    return ratios


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Time the loss inside PyTorch.")
    parser.add_argument("--seconds", type=float, default=60.0)
    main(parser.parse_args().seconds)
