"""The loss inside PyTorch: right by the oracle, under autocast, on its devices, and its door."""

import contextlib
import math
import subprocess
import sys
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
from samples import OMEGA, V, X, Y, each_option

from lalref import LocallyAdaptiveLoss as Loss
from lalref import combine, lal_hvp, lal_value_and_grad, oracle

torch = pytest.importorskip("torch")

from lalref.adapters.torch import LocallyAdaptiveLoss, locally_adaptive_loss  # noqa: E402


def tensors(dtype=torch.float64):
    return torch.tensor(X, dtype=dtype, requires_grad=True), torch.from_numpy(Y), torch.from_numpy(OMEGA)


def test_the_oracle_accepts_it():
    report = oracle.verify(locally_adaptive_loss, framework="torch")
    assert report.verdict == "right", str(report)
    assert report.units <= 1
    assert not report.skipped


@each_option
def test_value_and_gradient_are_the_engines(options):
    x, y, w = tensors()
    value = locally_adaptive_loss(x, y, pixel_weight=w, **options)
    upstream = torch.linspace(-2, 3, value.numel(), dtype=torch.float64).reshape(value.shape)
    value.backward(upstream)
    right = lal_value_and_grad(X, Y, pixel_weight=OMEGA, grad_output=upstream.numpy(), **options)
    np.testing.assert_allclose(value.detach(), right[0], rtol=1e-14)
    np.testing.assert_allclose(x.grad, right[1], rtol=1e-13, atol=1e-16)


def test_a_graph_that_is_kept_gives_the_same_gradient_again():
    x, y, _ = tensors()
    value = locally_adaptive_loss(x, y)
    first, again = (torch.autograd.grad(value, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_logits_are_rounded_once_after_a_scaler_has_scaled(dtype):
    x, y, _ = tensors(dtype)
    value = locally_adaptive_loss(x, y)
    assert value.dtype == torch.float32
    (value * 65536.0).backward()
    wide = lal_value_and_grad(x.detach().float().numpy(), Y, grad_output=65536.0)
    assert value.item() == wide[0]
    assert torch.equal(x.grad, torch.from_numpy(wide[1]).to(dtype))


@pytest.mark.parametrize("engine", ["auto", "array"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_are_taken(dtype, engine):
    x, y, w = tensors(torch.float32)
    found, right = (locally_adaptive_loss(x, y, pixel_weight=a, engine=engine) for a in (w.to(dtype), w))
    assert torch.equal(w.to(dtype).double(), w)
    assert torch.equal(found, right)


def test_under_autocast_the_loss_is_float32():
    layer = torch.nn.Conv2d(3, 3, 1)
    x, y = torch.tensor(X, dtype=torch.float32), torch.from_numpy(Y)
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(x)
        value = locally_adaptive_loss(logits, y)
    value.backward()
    assert logits.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    right = lal_value_and_grad(logits.detach().float().numpy(), Y)[0]
    assert value.item() == right
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.abs().max() > 0


def test_the_engine_works_on_the_tensors_own_memory(monkeypatch):
    seen = []
    door = Loss.value_and_grad
    monkeypatch.setattr(
        Loss, "value_and_grad", lambda self, x, y, **k: seen.append((x, y)) or door(self, x, y, **k)
    )
    x, y, _ = tensors(torch.float32)
    locally_adaptive_loss(x, y).backward()
    assert [a.__array_interface__["data"][0] for a in seen[0]] == [x.data_ptr(), y.data_ptr()]


class OnGpu(torch.Tensor):
    """A tensor in the CPU's memory that says it is on a GPU."""

    device = property(lambda self: torch.device("cuda", 0))

    def __dlpack_device__(self):
        return self.as_subclass(torch.Tensor).__dlpack_device__()

    is_cpu, is_cuda = False, True

    def __dlpack__(self, **how):
        return self.as_subclass(torch.Tensor).__dlpack__(**how)


def test_tensors_on_a_gpu_reach_the_engine_by_dlpack_in_torchs_stream(monkeypatch):
    """Shown with stand-ins for CuPy and the device; tests/gpu shows it on one."""
    inside, seen = [], []

    @contextlib.contextmanager
    def entered(*what):
        inside.append(what)
        yield
        inside.remove(what)

    def from_dlpack(tensor):
        assert inside == [("device", 0), ("stream", 7, 0)]
        seen.append(tensor.data_ptr())
        return np.from_dlpack(tensor)

    cuda = SimpleNamespace(
        Device=lambda index: entered("device", index), ExternalStream=lambda *to: entered("stream", *to)
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(from_dlpack=from_dlpack, cuda=cuda))
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=device.index + 7)
    )
    back = torch.from_dlpack  # CuPy's numbers are arrays, NumPy's are not
    monkeypatch.setattr(torch, "from_dlpack", lambda a: back(np.asarray(a)).as_subclass(OnGpu))
    x, y, w = (t.detach().as_subclass(OnGpu) for t in tensors())
    x.requires_grad_()
    value = locally_adaptive_loss(x, y, pixel_weight=w)
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    (grad_dot,) = torch.autograd.grad(grad, x, torch.from_numpy(V))
    assert seen[:3] == [t.data_ptr() for t in (x, y, w)]
    assert not inside
    right, right_grad = lal_value_and_grad(X, Y, pixel_weight=OMEGA)
    np.testing.assert_allclose(value.item(), right, rtol=1e-14)
    np.testing.assert_allclose(grad.detach(), right_grad, rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(grad_dot, lal_hvp(X, Y, V, pixel_weight=OMEGA)[1], rtol=1e-12, atol=1e-15)
    criterion = LocallyAdaptiveLoss()
    total = combine(criterion.parts(x[:1], y[:1]), criterion.parts(x[1:], y[1:]))
    np.testing.assert_allclose(criterion(x, y, total=total).item(), lal_value_and_grad(X, Y)[0], rtol=1e-14)
    with pytest.raises(ValueError, match="input and target must be on one device; got cuda:0 and cpu"):
        locally_adaptive_loss(x, torch.from_numpy(Y))
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"tensors on a GPU need CuPy: in a clone .* '\.\[cuda13\]'"):
        locally_adaptive_loss(x, y)


def test_layouts_and_the_array_engine():
    x, y, _ = tensors()
    right = torch.autograd.grad(locally_adaptive_loss(x, y), x)[0]
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(locally_adaptive_loss(last, y), last)[0], right)
    moved = x.detach().movedim(1, -1).contiguous().requires_grad_()
    found = torch.autograd.grad(locally_adaptive_loss(moved, y, axis=-1), moved)[0]
    torch.testing.assert_close(found.movedim(-1, 1), right)
    found = torch.autograd.grad(locally_adaptive_loss(x, y, engine="array"), x)[0]
    torch.testing.assert_close(found, right)
    deep = torch.zeros(1, 2, 1, 2, 1, 2, requires_grad=True)  # 4 spatial axes
    locally_adaptive_loss(deep, torch.zeros(1, 1, 2, 1, 2, dtype=torch.int64)).backward()
    assert deep.grad.abs().max() > 0


def test_a_module_is_its_options():
    criterion = LocallyAdaptiveLoss(
        kernel_size=3, ignore_index=-100, class_weight=torch.tensor([1.0, 2.0, 0.5])
    )
    assert criterion.options == Loss(kernel_size=3, ignore_index=-100, class_weight=(1.0, 2.0, 0.5))
    assert repr(criterion).startswith(
        "LocallyAdaptiveLoss(kernel_size=3, ignore_index=-100, class_weight=(1.0"
    )
    y = torch.where(torch.from_numpy(Y) == 255, -100, torch.from_numpy(Y))
    plain = LocallyAdaptiveLoss(kernel_size=3, class_weight=(1.0, 2.0, 0.5))
    assert criterion(torch.from_numpy(X), y) == plain(torch.from_numpy(X), torch.from_numpy(Y))
    assert LocallyAdaptiveLoss(p=math.inf).options.p == math.inf
    with pytest.raises(ValueError, match="256 classes"):
        LocallyAdaptiveLoss()(torch.zeros(1, 256, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="kernel_size=4"):
        LocallyAdaptiveLoss(kernel_size=4)


def test_no_gradient_is_worked_out_that_nobody_asks_for(monkeypatch):
    monkeypatch.setattr(Loss, "value_and_grad", None)
    x, y, _ = tensors()
    with torch.no_grad():
        inside = locally_adaptive_loss(x, y)
    assert inside == locally_adaptive_loss(x.detach(), y)
    assert not inside.requires_grad


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning"
)  # torch's own, where it is first asked
def test_forward_mode_is_refused_and_not_left_out():
    x, y, _ = tensors()
    with torch.autograd.forward_ad.dual_level():
        for dtype in (torch.float64, torch.float16):
            dual = torch.autograd.forward_ad.make_dual(x.detach().to(dtype), torch.ones_like(x, dtype=dtype))
            with pytest.raises(NotImplementedError, match=r"lalref\.lal_jvp"):
                locally_adaptive_loss(dual, y)
        assert locally_adaptive_loss(x.detach(), y) == locally_adaptive_loss(x, y)  # without a tangent
    with pytest.raises(NotImplementedError, match=r"lalref\.lal_jvp"):
        torch.func.jvp(lambda x: locally_adaptive_loss(x, y), (x.detach(),), (torch.ones_like(x),))


def test_with_a_window_of_one_pixel_and_p_1_it_is_torchs_cross_entropy():
    x, y, _ = tensors()
    masks = torch.where(y == 255, -100, y.long())
    weights = (1.0, 2.0, 0.5)
    ours = LocallyAdaptiveLoss(kernel_size=1, p=1, ignore_index=-100, class_weight=weights)
    torchs = torch.nn.CrossEntropyLoss(torch.tensor(weights, dtype=torch.float64))
    values = [criterion(x, masks) for criterion in (ours, torchs)]
    grads = [torch.autograd.grad(value, x)[0] for value in values]
    torch.testing.assert_close(*values, rtol=1e-14, atol=0)
    torch.testing.assert_close(*grads, rtol=1e-13, atol=1e-17)


def test_the_door():
    x, y, w = tensors()
    with pytest.raises(ValueError, match=r"input and target .*cpu and meta: move"):
        locally_adaptive_loss(x, y.to("meta"))
    with pytest.raises(ValueError, match=r"input and pixel_weight .*cpu and meta"):
        locally_adaptive_loss(x, y, pixel_weight=w.to("meta"))
    with pytest.raises(ValueError, match=r"target requires a gradient.*detach"):
        locally_adaptive_loss(x, y.double().requires_grad_())
    with pytest.raises(ValueError, match="pixel_weight requires a gradient"):
        locally_adaptive_loss(x, y, pixel_weight=w.clone().requires_grad_())
    with pytest.raises(TypeError, match="labels must be integers"):
        locally_adaptive_loss(x, y.double())
    with pytest.raises(TypeError, match=r"target must be a torch.Tensor; got ndarray: torch.as_tensor\(\)"):
        locally_adaptive_loss(x, Y)
    with pytest.raises(TypeError, match=r"got OrderedDict: pick it out, as output\['out'\]"):
        locally_adaptive_loss(OrderedDict(out=x), y)
    for logits in (x, x.detach()):
        with pytest.raises(
            TypeError, match=r"look swapped: logits first, .*got torch.int64 and torch.float64"
        ):
            locally_adaptive_loss(y, logits)
    weights = torch.ones(3, requires_grad=True)
    for made in (LocallyAdaptiveLoss, lambda **options: locally_adaptive_loss(x, y, **options)):
        with pytest.raises(ValueError, match=r"class_weight requires a gradient.*class_weight.detach\(\)"):
            made(class_weight=weights)
    with pytest.raises(ValueError, match="labels must have the shape"):
        locally_adaptive_loss(x, y[:1])
    with pytest.raises(ValueError, match=r'engine="cuda"'):
        locally_adaptive_loss(x, y, engine="cuda")
    with pytest.raises(
        TypeError, match=r"^locally_adaptive_loss\(\).*'pixel_weights': did you mean pixel_weight="
    ):
        locally_adaptive_loss(x, y, pixel_weights=w)
    with pytest.raises(TypeError, match=r"^LocallyAdaptiveLoss\(\).*'kernal': did you mean kernel_size="):
        LocallyAdaptiveLoss(kernal=3)
    criterion, other = LocallyAdaptiveLoss(), LocallyAdaptiveLoss(p=2)
    with pytest.raises(ValueError, match="total= takes the combined parts of this loss"):
        criterion(x, y, total=other.parts(x, y))
    with pytest.raises(ValueError, match="total= is of parts in float64"):
        criterion(x.float(), y, total=criterion.parts(x, y))
    with pytest.raises(TypeError, match="total= takes the Parts"):
        criterion(x, y, total=1.0)
    part = criterion(x, y, total=criterion.parts(x, y))
    (grad,) = torch.autograd.grad(part, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        grad.sum().backward()


def test_lalref_imports_no_framework_and_an_adapter_says_what_to_install():
    code = """
import sys, lalref, lalref.adapters
assert not {"torch", "jax", "tensorflow", "keras", "dask"} & set(sys.modules)
for name in ("torch", "jax", "tensorflow", "dask"):
    sys.modules[name] = None
    try:
        __import__(f"lalref.adapters.{name}")
    except ImportError as error:
        assert f"pip install -c constraints.txt -e '.[{name}]'" in str(error), error
    else:
        raise AssertionError(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
