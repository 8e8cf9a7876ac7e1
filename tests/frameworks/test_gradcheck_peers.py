"""What gradient checkers at their defaults don't see in a mean over many pixels, and `lalref.oracle.gradcheck` does."""

import numpy as np
import pytest
from scipy.optimize import check_grad

from lalref.oracle import gradcheck
from lalref.oracle.inputs import mix

SHAPE = (1, 5, 32, 32)
LABELS = mix((1, 32, 32), 5) % 5


def logits():
    return (mix(SHAPE, 2) % 4001 - 2000) / 1000


def mean_cross_entropy(x, factor=1.0):
    """Softmax cross-entropy and `factor` times its gradient."""
    onehot = LABELS[:, None] == np.arange(5).reshape(1, 5, 1, 1)
    a = x - x.max(1, keepdims=True)
    e = np.exp(a)
    s = e.sum(1, keepdims=True)
    return (np.log(s) - (a * onehot).sum(1, keepdims=True)).mean(), factor * (e / s - onehot) / LABELS.size


def in_torch(factor):
    torch = pytest.importorskip("torch")

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            value, grad = mean_cross_entropy(x.detach().numpy(), factor)
            ctx.save_for_backward(torch.from_numpy(grad))
            return torch.tensor(value)

        @staticmethod
        def backward(ctx, upstream):
            return upstream * ctx.saved_tensors[0]

    return Loss.apply


def torch_accepts(factor):
    """Of 20 seeds of torch's fast mode, how many accept the gradient times `factor`."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(logits()).requires_grad_(True)
    accepted = 0
    for seed in range(20):
        torch.manual_seed(seed)
        accepted += torch.autograd.gradcheck(in_torch(factor), x, fast_mode=True, raise_exception=False)
    return accepted


def test_a_zero_gradient_passes_torch_fast_mode_and_is_refused_here():
    assert torch_accepts(1.0) == 20
    assert torch_accepts(0.0) == 20
    assert gradcheck(mean_cross_entropy, logits())
    assert gradcheck(lambda x: mean_cross_entropy(x, 0.0), logits()).verdict == "wrong"


def test_a_negated_gradient_passes_torch_fast_mode_most_of_the_time_and_is_refused_here():
    assert torch_accepts(-1.0) > 10
    assert gradcheck(lambda x: mean_cross_entropy(x, -1.0), logits()).verdict == "wrong"


def test_scipy_gives_an_absolute_error_which_a_mean_makes_small():
    """The same mistake, 1 % in every entry, looks 1000 times smaller because it is divided by the pixels."""

    def error(factor, pixels):
        f = lambda x: pixels * mean_cross_entropy(x.reshape(SHAPE), factor)[0]  # noqa: E731
        grad = lambda x: pixels * mean_cross_entropy(x.reshape(SHAPE), factor)[1].ravel()  # noqa: E731
        return check_grad(f, grad, logits().ravel(), direction="random", rng=1)

    assert error(1.01, 1) < 1e-3
    assert error(1.01, 1) == pytest.approx(error(1.01, LABELS.size) / LABELS.size, rel=1e-2)
    found = gradcheck(lambda x: mean_cross_entropy(x, 1.01), logits())
    assert found.verdict == "wrong"
    assert "1.01 times what it should be" in found.message
