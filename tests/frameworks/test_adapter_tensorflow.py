"""The loss inside TensorFlow and Keras: right by the oracle and by compute_gradient, in tf.function and in fit."""

import json
import math

import numpy as np
import pytest
from samples import OMEGA, X, Y

from lalref import LocallyAdaptiveLoss as Loss
from lalref import lal_hvp, lal_value_and_grad, oracle

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from lalref.adapters.tensorflow import LocallyAdaptiveLoss, locally_adaptive_loss  # noqa: E402

LAST = np.moveaxis(X, 1, -1).copy()  # (2, 5, 4, 3)
KINDS = {
    "mean": {},
    "none": {"reduction": "none"},
    "sum, stride": {"reduction": "sum", "stride": 2},
    "probabilities": {"space": "probabilities"},
}
each_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())


def test_the_oracle_accepts_it():
    def subject(logits, labels, *, pixel_weight=None, axis=1, **options):
        return locally_adaptive_loss(labels, logits, pixel_weight, axis=axis, **options)

    report = oracle.verify(subject, framework="tensorflow")
    assert report.verdict == "right", str(report)
    assert report.units <= 1
    assert not report.skipped


@each_kind
@pytest.mark.parametrize("compiled", [False, True])
def test_compute_gradient_twice(options, compiled):
    x, y, w = LAST[:1, :2], Y[:1, :2], OMEGA[:1, :2]

    def f(x):
        return locally_adaptive_loss(y, x, w, kernel_size=3, **options)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(tf.sin(f(x)))
        return tape.gradient(value, x)

    for g in (f, gradient):
        theory, numeric = tf.test.compute_gradient(tf.function(g) if compiled else g, [tf.constant(x)])
        np.testing.assert_allclose(theory[0], numeric[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_value_gradient_and_second_derivative_are_the_engines(compiled):
    def step(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = locally_adaptive_loss(Y, x, OMEGA)
            grad = tape.gradient(value, x, output_gradients=tf.constant(1.5, tf.float64))
        return value, grad, outer.gradient(grad, x, output_gradients=tf.ones_like(x) * LAST)

    value, grad, grad_dot = (tf.function(step) if compiled else step)(tf.constant(LAST))
    right, right_grad = lal_value_and_grad(X, Y, pixel_weight=OMEGA, grad_output=1.5)
    np.testing.assert_allclose(value, right, rtol=1e-14)
    np.testing.assert_allclose(np.moveaxis(grad, -1, 1), right_grad, rtol=1e-12, atol=1e-16)
    right_dot = lal_hvp(X, Y, X, pixel_weight=OMEGA, grad_output=1.5)[1]
    np.testing.assert_allclose(np.moveaxis(grad_dot, -1, 1), right_dot, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_logits_are_rounded_once_after_a_scaler_has_scaled(dtype):
    x = tf.cast(LAST, dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = 65536.0 * locally_adaptive_loss(Y, x)
    grad = tape.gradient(value, x)
    wide = lal_value_and_grad(tf.cast(x, tf.float32).numpy(), Y, axis=-1, grad_output=65536.0)[1]
    assert grad.dtype == dtype
    assert bool(tf.reduce_all(grad == tf.cast(wide, dtype)))


def model():
    images = keras.Input((5, 4, 2))
    return keras.Model(images, keras.layers.Conv2D(3, 3, padding="same")(images))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_keras_fits_saves_and_loads_with_it(policy, tmp_path):
    keras.utils.set_random_seed(3)
    keras.mixed_precision.set_global_policy(policy)
    try:
        network = model()
        network.compile(keras.optimizers.SGD(0.05), loss=LocallyAdaptiveLoss(kernel_size=3, sigma=None))
        masks = np.where(Y == 255, 255, Y).astype("uint8")[..., None]  # Keras's mask with its axis of 1
        history = network.fit(LAST[..., :2], masks, sample_weight=np.array([1.0, 2.0]), epochs=12, verbose=0)
        losses = history.history["loss"]
        assert np.isfinite(losses).all()
        assert losses[-1] < losses[0]
        network.save(tmp_path / "network.keras")
        again = keras.saving.load_model(tmp_path / "network.keras")
        assert again.loss.options == Loss(kernel_size=3, sigma=None, axis=-1)
        assert "ignore_index" not in again.loss.get_config()  # still the 255 that nobody asked for
    finally:
        keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("jit_compile", ["auto", False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_xla_can_not_call_the_host_and_says_so(jit_compile):
    """Without a GPU Keras's "auto" is False; with one it may be True, so the page says jit_compile=False."""
    network = model()
    network.compile("sgd", loss=LocallyAdaptiveLoss(kernel_size=3), jit_compile=jit_compile)
    if network.jit_compile:
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"PyFuncStateless.* XLA"):
            network.fit(LAST[..., :2], Y, verbose=0)
    else:
        network.fit(LAST[..., :2], Y, verbose=0)


def test_every_option_outlives_saving():
    options = {
        "kernel_size": (3, 1), "sigma": 0.5, "stride": (1, 2), "normalize": "count", "p": math.inf,
        "ignore_index": (254, 255), "class_weight": (1.0, 2.0, 0.5), "reduction": "sum", "axis": 1, "empty": "nan",
    }  # fmt: skip
    loss = LocallyAdaptiveLoss(name="mine", **options)
    text = json.dumps(keras.saving.serialize_keras_object(loss))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert (again.name, again.options) == ("mine", Loss(**options))


def test_sample_weights_weigh_windows():
    loss = LocallyAdaptiveLoss(kernel_size=3)
    of_images = loss(Y, LAST, np.array([0.5, 2.0]))
    of_windows = loss(Y[..., None], LAST, np.ones(Y.shape) * np.array([0.5, 2.0])[:, None, None])
    right = lal_value_and_grad(X, Y, kernel_size=3, pixel_weight=np.ones(Y.shape) * [[[0.5]], [[2.0]]])[0]
    np.testing.assert_allclose([of_images, of_windows], [right, right], rtol=1e-14)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_logits_of_another_dtype_are_refused(dtype, compiled):
    def f(x):
        return locally_adaptive_loss(Y, x)

    with pytest.raises(TypeError, match=f"y_pred, the logits, must be of dtype float16, .*; got {dtype}"):
        (tf.function(f) if compiled else f)(tf.zeros(LAST.shape, dtype))
    with pytest.raises(TypeError, match=f"got {dtype}"):
        LocallyAdaptiveLoss()(Y, tf.zeros(LAST.shape, dtype))


def test_the_door():
    with pytest.raises(ValueError, match="labels must have the shape"):
        locally_adaptive_loss(Y[:1], LAST)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        locally_adaptive_loss(Y + 9, LAST)
    with pytest.raises(TypeError, match="labels must be integers"):
        locally_adaptive_loss(Y * 1.0, LAST)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels must be in \[0, 3\)"):
        tf.function(lambda x: locally_adaptive_loss(Y + 9, x))(tf.constant(LAST))
    with pytest.raises(ValueError, match=r"reduction=.sum_over_batch_size. is not allowed"):
        LocallyAdaptiveLoss(reduction="sum_over_batch_size")
    with pytest.raises(
        TypeError, match=r"^locally_adaptive_loss\(\).*'sample_weights': did you mean sample_weight="
    ):
        locally_adaptive_loss(Y, LAST, sample_weights=OMEGA)
    with pytest.raises(TypeError, match=r"^LocallyAdaptiveLoss\(\).*'kernal': did you mean kernel_size="):
        LocallyAdaptiveLoss(kernal=3)
    with pytest.raises(ValueError, match='engine="cuda"'):
        locally_adaptive_loss(Y, LAST, engine="cuda")
