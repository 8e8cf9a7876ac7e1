"""Ports to frameworks, differentiated by them: the right ones are accepted, broken ones refused."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from lalref import oracle
from lalref.oracle import golden, subjects
from lalref.oracle.cases import BY_NAME
from lalref.oracle.units import error_unit
from lalref.oracle.verify import in_units

HERE = Path(__file__).parent
PORTS = HERE.parents[1] / "examples" / "ports"
FILES = {
    "torch": PORTS / "torch_port.py",
    "jax": PORTS / "jax_port.py",
    "tensorflow": HERE / "tensorflow_port.py",
}
every_framework = pytest.mark.parametrize("framework", FILES)


def port(framework):
    """A port as a module of its own, so that a test may break it."""
    pytest.importorskip(framework)
    spec = importlib.util.spec_from_file_location(f"{framework}_port_on_trial", FILES[framework])
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@every_framework
def test_a_right_port_is_right(framework):
    report = oracle.verify(port(framework).loss, framework=framework, quick=True)
    assert report.verdict == "right", str(report)
    assert report.units <= 1
    # JAX would compile each set of options anew: what is left out is named
    assert ({"kernel_size", "stride", "reduction"} <= set(report.not_varied)) == (framework == "jax")
    assert bool(report.not_varied) == (framework == "jax")


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])  # JAX compiles each case: minutes
def test_a_right_port_is_right_in_a_full_run(framework):
    report = oracle.verify(port(framework).loss, framework=framework)
    assert report.verdict == "right", str(report)
    assert report.units <= 1


@pytest.mark.parametrize("name", ["kernel-3", "stride-2", "none-upstream", "column", "weights-and-sum"])
def test_a_case_that_jax_compiles_whole_is_right_too(name):
    case, right = BY_NAME[name], golden.load()[name]
    unit = error_unit(case, "float32", right.value[0], right.grad[0])
    answer = subjects.Subject(port("jax").loss, "jax")(case, "float32")
    assert in_units(answer.value, right.value, unit.value).max() <= 1
    assert in_units(answer.grad, right.grad, unit.grad).max() <= 1


def no_root(ell, omega, p, reduction):
    """The mean of the powers, its root forgotten."""
    return (omega * ell**p).sum() / omega.sum()


@every_framework
def test_a_port_without_the_root_is_wrong(framework, monkeypatch):
    module = port(framework)
    if framework == "tensorflow":
        tf = module.tf
        monkeypatch.setattr(
            module,
            "power_mean",
            lambda ell, omega, p, reduction: tf.reduce_sum(omega * ell**p) / tf.reduce_sum(omega),
        )
    else:
        monkeypatch.setattr(module, "power_mean", no_root)
    report = oracle.verify(module.loss, framework=framework, quick=True, dtype="float32")
    assert report.verdict == "wrong"
    assert report.units >= 30


@every_framework
def test_a_loss_that_is_right_but_detached_is_wrong(framework):
    loss = port(framework).loss
    if framework == "torch":

        def detached(logits, labels, *, sigma=1.0, p=5.0):
            return loss(logits.detach(), labels, sigma=sigma, p=p)
    elif framework == "jax":
        import jax

        def detached(logits, labels, *, sigma=1.0, p=5.0):
            return jax.lax.stop_gradient(loss(logits, labels, sigma=sigma, p=p))
    else:
        import tensorflow as tf

        def detached(logits, labels, *, sigma=1.0, p=5.0):
            return loss(tf.stop_gradient(logits), labels, sigma=sigma, p=p)

    report = oracle.verify(detached, framework=framework, quick=True, dtype="float32")
    plain = next(r for r in report.results if r.name == "plain")
    assert report.verdict == "wrong"
    assert plain.value_units <= 1
    assert plain.grad_units >= 30


@every_framework
def test_what_is_not_a_tensor_is_told(framework):
    pytest.importorskip(framework)
    with pytest.raises(
        oracle.UsageError, match=rf"returned a float; a {framework} subject returns the value"
    ):
        oracle.verify(lambda x, y: 1.0, framework=framework, quick=True)


def test_a_jax_subject_need_not_be_traceable():
    pytest.importorskip("jax")
    traced = []

    def f(logits, labels):
        traced.append(type(logits).__name__)
        return (logits**2).sum() if logits.sum() >= -1e9 else logits.sum()

    case = BY_NAME["small-image"]
    answer = subjects.Subject(f, "jax")(case, "float32")
    np.testing.assert_array_equal(answer.grad, 2 * case.logits)
    assert len(traced) >= 1


@every_framework
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_arrays_arrive_in_their_dtype_and_upstream_is_applied(framework, dtype):
    pytest.importorskip(framework)
    seen = []

    def f(logits, labels, *, pixel_weight=None, class_weight=None, reduction="mean"):
        seen.append((logits, labels, pixel_weight, class_weight))
        return (logits * logits).sum() if framework != "tensorflow" else total(logits * logits)

    def total(x):
        import tensorflow as tf

        return tf.reduce_sum(x)

    subject = subjects.Subject(f, framework)
    case = BY_NAME["weights-and-sum"]
    subject(case, dtype)
    logits, labels, pixel_weight, class_weight = seen[0]
    assert str(getattr(logits.dtype, "name", logits.dtype)).endswith(dtype)
    assert "int" in str(labels.dtype)
    assert str(pixel_weight.dtype).endswith("float64" if dtype == "float64" else "float32") or (
        framework == "tensorflow"
    )
    assert class_weight == (0.5, 2.0, 1.25)
    doubled = subject(BY_NAME["upstream-negative"], "float64")
    np.testing.assert_array_equal(doubled.grad, -0.5 * 2 * BY_NAME["upstream-negative"].logits)


def test_the_options_of_a_torch_module_are_those_of_its_forward():
    loss = port("torch").loss
    import torch

    class Module(torch.nn.Module):
        def forward(self, logits, labels, *, p=5.0):
            return loss(logits, labels, p=p)

    report = oracle.verify(Module(), framework="torch", quick=True, dtype="float32")
    assert report.verdict == "right", str(report)
    assert "p" not in report.skipped
    assert "sigma" in report.skipped


def test_a_torch_subject_that_writes_to_its_input_is_wrong():
    loss = port("torch").loss

    def f(logits, labels, *, sigma=1.0, p=5.0):
        value = loss(logits, labels, sigma=sigma, p=p)
        labels.zero_()
        return value

    report = oracle.verify(f, framework="torch", quick=True, dtype="float32")
    assert report.verdict == "wrong"
    assert "wrote to its input labels" in {r.note for r in report.results}


def test_a_framework_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(oracle.UsageError, match=r"jax can't be imported .*: pip install jax"):
        oracle.verify(lambda x, y: x, framework="jax")
