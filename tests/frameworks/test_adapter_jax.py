"""The loss inside JAX: right by the oracle and by check_grads, under jit and vmap, and over a mesh of devices."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from samples import OMEGA, V, X, Y, each_space

from lalref import lal_hvp, lal_value_and_grad, oracle

jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)

from jax.test_util import check_grads  # noqa: E402

from lalref.adapters.jax import locally_adaptive_loss  # noqa: E402

jnp = jax.numpy
KINDS = {
    "mean": {},
    "none": {"reduction": "none"},
    "sum, stride": {"reduction": "sum", "stride": 2},
    "probabilities": {"space": "probabilities"},
    "channels last": {"axis": -1},
}

ENGINES = {  # small, for XLA takes its time over what it compiles
    "callback": {"kernel_size": 3},
    "traced": {"kernel_size": 1, "engine": "array", "check": False},
}
each_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())


@pytest.mark.parametrize("engine", ["callback", "traced"])
def test_the_oracle_accepts_it(engine):
    """Traced, the cases that need one compilation, as each other one takes JAX a second or more."""
    traced = functools.partial(locally_adaptive_loss, engine="array", check=False)
    jax.config.update("jax_enable_x64", False)  # the oracle says itself when it wants 64 bits
    try:
        if engine == "traced":
            report = oracle.verify(traced, framework="jax", quick=True)
        else:
            report = oracle.verify(locally_adaptive_loss, framework="jax")
    finally:
        jax.config.update("jax_enable_x64", True)
    assert report.verdict == "right", str(report)
    assert report.units <= 1
    assert not report.skipped


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "space": "probabilities", "normalize": "count", "p": 2.5},
        {"kernel_size": 3, "sigma": None, "stride": 2, "p": 2.0, "reduction": "sum"},
        {"kernel_size": (3, 5), "label_smoothing": 0.25, "sigma": 2.0},
    ],
    ids=["probabilities", "stride", "smoothing"],
)
def test_the_oracle_accepts_it_traced_with_other_options(options):
    def subject(logits, labels):
        return locally_adaptive_loss(logits, labels, engine="array", check=False, **options)

    jax.config.update("jax_enable_x64", False)
    try:
        report = oracle.verify(subject, framework="jax", quick=True, fixed=options)
    finally:
        jax.config.update("jax_enable_x64", True)
    assert report.verdict == "right", str(report)
    assert report.units <= 1
    assert not report.skipped


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("jit", [False, True])
def test_check_grads_twice(options, jit):
    x = jnp.asarray(np.moveaxis(X, 1, -1) if "axis" in options else X)

    def f(x):
        return locally_adaptive_loss(
            x, jnp.asarray(Y), pixel_weight=jnp.asarray(OMEGA), kernel_size=3, **options
        )

    check_grads(jax.jit(f) if jit else f, (x,), order=2, modes=["rev"])


def test_the_traced_engine_has_forward_mode_too():
    y = jnp.asarray(Y)
    options = {"kernel_size": (3, 1), "engine": "array", "check": False}
    f = jax.jit(lambda x: locally_adaptive_loss(x, y, **options))
    check_grads(f, (jnp.asarray(X),), order=1)
    check_grads(f, (jnp.asarray(X),), order=2, modes=["rev"])


def test_traced_too_ties_share_the_gradient_by_their_weights():
    options = {"kernel_size": 1, "p": np.inf, "pixel_weight": np.array([[1.0, 2.0, 3.0]])}
    x, y = np.zeros((1, 2, 3)), np.array([[0, 1, 0]])
    f = functools.partial(locally_adaptive_loss, engine="array", check=False, **options)
    right = lal_value_and_grad(x, y, **options)[1]
    np.testing.assert_allclose(jax.grad(f)(x, y), right, rtol=1e-14)
    tangent = np.where(right > 0, 1.0, 0.0)
    np.testing.assert_allclose(jax.jvp(lambda x: f(x, y), (x,), (tangent,))[1], right[right > 0].sum())


@each_engine
def test_where_the_gradient_is_zero_the_second_derivative_is_not(engine):
    x, y = np.zeros((1, 2, 2, 2)), np.array([[[0, 1], [1, 0]]])
    v = V[:1, :2, :2, :2]
    f = functools.partial(locally_adaptive_loss, label_smoothing=1.0, **engine)
    assert not jax.grad(f)(x, y).any()
    found = jax.grad(lambda x: jnp.vdot(jax.grad(f)(x, y), v))(x)
    right = lal_hvp(x, y, v, label_smoothing=1.0, kernel_size=engine["kernel_size"])[1]
    assert right.any()
    np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-15)


@each_engine
def test_numpys_arrays_may_all_be_differentiated_by(engine):
    """Labels and weights have no derivative: nothing, and zeros."""
    f = functools.partial(locally_adaptive_loss, **engine)
    right = lal_value_and_grad(X, Y, pixel_weight=OMEGA, kernel_size=engine["kernel_size"])[1]
    grad = jax.grad(lambda batch: f(*batch[:2], pixel_weight=batch[2]), allow_int=True)((X, Y, OMEGA))
    np.testing.assert_allclose(grad[0], right, rtol=1e-12, atol=1e-15)
    assert (grad[1].dtype, grad[1].shape, grad[2].any()) == (jax.dtypes.float0, Y.shape, False)
    assert not jax.grad(lambda w: f(X, Y, pixel_weight=w))(OMEGA).any()


@each_space
def test_value_and_gradient_are_the_engines(space):
    x, y, w = map(jnp.asarray, (X, Y, OMEGA))
    f = jax.jit(lambda x: 1.5 * locally_adaptive_loss(x, y, pixel_weight=w, space=space))
    found = jax.value_and_grad(f)(x)
    right = lal_value_and_grad(X, Y, pixel_weight=OMEGA, space=space, grad_output=1.5)
    np.testing.assert_allclose(found[0], 1.5 * right[0], rtol=1e-14)
    np.testing.assert_allclose(found[1], right[1], rtol=1e-13, atol=1e-16)


def test_vmap():
    xs, ys = np.stack([X, V]), np.stack([Y, Y[:, ::-1]])
    f = functools.partial(locally_adaptive_loss, kernel_size=3)
    found = jax.jit(jax.vmap(jax.value_and_grad(f)))(jnp.asarray(xs), jnp.asarray(ys))
    for i in range(2):
        right = lal_value_and_grad(xs[i], ys[i].copy(), kernel_size=3)
        np.testing.assert_allclose(found[0][i], right[0], rtol=1e-14)
        np.testing.assert_allclose(found[1][i], right[1], rtol=1e-13, atol=1e-16)


@each_engine
def test_vmap_over_logits_alone(engine):
    f = functools.partial(locally_adaptive_loss, **engine)
    xs = np.stack([X, V])
    found = jax.jit(jax.vmap(jax.value_and_grad(f), in_axes=(0, None)))(jnp.asarray(xs), jnp.asarray(Y))
    for i in range(2):
        right = lal_value_and_grad(xs[i], Y, kernel_size=engine["kernel_size"])
        np.testing.assert_allclose(found[0][i], right[0], rtol=1e-14)
        np.testing.assert_allclose(found[1][i], right[1], rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@each_engine
def test_16_bit_logits_are_rounded_once_after_upstream(engine, dtype):
    x = jnp.asarray(X, dtype)
    grad = jax.jit(jax.grad(lambda x: 65536.0 * locally_adaptive_loss(x, jnp.asarray(Y), **engine)))(x)
    wide = lal_value_and_grad(
        np.asarray(x, np.float32), Y, grad_output=65536.0, kernel_size=engine["kernel_size"]
    )[1]
    assert grad.dtype == dtype
    assert (grad == jnp.asarray(wide).astype(dtype)).all()


def test_images_of_the_size_that_people_train_on_do_not_hang():
    x = jnp.asarray(np.tile(X, (1, 7, 64, 80)), jnp.float32)  # (2, 21, 320, 320)
    y = jnp.asarray(np.tile(Y, (1, 64, 80)))
    grad = jax.jit(jax.grad(locally_adaptive_loss))
    for _ in range(3):
        x = x - grad(x, y)
    assert bool(jnp.isfinite(x).all())


@pytest.mark.filterwarnings("ignore")
def test_the_door():
    x, y = jnp.asarray(X), jnp.asarray(Y)
    for f in (
        locally_adaptive_loss,
        jax.jit(locally_adaptive_loss),
    ):  # what doesn't fit is told while tracing
        with pytest.raises(ValueError, match="labels must have the shape"):
            f(x, y[:1])
        with pytest.raises(TypeError, match="labels must be integers"):
            f(x, y * 1.0)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"labels must be in \[0, 3\)"):
        jax.block_until_ready(locally_adaptive_loss(x, y + 9))
    with pytest.raises(ValueError, match=r'axis_name= and .* need engine="array"'):
        locally_adaptive_loss(x, y, axis_name="devices")
    with pytest.raises(ValueError, match="check=False"):
        jax.jit(functools.partial(locally_adaptive_loss, engine="array"))(x, y)
    with pytest.raises(TypeError, match=r"^locally_adaptive_loss\(\).*'axis_names': did you mean axis_name="):
        locally_adaptive_loss(x, y, axis_names="devices")
    with pytest.raises(TypeError, match="forward-mode"):  # of the callback; engine="array" has it
        jax.jvp(lambda x: locally_adaptive_loss(x, y), (x,), (x,))
    assert float(locally_adaptive_loss(x, jnp.full_like(y, 255))) == 0


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("p", lambda a: a),
        ("kernel_size", lambda a: (a, a)),
        ("class_weight", lambda a: jnp.ones(3)),
        ("class_weight", lambda a: [a, a, a]),
        ("reduction", lambda a: a),
    ],
)
def test_options_that_are_traced_are_told_how_they_are_given(name, make):
    @jax.jit
    def f(a):
        return locally_adaptive_loss(jnp.asarray(X), jnp.asarray(Y), **{name: make(a)})

    with pytest.raises(ValueError, match=f"^{name}=.* options are fixed while tracing.* static_argnames"):
        f(3.0)


@pytest.mark.parametrize("x64", [False, True])
@each_engine
def test_numpys_arrays_are_taken_as_everywhere_in_jax(engine, x64):
    jax.config.update("jax_enable_x64", x64)
    try:
        f = functools.partial(locally_adaptive_loss, labels=Y, pixel_weight=OMEGA, **engine)
        found = [f(X), *jax.value_and_grad(f)(X)]
        right = lal_value_and_grad(X, Y, pixel_weight=OMEGA, kernel_size=engine["kernel_size"])
    finally:
        jax.config.update("jax_enable_x64", True)
    for a, b in zip(found, (right[0], *right), strict=True):
        assert a.dtype == ("float64" if x64 else "float32")
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@each_engine
def test_weights_get_no_gradient(engine):
    def f(w):
        return locally_adaptive_loss(jnp.asarray(X), jnp.asarray(Y), pixel_weight=w, **engine)

    assert not jax.jit(jax.grad(f))(jnp.asarray(OMEGA)).any()


MESH = Path(__file__).with_name("jax_mesh.py")


def on_devices(number, *what, flags=""):
    """jax_mesh.py in a process of its own, with so many devices."""
    env = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={number} {flags}",
        "PYTHONPATH": str(MESH.parents[2]),
    }
    command = [sys.executable, str(MESH), *what]
    return subprocess.run(command, env=env, timeout=240, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_over_a_mesh_the_loss_is_that_of_the_whole_batch(number):
    done = on_devices(number)
    assert done.stdout.strip() == f"{number} devices: all equal", done.stderr[-3000:]


@pytest.mark.slow
def test_a_device_that_does_not_come_is_not_waited_for():
    """By XLA's own timeout, a second here: it ends the program."""
    timeout = "--xla_cpu_collective_call_{}_timeout_seconds=1"
    done = on_devices(2, "late", flags=" ".join(timeout.format(what) for what in ("warn_stuck", "terminate")))
    assert done.returncode < 0
    assert "Termination timeout for `all reduce" in done.stderr
