"""How a call is put to PyTorch, JAX and TensorFlow: the subject gives the value, the framework its gradient.

Each ``ask_...`` takes a `Call` and returns an `Answer`; a framework is imported when it is first asked. What
a signature says and which options are passed is decided in `subjects`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lalref.oracle.call import Answer, Call, UsageError, as_float64, came, same
from lalref.oracle.inputs import FloatArray

QUICK_TO_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
"""XLA's options on a CPU for programs that run once or twice: they compile in a fifth of the time."""

SMALL = 20_000  # entries of logits up to which starting takes longer than the work itself

AS_IT_IS = 2  # of the ways in which `ask_jax` runs a subject: without compiling it

Transform = Callable[[Callable[..., Any]], Callable[..., Any]]


def ask_torch(call: Call) -> Answer:
    """The value by the subject, the gradient by torch.autograd.grad."""
    import torch

    def tensor(array: Any) -> Any:
        # torch does not know ml_dtypes' bfloat16; float64 holds every 16-bit number
        if array.dtype.kind in "iu":
            return _torch_layout(torch.tensor(array), call.layout)
        t = torch.tensor(array.astype(np.float64)).to(getattr(torch, str(array.dtype)))
        return _torch_layout(t, call.layout)

    def plain(t: Any) -> FloatArray:
        return as_float64(t.detach().to(torch.float64).cpu().numpy(), "value")

    x, given, options = _in_framework(call, tensor)
    x.requires_grad_(True)
    threads = torch.get_num_threads()
    if call.logits.size <= SMALL:  # where waiting for a second thread takes longer than the work
        torch.set_num_threads(1)
    try:
        value = call.function(x, given["labels"], **options)
        if not isinstance(value, torch.Tensor):
            raise UsageError(f"returned {came(value)}; a torch subject returns the value, a torch.Tensor")
        grad = None
        if value.requires_grad:  # a constant, as for a batch with nothing in it, has gradient 0
            upstream = torch.as_tensor(_upstream(call), dtype=value.dtype).expand(value.shape)
            (grad,) = torch.autograd.grad(value, x, upstream, allow_unused=True)
    finally:
        torch.set_num_threads(threads)
    changed = _changed(call, {k: v.detach().to(torch.float64).numpy() for k, v in given.items()})
    return Answer(plain(value), plain(torch.zeros_like(x) if grad is None else grad), changed)


def _torch_layout(t: Any, layout: str) -> Any:
    """The tensor as a view that is not contiguous."""
    if layout == "every second element":
        larger = t.new_zeros([2 * n for n in t.shape])
        view = larger[tuple(slice(None, None, 2) for _ in t.shape)]
        return view.copy_(t)
    if layout == "class axis innermost" and t.ndim > 2:
        return t.movedim(1, -1).contiguous().movedim(-1, 1)
    return t


def ask_jax(call: Call) -> Answer:
    """The value by the subject, the gradient by jax.vjp: compiled, once for each set of options and shapes.

    A subject that JAX can't trace with labels unknown is traced with them known; one that it can't trace at
    all runs operation by operation.
    """
    import jax
    import jax.numpy as jnp

    with _jax_64_bit(jax) if call.logits.dtype == np.float64 else contextlib.nullcontext():
        x, given, options = _in_framework(call, jnp.asarray)
        given.pop("logits")
        upstream = jnp.asarray(_upstream(call))
        memo = call.memo

        def of(x: Any, given: Mapping[str, Any], upstream: Any) -> tuple[Any, Any]:
            def f(x: Any) -> Any:
                named = {k: given.get(k, v) for k, v in options.items()}
                value = call.function(x, given["labels"], **named)
                if not isinstance(value, jax.Array):
                    raise UsageError(f"returned {came(value)}; a jax subject returns the value, a jax.Array")
                return value

            value, vjp = jax.vjp(f, x)
            (grad,) = vjp(jnp.broadcast_to(upstream.astype(value.dtype), value.shape))
            return value, grad

        def compiled(x: Any, given: Mapping[str, Any], upstream: Any) -> tuple[Any, Any]:
            arrays = {"": x, "grad_output": upstream, **given}
            plain = {k: v for k, v in options.items() if k not in given}
            key = (repr(plain), *((k, v.shape, str(v.dtype)) for k, v in arrays.items()))
            if key not in memo:
                memo[key] = _jax_compile(jax, of, x, given, upstream)
            return memo[key](x, given, upstream)  # type: ignore[no-any-return]

        def compiled_for_these(x: Any, given: Mapping[str, Any], upstream: Any) -> tuple[Any, Any]:
            program = _jax_compile(jax, lambda x, upstream: of(x, given, upstream), x, upstream)
            return program(x, upstream)  # type: ignore[no-any-return]

        ways = (compiled, compiled_for_these, of)
        for way in range(memo.get("way", 0), len(ways)):
            try:
                value, grad = ways[way](x, given, upstream)
            except UsageError:
                raise
            except Exception:
                if way == len(ways) - 1:
                    raise
            else:
                memo["way"] = way  # and no time is lost on the others for the next case
                break
        return Answer(as_float64(value, "value"), as_float64(grad, "gradient"))


def _jax_compile(jax: Any, function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    lowered = jax.jit(function).lower(*arguments)
    small = arguments[0].size <= SMALL
    if small and jax.default_backend() == "cpu":
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # a version that does not know them
            return lowered.compile(compiler_options=QUICK_TO_COMPILE)  # type: ignore[no-any-return]
    return lowered.compile()  # type: ignore[no-any-return]


def ask_tensorflow(call: Call) -> Answer:
    """The value by the subject, the gradient by tf.GradientTape."""
    import tensorflow as tf

    x, given, options = _in_framework(call, tf.constant)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = call.function(x, given["labels"], **options)
    if not isinstance(value, tf.Tensor):
        raise UsageError(f"returned {came(value)}; a tensorflow subject returns the value, a tf.Tensor")
    upstream = tf.broadcast_to(tf.cast(_upstream(call), value.dtype), tf.shape(value))
    grad = tape.gradient(value, x, output_gradients=upstream)
    grad = tf.zeros_like(x) if grad is None else tf.convert_to_tensor(grad)
    return Answer(as_float64(value.numpy(), "value"), as_float64(grad.numpy(), "gradient"))


def transforms(framework: str) -> Mapping[str, Transform]:
    """What users of a framework put around a loss, by name: each makes a function of the same arguments."""
    return {"jax": {"jax.jit": _jit, "jax.vmap": _vmap}, "tensorflow": {"tf.function": _tf_function}}.get(
        framework, {}
    )


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    def jitted(logits: Any, labels: Any, **options: Any) -> Any:
        import jax

        return jax.jit(functools.partial(function, **options))(logits, labels)

    return jitted


def _vmap(function: Callable[..., Any]) -> Callable[..., Any]:
    """Over a batch of two batches: the given one, and one with other logits that must not matter."""

    def mapped(logits: Any, labels: Any, **options: Any) -> Any:
        import jax
        import jax.numpy as jnp

        two = jnp.stack([logits, jax.lax.stop_gradient(-logits)]), jnp.stack([labels, labels])
        return jax.vmap(functools.partial(function, **options))(*two)[0]

    return mapped


def _tf_function(function: Callable[..., Any]) -> Callable[..., Any]:
    def graph(logits: Any, labels: Any, **options: Any) -> Any:
        import tensorflow as tf

        return tf.function(functools.partial(function, **options))(logits, labels)

    return graph


def _in_framework(
    call: Call, make: Callable[[npt.NDArray[Any]], Any]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The logits, all arrays by name, and the options, with arrays of the framework."""
    given = {k: make(v) for k, v in call.given().items()}
    options = {k: given.get(k, v) for k, v in call.options.items()}
    return given["logits"], given, options


def _upstream(call: Call) -> Any:
    g = call.grad_output
    return g if isinstance(g, np.ndarray) else float(g)


def _changed(call: Call, after: Mapping[str, npt.NDArray[Any]]) -> tuple[str, ...]:
    before = call.given()
    return tuple(k for k, v in after.items() if not same(v, before[k].astype(np.float64)))


@contextlib.contextmanager
def _jax_64_bit(jax: Any) -> Iterator[None]:
    """64-bit types for a while: under another name before JAX 0.8."""
    if hasattr(jax, "enable_x64"):
        with jax.enable_x64(True):
            yield
    else:
        from jax.experimental import enable_x64

        with enable_x64():
            yield
