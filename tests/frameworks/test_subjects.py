"""The forms in which frameworks' users write a loss, and what they put around it."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from lalref import oracle
from lalref.oracle import golden, large, protocol
from lalref.oracle.cases import BY_NAME
from lalref.oracle.shrink import shrink
from lalref.oracle.subjects import Subject

PORTS = Path(__file__).parents[2] / "examples" / "ports"
BASE = {protocol.BASE: (BY_NAME[protocol.BASE], golden.load()[protocol.BASE])}


def loss_of(framework):
    """The loss of the port to a framework."""
    pytest.importorskip(framework)
    own = Path(__file__).parent / "tensorflow_port.py"
    file = own if framework == "tensorflow" else PORTS / f"{framework}_port.py"
    spec = importlib.util.spec_from_file_location(f"{framework}_port_as_subject", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.loss


def wrong_where_traced(framework, loss):
    """A loss that is right when it is called as it is, and another under jit, vmap or tf.function."""
    if framework == "jax":
        import jax

        def f(logits, labels):
            traced = isinstance(labels, jax.core.Tracer)
            return loss(logits, labels) * (2.0 if traced else 1.0)
    else:
        import tensorflow as tf

        def f(logits, labels):
            return loss(logits, labels) * (1.0 if tf.executing_eagerly() else 2.0)

    return f


@pytest.mark.parametrize(
    ("framework", "names"), [("jax", {"jax.jit", "jax.vmap"}), ("tensorflow", {"tf.function"})]
)
def test_what_is_put_around_a_loss_is_asked_too(framework, names):
    loss = loss_of(framework)
    right, wrong = Subject(loss, framework), Subject(wrong_where_traced(framework, loss), framework)
    assert set(right.transformed()) == names
    case, answer = BASE[protocol.BASE]
    from lalref.oracle.judge import judge

    for name in names:
        assert judge(right.transformed()[name], case, "float32", "", answer)[0].outcome == "holds"
        assert judge(wrong.transformed()[name], case, "float32", "", answer)[0].outcome == "differs"
    assert not any(protocol.Row(name, "differs", "").decides(strict=False) for name in names)


def test_a_class_is_called_with_the_options_of_its_init():
    torch, loss = pytest.importorskip("torch"), loss_of("torch")

    class Module(torch.nn.Module):
        def __init__(self, sigma=1.0, p=5.0):
            super().__init__()
            self.options = {"sigma": sigma, "p": p}

        def forward(self, logits, labels, *, pixel_weight=None):
            return loss(logits, labels, pixel_weight=pixel_weight, **self.options)

    subject = Subject(Module, "torch")
    assert subject.takes == {"sigma", "p", "pixel_weight"}
    report = oracle.verify(Module, framework="torch", quick=True, dtype="float32")
    assert report.verdict == "right", str(report)
    assert not {"sigma", "p", "pixel_weight"} & set(report.skipped)


def autograd_function(factor):
    """The NumPy port inside a torch.autograd.Function; its backward is off by a factor."""
    import torch

    spec = importlib.util.spec_from_file_location("numpy_port_inside", PORTS / "numpy_port.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, labels, kernel_size=5, sigma=1.0, p=5.0):
            options = {"kernel_size": kernel_size, "sigma": sigma, "p": p}
            value, grad = module.value_and_grad(logits.detach().numpy(), labels.numpy(), **options)
            ctx.save_for_backward(torch.tensor(grad))
            return torch.tensor(value)

        @staticmethod
        def backward(ctx, upstream):
            return upstream * factor * ctx.saved_tensors[0], None, None, None, None

    return Function


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "right"), (0.5, "wrong")])
def test_an_autograd_function_is_applied_and_its_own_backward_judged(factor, verdict):
    pytest.importorskip("torch")
    function = autograd_function(factor)
    assert Subject(function, "torch").takes == {"kernel_size", "sigma", "p"}
    assert oracle.verify(function, framework="torch", quick=True, dtype="float32").verdict == verdict


def test_a_torch_subject_that_assumes_contiguous_tensors_is_noticed():
    torch, loss = pytest.importorskip("torch"), loss_of("torch")

    def f(logits, labels):
        if not logits.is_contiguous():
            logits = torch.as_strided(logits, logits.shape, torch.empty(logits.shape).stride())
        return loss(logits, labels)

    rows = protocol.check(Subject(f, "torch"), "float32", BASE, [], quick=True)
    assert {r.name for r in rows if r.outcome == "differs"} == {
        "arrays in memory: every second element",
        "arrays in memory: class axis innermost",
    }


def test_a_program_of_jax_is_compiled_once_for_each_set_of_options():
    jax, loss = pytest.importorskip("jax"), loss_of("jax")
    traced = []

    def f(logits, labels, *, p=5.0):
        traced.append(isinstance(labels, jax.core.Tracer))
        return loss(logits, labels, p=p)

    subject = Subject(f, "jax")
    for name in ("plain", "scattered", "p-2", "batch", "p-2"):
        subject(BY_NAME[name], "float32")
    assert traced == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_a_large_image_is_asked_or_spared(framework, monkeypatch):
    monkeypatch.setattr(large, "SIZES", (321,))
    ((_, outcome, note),) = large.check(
        Subject(loss_of(framework), framework), *BASE[protocol.BASE], "float32"
    )
    assert outcome == "holds" or "by its growth" in note  # the port to TensorFlow has dense matrices


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_the_code_of_a_shrunken_failure_runs_and_fails(framework):
    loss = loss_of(framework)

    def f(logits, labels):
        return 2 * loss(logits, labels)

    found = shrink(Subject(f, framework), BY_NAME["plain"], "float32", seconds=30.0)
    np.testing.assert_array_less(found.case.logits.size, BY_NAME["plain"].logits.size)
    with pytest.raises(AssertionError):
        exec(found.code, {"f": f})
    exec(found.code, {"f": loss})
