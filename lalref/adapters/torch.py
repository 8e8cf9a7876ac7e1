"""The loss inside PyTorch: a function and a module, with autograd, autocast and torch.compile.

What torch's users pass is checked here, and torch.autograd.Function chains the calls of `lalref.adapters.calls`, once
for the gradient and once more for double backward. How tensors of a device become an engine's arrays, and what a
compiler sees of that, is `lalref.adapters.torch_arrays`. No arithmetic of the loss may come in.
"""

from __future__ import annotations

from typing import Any, Unpack

import lalref
from lalref.adapters import calls
from lalref.minkowski import Parts
from lalref.options import OptionsDict

try:
    import torch
except ImportError as error:
    told = "in a clone of lalref, pip install -c constraints.txt -e '.[torch]'"
    raise ImportError(f"lalref.adapters.torch needs PyTorch: {told}") from error

from torch.autograd import forward_ad

from lalref.adapters.torch_arrays import call, loss_of, on_engine, once, spelt_of

Tensor = Any  # torch has types, but need not be installed where these are checked


def locally_adaptive_loss(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    total: Parts | None = None,
    **options: Unpack[OptionsDict],
) -> Tensor:
    """Return the loss of `input` and `target`; autograd differentiates it twice, under torch.compile once.

    Parameters
    ----------
    input : Tensor (N, C, *S), float16, bfloat16, float32 or float64
        Logits, on the CPU or a CUDA GPU. 16-bit ones, as under autocast, are worked out in float32.
    target : integer Tensor (N, *S) on the same device
    pixel_weight : floating-point Tensor (N, *S), optional
        It gets no gradient, so it must not require one.
    total : Parts, optional
        The `lalref.combine`-d parts of a whole, from `LocallyAdaptiveLoss.parts`: the value is then the
        whole's, and the gradient that of the whole's value. torch.compile leaves it to torch, so it can't
        be had under fullgraph=True, and it gives first derivatives only.
    **options
        As for `lalref.LocallyAdaptiveLoss`. torch ignores the label -100 where nobody says otherwise, lalref
        255: say ignore_index=-100 for labels made for torch. class_weight may be a tensor that requires no
        gradient, but not inside torch.compile, which would keep its first numbers. Under fullgraph=True
        options must be written out; make a `LocallyAdaptiveLoss` before of those in a variable or a dict.

    Returns
    -------
    0-d Tensor, or (N, *grid) for reduction="none"
        float64 for float64 logits, else float32.

    Raises
    ------
    TypeError, ValueError
        As `lalref.lal_loss`, and where tensors are on different devices.
    NotImplementedError
        Third derivatives, which torch.autograd.functional.hvp asks for too: its vhp gives the same. Forward mode
        (make_dual, torch.func.jvp), for which there is `lalref.lal_jvp`. Other transforms of torch.func (grad,
        vmap) end in errors of torch's own.

    Notes
    -----
    Second derivatives through torch.compile are torch's to refuse: "does not currently support double backward".
    It does so for `backward`. But `torch.autograd.grad` with respect to chosen inputs leaves the second
    derivatives of what was compiled out, wrong and not refused, unless something that the compiled backward
    reads requires a gradient, as logits do that are the compiled function's own input. Don't compile a gradient
    penalty.

    Examples
    --------
    >>> import torch
    >>> from lalref.adapters.torch import locally_adaptive_loss
    >>> logits = torch.zeros(1, 2, 3, 3, requires_grad=True)
    >>> value = locally_adaptive_loss(logits, torch.zeros(1, 3, 3, dtype=torch.int64), p=1)
    >>> value.backward()
    >>> round(float(logits.grad[0, 0].sum()), 6)
    -0.5
    """
    weights = options.get("class_weight")
    if torch.compiler.is_compiling() and not isinstance(weights, (tuple, list, type(None))):
        raise TypeError(  # its numbers would be kept, and other ones not seen
            "torch.compile keeps class_weight, which must be a tuple here: make a LocallyAdaptiveLoss before"
        )
    return _apply(input, target, pixel_weight, total, spelt_of(locally_adaptive_loss, **options))


class LocallyAdaptiveLoss(torch.nn.Module):  # type: ignore[misc]
    """`locally_adaptive_loss` with its options fixed, to stand where torch.nn.CrossEntropyLoss stood.

    Parameters
    ----------
    **options
        As for `lalref.LocallyAdaptiveLoss`, which checks them here.

    Examples
    --------
    >>> import torch
    >>> from lalref.adapters.torch import LocallyAdaptiveLoss
    >>> criterion = LocallyAdaptiveLoss(kernel_size=3, ignore_index=-100)
    >>> float(criterion(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.uint8)))
    0.6931471824645996
    """

    def __init__(self, **options: Unpack[OptionsDict]) -> None:
        super().__init__()
        self._spelt = spelt_of(LocallyAdaptiveLoss, **options)

    @property
    def options(self) -> lalref.LocallyAdaptiveLoss:
        """The checked options."""
        return loss_of(self._spelt)

    def forward(
        self, input: Tensor, target: Tensor, pixel_weight: Tensor | None = None, *, total: Parts | None = None
    ) -> Tensor:
        """Return the loss: equations (1) to (10).

        Parameters
        ----------
        input, target, pixel_weight, total
            As for `locally_adaptive_loss`.

        Returns
        -------
        Tensor
            As `locally_adaptive_loss` returns it.

        Raises
        ------
        TypeError, ValueError
            As `locally_adaptive_loss`.
        """
        return _apply(input, target, pixel_weight, total, self._spelt)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def parts(self, input: Tensor, target: Tensor, pixel_weight: Tensor | None = None) -> Parts:
        """Return what these tensors contribute to the loss of a larger batch, for `lalref.combine`: equation (19).

        Parameters
        ----------
        input, target, pixel_weight
            As for `locally_adaptive_loss`.

        Returns
        -------
        Parts
            Without a graph: `total=` brings the gradient. torch.compile leaves it to torch.

        Raises
        ------
        TypeError, ValueError
            As `lalref.LocallyAdaptiveLoss.parts`.
        """
        x, w = _checked(input, target, pixel_weight)
        found: Parts = on_engine(calls.parts, self._spelt, x, target, w)[0]
        return found

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        return ", ".join(f"{k}={v!r}" for k, v in calls.said(self.options).items())


def _checked(input: Tensor, target: Tensor, pixel_weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Logits and weights, 16-bit ones in float32; what an engine can't tell any more is told here.

    Autograd rounds the gradient of a 16-bit input once, after upstream has been applied.
    """
    for name, tensor in (("input", input), ("target", target), ("pixel_weight", pixel_weight)):
        if not isinstance(tensor, torch.Tensor) and not (tensor is None and name == "pixel_weight"):
            several = hasattr(tensor, "keys")  # what torchvision's and Hugging Face's models return
            hint = "pick it out, as output['out']" if several else "torch.as_tensor() makes one"
            raise TypeError(f"{name} must be a torch.Tensor; got {type(tensor).__name__}: {hint}")
        if tensor is not None and tensor.device != input.device:
            told = f"input and {name} must be on one device; got {input.device} and {tensor.device}"
            raise ValueError(f"{told}: move one of them")
        if name == "target" and tensor.is_floating_point() and not input.is_floating_point():
            told = f"logits first, of a floating-point dtype; got {input.dtype} and {tensor.dtype}"
            raise TypeError(f"input and target look swapped: {told}")
        if tensor is not None and tensor.requires_grad and name != "input":
            told = f"{name} requires a gradient, and the loss has none for it: pass {name}.detach()"
            raise ValueError(told)
    half = torch.float16, torch.bfloat16
    x, w = (t.float() if t is not None and t.dtype in half else t for t in (input, pixel_weight))
    return x, w


def _apply(input: Tensor, target: Tensor, pixel_weight: Any, total: Parts | None, spelt: str) -> Tensor:
    if total is not None and torch.compiler.is_compiling():
        return torch.compiler.disable(_apply, reason="total= is not compiled")(
            input, target, pixel_weight, total, spelt
        )
    x, w = _checked(input, target, pixel_weight)
    if x.requires_grad and torch.is_grad_enabled():
        return _Value.apply(x, target, w, spelt, total)
    if not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError("forward mode is not served here: lalref.lal_jvp gives the same")
    return call("value", spelt, x, target, w, total=total)[0]


# --- What autograd sees -----------------------------------------------------------------------------------------


class _Value(torch.autograd.Function):  # type: ignore[misc]
    """The value of the loss, which keeps the gradient of a number until it is asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, w: Any, spelt: str, total: Parts | None) -> Tensor:
        value, *grad = call("value_and_grad", spelt, x, y, w, total=total)
        ctx.save_for_backward(x, y, w)
        ctx.said, ctx.grad = (spelt, total), grad[0] if grad else None
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        grad, ctx.grad = ctx.grad, None  # given away: x.grad then is this memory, not a copy of it
        compiling = torch.compiler.is_compiling()
        if grad is None or (torch.is_grad_enabled() and not compiling):
            return _Gradient.apply(*ctx.saved_tensors, *ctx.said, upstream), *(None,) * 4
        if compiling:
            upstream = once(upstream, ctx.saved_tensors[0])
        if compiling or not upstream.is_cpu or upstream.item() != 1:  # a GPU is not waited for
            grad = grad * upstream
        return grad, *(None,) * 4


class _Gradient(torch.autograd.Function):  # type: ignore[misc]
    """The gradient times upstream."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, w: Any, spelt: str, total: Parts | None, upstream: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, y, w, upstream)
        ctx.said = spelt, total
        return call("gradient", spelt, x, y, w, upstream, total=total)[0]

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Any, ...]:
        spelt, total = ctx.said
        if total is not None:
            raise NotImplementedError("total= gives first derivatives only: take second ones of the whole")
        x_bar, upstream_bar = _Second.apply(spelt, *ctx.saved_tensors, tangent)
        return x_bar, *(None,) * 4, upstream_bar


class _Second(torch.autograd.Function):  # type: ignore[misc]
    """What comes back from the gradient: in a graph, so that third derivatives are refused and not left out."""

    @staticmethod
    def forward(ctx: Any, spelt: str, *tensors: Any) -> tuple[Tensor, ...]:
        return tuple(call("hvp", spelt, *tensors))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> None:
        told = "it has no third derivatives, which torch.autograd.functional.hvp asks for too: take its vhp"
        raise NotImplementedError(f"the loss can be differentiated twice: {told}, or lalref.lal_hvp")
