"""The loss of a batch that is cut over the processes of torch.distributed.

A mean of the processes' losses is another loss, since a Minkowski mean of means is not the mean of the whole.
So the processes exchange their parts, a few numbers each, and each then differentiates the whole's value with
respect to its own logits. No arithmetic of the loss may come in.
"""

from __future__ import annotations

import datetime
import json
import zlib
from collections.abc import Iterable
from typing import Any

import lalref
from lalref.adapters.torch import LocallyAdaptiveLoss
from lalref.minkowski import Parts
from lalref.options import NAMES

try:
    import torch
    import torch.distributed as dist
except ImportError as error:
    told = "in a clone of lalref, pip install -c constraints.txt -e '.[torch]'"
    raise ImportError(f"lalref.adapters.torch_distributed needs PyTorch: {told}") from error

Tensor = Any


def distributed_loss(
    criterion: LocallyAdaptiveLoss,
    input: Tensor,
    target: Tensor,
    pixel_weight: Tensor | None = None,
    *,
    total: Parts | None = None,
    averaged: bool = True,
    group: Any = None,
    timeout: float = 300.0,
) -> Tensor:
    """Return the loss of the whole batch, the same on every process, with the gradient of this one's part.

    Every process of the group calls it, with as many images as it has: fewer than others, none that is valid,
    or none at all. What is wrong with one process's tensors is told to all, so that none waits in vain.

    Parameters
    ----------
    criterion : LocallyAdaptiveLoss
        Of `lalref.adapters.torch`, the same on every process; reduction "mean" or "sum".
    input, target, pixel_weight : Tensor
        This process's part, as the criterion takes it.
    total : Parts, optional
        Of the whole, from `distributed_parts`, where this is one of several micro-batches. Nothing is then
        exchanged, so processes may have different numbers of them.
    averaged : bool, default True
        Whether gradients are averaged over the processes after the backward, as DistributedDataParallel does.
        The gradient is then multiplied by their number, so that the average is the whole's gradient; say
        False where they are summed.
    group : ProcessGroup, optional
        The default group where not given.
    timeout : float, default 300
        Seconds to wait for the other processes, in place of the group's own, which is init_process_group's to
        say and holds for what DistributedDataParallel exchanges.

    Returns
    -------
    0-d Tensor

    Raises
    ------
    ValueError, TypeError
        As the criterion, on the process whose tensors are wrong; or the processes' options, dtypes or numbers
        of classes differ.
    RuntimeError
        Another process refused its tensors, has ended, or did not come within the timeout.

    Examples
    --------
    >>> import datetime, tempfile, torch, torch.distributed as dist
    >>> from lalref.adapters.torch import LocallyAdaptiveLoss
    >>> from lalref.adapters.torch_distributed import distributed_loss
    >>> alone = {"rank": 0, "world_size": 1, "timeout": datetime.timedelta(minutes=5)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dist.init_process_group("gloo", init_method=f"file://{folder}/meet", **alone)
    ...     x, y = torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.uint8)
    ...     print(float(distributed_loss(LocallyAdaptiveLoss(), x, y)))
    ...     dist.destroy_process_group()
    0.6931471824645996
    """
    if total is None:
        total = distributed_parts(criterion, [(input, target, pixel_weight)], group=group, timeout=timeout)
    value = criterion(input, target, pixel_weight, total=total)
    return _Times.apply(value, float(dist.get_world_size(group))) if averaged else value


def distributed_parts(
    criterion: LocallyAdaptiveLoss,
    batches: Iterable[tuple[Tensor, ...]],
    *,
    group: Any = None,
    timeout: float = 300.0,
) -> Parts:
    """Return the parts of the whole, of every process's micro-batches: the `total` of `distributed_loss`.

    The first of two passes of gradient accumulation. Every process of the group calls it once a step.

    Parameters
    ----------
    criterion, group, timeout
        As for `distributed_loss`.
    batches : iterable of (input, target) or (input, target, pixel_weight)
        This process's micro-batches, one at least, as many as it has. A generator is drawn from without a graph,
        and its error is told to all as well.

    Returns
    -------
    Parts

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As `distributed_loss`.

    Examples
    --------
    docs/howto/shard.md has a training step.
    """
    total: Parts = _total(criterion, batches, group, timeout)
    return total


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _total(
    criterion: LocallyAdaptiveLoss, batches: Iterable[tuple[Tensor, ...]], group: Any, timeout: float
) -> Parts:
    """The combined parts of all processes, on the device of this one's."""
    refused: Exception | None = None
    numbers, said = [0.0] * 4, b""
    try:
        with torch.no_grad():
            here, told = _of_this_process(criterion, batches)
        numbers = [float(n) for n in (here.maximum, here.power_sum, here.weight, here.count)]
        said = json.dumps(told).encode()
    except Exception as error:  # raised below, when the others know
        refused = error
    row = torch.tensor([*numbers, zlib.crc32(said), len(said), refused is not None], dtype=torch.float64)
    rows = _gathered(row, group, timeout, refused)  # (processes, 7)
    if refused is not None:
        raise refused
    if rows[:, 6].any():
        ranks = torch.nonzero(rows[:, 6])[:, 0].tolist()
        raise RuntimeError(f"the loss was refused on rank {ranks} of the group: its own error tells why")
    if (rows[:, 4:6] != rows[0, 4:6]).any():  # on all processes, which then say the rest
        padded = said.ljust(int(rows[:, 5].max()))
        texts = _gathered(torch.frombuffer(bytearray(padded), dtype=torch.uint8), group, timeout)
        raise ValueError(_differing([json.loads(bytes(text.tolist())) for text in texts]))
    rows = rows.to(here.maximum.device)
    return lalref.combine(
        *(Parts(row[0], row[1], row[2], row[3].to(torch.int64), here.options, here.dtype) for row in rows)
    )


def _of_this_process(
    criterion: LocallyAdaptiveLoss, batches: Iterable[tuple[Tensor, ...]]
) -> tuple[Parts, dict[str, Any]]:
    """Its parts, and what must be the same on every process."""
    options = getattr(criterion, "options", None)  # a compiled criterion has them too
    if not isinstance(options, lalref.LocallyAdaptiveLoss):
        found = f"{type(criterion).__module__}.{type(criterion).__qualname__}"
        raise TypeError(f"criterion must be a lalref.adapters.torch.LocallyAdaptiveLoss; got {found}")
    if options.empty == "raise":
        raise ValueError('empty="raise" would be decided by each process alone: use empty="zero" or "nan"')
    parts, classes = [], set()
    for batch in batches:
        parts.append(criterion.parts(*batch))
        classes.add(batch[0].shape[options.axis])
    if not parts:
        raise ValueError("this process has no batch: give it an empty one, as (images[:0], masks[:0])")
    same = {name: getattr(options, name) for name in NAMES}
    here = lalref.combine(*parts)
    return here, {**same, "dtype": here.dtype, "number of classes": sorted(classes)}


def _differing(said: list[dict[str, Any]]) -> str:
    """The first thing that differs between processes, and its first two values."""
    texts = [
        {name: json.dumps(value) for name, value in one.items()} for one in said
    ]  # of which 0.0 is not -0.0
    name, rank = next(
        (name, i) for name in texts[0] for i, one in enumerate(texts) if one[name] != texts[0][name]
    )
    values = f"rank 0 of the group has {said[0][name]!r}, rank {rank} {said[rank][name]!r}"
    return f"every process must have the same options, dtype and classes of the loss; they differ in {name}: {values}"


def _gathered(row: Tensor, group: Any, timeout: float, refused: Exception | None = None) -> Tensor:
    """The rows of all processes, or a RuntimeError when the time is over.

    The timeout is the operation's own, not only this wait's: a process group with an operation that is still
    waiting could not be destroyed before its own timeout, half an hour as a rule.
    """
    if dist.get_backend(group) == "nccl":
        row = row.to(torch.device("cuda", torch.cuda.current_device()))
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
    options = dist.distributed_c10d.AllgatherOptions()
    options.timeout = datetime.timedelta(seconds=timeout)
    try:
        work = (group or dist.group.WORLD).allgather([rows], [row], options)
        work.wait(options.timeout)
        return torch.stack(rows).cpu()
    except RuntimeError as error:
        raise RuntimeError(
            "the loss of the whole batch needs the parts of every process, and one has ended or did not come "
            f"within timeout={timeout} s. Its own log tells why; where processes are slow, allow more"
        ) from (refused or error)


class _Times(torch.autograd.Function):  # type: ignore[misc]
    """The value as it is, its gradient times a number."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, number: float) -> Tensor:
        ctx.number = number
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream * ctx.number, None
