"""What the loss costs inside PyTorch: the adapter beside the bare engine, and a training step beside cross-entropy.

    python -m lalref.bench.adapters [--seconds 60]

Results are checked before times are taken, in interleaved rounds. No GPU may come in: `lalref.bench.gpu`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import scipy.stats
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
        return torch.from_numpy(np.asarray(value))

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
    last: list[Any] = [None]  # the answer, given back when the next call begins: all work in the same memory

    def by_engine() -> Any:
        return loss.value_and_grad(x, y)

    def by_autograd(function: Callable[[Any, Any], Any]) -> Any:
        value = function(tensor, target)
        value.backward()
        grad, tensor.grad = tensor.grad, None
        return value.detach(), grad

    def kept(function: Callable[..., Any], *given: Any) -> Callable[[], Any]:
        def call() -> Any:
            last[0] = None
            last[0] = function(*given)
            return last[0]

        return call

    found = {
        "numba engine": kept(by_engine),
        "least autograd.Function": kept(by_autograd, lambda x, y: _Least.apply(x, y, loss)),
        "torch adapter": kept(by_autograd, criterion),
    }
    value, grad = by_engine()
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


class Times(NamedTuple):
    """Seconds of one call, and what of them the engine's value_and_grad took within it."""

    call: float
    engine: float


def timed(contestants: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[Times]]:
    """Times of each call, in rounds that take each contestant once, every second one backwards.

    Before each timed call goes one that is not, so that nobody is charged for another's leftovers: threads that
    still spin, memory and caches that were somebody else's.
    """
    times: dict[str, list[Times]] = {name: [] for name in contestants}
    order = list(contestants.items())
    within = [0.0]
    engine = lalref.LocallyAdaptiveLoss.value_and_grad

    def watched(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        answer = engine(*args, **options)
        within[0] = time.perf_counter() - start
        return answer

    with mock.patch.object(lalref.LocallyAdaptiveLoss, "value_and_grad", watched):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times[order[0][0]]) < 5:
            for name, call in order:
                call()
                within[0] = 0.0
                start = time.perf_counter()
                call()
                times[name].append(Times(time.perf_counter() - start, within[0]))
            order.reverse()
    return times


class Row(NamedTuple):
    """A contestant beside the first of its kind."""

    seconds: float
    ratio: float  # the median of the rounds' ratios
    interval: tuple[float, float]  # of that median, in 95 of 100 resamples
    outside: float  # seconds of a call that are not its engine's


def compared(taken: list[Times], base: list[Times]) -> Row:
    """`taken` beside `base`, which was timed in the same rounds."""
    call, engine = np.transpose(taken)
    ratios = call / np.transpose(base)[0]
    low, high = scipy.stats.bootstrap(
        (ratios,), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    interval = float(low), float(high)
    return Row(float(np.median(call)), float(np.median(ratios)), interval, float(np.median(call - engine)))


def main(seconds: float = 60.0) -> dict[str, Row]:
    """Print both comparisons; return the rows by name."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{SHAPE} float32, {torch.get_num_threads()} threads")
    columns = (
        "",
        "median ms",
        "rounds",
        "median of the rounds' ratios",
        "95 % interval",
        "ms outside the engine",
    )
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    rows = {}
    for contestants, by_engine in ((adapter_and_engine(), True), (training_steps(), False)):
        times = timed(contestants, seconds / 2)
        base = next(iter(times.values()))
        for name, taken in times.items():
            rows[name] = row = compared(taken, base)
            outside = f"{1e3 * row.outside:.2f}" if by_engine else ""
            interval = "{:.3f} to {:.3f}".format(*row.interval) if taken is not base else ""
            table.add_row(
                name, f"{1e3 * row.seconds:.1f}", str(len(taken)), f"{row.ratio:.3f}", interval, outside
            )
    Console(width=120).print(table)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Time the loss inside PyTorch.")
    parser.add_argument("--seconds", type=float, default=60.0)
    main(parser.parse_args().seconds)
