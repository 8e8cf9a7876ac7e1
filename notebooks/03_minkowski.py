# %% [markdown]
# # 3. Minkowski pooling: from the mean to the maximum
#
# A photograph gives 60,000 window losses; training wants one number. The plain mean lets a thousand easy windows drown a
# hard one. The maximum hears the hardest alone. The paper's Eq. 5 stands between them:
#
# $$L = \Big( \frac1M \sum_p \ell_p^{\,\hat p} \Big)^{1/\hat p}.$$
#
# After this notebook you know what the exponent does to value and gradient, how to compute it without overflow, and why the
# loss of a batch is not the average of its parts' losses. You need notebooks 1 and 2. (The exponent is the option `p`, the
# paper's $k$; $p$ without a hat is a position.)

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from scene import coffee

from lalref import LocallyAdaptiveLoss, combine, lal_loss

photo, labels, x = coffee()  # (H, W, 3), (H, W), (1, C, H, W)
y = labels[None]
ell = lal_loss(x, y, reduction="none", engine="array")  # (1, H, W), 0 where void
valid = y != 255
M = valid.sum()

# %% [markdown]
# ## A dial
#
# With $\hat p = 1$ it is the mean. As $\hat p$ grows, large losses outgrow small ones faster and faster, and the root brings
# the scale back. $L$ never falls as $\hat p$ rises, and ends at the maximum.


# %%
def power_mean(ell, p_hat):
    return np.mean(ell**p_hat) ** (1 / p_hat)


exponents = np.geomspace(1, 256, 40)
values = [power_mean(ell[valid], p_hat) for p_hat in exponents]
assert np.all(np.diff(values) > 0)
np.testing.assert_allclose(values[0], ell[valid].mean(), rtol=1e-12)

figure, axis = plt.subplots(figsize=(6, 2.6))
axis.semilogx(exponents, values)
axis.axhline(ell[valid].mean(), color="0.5", ls=":")
axis.axhline(ell.max(), color="0.5", ls=":")
axis.annotate("mean", (100, ell[valid].mean()), va="bottom")
axis.annotate("maximum", (1.1, ell.max()), va="top")
for p_hat in (1, 2, 5):
    axis.plot(p_hat, power_mean(ell[valid], p_hat), "o", color="C1")
axis.set(xlabel=r"$\hat p$; marked: 1, 2, 5", ylabel="$L$")
plt.show()

# %% [markdown]
# How fast does it reach the maximum? Keep only the largest term of the sum: $L \ge (\frac1M)^{1/\hat p} \max \ell$. So
# $L / \max\ell$ lies between $M^{-1/\hat p}$ and 1. With 54,000 valid windows, $\hat p = 5$ may still be nine times below.

# %%
for p_hat, value in zip(exponents, values, strict=True):
    assert M ** (-1 / p_hat) * ell.max() <= value <= ell.max() * (1 + 1e-12)
at_5 = power_mean(ell[valid], 5) / ell.max()
print(f"M = {M}: at exponent 5 the value is {at_5:.2f} of the maximum, at 256 {values[-1] / ell.max():.2f}")

# %% [markdown]
# ## Where the gradient goes
#
# From notebook 2: $\bar\ell_p = \frac1M (\ell_p / L)^{\hat p - 1}$. Every window's *share* of the gradient. At $\hat p = 1$ all are
# $\frac1M$; at 5, a window with twice the loss has sixteen times the share. (Colours: from 1/10,000 of the largest share,
# black, to the largest, on a logarithmic scale.)

# %%
figure, axes = plt.subplots(1, 4, figsize=(11, 2.2))
for axis, p_hat in zip(axes, (1, 2, 5, 25), strict=True):
    share = LocallyAdaptiveLoss(p=p_hat, engine="array").inspect(x, y).share[0]
    by_hand = np.where(valid, (ell / power_mean(ell[valid], p_hat)) ** (p_hat - 1) / M, 0)[0]
    np.testing.assert_allclose(share, by_hand, rtol=1e-9, atol=1e-300)
    axis.imshow(
        np.where(valid[0], share / share.max(), np.nan), cmap="magma", norm=LogNorm(1e-4, 1, clip=True)
    )
    axis.set(title=rf"shares, $\hat p$ = {p_hat}")
    axis.set_axis_off()
plt.show()

# %% [markdown]
# How many windows does the loss really listen to? One count is $(\sum s)^2 / \sum s^2$: it is $M$ if all shares are equal,
# and 1 if one window has everything.

# %%
for p_hat in (1, 2, 5, 25, math.inf):
    share = LocallyAdaptiveLoss(p=p_hat, engine="array").inspect(x, y).share
    heard = share.sum() ** 2 / (share**2).sum()
    print(f"p = {p_hat:>4}: listens to {heard / M:.4%} of the windows, shares add up to {share.sum():.2f}")
    np.testing.assert_allclose((share * ell).sum(), lal_loss(x, y, p=p_hat, engine="array"), rtol=1e-9)

# %% [markdown]
# Two things to take along. The assertion is Euler's theorem again: shares times losses is $L$, for every exponent. And
# between the two ends the shares add up to less than 1: the step is shorter. A learning rate tuned for the mean is not the
# right one for $\hat p = 5$.
#
# At $\hat p = \infty$ there is only the worst window. If several tie, who gets the gradient? The maximum has no derivative
# there. lalref shares it evenly, as the power mean does on its way to the limit:

# %%
tie = np.array([0.3, 2.0, 2.0, 1.0])
limit = (tie / power_mean(tie, 900.0)) ** 899 / 4  # what shares tend to
np.testing.assert_allclose(limit, [0, 0.5, 0.5, 0], atol=1e-2)

margins = np.log(np.expm1(tie))  # two classes: a pixel of the label 1 has the loss log(1 + e^margin)
logits, of_one = np.stack([margins, np.zeros(4)])[None, :, None, :], np.ones((1, 1, 4), int)
tied = LocallyAdaptiveLoss(kernel_size=1, p=math.inf, engine="array").inspect(logits, of_one)
np.testing.assert_allclose(tied.window_loss.ravel(), tie, rtol=1e-12)
np.testing.assert_array_equal(tied.share.ravel(), [0, 0.5, 0.5, 0])

# %% [markdown]
# ## Overflow, and worse, underflow
#
# The formula as printed is a trap. In float32 the largest number is about $3\cdot10^{38}$ and the smallest about $10^{-45}$.
# To the fifth power, losses beyond $10^8$ are infinite. That is rare. But losses below $10^{-9}$ are 0, and that is where a
# well trained network *lives*: then $L = 0$, and the shares divide by it.

# %%
with np.errstate(all="ignore"):
    for scale in (1e9, 1.0, 1e-10):
        small = np.float32(scale) * np.array([1, 2, 3], np.float32)
        L = power_mean(small, np.float32(5))
        share = (small / L) ** 4 / 3
        print(f"losses around {scale:.0e}: L = {L:.2e}, shares {share}")
        assert (np.isinf(L), L == 0) == (scale == 1e9, scale == 1e-10)
        assert np.isfinite(share).all() == (scale > 1e-10)
        assert (share > 0).all() == (scale < 1e9)

# %% [markdown]
# The remedy is one line of algebra: take the maximum out, $m = \max \ell$.
#
# $$L = m\, \Big( \frac1M \sum_p r_p^{\,\hat p} \Big)^{1/\hat p}, \qquad r_p = \ell_p / m \in [0, 1].$$
#
# Powers of numbers in $[0, 1]$ do not overflow, and one of them is exactly 1, so the sum cannot vanish. The shares come
# from the same sum $S = \sum r^{\hat p}$: $\bar\ell_p = \frac{r_p^{\hat p-1}}{S} \big(\frac SM\big)^{1/\hat p}$.


# %%
def scaled(ell, p_hat):
    """Value and shares; ell (M,)."""
    m = ell.max()
    if m == 0:
        return m, np.zeros_like(ell)
    r = ell / m
    S = np.sum(r**p_hat)
    mean = (S / ell.size) ** (1 / p_hat)
    return m * mean, r ** (p_hat - 1) / S * mean


expected, expected_shares = scaled(np.array([1.0, 2.0, 3.0]), 5)
np.testing.assert_allclose(expected, power_mean(np.array([1.0, 2.0, 3.0]), 5), rtol=1e-14)
for scale in (1e9, 1.0, 1e-10, 1e-35):
    value, share = scaled(np.float32(scale) * np.array([1, 2, 3], np.float32), 5)
    np.testing.assert_allclose(value, scale * expected, rtol=1e-6)
    np.testing.assert_allclose(share, expected_shares, rtol=1e-6)

# %% [markdown]
# The shares do not depend on the scale at all: halve every loss, and the gradient with respect to each loss stays as it is.
# A network near the end of its training gets the same push from stage 3 as at the beginning. (What gets smaller there is
# stage 2's $P - \mathrm{onehot}$.)
#
# ## An average of averages is another loss
#
# A batch too large for one pass is cut in two. With the plain mean and equal parts nothing happens: the mean of the means is
# the mean. With $\hat p = 5$ it is not:

# %%
top, bottom = ell[:, :100][valid[:, :100]], ell[:, 100:][valid[:, 100:]]
whole = power_mean(ell[valid], 5)
print(f"whole {whole:.3f}; mean of the parts {(power_mean(top, 5) + power_mean(bottom, 5)) / 2:.3f}")

# %% [markdown]
# Nor is it wrong by a constant factor. Which half of the image is hard decides. Two images, one of loss 1 everywhere and one
# of loss $t$, in one batch or one after the other:

# %%
t = np.linspace(0, 4, 81)
together = np.array([power_mean(np.array([1.0, other]), 5) for other in t])
apart = (1 + t) / 2
assert np.all(together >= apart)
assert np.isclose(together[20], apart[20])  # t = 1

figure, axes = plt.subplots(1, 2, figsize=(8, 2.6))
axes[0].plot(t, together, label="the batch")
axes[0].plot(t, apart, label="mean of two images")
axes[0].set(xlabel="loss $t$ of the second image", ylabel="$L$")
axes[0].legend()
axes[1].plot(t, np.gradient(together, t), label="the batch")
axes[1].plot(t, np.full_like(t, 0.5), label="mean of two images")
axes[1].set(xlabel="loss $t$ of the second image", ylabel="its share of the gradient")
plt.show()

# %% [markdown]
# On the left the curves touch only where both images are equally hard. On the right is what training feels: in a batch the
# harder image takes nearly all of the gradient, and the easier one, once it is at half, next to nothing. With gradient
# accumulation, or several devices, the average trains something else, *depending on how the batch was cut*.
#
# ## Putting parts together
#
# What must a part report, so that the whole can be had? Not its value: its maximum $m_i$, its sum $S_i$ scaled by that, and
# its number of windows. The whole's maximum is the largest, and each sum is rescaled to it:
#
# $$m = \max_i m_i, \qquad S = \sum_i S_i \Big(\frac{m_i}{m}\Big)^{\hat p}, \qquad M = \sum_i M_i.$$


# %%
def part_of(ell, p_hat):
    return ell.max(), np.sum((ell / ell.max()) ** p_hat), ell.size


def put_together(parts, p_hat):
    m = max(m_i for m_i, _, _ in parts)
    S = sum(S_i * (m_i / m) ** p_hat for m_i, S_i, _ in parts)
    return m * (S / sum(M_i for _, _, M_i in parts)) ** (1 / p_hat)


np.testing.assert_allclose(put_together([part_of(top, 5), part_of(bottom, 5)], 5), whole, rtol=1e-12)

# %% [markdown]
# lalref calls this `parts` and `combine`. Parts are cut between images (a window does not reach into another image). Then
# each part's backward is asked for, with the whole in hand, and gives *its piece of the whole's gradient*:

# %%
pair = np.concatenate([x, 0.5 * x[..., ::-1]]), np.concatenate([y, y[..., ::-1]])  # a batch of two images
loss = LocallyAdaptiveLoss(engine="array")
value, gradient = loss.value_and_grad(*pair)

images = [(pair[0][n : n + 1], pair[1][n : n + 1]) for n in range(2)]
total = combine(*(loss.parts(*image) for image in images))
np.testing.assert_allclose(total.value, value, rtol=1e-12)
for n, image in enumerate(images):
    np.testing.assert_allclose(
        loss.value_and_grad(*image, total=total)[1], gradient[n : n + 1], rtol=1e-9, atol=1e-300
    )

averaged = np.concatenate([loss.value_and_grad(*image)[1] / 2 for image in images])
off = np.linalg.norm(averaged - gradient) / np.linalg.norm(gradient)
print(f"combined: right; averaged: off by {off:.0%} of the gradient")
assert off > 0.05

# %% [markdown]
# ## Exercises
#
# 1. Show that $\hat p = 2$ of a set of losses is $\sqrt{\text{mean}^2 + \text{variance}}$. What does it punish, beyond the mean?
# 2. Two parts of equal size: which function of the two values *is* the whole's value?
# 3. Why is taking out the maximum better than a fixed scale such as $10^{-3}$, and better than going through logarithms,
#    $\exp(\frac1{\hat p} \mathrm{logsumexp}(\hat p \log \ell))$?
# 4. Add a thousand windows of loss 0 to a batch. What happens to $L$ at $\hat p = 1$, at 5, at $\infty$? And to the sum
#    (`reduction="sum"`)?
# 5. Windows have weights $\omega_p$. Where do they go, so that a window of weight 2 counts as two windows?

# %% [markdown]
# <details>
# <summary>Answers</summary>
#
# **1.** $\frac1M\sum \ell^2 = \text{mean}^2 + \text{variance}$, by the definition of the variance. It punishes unevenness: of two
# sets with the same mean the more uneven one costs more.
#
# ```python
# np.testing.assert_allclose(power_mean(ell[valid], 2), np.hypot(ell[valid].mean(), ell[valid].std()), rtol=1e-12)
# ```
#
# **2.** The power mean of the two values, with the same exponent: $\big(\frac12 (L_1^{\hat p} + L_2^{\hat p})\big)^{1/\hat p}$.
# With unequal sizes, weighted by $M_i$. It overflows like the plain formula, and an empty part has no value; hence
# $m_i$, $S_i$, $M_i$.
#
# ```python
# L_1, L_2, M_1, M_2 = power_mean(top, 5), power_mean(bottom, 5), top.size, bottom.size
# np.testing.assert_allclose(((M_1 * L_1**5 + M_2 * L_2**5) / (M_1 + M_2)) ** (1 / 5), whole, rtol=1e-12)
# ```
#
# **3.** A fixed scale moves the range in which it works, it does not widen it. Logarithms never overflow, but $\log \ell$ of a
# loss of 0 is $-\infty$, and $\exp(\hat p \log r)$ rounds worse than $r^{\hat p}$: the error of the logarithm is multiplied by
# $\hat p \log r$.
#
# **4.** $M$ grows, the sum does not: $L$ shrinks by $(M/(M+1000))^{1/\hat p}$. At 1 in proportion, at 5 by the fifth root of
# that, at $\infty$ not at all. The sum doesn't change for any exponent.
#
# ```python
# padded = np.append(ell[valid], np.zeros(1000))
# for p_hat in (1, 5):
#     expected = power_mean(ell[valid], p_hat) * (M / (M + 1000)) ** (1 / p_hat)
#     np.testing.assert_allclose(power_mean(padded, p_hat), expected, rtol=1e-12)
# ```
#
# **5.** Inside the sum, outside the power, and in place of $M$: $\big(\sum \omega \ell^{\hat p} / \sum \omega\big)^{1/\hat p}$. Inside
# the power they would be raised, too.
#
# ```python
# weights = np.ones_like(x[:, 0])
# weights[0, :100] = 2.0
# weighted = lal_loss(x, y, pixel_weight=weights, engine="array")
# np.testing.assert_allclose(weighted, power_mean(np.concatenate([top, top, bottom]), 5), rtol=1e-12)
# ```
#
# </details>
