"""The loss inside PyTorch by torch's own gradcheck, with every option, and by gradgradcheck."""

import math

import numpy as np
import pytest
from samples import OMEGA, OPTIONS, V, X, Y, each_option

from lalref import LocallyAdaptiveLoss as Loss
from lalref import lal_hvp

torch = pytest.importorskip("torch")

from lalref.adapters.torch import locally_adaptive_loss  # noqa: E402

TWICE = {  # at a tie of p = inf second differences mean nothing
    name: options for name, options in OPTIONS.items() if options.get("p") != math.inf
}


def of_few_pixels(options):
    """Logits, and the loss of them."""
    x, y, w = (torch.from_numpy(a.copy()) for a in (X[:1, :, :3], Y[:1, :3], OMEGA[:1, :3]))
    x.requires_grad_()
    return x, lambda x: locally_adaptive_loss(x, y, pixel_weight=w, **{"kernel_size": 3, **options})


@each_option
def test_gradcheck(options):
    """At p = inf too, where the derivative of the one largest loss is the gradient."""
    x, f = of_few_pixels(options)
    assert torch.autograd.gradcheck(f, (x,))


@pytest.mark.parametrize("options", TWICE.values(), ids=TWICE.keys())
def test_gradgradcheck(options):
    x, f = of_few_pixels(options)
    assert torch.autograd.gradgradcheck(f, (x,))


def test_gradgradcheck_refuses_a_wrong_second_derivative(monkeypatch):
    hvp = Loss.hvp
    monkeypatch.setattr(Loss, "hvp", lambda *a, **k: [2 * g for g in hvp(*a, **k)])
    x, f = of_few_pixels({})
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradgradcheck(f, (x,))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_third_derivative_is_refused_and_not_left_out(reduction):
    x, f = of_few_pixels({"reduction": reduction})
    (grad,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no third derivatives"):
        torch.autograd.grad(
            (second * x).sum(), x
        )  # x itself has a derivative here, so that something is left


def test_of_torchs_two_hessian_products_one_is_right_and_the_other_refused():
    x, f = of_few_pixels({})
    tangent = torch.from_numpy(V[:1, :, :3].copy())
    found = torch.autograd.functional.vhp(f, x, tangent)[1]
    right = lal_hvp(
        x.detach().numpy(), Y[:1, :3], tangent.numpy(), pixel_weight=OMEGA[:1, :3], kernel_size=3
    )[1]
    np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-15)
    with pytest.raises(NotImplementedError, match=r"functional\.hvp asks for too: take its vhp"):
        torch.autograd.functional.hvp(f, x, tangent)
