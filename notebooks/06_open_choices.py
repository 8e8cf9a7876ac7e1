# %% [markdown]
# # 6. What the paper leaves open
#
# A program has no gaps. What is known here of the paper is its abstract, its Eq. 4 and 5, Fig. 2,
# Table 2 and that the weight is a Gaussian of the chessboard distance. It says nothing that could be found here on the
# Gaussian's width, the stride of the windows, the rule at the image's edge, the rule for void labels, or whether the average
# divides by the weights' sum or by the number of pixels. And the abstract's "merged distribution" may be read as averaged
# *probabilities*, where Eq. 4 averages *scores*.
#
# Somebody who writes it anew has to choose. Here are the choices side by side on one image: what each does to the losses,
# and what to the gradient. After this notebook you can say which of them matter, and which only shift a scale.
# You need notebooks 1 to 3.

# %%
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from scene import VOID, coffee

from lalref import LocallyAdaptiveLoss

photo, annotated, x = coffee()  # (H, W, 3), (H, W), (1, C, H, W)
y = annotated[None]
valid = y != VOID


def loss_with(**options):
    return LocallyAdaptiveLoss(engine="array", **options)


def maps_of(options):
    """Value, window losses (H, W), gradient (1, C, H, W) and its size (H, W); a stride's losses fill its cells."""
    loss = loss_with(**options)
    ell, s = loss.inspect(x, y).window_loss[0], options.get("stride", 1)
    ell = ell.repeat(s, axis=0).repeat(s, axis=1)[: y.shape[1], : y.shape[2]]
    value, gradient = loss.value_and_grad(x, y)
    return float(value), ell, gradient, np.linalg.norm(gradient[0], axis=0)


DEFAULT = maps_of({})


def compare(choices, cut=(slice(100, 162), slice(135, 213))):
    """Draw the default, and how each choice differs from it, near the spoon."""
    axes = plt.subplots(2, 1 + len(choices), figsize=(2.3 * (1 + len(choices)), 4))[1]
    value, ell, _, size = DEFAULT
    decades = LogNorm(size.max() / 1e4, size.max(), clip=True)
    panels = [(ell, {"cmap": "magma", "vmin": 0, "vmax": 6}, f"default: L = {value:.3f}"),
              (size, {"cmap": "viridis", "norm": decades}, "size of the gradient")]  # fmt: skip
    for title, options in choices.items():
        other_value, other_ell, _, other_size = maps_of(options)
        ratio = np.log10(np.maximum(other_size, size.max() * 1e-9) / np.maximum(size, size.max() * 1e-9))
        panels += [(other_ell - ell, {"cmap": "RdBu_r", "vmin": -2, "vmax": 2}, f"{title}: L = {other_value:.3f}"),
                   (ratio, {"cmap": "PuOr_r", "vmin": -1, "vmax": 1}, "against the default's")]  # fmt: skip
    for axis, (picture, how, title) in zip(axes.T.ravel(), panels, strict=True):
        axis.imshow(np.where(valid[0], picture, np.nan)[cut], **how)
        axis.set_title(title)
        axis.set_axis_off()
    plt.show()


# %% [markdown]
# Each picture shows a cut-out around the spoon, where objects are thin; void is white. On the left the default: the loss of
# each window (black 0, bright 6), and the size of the gradient (logarithmic, down to 1/10,000 of the largest). Then, for
# each choice, the *difference* of the window losses (blue: lower, red: higher, ±2), and the gradient's size *against the
# default's* (purple: a tenth, orange: ten times). A stride's windows are drawn as blocks.
#
# ## The width sigma
#
# At 0.5 pixels a neighbour weighs 0.14, and one at distance 2 three in ten thousand: so the rim is out, and the centre has half
# of the weight. At $\sigma = \infty$ (`sigma=None`) all 25 count alike, and the *rim* of the window dominates: 16 of its 25 pixels are at distance 2.

# %%
compare({f"σ = {s}": {"sigma": s} for s in (0.5, 2.0, None)})

for s in (0.5, 1.0, 2.0, None):
    w = np.ones(3) if s is None else np.exp(-0.5 * (np.arange(3) / s) ** 2)
    ring = w * [1, 8, 16]  # so many pixels are at distance 0, 1 and 2
    print(
        f"σ = {s}: the centre has {ring[0] / ring.sum():.0%} of the weight, the rim {ring[2] / ring.sum():.0%}"
    )
    middle = np.zeros((1, 2, 9, 9)), np.zeros((1, 9, 9), int)
    np.testing.assert_allclose(loss_with(sigma=s).inspect(*middle).divisor[0, 4, 4], ring.sum(), rtol=1e-12)

# %% [markdown]
# A wider Gaussian gives smoother maps and here a smaller loss, for reasons that have nothing to do with learning: averages
# of more vectors vary less. Losses with different $\sigma$ must not be compared with each other. lalref takes 1 pixel: the
# window's size matters, and the rim does not dominate.
#
# And $\sigma$ tied to the window? If one had $\sigma = r$, then a larger kernel would also be a flatter one; with a fixed
# $\sigma$ a larger kernel adds pixels that weigh next to nothing:

# %%
values = {k: float(loss_with(kernel_size=k)(x, y)) for k in (1, 3, 5, 7, 9)}
print({k: round(v, 3) for k, v in values.items()})
assert abs(values[9] - values[7]) < 1e-3 < abs(values[3] - values[1])

# %% [markdown]
# From 7 on nothing happens any more at $\sigma = 1$: the two losses are nearly one function. Kernel size and $\sigma$ are
# worth varying together, or not at all.
#
# ## The divisor
#
# Weights' sum, or number of pixels? With the sum, $z_p$ is a convex average. With the count it is that average times
# $D/|G| \le 1$: *all scores are shrunk*, as by a softmax of higher temperature, and by a factor that depends on the place.

# %%
compare({"count": {"normalize": "count"}, "count, σ = None": {"normalize": "count", "sigma": None}})

weights, count = (loss_with(normalize=n).inspect(x, y) for n in ("weights", "count"))
temperature = np.where(valid, count.divisor / np.where(valid, weights.divisor, 1), 1.0)  # (1, H, W)
np.testing.assert_allclose(weights.merged, count.merged * temperature[:, None], rtol=1e-9, atol=1e-12)
inside = temperature[count.group_size == 25]
print(
    f"by the place scores are divided by {temperature[valid].min():.2f} to {temperature[valid].max():.2f}, "
    f"inside an object by {inside[0]:.2f}"
)
np.testing.assert_allclose(inside, 25 / weights.divisor.max(), rtol=1e-12)
assert temperature[valid].min() >= 1

# %% [markdown]
# A temperature flattens both ways: what is wrong costs less (blue), what is right costs more (the red haze), and a network
# that is sure is made to look unsure. It can answer with larger scores. So $\sigma$ and kernel size act as a hidden
# temperature, unless all weights are 1. With the sum of weights they don't: where all of a group's vectors are equal, $z$ is
# that vector, and the loss is cross-entropy's. "Does not increase any predicted vector" can be said of both divisors if it is
# about size: no entry of the merged vector is larger *in magnitude* than the largest of the group. With the sum of weights none
# is larger at all; with the count a negative entry rises towards zero. That it leaves equal vectors alone is true of one.

# %%
flat = (
    np.zeros((1, 3, 9, 9)) + np.array([4.0, 0.0, 0.0])[:, None, None]
)  # every pixel equally sure, and right
right = np.zeros((1, 9, 9), int)
plain, *readings = (
    float(loss_with(**options)(flat, right))
    for options in ({"kernel_size": 1}, {}, {"normalize": "count"}, {"sigma": None, "normalize": "count"})
)
print(
    f"cross-entropy {plain:.3f}; weights {readings[0]:.3f}, count {readings[1]:.3f}, count with σ = None {readings[2]:.3f}"
)
np.testing.assert_allclose([readings[0], readings[2]], plain, rtol=1e-12)
assert readings[1] > 5 * plain

for merged in (weights.merged, count.merged):
    assert abs(merged).max() <= abs(x).max() * (1 + 1e-12)
low = np.full((1, 3, 9, 9), -4.0)
middle = {n: loss_with(normalize=n).inspect(low, right).merged[0, 0, 4, 4] for n in ("weights", "count")}
print({name: round(float(z), 2) for name, z in middle.items()})
np.testing.assert_allclose(middle["weights"], -4, rtol=1e-12)
assert -4 < middle["count"] < 0

# %% [markdown]
# ## Scores or probabilities
#
# Two orders: average the scores and take one softmax (Eq. 4), or take every pixel's softmax and average the right class's
# probability. They treat a group of two differently: one pixel quite sure and right, its neighbour sure and wrong.

# %%
compare({"probabilities": {"space": "probabilities"}})
a = np.linspace(-8, 8, 161)  # the neighbour's margin; the centre has 4, equal weights
in_scores = np.logaddexp(0, -(4 + a) / 2)
in_probabilities = -np.log((1 / (1 + np.exp(-4)) + 1 / (1 + np.exp(-a))) / 2)
assert np.log(2) < in_probabilities[0] < -np.log(1 / (1 + np.exp(-4)) / 2) < 0.7114
pair = np.zeros((161, 2, 2))
pair[:, 0, 0], pair[:, 0, 1] = 4, a
for space, by_hand in (("logits", in_scores), ("probabilities", in_probabilities)):
    loss = loss_with(kernel_size=3, sigma=None, space=space, reduction="none")
    np.testing.assert_allclose(loss(pair, np.zeros((161, 2), int))[:, 0], by_hand, rtol=1e-10, atol=1e-15)

figure, axes = plt.subplots(1, 2, figsize=(8, 2.6))
for name, curve in {"scores": in_scores, "probabilities": in_probabilities}.items():
    axes[0].plot(a, curve, label=name)
    axes[1].plot(a, -np.gradient(curve, a), label=name)
axes[0].axhline(np.log(2), color="0.6", ls=":")
axes[0].set(xlabel="margin of the neighbour (centre: 4)", ylabel="loss of the pair")
axes[1].set(xlabel="margin of the neighbour (centre: 4)", ylabel="pull on the neighbour")
axes[0].legend()
plt.show()

# %% [markdown]
# With scores, a neighbour that is ever more wrong costs ever more, and is pulled with full force. With probabilities the pair
# hardly ever costs more than $\log 2$ (dotted), for half of it is right: never more than $-\log(0.982/2) = 0.711$, since the
# centre itself has a probability of 0.982. And the pull *fades* once the neighbour is sure of its error.
# A whole group that is wrong still costs its full price in both.
#
# In the backward, score space sends one common error to the group; probability space weighs each pixel by its own part
# $\rho$ in the average, and its own residual:

# %%
scores, probabilities = (
    loss_with(kernel_size=3, sigma=None, p=1, space=space).value_and_grad(pair[60:61], np.zeros((1, 2), int))[
        1
    ][0, 0]
    for space in ("logits", "probabilities")
)
print(
    f"margins {pair[60, 0]}: gradient by scores {scores.round(3)}, by probabilities {probabilities.round(3)}"
)
np.testing.assert_allclose(scores[0], scores[1], rtol=1e-12)
assert (
    probabilities[1] < 2 * probabilities[0] < 0
)  # the wrong neighbour is pulled harder than the right centre

# %% [markdown]
# ## The stride
#
# Windows at every pixel, or at every second or third, as a convolution with a stride would place them?

# %%
compare({f"stride {s}": {"stride": s} for s in (2, 4)})
for s in (1, 2, 4):
    windows = loss_with(stride=s).inspect(x, y).window_loss
    reached = (maps_of({"stride": s})[2] != 0).any(axis=1)[valid].mean()
    assert windows.shape[1:] == tuple(-(-n // s) for n in y.shape[1:])
    print(
        f"stride {s}: {np.count_nonzero(windows)} windows, {reached:.1%} of the labelled pixels get a gradient"
    )

# %% [markdown]
# The value hardly moves, for it is a mean over a sample of the windows. The gradient becomes a lattice: with 5×5 windows and
# stride 4, pixels between windows are reached by the faint rims alone. And a thin object between two grid lines is the
# centre of no window. lalref's default is 1: every labelled pixel is a centre.
#
# ## Image border and void
#
# A pixel outside the image has no label, so it is in no group. The other way would be to pad with zeros, as a convolution does:
# then at the border the average contains score vectors of 0, which nobody predicted.

# %%
sure = np.zeros((1, 2, 5, 5))
sure[:, 0] = 4.0
zeros = np.zeros((1, 5, 5), int)
maps = loss_with(sigma=None).inspect(sure, zeros)
padded = sure[0, 0, 0, 0] * maps.group_size[0] / 25  # the first class's score if zeros were averaged in
print("margin after averaging with zeros from outside:\n", padded.round(2)[:3, :3])
np.testing.assert_allclose(maps.merged[0, 0], 4.0, rtol=1e-12)

# %% [markdown]
# Void pixels: no centres, in no group, not counted in $M$. "Valid windows" in the paper's Eq. 5 can hardly mean anything else.
# To count them in $M$, with loss 0, would scale the loss by a factor that depends on how generous the annotator was:

# %%
ell = loss_with().inspect(x, y).window_loss[valid]
with_void = (np.sum(ell**5) / y.size) ** (1 / 5)
np.testing.assert_allclose(with_void / float(loss_with()(x, y)), (valid.sum() / y.size) ** (1 / 5), rtol=1e-9)

# %% [markdown]
# ## What matters?
#
# Values tell little: a temperature or a number of windows shifts them. What training feels is the gradient's *direction*. Its
# angle to the default's:

# %%
default = DEFAULT[2]
choices = {
    "cross-entropy (1×1, p = 1)": {"kernel_size": 1, "p": 1},
    "p = 1": {"p": 1},
    "1×1 windows": {"kernel_size": 1},
    "7×7 windows": {"kernel_size": 7},
    "σ = 0.5": {"sigma": 0.5},
    "σ = 2": {"sigma": 2.0},
    "σ = None": {"sigma": None},
    "count": {"normalize": "count"},
    "probabilities": {"space": "probabilities"},
    "stride 2": {"stride": 2},
}
angles = {}
for name, options in choices.items():
    g = loss_with(**options).value_and_grad(x, y)[1]
    angles[name] = np.degrees(np.arccos(np.sum(g * default) / np.linalg.norm(g) / np.linalg.norm(default)))

figure, axis = plt.subplots(figsize=(6, 2.8))
names = sorted(angles, key=angles.get)
axis.barh(names, [angles[name] for name in names])
axis.set(xlabel="angle between its gradient and the default's, degrees", xlim=(0, 90))
plt.show()
print({name: round(float(angles[name])) for name in names})
assert angles["7×7 windows"] < 5 < angles["p = 1"]

# %% [markdown]
# On this image and these scores. The exponent of stage 3 turns the gradient most; the size of the window beyond 5 hardly at
# all. Which choice trains best is a question for an experiment, not for a picture. [docs/experiment.md](../docs/experiment.md)
# asks it of the window and the exponent; of $\sigma$, the divisor, the stride and the space nothing was trained here.

# %% [markdown]
# ## Exercises
#
# 1. For which $\sigma$ does a 7×7 window give its rim (distance 3, 24 pixels) as much weight as its centre?
# 2. Show that with `normalize="count"` and `sigma=None` the divisor is the same as with `normalize="weights"`.
# 3. At which probability of the group's wrong pixels does the loss in probability space stay below 0.1, if half the
#    group is perfectly right?
# 4. What would Fig. 2's words, "does not increase any predicted vector", exclude?

# %% [markdown]
# <details>
# <summary>Answers</summary>
#
# **1.** $24\, e^{-9/(2\sigma^2)} = 1$, so $\sigma = 3/\sqrt{2 \ln 24} \approx 1.19$.
#
# ```python
# np.testing.assert_allclose(24 * np.exp(-0.5 * (3 / (3 / np.sqrt(2 * np.log(24)))) ** 2), 1, rtol=1e-12)
# ```
#
# **2.** All weights are 1, so their sum is their number.
#
# ```python
# both = [loss_with(sigma=None, normalize=n).inspect(x, y).divisor for n in ("weights", "count")]
# np.testing.assert_array_equal(*both)
# ```
#
# **3.** $-\log\frac{1 + u}{2} < 0.1$, so $u > 2e^{-0.1} - 1 \approx 0.81$: the wrong ones must not be wrong any more. Half a
# group cannot make up for the other half.
#
# **4.** Sums in place of averages: a divisor that is less than the sum of the weights. It does not decide between the two
# divisors offered here, for both give entries no larger in magnitude than the largest of the group.
#
# </details>
