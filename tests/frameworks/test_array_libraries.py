"""The array engine on torch and JAX arrays: values, transformations, and autodiff of the forward."""

import functools
import math

import numpy as np
import pytest
from samples import INF, OMEGA, OPTIONS, V, X, Y, each_option, each_space, same_bits

from lalref import LocallyAdaptiveLoss, combine, lal_hvp, lal_jvp, lal_loss, lal_value_and_grad
from lalref.oracle.inputs import VOID, eighths, scattered

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy

CALLS = {
    "loss": lambda x, y, v, **options: (lal_loss(x, y, **options),),
    "gradient": lambda x, y, v, **options: lal_value_and_grad(x, y, **options),
    "jvp": lambda x, y, v, **options: lal_jvp(x, y, v, **options),
    "hvp": lambda x, y, v, **options: lal_hvp(x, y, v, **options),
}
LIBRARIES = {"torch": torch.from_numpy, "jax": jnp.asarray}
each_library = pytest.mark.parametrize("library", LIBRARIES)
DIFFERENTIABLE = {  # at a tie of p = inf autodiff has a convention of its own
    name: options for name, options in OPTIONS.items() if options.get("reduction") != "none"
}
each_differentiable = pytest.mark.parametrize("options", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE.keys())


# JAX compiles every offset of a window for itself: 3 show as much as 25, which torch's tests have
SMALL = {name: {**options, "kernel_size": (3, 1)} for name, options in OPTIONS.items()}
each_small = pytest.mark.parametrize("options", SMALL.values(), ids=SMALL.keys())


def close(a, b, rtol=1e-12):
    """Whether all entries agree next to the largest."""
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(1e-3, abs(b).max(initial=0)))


# ---- the same values ------------------------------------------------------------------------------


@each_option
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torchs_values_are_numpys_and_the_arrays_its_own(options, dtype):
    x, v = X.astype(dtype), V.astype(dtype)
    for call in CALLS.values():
        right = call(x, Y, v, pixel_weight=OMEGA, **options)
        found = call(*map(torch.from_numpy, (x, Y, v)), pixel_weight=torch.from_numpy(OMEGA), **options)
        for a, b in zip(found, right, strict=True):
            assert isinstance(a, torch.Tensor)
            assert (tuple(a.shape), a.dtype) == (b.shape, getattr(torch, dtype))
            close(a, b, rtol=200 * np.finfo(dtype).eps)


@each_small
def test_jaxs_values_are_numpys_and_the_arrays_its_own(options):
    """Under jax.jit, gradient, jvp and hvp in one."""

    @jax.jit
    def every(x, y, v, omega):
        return [call(x, y, v, pixel_weight=omega, check=False, **options) for call in CALLS.values()]

    found = every(*map(jnp.asarray, (X, Y, V, OMEGA)))
    for a, call in zip(found, CALLS.values(), strict=True):
        for b, c in zip(a, call(X, Y, V, pixel_weight=OMEGA, **options), strict=True):
            assert (b.shape, b.dtype) == (c.shape, c.dtype)
            close(b, c, rtol=1e-11)


@each_space
def test_jax_without_jit_in_float32(space):
    x, v = X.astype("f4"), V.astype("f4")
    for call in CALLS.values():
        right = call(x, Y, v, space=space, kernel_size=3)
        for a, b in zip(call(*map(jnp.asarray, (x, Y, v)), space=space, kernel_size=3), right, strict=True):
            assert isinstance(a, jax.Array)
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            close(a, b, rtol=1e-5)


@each_library
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_gradients_are_float32s_rounded_once(library, dtype):
    def of(dtype):
        x = LIBRARIES[library](X)
        return x.to(getattr(torch, dtype)) if library == "torch" else x.astype(dtype)

    y = LIBRARIES[library](Y)
    for upstream in (1.0, 1.7, 65504.0, 2.0**-14):
        value, grad = lal_value_and_grad(of(dtype), y, grad_output=upstream, kernel_size=3)
        wide_value, wide = lal_value_and_grad(of("float32"), y, grad_output=upstream, kernel_size=3)
        rounded = wide.to(grad.dtype) if library == "torch" else wide.astype(dtype)
        assert str(grad.dtype).removeprefix("torch.") == dtype
        assert value == wide_value
        assert (grad == rounded).all()


@each_library
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_any_integer_labels(library, dtype):
    void = {"int8": 127}.get(dtype, VOID)
    make = LIBRARIES[library]
    y = make(np.where(Y == VOID, void, Y).astype(dtype))
    value, grad = lal_value_and_grad(make(X), y, ignore_index=(void, 2), kernel_size=3)
    right = lal_value_and_grad(make(X), make(Y), ignore_index=(VOID, 2), kernel_size=3)
    assert value == right[0]
    assert (grad == right[1]).all()


@each_library
def test_the_same_bits_on_every_run(library):
    make = LIBRARIES[library]
    first, again = ([np.asarray(a) for a in lal_hvp(*map(make, (X, Y, V)), kernel_size=3)] for _ in range(2))
    assert all(map(same_bits, again, first))


def test_torch_layouts():
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    right = lal_value_and_grad(x, y)
    last = x.to(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    for found in (
        lal_value_and_grad(last, y),
        lal_value_and_grad(x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), y),
    ):
        for a, b in zip(found, right, strict=True):
            close(a, b)
    moved = lal_value_and_grad(x.movedim(1, -1), y, axis=-1)
    close(moved[1], right[1].movedim(1, -1))


@each_library
def test_parts_combine(library):
    make, loss = LIBRARIES[library], LocallyAdaptiveLoss(kernel_size=3)
    x, y = make(X), make(Y)
    total = combine(loss.parts(x[:1], y[:1]), loss.parts(x[1:], y[1:]))
    close(total.value, loss(x, y))
    value, grad = loss.value_and_grad(x[1:], y[1:], total=total)
    assert value == total.value
    close(grad, lal_value_and_grad(X, Y, kernel_size=3)[1][1:])


# ---- softmax cross-entropy ------------------------------------------------------------------------


@pytest.mark.parametrize("S", [(), (4,), (3, 4), (2, 3, 2), (2, 1, 3, 2), (1, 2, 2, 1, 3)], ids=len)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("ignore_index", [VOID, 0, -100])
@pytest.mark.parametrize("kind", [{}, {"weight": (0.5, 2.0, 0.0, 1.25)}, {"label_smoothing": 0.25}], ids=str)
def test_kernel_1_and_p_1_is_torchs_cross_entropy(S, reduction, ignore_index, kind):
    x = torch.from_numpy(eighths((3, 4, *S), 11)).requires_grad_()
    y = torch.from_numpy(scattered((3, *S), 12, 4, ignore_index))
    options = {k: v for k, v in kind.items() if k == "label_smoothing"}
    torchs = {**kind, "weight": torch.tensor(kind["weight"], dtype=x.dtype)} if "weight" in kind else kind
    expected = torch.nn.CrossEntropyLoss(reduction=reduction, ignore_index=ignore_index, **torchs)(x, y)
    upstream = torch.from_numpy(eighths(tuple(expected.shape), 13)) if reduction == "none" else -1.75
    (expected * upstream).sum().backward()
    value, grad = lal_value_and_grad(
        x.detach(), y, kernel_size=1, p=1, reduction=reduction, ignore_index=ignore_index,
        class_weight=kind.get("weight"), grad_output=upstream, **options,
    )  # fmt: skip
    close(value, expected.detach(), rtol=1e-14)
    close(grad, x.grad, rtol=1e-14)


# ---- compilers, vmap ------------------------------------------------------------------------------


def test_jax_in_32_bits():
    """Without 64-bit types stage 3 runs in float32, and nothing warns."""
    jax.config.update("jax_enable_x64", False)
    try:
        for options in ({"kernel_size": 3}, {"space": "probabilities", "kernel_size": 1}):
            x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y)
            for a, b in zip(
                lal_value_and_grad(x, y, **options), lal_value_and_grad(X, Y, **options), strict=True
            ):
                assert a.dtype == jnp.float32
                close(a, b, rtol=1e-5)
    finally:
        jax.config.update("jax_enable_x64", True)


@each_library
def test_vmap_over_a_batch_of_batches(library):
    make = LIBRARIES[library]
    xs, ys = np.stack([X, V]), np.stack([Y, Y[:, ::-1]])
    for options in ({"kernel_size": 3}, {"space": "probabilities", "stride": 2, "kernel_size": 3}):
        f = functools.partial(lal_loss, check=False, **options)
        vmapped = (torch.vmap if library == "torch" else jax.vmap)(f)
        close(
            vmapped(make(xs), make(ys.copy())),
            [lal_loss(x, y, **options) for x, y in zip(xs, ys, strict=True)],
        )


@pytest.mark.slow
@each_space
def test_torch_compile_takes_the_forward_as_one_graph(space):
    torch._dynamo.reset()
    for options in (
        {"space": space, "kernel_size": 3},
        {"space": space, "p": 1, "stride": 2, "kernel_size": 3, "class_weight": (0.5, 2.0, 1.25)},
    ):
        f = functools.partial(lal_loss, check=False, **options)
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        x, y = torch.from_numpy(X).requires_grad_(), torch.from_numpy(Y)
        value = compiled(x, y)
        value.backward()
        right = lal_value_and_grad(X, Y, **options)
        close(value.detach(), right[0])
        close(x.grad, right[1])


# ---- autodiff of the forward ----------------------------------------------------------------------


def torch_gradient(options):
    return torch.func.grad(functools.partial(lal_loss, check=False, **options))


def jax_gradient(options):
    return jax.grad(functools.partial(lal_loss, check=False, **options))


# torch.func.jvp compiles its decompositions by torch.jit.script, which torch 2.13 itself deprecates
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@each_differentiable
def test_torchs_autodiff_of_the_forward_is_the_manual_backward(options):
    x, y, v = map(torch.from_numpy, (X, Y, V))
    omega = torch.from_numpy(OMEGA)
    grad, grad_dot = lal_hvp(X, Y, V, pixel_weight=OMEGA, **options)

    def gradient(x):
        return torch_gradient(options)(x, y, pixel_weight=omega)

    close(gradient(x), grad)
    found, found_dot = torch.func.jvp(gradient, (x,), (v,))
    close(found, grad)
    close(found_dot, grad_dot, rtol=1e-11)
    leaf = x.clone().requires_grad_()
    lal_loss(leaf, y, pixel_weight=omega, **options).backward()
    close(leaf.grad, grad)
    value, value_dot = torch.func.jvp(lambda x: lal_loss(x, y, check=False, **options), (x,), (v,))
    for a, b in zip((value, value_dot), lal_jvp(X, Y, V, **options), strict=True):
        close(a, b)


@each_differentiable
def test_jaxs_autodiff_of_the_forward_is_the_manual_backward(options):
    options = {**options, "kernel_size": (3, 1)}
    grad, grad_dot = lal_hvp(X, Y, V, pixel_weight=OMEGA, **options)
    value, value_dot = lal_jvp(X, Y, V, pixel_weight=OMEGA, **options)

    @jax.jit
    def every(x, y, v, omega):
        def loss(x):
            return lal_loss(x, y, pixel_weight=omega, check=False, **options)

        return jax.jvp(loss, (x,), (v,)), jax.jvp(jax.grad(loss), (x,), (v,))

    found = every(*map(jnp.asarray, (X, Y, V, OMEGA)))
    for a, b in zip(jax.tree.leaves(found), (value, value_dot, grad, grad_dot), strict=True):
        close(a, b, rtol=1e-10)


@each_space
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_autodiff_of_a_map(library, space):
    upstream = eighths(Y.shape, 6)
    options = {"space": space, "reduction": "none", "kernel_size": 3}
    right = lal_value_and_grad(X, Y, grad_output=upstream, **options)[1]
    if library == "torch":
        u, y = torch.from_numpy(upstream), torch.from_numpy(Y)
        found = torch.func.grad(lambda x: (u * lal_loss(x, y, check=False, **options)).sum())(
            torch.from_numpy(X)
        )
    else:
        found = jax.grad(lambda x: (upstream * lal_loss(x, jnp.asarray(Y), **options)).sum())(jnp.asarray(X))
    close(found, right)


@each_library
@each_space
@pytest.mark.parametrize("p", [1, 5, INF])
def test_autodiff_is_0_and_not_nan_where_nothing_is_learnt(library, space, p):
    """No NaN of an ignored pixel, slope of 0^(1/p) or 0/0 of an empty batch comes through the chain rule."""
    options = {"space": space, "p": p, "kernel_size": 3}
    gradient = (torch_gradient if library == "torch" else jax_gradient)(options)
    make = LIBRARIES[library]
    ignored = np.full_like(Y, VOID)
    assert not np.asarray(gradient(make(X), make(ignored))).any()
    assert not np.asarray(gradient(make(np.full_like(X, math.nan)), make(ignored))).any()
    assert not np.asarray(gradient(make(np.zeros((1, 1, 3, 3))), make(np.zeros((1, 3, 3), int)))).any()
    spoilt = np.where((Y == VOID)[:, None], math.nan, X)
    close(gradient(make(spoilt), make(Y)), lal_value_and_grad(X, Y, space=space, p=p, kernel_size=3)[1])


# ---- tracing and checks ---------------------------------------------------------------------------


def test_checks_under_tracing_say_check_false():
    x, y = jnp.asarray(X), jnp.asarray(Y)
    for trace in (jax.jit, jax.vmap):
        with pytest.raises(ValueError, match="check=False"):
            trace(lal_loss)(*((x, y) if trace is jax.jit else (x[None], y[None])))
    with pytest.raises(ValueError, match=r'empty="raise".*empty="zero"'):
        jax.jit(functools.partial(lal_loss, check=False, empty="raise"))(x, y)
    with pytest.raises(ValueError, match="check=False"):
        torch.vmap(lal_loss)(torch.from_numpy(X)[None], torch.from_numpy(Y)[None])
    # under jax.grad alone labels are known, and so they are checked
    close(jax.grad(lal_loss)(x, y, kernel_size=1), lal_value_and_grad(X, Y, kernel_size=1)[1])


@each_library
def test_wrong_labels_are_refused_or_nan(library):
    make, y = LIBRARIES[library], Y.copy()
    y[0, 2, 2] = 7
    with pytest.raises(ValueError, match=r"7, first at \(0, 2, 2\)"):
        lal_loss(make(X), make(y))
    for weight in (None, (0.5, 2.0, 1.25)):
        options = {"reduction": "none", "class_weight": weight, "kernel_size": 3}
        ell = np.asarray(lal_loss(make(X), make(y), check=False, **options))
        assert np.isnan(ell[0, 2, 2])
        assert np.isnan(ell).sum() == 1


def test_arrays_of_two_libraries_are_refused():
    with pytest.raises(TypeError, match=r"logits and labels .*one library.*torch.*numpy"):
        lal_loss(torch.from_numpy(X), Y)
    with pytest.raises(TypeError, match="pixel_weight"):
        lal_loss(jnp.asarray(X), jnp.asarray(Y), pixel_weight=OMEGA)
    with pytest.raises(ValueError, match=r"one device; got meta and cpu|one device; got cpu and meta"):
        lal_loss(torch.from_numpy(X), torch.from_numpy(Y).to("meta"))


def test_no_graph_is_kept_by_the_manual_backward():
    x = torch.from_numpy(X).requires_grad_()
    value, grad = lal_value_and_grad(x.detach(), torch.from_numpy(Y))
    assert not value.requires_grad
    assert not grad.requires_grad
