"""Gradient checkers of other libraries, each asked at its defaults whether it sees a mistake.

Only to be compared with: no verdict depends on them, and they are imported where they are installed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from lalref.oracle.case import Case

SCIPY_FINDS = 1e-5  # of the gradient's norm: scipy gives a number and leaves the judgement to the reader
Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A checker: its package, what is called, and ``finds(subject, case)``."""

    name: str
    package: str
    how: str
    check: Callable[[Function, Case], bool]

    def installed(self) -> bool:
        """Whether it can be run here."""
        return importlib.util.find_spec(self.package) is not None

    def version(self) -> str:
        """Of its package."""
        return importlib.metadata.version(self.package)

    def finds(self, subject: Function, case: Case) -> bool:
        """Whether it sees a mistake in `subject` on the inputs of `case`."""
        with np.errstate(all="ignore"):
            return self.check(subject, case)


def _value_and_grad(subject: Function, case: Case) -> Callable[..., tuple[Any, Any]]:
    """As a function of the logits and the upstream gradient, each given to the subject itself."""
    labels = case.labels.copy()  # for a subject may write to them

    def f(x: Any, upstream: Any = 1.0) -> tuple[Any, Any]:
        arguments = {**case.arguments, "grad_output": float(upstream)}
        value, grad = subject(np.asarray(x, np.float64).reshape(case.logits.shape), labels, **arguments)
        return np.float64(value), np.asarray(grad, np.float64)

    return f


def _torch(fast: bool) -> Callable[[Function, Case], bool]:
    def check(subject: Function, case: Case) -> bool:
        import torch

        f = _value_and_grad(subject, case)

        class Loss(torch.autograd.Function):  # type: ignore[misc]
            @staticmethod
            def forward(ctx: Any, x: Any) -> Any:
                ctx.save_for_backward(x)
                return torch.tensor(f(x.detach().numpy())[0])

            @staticmethod
            def backward(ctx: Any, upstream: Any) -> Any:
                (x,) = ctx.saved_tensors
                return torch.tensor(f(x.detach().numpy(), upstream)[1])

        x = torch.from_numpy(case.logits.copy()).requires_grad_(True)
        return not torch.autograd.gradcheck(Loss.apply, (x,), fast_mode=fast, raise_exception=False)

    return check


def _jax(subject: Function, case: Case) -> bool:
    import jax
    import jax.numpy as jnp
    from jax.test_util import check_grads

    f = _value_and_grad(subject, case)
    number, logits = jax.ShapeDtypeStruct((), np.float64), jax.ShapeDtypeStruct(case.logits.shape, np.float64)

    @jax.custom_vjp  # type: ignore[untyped-decorator]
    def loss(x: Any) -> Any:
        return jax.pure_callback(lambda x: f(np.array(x))[0], number, x)  # what JAX gives can't be written to

    def back(x: Any, upstream: Any) -> tuple[Any]:
        return (jax.pure_callback(lambda x, upstream: f(np.array(x), upstream)[1], logits, x, upstream),)

    loss.defvjp(lambda x: (loss(x), x), back)
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        check_grads(loss, (jnp.asarray(case.logits),), order=1, modes=("rev",))
    except AssertionError:
        return True
    finally:
        jax.config.update("jax_enable_x64", before)
    return False


def _scipy(subject: Function, case: Case) -> bool:
    from scipy.optimize import check_grad

    f, x = _value_and_grad(subject, case), case.logits.ravel().copy()
    error = check_grad(lambda x: f(x)[0], lambda x: f(x)[1].ravel(), x)
    size = float(np.linalg.norm(f(case.logits.copy())[1]))
    return not error <= SCIPY_FINDS * max(size, 1e-3)


PEERS: tuple[Peer, ...] = (
    Peer("torch gradcheck", "torch", "`torch.autograd.gradcheck(f, (x,))`", _torch(fast=False)),
    Peer(
        "torch fast mode", "torch", "`torch.autograd.gradcheck(f, (x,), fast_mode=True)`", _torch(fast=True)
    ),
    Peer("jax check_grads", "jax", '`check_grads(f, (x,), order=1, modes=("rev",))`', _jax),
    Peer(
        "scipy check_grad",
        "scipy",
        f"`check_grad(f, grad, x)`, an error beyond {SCIPY_FINDS:g} of the gradient's norm (of 0.001 at least) "
        "taken as found",
        _scipy,
    ),
)
