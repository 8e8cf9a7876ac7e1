"""A port to TensorFlow, for the test that such subjects can be asked: dense matrices over 2-D images."""

import math

import numpy as np
import tensorflow as tf


def loss(
    logits,
    labels,
    *,
    kernel_size=5,
    sigma=1.0,
    normalize="weights",
    p=5.0,
    label_smoothing=0.0,
    ignore_index=255,
    class_weight=None,
    pixel_weight=None,
    reduction="mean",
):
    """Loss of logits (N, C, H, W) with labels (N, H, W)."""
    N, C, H, W = logits.shape
    dtype = logits.dtype
    x = tf.reshape(tf.transpose(logits, (0, 2, 3, 1)), (-1, C))  # (Q, C)
    y = tf.reshape(tf.cast(labels, tf.int64), (-1,))  # (Q,)
    used = y != ignore_index
    omega = tf.ones_like(x[:, 0])
    if class_weight is not None:
        omega = tf.gather(tf.constant(class_weight, dtype), tf.where(used, y, 0))
    if pixel_weight is not None:
        omega = omega * tf.reshape(tf.cast(pixel_weight, dtype), (-1,))
    valid = used & (omega > 0)
    omega = tf.where(valid, omega, 0)

    at = np.indices((N, H, W)).reshape(3, -1).T  # (Q, 3)
    d = abs(at[:, None, 1:] - at[None, :, 1:]).max(-1)  # (Q, Q)
    near = (d <= kernel_size // 2) & (at[:, None, 0] == at[None, :, 0])
    member = tf.constant(near) & (y[:, None] == y[None, :])
    w = tf.where(member, tf.constant(np.exp(-0.5 * (d / sigma) ** 2), dtype), 0)
    D = tf.reduce_sum(w if normalize == "weights" else tf.cast(member, dtype), axis=1)  # (Q,)
    z = tf.linalg.matmul(w, x) / D[:, None]
    t = (1 - label_smoothing) * tf.one_hot(y, C, dtype=dtype) + label_smoothing / C
    ell = tf.where(valid, -tf.reduce_sum(t * tf.nn.log_softmax(z), axis=1), 0)  # (Q,)
    if reduction == "none":
        return tf.reshape(omega * ell, (N, H, W))
    return power_mean(ell, omega, p, reduction)


def power_mean(ell, omega, p, reduction):
    """Minkowski pooling of the window losses."""
    top = tf.stop_gradient(tf.reduce_max(ell))
    if top == 0:
        return tf.reduce_sum(0 * ell)
    if p == math.inf:
        return tf.reduce_max(ell)
    B = tf.reduce_sum(omega) if reduction == "mean" else 1.0
    return top * (tf.reduce_sum(omega * (ell / top) ** p) / B) ** (1 / p)
