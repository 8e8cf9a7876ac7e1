"""Who is timed: plain cross-entropy, other ways to compute this loss in other libraries, and lalref's engines.

Each contestant is a function (logits, labels, kernel_size) -> call, where call() returns value and gradient as
the library has them; whatever can be prepared before is prepared before. All compute the loss with its default
options (kernel_size apart) in float32, but for cross-entropy, which is the loss at kernel_size=1, p=1.
A library is imported only when its contestant is asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lalref.bench.inputs import VOID

Array = Any
Call = Callable[[], tuple[Any, Any]]

P = 5.0


class Contestant(NamedTuple):
    """A name, what must be installed, the largest window worth waiting for, and the function that prepares a call."""

    name: str
    needs: str
    largest_kernel: int
    prepare: Callable[[Array, Array, int], Call]

    @property
    def installed(self) -> bool:
        """Whether the library it needs can be imported."""
        return importlib.util.find_spec(self.needs) is not None


def _weights(kernel_size: int) -> dict[tuple[int, int], float]:
    r = kernel_size // 2
    cells = [(i, j) for i in range(-r, r + 1) for j in range(-r, r + 1)]
    return {cell: float(np.exp(-0.5 * max(map(abs, cell)) ** 2)) for cell in cells}


# --- PyTorch -----------------------------------------------------------------------------------------------------


def _torch_call(loss: Callable[[Any, Any], Any], logits: Array, labels: Array) -> Call:
    import torch

    x = torch.tensor(logits, requires_grad=True)
    y = torch.tensor(labels.astype(np.int64))

    def call() -> tuple[Any, Any]:
        value = loss(x, y)
        value.backward()
        grad, x.grad = x.grad, None  # kept, it would be freed during the next call and hide part of its peak
        return value.detach(), grad

    return call


def _torch_pooled(z: Any, y: Any) -> Any:
    """Stages 2 and 3 from the merged vectors."""
    import torch

    ell = torch.nn.functional.cross_entropy(z, y, ignore_index=VOID, reduction="none")
    top = ell.detach().max()
    return top * (((ell / top) ** P).sum() / (y != VOID).sum()) ** (1 / P)


def _torch_shift(kernel_size: int) -> Callable[[Any, Any], Any]:
    from torch.nn.functional import pad

    r, weights = kernel_size // 2, _weights(kernel_size)

    def loss(x: Any, y: Any) -> Any:
        H, W = y.shape[1:]
        padded_x, padded_y = pad(x, (r, r, r, r)), pad(y, (r, r, r, r), value=-1)
        z, D = 0.0, 0.0
        for (i, j), w in weights.items():
            here = (..., slice(r + i, r + i + H), slice(r + j, r + j + W))
            member = (padded_y[here] == y)[:, None] * w  # (N, 1, H, W)
            z, D = z + member * padded_x[here], D + member
        return _torch_pooled(z / D, y)

    return loss


def torch_cross_entropy(logits: Array, labels: Array, kernel_size: int) -> Call:
    """torch.nn.functional.cross_entropy: no pooling at all."""
    from torch.nn.functional import cross_entropy

    return _torch_call(lambda x, y: cross_entropy(x, y, ignore_index=VOID), logits, labels)


def torch_shift(logits: Array, labels: Array, kernel_size: int) -> Call:
    """Shifted, masked copies added up."""
    return _torch_call(_torch_shift(kernel_size), logits, labels)


def torch_compiled(logits: Array, labels: Array, kernel_size: int) -> Call:
    """The same, through torch.compile, for these shapes alone: the fastest code that it makes."""
    import torch

    torch.compiler.reset()  # else it remembers the shapes and windows before, and compiles for any shape
    return _torch_call(torch.compile(_torch_shift(kernel_size), dynamic=False), logits, labels)


def torch_convolution(logits: Array, labels: Array, kernel_size: int) -> Call:
    """For each class present, a grouped convolution of its own pixels."""
    import torch

    C, r = logits.shape[1], kernel_size // 2
    kernel = torch.tensor(list(_weights(kernel_size).values())).reshape(1, 1, kernel_size, kernel_size)

    def loss(x: Any, y: Any) -> Any:
        z = torch.zeros_like(x)
        for c in range(C):
            own = (y == c)[:, None].to(x.dtype)  # (N, 1, H, W)
            if own.any():
                total = torch.nn.functional.conv2d(x * own, kernel.expand(C, 1, -1, -1), padding=r, groups=C)
                D = torch.nn.functional.conv2d(own, kernel, padding=r)
                z = torch.where(own > 0, total / torch.where(own > 0, D, 1.0), z)
        return _torch_pooled(z, y)

    return _torch_call(loss, logits, labels)


def torch_unfold(logits: Array, labels: Array, kernel_size: int) -> Call:
    """All windows laid out side by side."""
    import torch
    from torch.nn.functional import pad, unfold

    r = kernel_size // 2
    weights = torch.tensor(list(_weights(kernel_size).values()))[:, None]  # (k * k, 1)

    def loss(x: Any, y: Any) -> Any:
        N, C, H, W = x.shape
        windows = unfold(x, kernel_size, padding=r).reshape(N, C, kernel_size**2, H * W)
        around = unfold(pad(y[:, None].to(x.dtype), (r, r, r, r), value=-1), kernel_size)  # (N, k * k, H * W)
        member = (around == y.reshape(N, 1, -1)) * weights
        z = (windows * member[:, None]).sum(2) / member.sum(1, keepdim=True)
        return _torch_pooled(z.reshape(N, C, H, W), y)

    return _torch_call(loss, logits, labels)


# --- JAX ------------------------------------------------------------------------------------------------------------


def jax_shift(logits: Array, labels: Array, kernel_size: int) -> Call:
    """Shifted, masked copies added up, under jax.jit."""
    import jax
    import jax.numpy as jnp

    r, weights = kernel_size // 2, _weights(kernel_size)

    def loss(x: Any, y: Any) -> Any:
        H, W = y.shape[1:]
        padded_x = jnp.pad(x, ((0, 0), (0, 0), (r, r), (r, r)))
        padded_y = jnp.pad(y, ((0, 0), (r, r), (r, r)), constant_values=-1)
        z, D = 0.0, 0.0
        for (i, j), w in weights.items():
            here = (..., slice(r + i, r + i + H), slice(r + j, r + j + W))
            member = jnp.where(padded_y[here] == y, w, 0.0)[:, None]  # (N, 1, H, W)
            z, D = z + member * padded_x[here], D + member
        log_P = jax.nn.log_softmax(z / D, axis=1)
        valid = y != VOID
        at_y = jnp.take_along_axis(log_P, jnp.where(valid, y, 0)[:, None], axis=1)[:, 0]
        ell = jnp.where(valid, -at_y, 0.0)
        top = jax.lax.stop_gradient(ell.max())
        return top * (((ell / top) ** P).sum() / valid.sum()) ** (1 / P)

    both = jax.jit(jax.value_and_grad(loss))
    x, y = jnp.asarray(logits), jnp.asarray(labels.astype(np.int32))

    def call() -> tuple[Any, Any]:
        found: tuple[Any, Any] = jax.block_until_ready(both(x, y))
        return found

    return call


# --- lalref ------------------------------------------------------------------------------------------------------


def _lalref(engine: str) -> Callable[[Array, Array, int], Call]:
    def prepare(logits: Array, labels: Array, kernel_size: int) -> Call:
        from lalref import LocallyAdaptiveLoss

        loss = LocallyAdaptiveLoss(kernel_size=kernel_size, engine=engine)
        return lambda: loss.value_and_grad(logits, labels)

    return prepare


def lalref_value(logits: Array, labels: Array, kernel_size: int) -> Call:
    """The value alone, by the numba engine."""
    from lalref import LocallyAdaptiveLoss

    loss = LocallyAdaptiveLoss(kernel_size=kernel_size, engine="numba")
    return lambda: (loss(logits, labels), None)


CROSS_ENTROPY, OURS, VALUE = "torch cross_entropy", "lalref numba", "lalref numba, value only"
CONTESTANTS = (  # in this order they take their turns: what is divided by each other comes one after the other
    Contestant(CROSS_ENTROPY, "torch", 1 << 10, torch_cross_entropy),
    Contestant(OURS, "numba", 1 << 10, _lalref("numba")),
    Contestant(VALUE, "numba", 1 << 10, lalref_value),
    Contestant("torch shift and mask, compiled", "torch", 5, torch_compiled),
    Contestant("torch shift and mask", "torch", 15, torch_shift),
    Contestant("torch convolution per class", "torch", 15, torch_convolution),
    Contestant("torch unfold", "torch", 5, torch_unfold),
    Contestant("jax shift and mask, jit", "jax", 7, jax_shift),
    Contestant("lalref array", "numpy", 7, _lalref("array")),
)
