"""The loss of a batch that is cut over the processes of torch.distributed.

A mean of the processes' losses is another loss, since a Minkowski mean of means is not the mean of the whole.
So the processes exchange their parts, six numbers each, and each then differentiates the whole's value with
respect to its own logits. No arithmetic of the loss may come in.
"""

from __future__ import annotations

import datetime
import zlib
from typing import Any

import lalref
from lalref.adapters.torch import LocallyAdaptiveLoss
from lalref.minkowski import Parts

try:
    import torch
    import torch.distributed as dist
except ImportError as error:
    raise ImportError(
        "lalref.adapters.torch_distributed needs PyTorch: pip install 'lalref[torch]'"
    ) from error

Tensor = Any


def distributed_loss(
    criterion: LocallyAdaptiveLoss,
    input: Tensor,
    target: Tensor,
    pixel_weight: Tensor | None = None,
    *,
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
        As the criterion, on the process whose tensors are wrong; or the processes' options or dtypes differ.
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
    total = _total(criterion, input, target, pixel_weight, group, timeout)
    value = criterion(input, target, pixel_weight, total=total)
    return _Times.apply(value, float(dist.get_world_size(group))) if averaged else value


def _total(
    criterion: LocallyAdaptiveLoss,
    input: Tensor,
    target: Tensor,
    pixel_weight: Any,
    group: Any,
    timeout: float,
) -> Parts:
    """The combined parts of all processes, on the device of the input."""
    refused: Exception | None = None
    numbers, key = [0.0] * 4, 0
    try:
        if criterion.options.empty == "raise":
            raise ValueError(
                'empty="raise" would be decided by each process alone: use empty="zero" or "nan"'
            )
        here = criterion.parts(input, target, pixel_weight)
        numbers = [float(n) for n in (here.maximum, here.power_sum, here.weight, here.count)]
        key = zlib.crc32(repr((here.options, here.dtype)).encode())
    except Exception as error:  # raised below, when the others know
        refused = error
    row = torch.tensor([*numbers, float(key), float(refused is not None)], dtype=torch.float64)
    try:
        rows = _gathered(row, group, timeout).cpu()  # (processes, 6)
    except RuntimeError as error:
        raise RuntimeError(
            "the loss of the whole batch needs the parts of every process, and one has ended or did not call "
            f"distributed_loss within timeout={timeout} s. Its own log tells why; where processes are slow, allow more"
        ) from (refused or error)
    if refused is not None:
        raise refused
    if rows[:, 5].any():
        ranks = torch.nonzero(rows[:, 5])[:, 0].tolist()
        raise RuntimeError(f"the loss was refused on rank {ranks} of the group: its own error tells why")
    if (rows[:, 4] != key).any():
        ranks = torch.nonzero(rows[:, 4] != key)[:, 0].tolist()
        raise ValueError(
            f"every process must have the same options and dtype of the loss; rank {ranks} of the group differs from "
            f"this one, {here.options} in {here.dtype}"
        )
    rows = rows.to(input.device)
    return lalref.combine(
        *(Parts(row[0], row[1], row[2], row[3].to(torch.int64), here.options, here.dtype) for row in rows)
    )


def _gathered(row: Tensor, group: Any, timeout: float) -> Tensor:
    """The rows of all processes (processes, 6), or a RuntimeError when the time is over.

    The timeout is the operation's own, not only this wait's: a process group with an operation that is still
    waiting could not be destroyed before its own timeout, half an hour as a rule.
    """
    if dist.get_backend(group) == "nccl":
        row = row.to(torch.device("cuda", torch.cuda.current_device()))
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
    options = dist.distributed_c10d.AllgatherOptions()
    options.timeout = datetime.timedelta(seconds=timeout)
    work = (group or dist.group.WORLD).allgather([rows], [row], options)
    work.wait(options.timeout)
    return torch.stack(rows)


class _Times(torch.autograd.Function):  # type: ignore[misc]
    """The value as it is, its gradient times a number."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, number: float) -> Tensor:
        ctx.number = number
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream * ctx.number, None
