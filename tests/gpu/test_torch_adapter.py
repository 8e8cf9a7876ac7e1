"""The PyTorch adapter on a GPU: tensors reach the cuda engine by DLPack, in torch's current stream."""

import pytest
from samples import OMEGA, X, Y, each_option

from lalref import combine

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA device", allow_module_level=True)
pytest.importorskip("cupy")

from lalref.adapters.torch import LocallyAdaptiveLoss, locally_adaptive_loss  # noqa: E402

pytestmark = pytest.mark.gpu


def gradient(device, **options):
    x = torch.tensor(X, device=device, requires_grad=True)
    y, w = (torch.tensor(a, device=device) for a in (Y, OMEGA))
    value = locally_adaptive_loss(x, y, pixel_weight=w, **options)
    value.sum().backward()
    return value.detach(), x.grad


@each_option
def test_the_cpus_answer(options):
    for found, right in zip(gradient("cuda", **options), gradient("cpu", **options), strict=True):
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), right, rtol=1e-12, atol=1e-14)


def test_gradcheck_and_gradgradcheck():
    x = torch.tensor(X[:1, :, :3], device="cuda", requires_grad=True)
    y = torch.tensor(Y[:1, :3], device="cuda")

    def f(x):
        return locally_adaptive_loss(x, y, kernel_size=3)

    assert torch.autograd.gradcheck(f, (x,))
    assert torch.autograd.gradgradcheck(f, (x,))


def test_in_a_stream_of_its_own():
    stream = torch.cuda.Stream()
    x, y = (
        torch.zeros(2, 3, 200, 200, device="cuda"),
        torch.zeros(2, 200, 200, dtype=torch.uint8, device="cuda"),
    )
    right = locally_adaptive_loss(x + 1e-3 * torch.arange(200.0, device="cuda"), y)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        slow = x
        for _ in range(200):  # work that is still under way when the loss is asked for
            slow = slow.sin()
        found = locally_adaptive_loss(slow + 1e-3 * torch.arange(200.0, device="cuda"), y)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(found, right)


def test_parts_and_16_bit():
    criterion = LocallyAdaptiveLoss()
    x, y = torch.tensor(X, device="cuda", dtype=torch.float16), torch.tensor(Y, device="cuda")
    total = combine(criterion.parts(x[:1], y[:1]), criterion.parts(x[1:], y[1:]))
    x.requires_grad_()
    for i in range(2):
        criterion(x[i : i + 1], y[i : i + 1], total=total).backward()
    (right,) = torch.autograd.grad(criterion(x, y), x)
    torch.testing.assert_close(x.grad, right)
