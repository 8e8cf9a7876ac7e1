"""The loss inside PyTorch: a function and a module, with autograd, autocast and torch.compile.

This room is the door: what torch's users pass is checked here and given to `lalref.adapters.torch_operators`,
where tensors meet an engine and autograd its derivatives.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Unpack

import lalref
from lalref.functions import loss_for
from lalref.minkowski import Parts
from lalref.options import OptionsDict

try:
    import torch
except ImportError as error:
    raise ImportError("lalref.adapters.torch needs PyTorch: pip install 'lalref[torch]'") from error

from lalref.adapters.torch_operators import loss_of, on_engine, parts_of, value_and_grad

Tensor = Any  # torch has types, but need not be installed where these are checked
NUMBERS = ("maximum", "power_sum", "weight", "count")  # of Parts, as the operators take them
HALF = (torch.float16, torch.bfloat16)


def locally_adaptive_loss(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    total: Parts | None = None,
    **options: Unpack[OptionsDict],
) -> Tensor:
    """Return the loss of `input` and `target`, which autograd differentiates, twice too.

    Parameters
    ----------
    input : Tensor (N, C, *S), float16, bfloat16, float32 or float64
        Logits, on any device. 16-bit ones, as under autocast, are worked out in float32.
    target : integer Tensor (N, *S) on the same device
    pixel_weight : floating-point Tensor (N, *S), optional
        It gets no gradient, so it must not require one.
    total : Parts, optional
        The `lalref.combine`-d parts of a whole, from `LocallyAdaptiveLoss.parts`: the value is then the
        whole's, and the gradient that of the whole's value.
    **options
        As for `lalref.LocallyAdaptiveLoss`. torch ignores the label -100 where nobody says otherwise, lalref
        255: say ignore_index=-100 for labels made for torch. class_weight may be a tensor.

    Returns
    -------
    0-d Tensor, or (N, *grid) for reduction="none"
        float64 for float64 logits, else float32.

    Raises
    ------
    TypeError, ValueError
        As `lalref.lal_loss`, and where tensors are on different devices.

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
    return _apply(input, target, pixel_weight, total, _spelt_while_tracing(**options))


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
        self._spelt = _spelt(loss_for(LocallyAdaptiveLoss, options))

    @property
    def options(self) -> lalref.LocallyAdaptiveLoss:
        """The checked options."""
        return loss_of(self._spelt)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        pixel_weight: Tensor | None = None,
        *,
        total: Parts | None = None,
    ) -> Tensor:
        """Return the loss, as `locally_adaptive_loss` does."""
        return _apply(input, target, pixel_weight, total, self._spelt)

    def parts(self, input: Tensor, target: Tensor, pixel_weight: Tensor | None = None) -> Parts:
        """Return what these tensors contribute to the loss of a larger batch, for `lalref.combine`; no gradient."""
        input, pixel_weight = _checked(input, target, pixel_weight)

        def call(x: Any, y: Any, w: Any) -> list[Any]:
            found = self.options.parts(x, y, pixel_weight=w)
            return [getattr(found, name) for name in NUMBERS]

        numbers = on_engine(self.options, call, input, target, pixel_weight)
        found: Parts = parts_of(numbers, input, self.options)
        return found

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        return ", ".join(f"{k}={v!r}" for k, v in json.loads(self._spelt).items())


# --- From options and tensors to what an operator takes --------------------------------------------------------------


def _spelt(loss: lalref.LocallyAdaptiveLoss) -> str:
    """The options as text, which an operator can take and a compiler can keep."""
    said = {f.name: (getattr(loss, f.name), f.default) for f in dataclasses.fields(loss)}
    return json.dumps({name: value for name, (value, default) in said.items() if value is not default})


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _spelt_while_tracing(**options: Unpack[OptionsDict]) -> str:
    return _spelt(loss_for(locally_adaptive_loss, options))


def _checked(input: Tensor, target: Tensor, pixel_weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Logits and weights, 16-bit ones in float32; what the operators can't tell any more is told here.

    Autograd rounds the gradient of a 16-bit input once, after upstream has been applied.
    """
    for name, tensor in {"input": input, "target": target, "pixel_weight": pixel_weight}.items():
        if tensor is None and name == "pixel_weight":
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{name} must be a torch.Tensor; got {type(tensor).__name__}: torch.as_tensor() makes one"
            )
        if tensor.device != input.device:
            raise ValueError(
                f"input and {name} must be on one device; got {input.device} and {tensor.device}: move one of them"
            )
        if name != "input" and tensor.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, and the loss has none for it: pass {name}.detach()"
            )
    x, w = (t.float() if t is not None and t.dtype in HALF else t for t in (input, pixel_weight))
    return x, w


def _apply(
    input: Tensor, target: Tensor, pixel_weight: Tensor | None, total: Parts | None, options: str
) -> Tensor:
    x, w = _checked(input, target, pixel_weight)
    numbers = None if total is None else _numbers(total, x, loss_of(options))
    return value_and_grad(x, target, w, options, numbers, x.requires_grad and torch.is_grad_enabled())[0]


def _numbers(total: Parts, x: Tensor, loss: lalref.LocallyAdaptiveLoss) -> Tensor:
    """The numbers of a Parts as float64 (4,) on the logits' device."""
    if not isinstance(total, Parts):
        raise TypeError(f"total= takes the Parts that combine() returns; got {type(total).__name__}")
    dtype = str(x.dtype).removeprefix("torch.")
    if loss.reduction == "none" or (total.options, total.dtype) != (loss, dtype):
        raise ValueError(
            f"total= takes the combined parts of this loss, {loss} in {dtype}; got {total.options} in {total.dtype}"
        )
    numbers = [torch.as_tensor(getattr(total, name), device=x.device) for name in NUMBERS]
    return torch.stack([number.to(torch.float64) for number in numbers])
