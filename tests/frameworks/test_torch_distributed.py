"""Batches cut over processes and micro-batches: the whole's value and gradient, told errors, no waiting in vain."""

import contextlib
import datetime
import math
import os
import signal
import time

import numpy as np
import pytest
from samples import V, X, Y

import lalref
from lalref import combine, lal_value_and_grad
from lalref.oracle.inputs import VOID, weights

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402

from lalref.adapters.torch import LocallyAdaptiveLoss, locally_adaptive_loss  # noqa: E402
from lalref.adapters.torch_distributed import distributed_loss, distributed_parts  # noqa: E402

SECONDS = 60
OPTIONS = {"kernel_size": 3, "p": 5.0}
IMAGES = np.concatenate([X, V, X[:, :, ::-1], 2 * V])  # (8, 3, 5, 4)
LABELS = np.concatenate([Y, Y[:, ::-1], Y, Y[:, :, ::-1]]).copy()
WEIGHTS = weights((8, 5, 4), 3)
LABELS[4:] = np.where(LABELS[4:] == 1, 0, LABELS[4:])


def model():
    """A small model whose parameters every process knows."""
    layer = torch.nn.Conv2d(3, 3, 1, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3, 1, 1))
        layer.bias.copy_(torch.tensor([0.5, 0.0, -0.25], dtype=torch.float64))
    return layer


def shards(world, kind):
    """Which images each process has."""
    even = np.array_split(np.arange(8), world)
    uneven = [np.arange(8 - (world - 1)), *([i] for i in range(8 - (world - 1), 8))]
    return {"even": even, "uneven": uneven, "void": even, "nothing": [np.arange(8), *[[]] * (world - 1)]}[
        kind
    ]


def labels_of(world, kind):
    y = LABELS.copy()
    if kind == "void":
        y[shards(world, kind)[-1]] = VOID  # the last process has no valid pixel
    return y


def whole(y):
    layer = model()
    value = locally_adaptive_loss(layer(torch.from_numpy(IMAGES)), torch.from_numpy(y), **OPTIONS)
    value.backward()
    return value.item(), layer.weight.grad, layer.bias.grad


def in_process(rank, world, folder, scenario):
    """What each process runs; an assertion that fails fails the test."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world,
        timeout=datetime.timedelta(seconds=SECONDS),
    )  # fmt: skip
    try:
        scenario(rank, world)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def spawn(scenario, world, folder):
    context = mp.start_processes(
        in_process, (world, str(folder), scenario), nprocs=world, join=False, start_method="spawn"
    )
    end = time.monotonic() + 2 * SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail("the processes hang")


def gradients_are_the_wholes(rank, world):
    for kind in ("even", "uneven", "void", "nothing"):
        y, mine = labels_of(world, kind), shards(world, kind)[rank]
        value, weight, bias = whole(y)
        ddp = torch.nn.parallel.DistributedDataParallel(model())
        x_i, y_i = torch.from_numpy(IMAGES[mine]), torch.from_numpy(y[mine])
        found = distributed_loss(LocallyAdaptiveLoss(**OPTIONS), ddp(x_i), y_i, timeout=SECONDS)
        found.backward()
        np.testing.assert_allclose(found.item(), value, rtol=1e-14)
        np.testing.assert_allclose(ddp.module.weight.grad, weight, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(ddp.module.bias.grad, bias, rtol=1e-12, atol=1e-15)

        summed = model()  # all-reduced by hand, so not averaged
        found = distributed_loss(
            LocallyAdaptiveLoss(**OPTIONS), summed(x_i), y_i, averaged=False, timeout=SECONDS
        )
        found.backward()
        dist.all_reduce(summed.weight.grad)
        np.testing.assert_allclose(summed.weight.grad, weight, rtol=1e-12, atol=1e-15)


VARIANTS = {  # options, dtype, whether the call has weights
    "pixel weights": ({"kernel_size": 5, "p": 2.5}, torch.float64, True),
    "float32, a sum, p = 1": ({"reduction": "sum", "p": 1.0, "stride": 2}, torch.float32, True),
    "ties over processes": ({"p": math.inf, "class_weight": (1.0, 2.0, 0.5)}, torch.float64, True),
    "probabilities": ({"space": "probabilities", "p": 3.0, "normalize": "count"}, torch.float64, False),
    "smoothing": ({"label_smoothing": 0.25, "sigma": None}, torch.float32, False),
}


def options_are_the_wholes(rank, world):
    """The last half is the first again, so that at p = inf windows of several processes share the gradient."""
    images, labels = np.tile(IMAGES[:4], (2, 1, 1, 1)), np.tile(LABELS[:4], (2, 1, 1))
    mine = shards(world, "even")[rank]
    for options, dtype, weighted in VARIANTS.values():
        criterion = LocallyAdaptiveLoss(**options)
        x, y = torch.tensor(images, dtype=dtype, requires_grad=True), torch.from_numpy(labels)
        w = torch.tensor(WEIGHTS, dtype=dtype) if weighted else None
        value = criterion(x, y, w)
        (grad,) = torch.autograd.grad(value, x)
        assert options.get("p") != math.inf or 2 <= (abs(grad).amax((1, 2, 3)) > 0).sum() < 8
        x_i, y_i, w_i = (None if t is None else t.detach()[mine] for t in (x, y, w))
        found = distributed_loss(criterion, x_i.requires_grad_(), y_i, w_i, averaged=False, timeout=SECONDS)
        assert found.dtype == dtype
        (found_grad,) = torch.autograd.grad(found, x_i)
        rtol = 1e-13 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(found, value, rtol=rtol, atol=0)
        torch.testing.assert_close(found_grad, grad[mine], rtol=0, atol=rtol * float(grad.abs().max()))


def micro_batches_are_the_wholes(rank, world):
    """Under DistributedDataParallel, of different sizes and numbers, which exchanges gradients once."""
    batches = [[[0], [1, 2], [3]], [[4, 5, 6, 7], []]][rank]
    pairs = [(torch.from_numpy(IMAGES[b]), torch.from_numpy(LABELS[b])) for b in batches]
    criterion, (value, weight, bias) = LocallyAdaptiveLoss(**OPTIONS), whole(LABELS)
    ddp = torch.nn.parallel.DistributedDataParallel(model())
    total = distributed_parts(criterion, ((ddp.module(x), y) for x, y in pairs), timeout=SECONDS)
    assert not total.maximum.requires_grad
    np.testing.assert_allclose(total.value, value, rtol=1e-14)
    for left, (x, y) in zip(reversed(range(len(pairs))), pairs, strict=True):
        with ddp.no_sync() if left else contextlib.nullcontext():
            found = distributed_loss(criterion, ddp(x), y, total=total)
            found.backward()
        np.testing.assert_allclose(found.item(), value, rtol=1e-14)
    np.testing.assert_allclose(ddp.module.weight.grad, weight, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ddp.module.bias.grad, bias, rtol=1e-12, atol=1e-15)


def the_naive_mean_is_wrong(rank, world):
    value, weight, _ = whole(LABELS)
    ddp = torch.nn.parallel.DistributedDataParallel(model())
    mine = shards(world, "even")[rank]
    naive = LocallyAdaptiveLoss(**OPTIONS)(
        ddp(torch.from_numpy(IMAGES[mine])), torch.from_numpy(LABELS[mine])
    )
    naive.backward()
    mean = naive.detach().clone()
    dist.all_reduce(mean)
    assert abs(mean.item() / world / value - 1) > 1e-3
    assert (ddp.module.weight.grad - weight).abs().max() > 1e-3 * weight.abs().max()


def errors_reach_every_process(rank, world):
    x, y = torch.from_numpy(IMAGES[:2]).requires_grad_(), torch.from_numpy(LABELS[:2])
    wrong = torch.full_like(y, 77)
    last = rank == world - 1
    criterion = LocallyAdaptiveLoss(**OPTIONS)
    kind, message = (ValueError, "77, first") if last else (RuntimeError, r"refused on rank \[1\]")
    with pytest.raises(kind, match=message):
        distributed_loss(criterion, x, wrong if last else y, timeout=SECONDS)
    other = LocallyAdaptiveLoss(**{**OPTIONS, "p": 4.0}) if last else criterion
    with pytest.raises(ValueError, match=r"differ in p: rank 0 of the group has 5\.0, rank 1 4\.0$"):
        distributed_loss(other, x, y, timeout=SECONDS)
    weighted = LocallyAdaptiveLoss(**OPTIONS, class_weight=(1.0, 2.0, 0.5)) if last else criterion
    with pytest.raises(
        ValueError, match=r"differ in class_weight: .* has None, rank 1 \[1\.0, 2\.0, 0\.5\]$"
    ):
        distributed_loss(weighted, x, y, timeout=SECONDS)
    with pytest.raises(ValueError, match=r"differ in dtype: .* has 'float64', rank 1 'float32'"):
        distributed_loss(criterion, x.float() if last else x, y, timeout=SECONDS)
    with pytest.raises(ValueError, match=r"differ in number of classes: .* has \[3\], rank 1 \[6\]"):
        distributed_loss(criterion, torch.cat([x, x], 1) if last else x, y, timeout=SECONDS)
    for wrong in (torch.nn.CrossEntropyLoss(), lalref.LocallyAdaptiveLoss()):
        told = r"must be a lalref\.adapters\.torch\.LocallyAdaptiveLoss; got (torch|lalref\.loss)\."
        kind, message = (TypeError, told) if last else (RuntimeError, r"refused on rank \[1\]")
        with pytest.raises(kind, match=message):
            distributed_loss(wrong if last else criterion, x, y, timeout=SECONDS)
    with pytest.raises(ValueError, match="decided by each process alone"):
        distributed_loss(LocallyAdaptiveLoss(empty="raise"), x, y, timeout=SECONDS)
    kind, message = (ZeroDivisionError, "") if last else (RuntimeError, r"refused on rank \[1\]")
    with pytest.raises(kind, match=message):  # while the micro-batches are worked out
        distributed_parts(criterion, ((x / (1 // (1 - rank)), y) for _ in range(2)), timeout=SECONDS)
    kind, message = (ValueError, "has no batch") if last else (RuntimeError, r"refused on rank \[1\]")
    with pytest.raises(kind, match=message):
        distributed_parts(criterion, [] if last else [(x, y)], timeout=SECONDS)
    assert torch.isfinite(distributed_loss(criterion, x, y, timeout=SECONDS))  # and all is well again


def who_does_not_come_is_not_waited_for(rank, world):
    """In a group of its own, which has gloo's half an hour: neither the call nor the group's end takes that."""
    group = dist.new_group()
    x, y = torch.from_numpy(IMAGES[:2]), torch.from_numpy(LABELS[:2])
    if rank == 0:
        with pytest.raises(RuntimeError, match=r"did not come within timeout=1 s"):
            distributed_loss(LocallyAdaptiveLoss(**OPTIONS), x, y, group=group, timeout=1)
        dist.destroy_process_group(group)


def values_and_gradients(rank, world):
    gradients_are_the_wholes(rank, world)
    options_are_the_wholes(rank, world)


def every_scenario(rank, world):
    values_and_gradients(rank, world)
    micro_batches_are_the_wholes(rank, world)
    the_naive_mean_is_wrong(rank, world)
    errors_reach_every_process(rank, world)
    who_does_not_come_is_not_waited_for(rank, world)


def test_two_processes(tmp_path):
    spawn(every_scenario, 2, tmp_path)


def test_four_processes(tmp_path):
    spawn(values_and_gradients, 4, tmp_path)


def one_is_killed(rank, folder):
    """The second process is killed after one good step, while the first waits for it."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
        timeout=datetime.timedelta(seconds=SECONDS),
    )  # fmt: skip
    x, y = torch.from_numpy(IMAGES[:2]), torch.from_numpy(LABELS[:2])
    distributed_loss(LocallyAdaptiveLoss(**OPTIONS), x, y, timeout=SECONDS)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"one has ended or did not come within"):
        distributed_loss(LocallyAdaptiveLoss(**OPTIONS), x, y, timeout=SECONDS)
    dist.destroy_process_group()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process like that")
def test_when_a_process_is_killed_the_others_are_told(tmp_path):
    spawning = mp.get_context("spawn")
    processes = [spawning.Process(target=one_is_killed, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(2 * SECONDS)
        if process.exitcode is None:
            process.kill()
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]


def test_gradients_accumulate_over_micro_batches():
    criterion = LocallyAdaptiveLoss(**OPTIONS)
    value, weight, bias = whole(LABELS)
    batches = [slice(0, 3), slice(3, 4), slice(4, 8)]
    pairs = [(torch.from_numpy(IMAGES[b]), torch.from_numpy(LABELS[b])) for b in batches]
    layer = model()
    with torch.no_grad():
        total = combine(*(criterion.parts(layer(x), y) for x, y in pairs))
    for x, y in pairs:
        found = criterion(layer(x), y, total=total)
        found.backward()
        np.testing.assert_allclose(found.item(), value, rtol=1e-14)
    np.testing.assert_allclose(layer.weight.grad, weight, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(layer.bias.grad, bias, rtol=1e-12, atol=1e-15)

    naive = model()
    mean = sum(criterion(naive(x), y) for x, y in pairs) / len(pairs)
    mean.backward()
    assert abs(mean.item() / value - 1) > 1e-3
    assert (naive.weight.grad - weight).abs().max() > 1e-3 * weight.abs().max()
    right = lal_value_and_grad(model()(torch.from_numpy(IMAGES)).detach().numpy(), LABELS, **OPTIONS)[0]
    np.testing.assert_allclose(value, right, rtol=1e-14)


def test_weights_of_micro_batches_are_the_wholes():
    criterion = LocallyAdaptiveLoss(kernel_size=3, p=2.5)
    x, y, w = torch.from_numpy(IMAGES).requires_grad_(), torch.from_numpy(LABELS), torch.from_numpy(WEIGHTS)
    value = criterion(x, y, w)
    (grad,) = torch.autograd.grad(value, x)
    assert value != criterion(x, y)
    batches = [slice(0, 3), slice(3, 8)]
    total = combine(*(criterion.parts(x[b], y[b], w[b]) for b in batches))
    for b in batches:
        found = criterion(x[b], y[b], w[b], total=total)
        torch.testing.assert_close(found, value, rtol=1e-14, atol=0)
        found.backward()
    torch.testing.assert_close(x.grad, grad, rtol=1e-12, atol=1e-15)
