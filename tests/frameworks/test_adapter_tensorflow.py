"""The loss inside TensorFlow and Keras: right by the oracle and by compute_gradient, in tf.function and in fit."""

import functools
import json
import logging
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_fit_is_given_wrong_is_told_while_it_traces():
    x, masks = LAST[..., :2], np.where(Y == 255, 255, Y).astype("uint8")
    network = model()
    network.compile("sgd", loss=locally_adaptive_loss)
    with pytest.raises(
        TypeError, match=r"got float32\. Keras casts labels for a plain function: pass LocallyAd"
    ):
        network.fit(x, masks, verbose=0)
    network.compile("sgd", loss=LocallyAdaptiveLoss())
    with pytest.raises(ValueError, match="Labels have an axis of length 1 too many: pass labels"):
        network.fit(x, masks[:, None], verbose=0)
    with pytest.raises(ValueError, match="sample_weight must have the shape of labels"):
        network.fit(x, masks, sample_weight=np.ones((2, 5, 5)), verbose=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_masks_and_weights_of_a_generator_are_squeezed():
    """tf.data knows their ranks and not their sizes."""
    masks = np.where(Y == 255, 255, Y).astype("uint8")[..., None]
    batch = LAST[..., :2].astype("float32"), masks, np.ones(masks.shape, "float32")
    specs = tuple(tf.TensorSpec([None] * 4, a.dtype) for a in batch)
    data = tf.data.Dataset.from_generator(lambda: iter([batch]), output_signature=specs)
    images = keras.Input((None, None, 2))
    network = keras.Model(images, keras.layers.Conv2D(3, 3, padding="same")(images))
    network.compile("sgd", loss=LocallyAdaptiveLoss(kernel_size=3), jit_compile=False)
    right = lal_value_and_grad(network(batch[0]).numpy(), masks[..., 0], kernel_size=3, axis=-1)[0]
    np.testing.assert_allclose(network.evaluate(data, steps=1, verbose=0), right, rtol=1e-5)


def test_dtype_is_that_of_the_loss_as_in_keras():
    x = LAST.astype("float32")
    assert LocallyAdaptiveLoss()(Y, x).dtype == "float32"
    loss = LocallyAdaptiveLoss(dtype="float64", p=2)
    assert loss(Y, x).dtype == "float64"
    assert repr(loss) == "LocallyAdaptiveLoss(name='locally_adaptive_loss', dtype='float64', p=2.0, axis=-1)"
    again = LocallyAdaptiveLoss.from_config(loss.get_config())
    assert repr(again) == repr(loss)
    assert again(Y, x) == loss(Y, x)


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


def test_sample_weights_come_in_keras_shapes_and_types():
    loss = LocallyAdaptiveLoss(kernel_size=3)
    weights = np.stack([np.full((5, 4), 1), np.full((5, 4), 3)])
    right = lal_value_and_grad(X, Y, kernel_size=3, pixel_weight=weights * 1.0)[0]
    for given in ([1, 3], np.array([1.0, 3.0], "float32"), weights, weights[..., None] * 1.0):
        np.testing.assert_allclose(loss(Y[..., None], LAST, given), right, rtol=1e-14)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (np.ones(1), "sample_weight has 1 weights for 2 images"),
        (np.ones(3), "sample_weight has 3 weights for 2 images"),
        (np.ones((2, 1)), r"sample_weight must have the shape of labels, \(2, 5, 4\); got \(2, 1\)"),
        (-np.ones(2), "sample_weight must be finite and >= 0"),
    ],
    ids=["one for all", "too many", "no pixels", "negative"],
)
def test_wrong_sample_weights_are_told_by_their_name(weights, told):
    with pytest.raises(ValueError, match=told):
        locally_adaptive_loss(Y, LAST, weights)


SIGNATURES = {
    "sizes": ([None] * 4, [None] * 4, [None] * 4),
    "ranks": (None, None, None),
    "rank of labels": ([None, 5, 4, 3], None, [None]),
    "only the last size": ([2, 5, 4, 3], [2, 5, 4, None], [2]),
}


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES.keys())
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_is_not_known_while_tracing_is_seen_on_the_host(signature, reduction):
    dtypes = tf.float64, tf.int64, tf.float64

    def step(x, y, w):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = locally_adaptive_loss(y, x, w, kernel_size=3, reduction=reduction)
        return value, tape.gradient(value, x)

    f = tf.function(
        step, input_signature=[tf.TensorSpec(s, d) for s, d in zip(signature, dtypes, strict=True)]
    )
    w = np.array([0.5, 2.0])
    given = w if signature[2] in (None, [None], [2]) else np.ones((*Y.shape, 1)) * w[:, None, None, None]
    weights = np.ones(Y.shape) * w[:, None, None]
    options = {"kernel_size": 3, "reduction": reduction}
    value, grad = f(LAST, Y[..., None].astype("int64"), given)
    right = lal_value_and_grad(X, Y, pixel_weight=weights, **options)
    np.testing.assert_allclose(value, right[0], rtol=1e-14)
    np.testing.assert_allclose(np.moveaxis(grad, -1, 1), right[1], rtol=1e-12, atol=1e-16)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels must be in \[0, 3\)"):
        f(LAST, Y[..., None].astype("int64") + 9, given)


@pytest.mark.parametrize(
    ("labels", "weights", "error", "told"),
    [
        ([None, 5, 3], None, ValueError, r"labels must have .*\(1, 5, 4\) .* got \(1, 5, 3\).*\(1 stands for"),
        ([2, 5, 4, 3], None, ValueError, r"labels.argmax\(-1\)"),
        ([2, 5, 4], [3], ValueError, "sample_weight has 3 weights for 2 images"),
        ([None, 5, 4], [None, 5, 5], ValueError, "sample_weight must have the shape of labels"),
        ([2, 5, 4], "complex", TypeError, "sample_weight must be floating-point"),
    ],
)  # fmt: skip
def test_dtypes_and_shapes_are_told_while_tracing(labels, weights, error, told):
    f = tf.function(functools.partial(locally_adaptive_loss, kernel_size=3))
    dtype = tf.float64
    if weights == "complex":
        weights, dtype = [2], tf.complex64
    specs = [tf.TensorSpec(labels, tf.uint8), tf.TensorSpec([None, 5, 4, 3], tf.float64)]
    if weights is not None:
        specs.append(tf.TensorSpec(weights, dtype))
    with pytest.raises(error, match=told):
        f.get_concrete_function(*specs)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_third_derivative_is_refused(compiled):
    x = tf.constant(LAST[:1, :2, :2])

    def first(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = locally_adaptive_loss(Y[:1, :2, :2], x, kernel_size=3)
        return tape.gradient(value, x)

    def second(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            square = tf.reduce_sum(first(x) ** 2)
        return tape.gradient(square, x)

    def third(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            cube = tf.reduce_sum(second(x) ** 2)
        return tape.gradient(cube, x)

    with pytest.raises(NotImplementedError, match="differentiated twice, backwards, and no further"):
        (tf.function(third) if compiled else third)(x)


def test_autograph_leaves_lalrefs_code_alone():
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    tf.get_logger().addHandler(handler)
    try:
        found = tf.map_fn(lambda x: locally_adaptive_loss(Y[:1], x[None]), tf.constant(LAST))
    finally:
        tf.get_logger().removeHandler(handler)
    np.testing.assert_allclose(found[0], lal_value_and_grad(X[:1], Y[:1])[0], rtol=1e-14)
    assert not [line for line in told if "AutoGraph" in line]


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
    with pytest.raises(TypeError, match="leave the softmax out of the last layer"):
        LocallyAdaptiveLoss(from_logits=True)
    with pytest.raises(ValueError, match=r"class_weight=.* options are fixed while tracing"):
        tf.function(lambda w: locally_adaptive_loss(Y, LAST, class_weight=w))(tf.ones(3))
    with pytest.raises(ValueError, match='engine="cuda"'):
        locally_adaptive_loss(Y, LAST, engine="cuda")
