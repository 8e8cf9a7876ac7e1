# %% [markdown]
# # 1. The idea, on one photograph
#
# Cross-entropy asks each pixel on its own: is the right class ahead? It does not know that pixels have neighbours.
# The *locally adaptive learning loss* of Guo, Ren, Gu, Xu and Wu ([arXiv:1802.08290](https://arxiv.org/abs/1802.08290))
# asks a pixel together with those neighbours that carry the same label.
#
# After this notebook you can say what the loss reads, what it averages, and what happens where two classes meet.
# You need NumPy and softmax. Derivatives come in notebook 2.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scene import CLASSES, VOID, coffee, show_labels, without_void

from lalref import LocallyAdaptiveLoss, lal_loss

# %% [markdown]
# ## The scene
#
# A photograph, a label for each pixel, and the scores of a simple classifier: a linear function of colour and contrast,
# fitted with cross-entropy. The labels were made by a classical method, with a thin line of *void* (white) between two
# objects, as annotators leave one, for nobody knows whose pixels these are. For now each void pixel gets the nearest label, so that classes
# touch; void comes back at the end.

# %%
photo, annotated, x = coffee()  # (H, W, 3), (H, W), (1, C, H, W)
y = without_void(annotated)[None]  # (1, H, W)
H, W = y.shape[1:]

figure, axes = plt.subplots(1, 3, figsize=(10, 2.5))
axes[0].imshow(photo)
show_labels(axes[1], annotated)
show_labels(axes[2], x[0].argmax(axis=0))
for axis, title in zip(axes, ["photograph", "labels, void in white", "largest score"], strict=True):
    axis.set_title(title)
    axis.set_axis_off()

# %% [markdown]
# ## Cross-entropy, pixel by pixel
#
# A pixel has a vector $x$ of $C$ scores. Softmax turns it into probabilities, and the loss is $-\log$ of the probability
# of the labelled class. Taking the largest score out first changes nothing, and keeps `exp` from overflowing.


# %%
def log_softmax(x):
    """log softmax over axis 1, the classes."""
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropy(x, y):
    """-log softmax(x)[y] of each pixel: x (N, C, H, W), y (N, H, W) -> (N, H, W)."""
    return -np.take_along_axis(log_softmax(x), y[:, None].astype(int), axis=1)[:, 0]


pixel_loss = cross_entropy(x, y)
print(f"{x.shape} scores -> {pixel_loss.shape} losses, mean {pixel_loss.mean():.3f}")

# %% [markdown]
# lalref's loss with a window of one pixel and a plain mean is exactly this. (`engine="array"` starts at once; the faster
# engines are the subject of notebook 4.)

# %%
lal_map = lal_loss(x, y, kernel_size=1, reduction="none", engine="array")
np.testing.assert_allclose(lal_map, pixel_loss, atol=1e-13)
np.testing.assert_allclose(lal_loss(x, y, kernel_size=1, p=1, engine="array"), pixel_loss.mean(), rtol=1e-12)

# %% [markdown]
# ## What cross-entropy cannot see
#
# Shuffle the pixels, each with its label. A person would not recognise the cup; cross-entropy notices nothing. A loss with
# windows does: its neighbourhoods are gone. (It even falls: a group is now a random sample of its class, and the hard
# pixels, which lie together in the photograph, are outvoted.)

# %%
shuffled = np.random.default_rng(0).permutation(H * W)
x_shuffled = x.reshape(1, CLASSES, -1)[..., shuffled].reshape(x.shape)
y_shuffled = y.reshape(1, -1)[:, shuffled].reshape(y.shape)

for kernel_size in (1, 5):
    kept, lost = (
        lal_loss(*xy, kernel_size=kernel_size, p=1, engine="array")
        for xy in [(x, y), (x_shuffled, y_shuffled)]
    )
    print(f"{kernel_size}×{kernel_size} windows: photograph {kept:.3f}, shuffled {lost:.3f}")
    assert np.isclose(kept, lost, rtol=1e-12) == (kernel_size == 1)

# %% [markdown]
# ## A group
#
# Stand on a pixel $p$ and look through a 5×5 window. Of the 25 pixels take those whose *label is the label of $p$*: they
# are the group $G_p$. Each gets a weight that falls with the chessboard distance $d$, the larger of the distances in rows
# and columns:
#
# $$w(d) = e^{-\frac12 (d/\sigma)^2}.$$
#
# Here is the situation of the paper's Fig. 2, at a pixel of the cup near its rim.

# %%
i, j, r, sigma = 60, 97, 2, 1.0
window = (slice(i - r, i + r + 1), slice(j - r, j + r + 1))
rows, columns = np.mgrid[-r : r + 1, -r : r + 1]
d = np.maximum(abs(rows), abs(columns))  # (5, 5) chessboard distance
w = np.exp(-0.5 * (d / sigma) ** 2)
member = y[0][window] == y[0, i, j]  # (5, 5)
print(f"{member.sum()} of 25 pixels are in the group, weights", np.unique(w.round(2))[::-1])

# %% [markdown]
# Their score vectors are averaged with these weights into one vector, the *merged* vector
#
# $$z_p = \frac{1}{D_p} \sum_{q \in G_p} w(d(p,q))\, x_q, \qquad D_p = \sum_{q \in G_p} w(d(p,q)).$$

# %%
vectors = x[0][:, *window]  # (C, 5, 5)
D = (w * member).sum()
z = (vectors * w * member).sum(axis=(1, 2)) / D  # (C,)

loss = LocallyAdaptiveLoss(kernel_size=5, sigma=sigma, engine="array")
maps = loss.inspect(x, y)
np.testing.assert_allclose(maps.merged[0, :, i, j], z, rtol=1e-12)
assert maps.group_size[0, i, j] == member.sum()

# %%
figure, axes = plt.subplots(1, 4, figsize=(11, 2.8), width_ratios=[1, 1, 1, 1.5])
near = (i - 8.5, i + 8.5, j - 8.5, j + 8.5)
axes[0].imshow(photo)
axes[0].set(title="the photograph, near $p$", xlim=near[2:], ylim=near[1::-1], xticks=[], yticks=[])
axes[0].add_patch(plt.Rectangle((j - 2.5, i - 2.5), 5, 5, fill=False, color="white", lw=2))
show_labels(axes[1], y[0][window])
axes[1].set(title="labels in the 5×5 window", xticks=[], yticks=[])
axes[2].imshow(np.where(member, w, np.nan), cmap="Blues", vmin=-0.3, vmax=1.3)
axes[2].set(title="the group and its weights", xticks=[], yticks=[])
for a, b in np.argwhere(member):
    axes[2].text(b, a, f"{w[a, b]:.2f}", ha="center", va="center", fontsize=8)
classes = np.arange(CLASSES)
axes[3].plot(classes, vectors[:, member], color="0.75", lw=0.8)
axes[3].plot(classes, vectors[:, r, r], "o-", color="#D55E00", label=f"$x_p$, loss {pixel_loss[0, i, j]:.2f}")
axes[3].plot(classes, z, "o-", color="#0072B2", label=f"$z_p$, loss {maps.window_loss[0, i, j]:.2f}")
axes[3].axvline(y[0, i, j], color="0.5", ls=":")
axes[3].set(
    title="score vectors: of the group (grey), of $p$, merged",
    xlabel="class (dotted: the label)",
    xticks=classes,
)
axes[3].legend()
plt.show()

# %% [markdown]
# The pixel's own scores prefer a wrong class. Its group, taken together, does not: the merged vector's loss is small.
# Nothing was amplified on the way. Each entry of an average lies between the smallest and the largest of what is averaged:

# %%
own = vectors[:, r, r]
assert own.argmax() != y[0, i, j] == z.argmax()
assert maps.window_loss[0, i, j] < 0.5 < pixel_loss[0, i, j]
assert np.all(vectors[:, member].min(axis=1) <= z)
assert np.all(z <= vectors[:, member].max(axis=1))

# %% [markdown]
# ## Every window at once
#
# The same average for all pixels needs no loop over pixels, only one over the 25 places of the window. `np.where` picks;
# multiplying with a mask would not do, for 0 × NaN is NaN, and a broken pixel of another class would get in.


# %%
def group_sum(u, y, r, sigma):
    """Σ over each pixel's group of w u: u (N, K, H, W), y (N, H, W) -> (N, K, H, W)."""
    H, W = y.shape[1:]
    u_padded = np.pad(u, [(0, 0), (0, 0), (r, r), (r, r)])
    y_padded = np.pad(y.astype(int), [(0, 0), (r, r), (r, r)], constant_values=-1)  # outside: no class
    total = np.zeros_like(u)
    for a in range(-r, r + 1):
        for b in range(-r, r + 1):
            at_q = (slice(r + a, r + a + H), slice(r + b, r + b + W))
            weight = np.exp(-0.5 * (max(abs(a), abs(b)) / sigma) ** 2)
            same = y_padded[:, *at_q] == y
            total += np.where(same[:, None], weight * u_padded[:, :, *at_q], 0)
    return total


def group_mean(u, y, r=2, sigma=1.0):
    return group_sum(u, y, r, sigma) / group_sum(np.ones_like(u[:, :1]), y, r, sigma)


np.testing.assert_allclose(group_mean(x, y), maps.merged, atol=1e-12)

# %% [markdown]
# Cross-entropy of the merged vectors gives one loss for each window. That is stages 1 and 2 of the loss.

# %%
window_loss = cross_entropy(group_mean(x, y), y)
np.testing.assert_allclose(window_loss, maps.window_loss, atol=1e-12)

figure, axes = plt.subplots(1, 3, figsize=(10, 2.5))
shown = [axes[k].imshow(m[0], cmap="magma", vmin=0, vmax=6) for k, m in enumerate([pixel_loss, window_loss])]
axes[2].imshow((window_loss - pixel_loss)[0], cmap="RdBu_r", vmin=-4, vmax=4)
titles = ["pixel loss (0 to 6)", "window loss (0 to 6)", "difference: blue lower, red higher"]
for axis, title in zip(axes, titles, strict=True):
    axis.set_title(title)
    axis.set_axis_off()

# %% [markdown]
# Specks vanish: a wrong pixel among right ones costs little. Patches stay: where a whole group is wrong in the
# same way, so is its average. Some windows are *worse* than their own pixel (red), those of a lucky pixel among wrong
# neighbours.
#
# Averaging first is never worse than averaging the losses. Cross-entropy is convex in the scores, so by Jensen's
# inequality the loss of the average is at most the average of the group's losses:

# %%
average_of_losses = group_mean(pixel_loss[:, None], y)[:, 0]
assert np.all(window_loss <= average_of_losses + 1e-12)
print(f"mean of pixel losses {pixel_loss.mean():.3f}, averaged in groups {average_of_losses.mean():.3f}, "
      f"of merged vectors {window_loss.mean():.3f}")  # fmt: skip

# %% [markdown]
# ## What changes at a border
#
# Smoothing scores is old. What matters here is *who is averaged*. Take one row of the image from the rim of the cup
# inwards. An ordinary blur mixes the two sides, and blunts the very step that a segmentation is about. The group average
# draws from its own side alone: next to the border it hears only pixels further inside, and the step stays where the
# labels have it.

# %%
row, span = 60, slice(91, 104)
left, right = y[0, row, span.start], y[0, row, span.stop - 1]
blurred = group_mean(x, np.zeros_like(y))  # one label everywhere: an ordinary blur
merged = group_mean(x, y)

figure, axis = plt.subplots(figsize=(7, 2.8))
for scores, style, name in [
    (x, "k.:", "scores"),
    (blurred, "C1-", "blurred"),
    (merged, "C0-", "averaged in groups"),
]:
    axis.plot(
        np.arange(span.start, span.stop), (scores[0, left] - scores[0, right])[row, span], style, label=name
    )
for k in np.flatnonzero(np.diff(y[0, row, span].astype(int))):
    axis.axvline(span.start + k + 0.5, color="0.6", ls=":")
axis.set(
    title=f"row {row}: score of class {left} minus score of class {right}; dotted: where the labels change",
    xlabel="column",
)
axis.legend()
plt.show()

step = np.flatnonzero(np.diff(y[0, row, span].astype(int)))  # between which columns the labels change
height = {
    name: abs(np.diff((scores[0, left] - scores[0, right])[row, span]))[step].min()
    for name, scores in (("blurred", blurred), ("groups", merged))
}
print({name: round(float(h), 1) for name, h in height.items()})
assert height["groups"] > 2 * height["blurred"]

# %% [markdown]
# The other side of the border cannot even be heard. Put nonsense into every pixel of another class, and the window at $p$
# has the same loss, to the last bit:

# %%
nonsense = np.where(y[:, None] == y[0, i, j], x, np.nan)
heard = LocallyAdaptiveLoss(engine="array", reduction="none")
assert heard(nonsense, y)[0, i, j] == heard(x, y)[0, i, j]

# %% [markdown]
# And the way back is the same way. The gradient of *one* window's loss reaches exactly the pixels of its group, each in
# proportion to its weight. A plain pixel loss would correct the pixel alone.

# %%
only_p = np.zeros(y.shape)
only_p[0, i, j] = 1.0
_, gradient = heard.value_and_grad(x, y, grad_output=only_p)  # of the window at p, with respect to all scores
reached = np.linalg.norm(gradient[0], axis=0)  # (H, W)

np.testing.assert_array_equal(reached[window] > 0, member)
assert np.count_nonzero(reached) == member.sum()
np.testing.assert_allclose(reached[window][member] / reached[i, j], w[member], rtol=1e-12)

figure, axes = plt.subplots(1, 2, figsize=(6, 2.6))
show_labels(axes[0], y[0])
axes[1].imshow(reached, cmap="Blues")
for axis, title in zip(axes, ["labels", "gradient of the window at $p$"], strict=True):
    axis.set(title=title, xlim=near[2:], ylim=near[1::-1], xticks=[], yticks=[])
    axis.add_patch(plt.Rectangle((j - 2.5, i - 2.5), 5, 5, fill=False, color="k", lw=1.5))

# %% [markdown]
# Groups are small where classes meet and where objects are thin. The loss adapts to the place, whence its name.

# %%
figure, axis = plt.subplots(figsize=(4.6, 2.6))
shown = axis.imshow(maps.group_size[0], cmap="magma")
figure.colorbar(shown, label="pixels in the group")
axis.set_axis_off()
corner = maps.group_size[0, 0, 0]
print(f"group sizes from {maps.group_size.min()} to {maps.group_size.max()}; a group ends at the image's edge: "
      f"{corner} in the corner")  # fmt: skip

# %% [markdown]
# ## Void
#
# Back to the labels as annotated. A void pixel is the centre of no window and in no group; its scores are never read, and
# its gradient is exactly 0.

# %%
value, gradient = loss.value_and_grad(x, annotated[None])
assert np.all(gradient[:, :, annotated == VOID] == 0)
unread = np.where(annotated == VOID, np.inf, x)
assert loss(unread, annotated[None]) == value
print(f"{np.mean(annotated == VOID):.1%} of the pixels are void")

# %% [markdown]
# ## One number
#
# Training needs one number. Stage 3 is a power mean of all window losses, $L = (\frac1M \sum_p \ell_p^{\,\hat p})^{1/\hat p}$
# with $\hat p = 5$ (the option `p`; the paper calls it $k$). The larger the exponent, the more it listens to the worst
# windows. Notebook 3 is about it; here, only that it is what lalref computes:

# %%
np.testing.assert_allclose(loss(x, y), np.mean(window_loss**5) ** (1 / 5), rtol=1e-12)
print(f"mean of the window losses {window_loss.mean():.2f}, their power mean {loss(x, y):.2f}, "
      f"the worst {window_loss.max():.2f}")  # fmt: skip

# %% [markdown]
# ## Exercises
#
# 1. All score vectors of a group are equal. What is the window's loss, compared with the pixel's?
# 2. Into how many windows does the pixel $q$ enter? Find it without a loop over windows, and check it.
# 3. When is Jensen's inequality above an equality, besides when all vectors are equal?
# 4. The merged vectors classify more pixels rightly than the scores do. Why is that no way to predict?
# 5. A line one pixel wide runs straight through the image. How large are its groups in a 5×5 window? And 7×7?

# %% [markdown]
# <details>
# <summary>Answers</summary>
#
# **1.** The same: the average of equal vectors is that vector, whatever the weights. So the loss differs from cross-entropy
# only where scores vary *within* a group.
#
# **2.** Into as many as its own group has pixels. That $q$ is in the window around $p$ and has its label says the same as
# that $p$ is in the window around $q$ and has its label. Count the windows that change when one pixel changes:
#
# ```python
# changed = x.copy()
# changed[0, 0, i, j] += 1.0
# moved = heard(changed, y) != heard(x, y)
# assert moved.sum() == maps.group_size[0, i, j]
# ```
#
# This small fact is the heart of notebook 2.
#
# **3.** When the vectors differ only by a constant added to all classes of a pixel: softmax doesn't see it, and along that
# direction cross-entropy is a straight line with slope 0.
#
# ```python
# offset = np.random.default_rng(1).normal(size=(1, 1, H, W))
# flat = np.zeros_like(x) + offset
# np.testing.assert_allclose(cross_entropy(group_mean(flat, y), y), cross_entropy(flat, y), atol=1e-12)
# ```
#
# **4.** Merging looks at the labels to choose whom to average. At prediction there are none. It is a teacher's device: it
# belongs in the loss, not in the network.
#
# ```python
# rightly = [(scores.argmax(axis=1) == y).mean() for scores in (x, merged)]
# assert rightly[0] < rightly[1]
# ```
#
# **5.** Five pixels, and seven: the group grows with the window's width, not with its area. Objects thinner than the window
# are averaged along themselves.
#
# ```python
# line = np.zeros((1, 21, 21), int)
# line[0, 10] = 1
# for size in (5, 7):
#     group = LocallyAdaptiveLoss(kernel_size=size).inspect(np.zeros((1, 2, 21, 21)), line).group_size
#     assert group[0, 10, 10] == size
# ```
#
# </details>
