# %% [markdown]
# # 2. The backward pass, by hand
#
# Autodiff frameworks give gradients for nothing. Kernels don't: whoever writes the loss in C++ or CUDA writes its backward,
# too, and has to know that it is right. Here it is derived in three steps, each one checked before the next begins.
#
# After this notebook you can derive the backward of a loss made of stages, say why that of pooling is pooling again, and
# check a gradient in four ways: by a matrix, by dual numbers, by finite differences, and by intervals that *prove* it.
# You need the chain rule, and notebook 1.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

from lalref import definition, lal_value_and_grad, truth

# %% [markdown]
# A small image says everything: 4×5 pixels, three classes. In float64 throughout, so that rounding stays out of the way.

# %%
y = np.array([[0, 0, 1, 1, 1], [0, 0, 1, 2, 2], [0, 2, 2, 2, 1], [0, 0, 2, 1, 1]])  # (H, W)
H, W, C = *y.shape, 3
x = np.random.default_rng(2).normal(scale=2.0, size=(C, H, W))  # scores
r, sigma, p_hat = 1, 1.0, 5.0
options = {"kernel_size": 2 * r + 1, "sigma": sigma, "p": p_hat}

# %% [markdown]
# ## Forward
#
# Three stages, as in notebook 1. This time stage 1 is written as a *matrix*: with the pixels in one long row, pooling is
# $A$, with $A_{pq} = w(d(p,q))$ where $q$ is in the window of $p$ and has its label, else 0. Nobody would compute with it
# (it has a row and a column for every pixel), but one can look at it.

# %%
i, j = (a.ravel() for a in np.mgrid[:H, :W])  # of each pixel
d = np.maximum(abs(i[:, None] - i), abs(j[:, None] - j))  # (HW, HW) chessboard distances
in_group = (d <= r) & (y.ravel()[:, None] == y.ravel())
A = np.where(in_group, np.exp(-0.5 * (d / sigma) ** 2), 0.0)
D = A.sum(axis=1)  # (HW,)


def forward(x):
    """Merged vectors z (C, HW), probabilities P (C, HW), window losses ell (HW,), the loss L."""
    z = x.reshape(C, -1) @ A.T / D
    e = np.exp(z - z.max(axis=0))
    P = e / e.sum(axis=0)
    ell = -np.log(P[y.ravel(), np.arange(H * W)])
    L = np.mean(ell**p_hat) ** (1 / p_hat)
    return z, P, ell, L


z, P, ell, L = forward(x)
np.testing.assert_allclose(L, definition.loss(x[None], y[None], **options), rtol=1e-14)
print(f"L = {L:.6f}")

# %% [markdown]
# ## Backward, last stage first
#
# A bar stands for the derivative of $L$: $\bar\ell_p = \partial L / \partial \ell_p$. The chain rule walks from $L$ back to
# $x$, and each stage needs only the bar of what it produced.
#
# **Stage 3.** $L = \big(\tfrac1M \sum_p \ell_p^{\hat p}\big)^{1/\hat p}$. The outer root gives
# $\tfrac1{\hat p}(\cdot)^{1/\hat p - 1} = \tfrac1{\hat p} L^{1-\hat p}$, the inner power $\tfrac{\hat p}{M} \ell_p^{\hat p-1}$:
#
# $$\bar\ell_p = \frac1M \Big(\frac{\ell_p}{L}\Big)^{\hat p - 1}.$$

# %%
ell_bar = (ell / L) ** (p_hat - 1) / ell.size

# %% [markdown]
# A check that costs one line: double all losses and $L$ doubles. For such a function Euler says
# $\sum_p \bar\ell_p\, \ell_p = L$.

# %%
np.testing.assert_allclose(ell_bar @ ell, L, rtol=1e-14)

# %% [markdown]
# **Stage 2.** $\ell = \log \sum_c e^{z_c} - z_y$. The derivative of the first term is softmax, that of the second is 1 at
# the label. "What is predicted minus what should be":
#
# $$\bar z_{p} = \bar\ell_p\, \big(P_p - \mathrm{onehot}(y_p)\big).$$
#
# Its entries add up to 0 for each window: what one class gains, the others lose.

# %%
onehot = y.ravel() == np.arange(C)[:, None]  # (C, HW)
z_bar = ell_bar * (P - onehot)
np.testing.assert_allclose(z_bar.sum(axis=0), 0, atol=1e-15)

# %% [markdown]
# **Stage 1.** $z = x A^{\mathsf T} D^{-1}$ for each class. The backward of a linear map is its transpose: if
# $z_p = \sum_q B_{pq} x_q$, then $\bar x_q = \sum_p B_{pq} \bar z_p$. Here $B = D^{-1}A$, so $B^{\mathsf T} = A^{\mathsf T} D^{-1}$:
# *divide first, then apply* $A^{\mathsf T}$. And now look at $A$.

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.6))
for axis, matrix, title in zip(axes, [A, A / D[:, None]], ["$A$", "$D^{-1}A$"], strict=True):
    axis.imshow(np.where(in_group, matrix, np.nan), cmap="Blues", vmin=-0.2, vmax=1)
    axis.set(title=title, xlabel="pixel $q$", ylabel="window $p$", xticks=[], yticks=[])
plt.show()

np.testing.assert_array_equal(A, A.T)

# %% [markdown]
# $A$ is symmetric, exactly. That $q$ lies in the window around $p$ and has its label is the same statement as that $p$ lies
# in the window around $q$ and has its label; and the distance from $p$ to $q$ is that from $q$ to $p$. So $A^{\mathsf T} = A$,
# and **the backward of pooling is the same pooling**:
#
# $$\bar x = A\,(\bar z / D).$$
#
# One routine serves both ways. (In a framework one says: $A$ is *self-adjoint*, $\langle Au, v\rangle = \langle u, Av\rangle$.)

# %%
x_bar = ((z_bar / D) @ A).reshape(x.shape)

value, gradient = lal_value_and_grad(x[None], y[None], engine="array", **options)
np.testing.assert_allclose(x_bar, gradient[0], rtol=1e-12, atol=1e-16)

# %% [markdown]
# $D^{-1}A$, on the right of the picture, is *not* symmetric: a pixel at a border divides by another sum than its
# neighbour inside. Hence the order matters. Pool first and divide afterwards, and the result looks plausible, has the
# right shape and size, and is wrong:

# %%
tempting = ((z_bar @ A) / D).reshape(x.shape)
print(f"off by up to {abs(tempting - x_bar).max() / abs(x_bar).max():.0%} of the largest entry")
assert abs(tempting - x_bar).max() > 0.01 * abs(x_bar).max()

# %% [markdown]
# How would one notice without lalref? The rest of this notebook is four answers. The first was the matrix. It needs the
# derivation to be right.
#
# ## Dual numbers: let arithmetic carry the derivative
#
# Write $a + b\,\varepsilon$ with $\varepsilon^2 = 0$. Then $(a + b\varepsilon)(c + d\varepsilon) = ac + (ad + bc)\varepsilon$: the
# product rule comes out of multiplication. A class with a few operations differentiates any program written with them,
# and no backward formula is anywhere.


# %%
class Dual:
    """value + slope ε, with ε² = 0."""

    def __init__(self, value, slope=0.0):
        self.value, self.slope = float(value), float(slope)

    @property
    def real(self):  # what lalref's definition compares by
        return self.value

    def __add__(self, other):
        other = dual(other)
        return Dual(self.value + other.value, self.slope + other.slope)

    def __mul__(self, other):
        other = dual(other)
        return Dual(self.value * other.value, self.value * other.slope + self.slope * other.value)

    def __truediv__(self, other):
        other = dual(other)
        quotient = self.value / other.value
        return Dual(quotient, (self.slope - quotient * other.slope) / other.value)

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -dual(other)

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other):
        return dual(other) - self

    def exp(self):
        return Dual(math.exp(self.value), math.exp(self.value) * self.slope)

    def log(self):
        return Dual(math.log(self.value), self.slope / self.value)


def dual(number):
    return number if isinstance(number, Dual) else Dual(number)


square_plus_log = Dual(3.0, 1.0) * Dual(3.0, 1.0) + Dual(3.0, 1.0).log()
assert (square_plus_log.value, square_plus_log.slope) == (9 + math.log(3), 2 * 3 + 1 / 3)

# %% [markdown]
# `lalref.definition` is the specification as plain loops, *over any number type*. Feed it duals: every score
# $x_q + v_q\,\varepsilon$, and the slope that comes out is the derivative of $L$ along $v$.


# %%
def slope_along(v):
    duals = np.array([Dual(a, b) for a, b in zip(x.ravel(), v.ravel(), strict=True)], dtype=object)
    return definition.loss(duals.reshape(1, *x.shape), y[None], **options).slope


v = np.random.default_rng(3).normal(size=x.shape)
np.testing.assert_allclose(slope_along(v), np.sum(x_bar * v), rtol=1e-12)

# %% [markdown]
# One run gives one number, the gradient *times a direction*: that is forward mode. Sixty runs, one for each score, give all
# of the gradient. Backward needs one. With a photograph's 300,000 scores that is why one derives it at all.

# %%
by_duals = np.array([slope_along(e) for e in np.eye(x.size).reshape(-1, *x.shape)]).reshape(x.shape)
np.testing.assert_allclose(by_duals, x_bar, rtol=1e-11, atol=1e-15)

# %% [markdown]
# ## Finite differences, and their V
#
# Everybody's first check: move $x$ a little along $v$ and see what $L$ does. How little? Two errors pull apart. The formula
# is off by about $h$ (one-sided) or $h^2$ (two-sided), and *rounding*, $10^{-16}$ of $L$, is divided by $h$. Seen on
# logarithmic axes their sum is a V.

# %%
exact = np.sum(x_bar * v)
steps = 10.0 ** np.arange(-14, 0.01, 0.25)


def value_at(x):
    return forward(x)[3]


one_sided = np.array([(value_at(x + h * v) - value_at(x)) / h for h in steps])
two_sided = np.array([(value_at(x + h * v) - value_at(x - h * v)) / (2 * h) for h in steps])
error_1, error_2 = (abs(difference / exact - 1) + 1e-17 for difference in (one_sided, two_sided))

figure, axis = plt.subplots(figsize=(6.5, 3))
axis.loglog(steps, error_1, ".-", label="one-sided")
axis.loglog(steps, error_2, ".-", label="two-sided")
axis.loglog(steps, 1e-16 / steps, "k:", lw=1, label="rounding, $10^{-16}/h$")
axis.set(xlabel="step $h$", ylabel="relative error", ylim=(1e-14, 1e2))
axis.legend()
plt.show()

# %% [markdown]
# Left arms: rounding, slope −1 for both. Right arms: slope 1 and slope 2. The best that can be had is about half of all
# digits one-sided ($h \approx \sqrt{\text{eps}}$), and two thirds of them two-sided ($h \approx \sqrt[3]{\text{eps}}$).

# %%
right_arm = (steps > 1e-6) & (steps < 1e-2)
assert np.isclose(np.polyfit(np.log(steps[right_arm]), np.log(error_1[right_arm]), 1)[0], 1, atol=0.2)
right_arm = (steps > 1e-3) & (steps < 1e-1)
assert np.isclose(np.polyfit(np.log(steps[right_arm]), np.log(error_2[right_arm]), 1)[0], 2, atol=0.4)
assert error_1[(steps > 1e-9) & (steps < 1e-7)].max() < 1e-6
assert error_2[(steps > 1e-6) & (steps < 1e-4)].max() < 1e-8
for error, low, high, best in [(error_1, 1e-13, 1e-9, 1e-8), (error_2, 1e-13, 1e-7, 6e-6)]:
    left_arm = (steps > low) & (steps < high)
    assert np.isclose(np.polyfit(np.log(steps[left_arm]), np.log(error[left_arm]), 1)[0], -1, atol=0.3)
    assert abs(np.log10(steps[error.argmin()] / best)) < 2
assert min(error_1[steps < 1e-12].max(), error_2[steps < 1e-12].max()) > 1e-4  # a tiny step is a bad one

# %% [markdown]
# Two lessons. The smallest step is not the best one. And a check by differences can never tell a gradient that is right to
# 16 digits from one that is right to 10; in float32 it has three to five digits to work with, all told.
#
# ## No subtraction, no V
#
# The left arm comes from subtracting two nearly equal numbers. A complex step avoids that: for a real-analytic function,
# $f(x + \mathrm{i}hv) = f(x) + \mathrm{i}h f'(x)v - \dots$, so the derivative stands alone in the imaginary part. The step may be
# $10^{-200}$. The definition takes complex numbers, too.

# %%
moved = definition.loss(x[None] + 1e-200j * v[None], y[None], **options)
np.testing.assert_allclose(moved.imag / 1e-200, exact, rtol=1e-13)

# %% [markdown]
# ## Balls: a proof
#
# Each check so far ends with "close". Close to what is right, or close to another wrong number? A *ball* is a number with a
# radius, and arithmetic that keeps the promise: the exact result lies within. `lalref.truth` runs the definition on balls of
# hundreds of bits, and on power series of them for derivatives; no backward formula is in it.

# %%
balls = truth.value_and_grad(x[None], y[None], **options)
print("L        =", balls.value.str(25))
print("gradient =", balls.grad[0, 0, 0, 0].str(25), " for the first score")

# %% [markdown]
# Now a statement, not a comparison: how far the hand-written gradient is from the *exact* one, with a bound for what is not
# known about the latter. Relative to the largest entry it is rounding and nothing else.

# %%
parts, radius = truth.doubles(balls.grad)  # each ball as a sum of two doubles, and a bound for the rest
error = abs((x_bar[None] - parts[0]) - parts[1])  # (1, C, H, W)
assert radius.max() < 1e-30
assert error.max() < 1e-14 * abs(x_bar).max()
print(f"the derivation is right: error below 1e-14, what is not known about the truth below {1e-30:.0e}")

# %% [markdown]
# Balls also say when a computation knows nothing. In $\log(1 + e^{-50})$ the textbook way, 53 bits cannot tell the sum from
# 1. The ball knows that it doesn't know; a float says 0 and sounds sure.

# %%
from flint import arb, ctx

print("float:", math.log(1 + math.exp(-50)))
for bits in (53, 200):
    ctx.prec = bits
    ball = (1 + arb(-50).exp()).log()
    print(f"ball, {bits} bits:", ball.str(8))
    assert ball.overlaps(arb("1.92874984796392e-22 +/- 1e-36"))
ctx.prec = 53

# %% [markdown]
# ## Which check for what?
#
# | check | digits | needs | blind to |
# |---|---|---|---|
# | finite differences | 5 to 10 of 16 | your forward | small mistakes; kinks; a wrong forward |
# | complex step, duals | 15 | a forward over other numbers | a wrong forward |
# | balls | as many as you ask, proven | the definition | nothing but a wrong definition |
#
# The last column is the point. Differences, duals and every gradient checker compare a backward with *your own forward*. If
# that is the wrong loss, and the backward matches, they are all content. Notebook 5 shows it live.

# %% [markdown]
# ## Exercises
#
# 1. With `normalize="count"` the divisor is the number of pixels in the group. What changes in the backward?
# 2. With a stride $s$ there are windows only at every $s$-th pixel. What is the transpose of "take every $s$-th row"?
# 3. Why do the gradient's entries add up to 0 over the classes at every *pixel*, not just in every window?
# 4. The sum of the gradient over all pixels of one class: what does it have to do with $D$?
# 5. Write the derivative of $L$ along $v$ (forward mode) without duals, from the three stages, and check it.

# %% [markdown]
# <details>
# <summary>Answers</summary>
#
# **1.** Only the numbers in $D$. $\bar x = A(\bar z/D)$ holds for any divisor that does not depend on $x$:
#
# ```python
# count = in_group.sum(axis=1)
# z_c = x.reshape(C, -1) @ A.T / count
# P_c = np.exp(z_c) / np.exp(z_c).sum(axis=0)
# ell_c = -np.log(P_c[y.ravel(), np.arange(H * W)])
# L_c = np.mean(ell_c**p_hat) ** (1 / p_hat)
# bar_c = (ell_c / L_c) ** (p_hat - 1) / ell_c.size * (P_c - onehot)
# by_hand = ((bar_c / count) @ A).reshape(x.shape)
# by_lalref = lal_value_and_grad(x[None], y[None], normalize="count", engine="array", **options)[1][0]
# np.testing.assert_allclose(by_hand, by_lalref, rtol=1e-12, atol=1e-16)
# ```
#
# **2.** Laying the values back on their rows, with zeros between. So with a stride the backward is: divide, lay on the
# full grid, pool. (A matrix without its other rows, transposed, is a matrix without its other columns.)
#
# **3.** Pooling treats all classes alike, so sums over classes are pooled, too: $\sum_c \bar x_{c} = A(\sum_c \bar z_c / D) = A\,0$.
#
# ```python
# np.testing.assert_allclose(x_bar.sum(axis=0), 0, atol=1e-15)
# ```
#
# **4.** Nothing, in the end. $\sum_q \bar x_q = \sum_p (\bar z_p / D_p) \sum_q A_{pq} = \sum_p \bar z_p$, for
# $\sum_q A_{pq}$ *is* $D_p$: a convex average hands on all of a window's gradient, spread over the group. With
# `normalize="count"` part of it is lost.
#
# ```python
# np.testing.assert_allclose(x_bar.sum(axis=(1, 2)), z_bar.sum(axis=1), atol=1e-15)
# ```
#
# **5.** Each stage's linear map, applied forwards: $\dot z = D^{-1}A\,v$, then $\dot\ell_p = (P_p - \mathrm{onehot}) \cdot \dot z_p$,
# then $\dot L = \sum_p \bar\ell_p\, \dot\ell_p$. lalref has it as `lal_jvp`.
#
# ```python
# from lalref import lal_jvp
# z_dot = v.reshape(C, -1) @ A.T / D
# L_dot = ell_bar @ ((P - onehot) * z_dot).sum(axis=0)
# np.testing.assert_allclose(L_dot, exact, rtol=1e-12)
# np.testing.assert_allclose(lal_jvp(x[None], y[None], v[None], **options)[1], exact, rtol=1e-12)
# ```
#
# </details>
