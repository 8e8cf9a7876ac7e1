# %% [markdown]
# # 4. From loops to kernels
#
# The same pooling four times: as the definition says it, in NumPy, compiled by numba, and as a CUDA kernel. Each one is
# checked against the one before, for a fast wrong answer is worth nothing. Then two ideas that are worth more than any
# compiler: do less work (a window in $O(r)$), and move less memory.
#
# After this notebook you can turn a definition into a kernel step by step, count what it costs before you time it, and test
# CUDA code on a machine without a GPU. You need notebook 2.

# %%
import json
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numba
import numpy as np
from scene import coffee

from lalref import LocallyAdaptiveLoss

photo, labels, x = coffee()  # (H, W, 3), (H, W), (1, C, H, W)
u, y = x[0, 0].astype(np.float32), labels.astype(np.int32)  # one class's scores, (H, W)
r, sigma = 2, 1.0
w = np.exp(-0.5 * (np.arange(r + 1) / sigma) ** 2).astype(np.float32)  # w[d]

# %% [markdown]
# ## 1. As the definition says it
#
# $(A u)_p = \sum_{q \in G_p} w(d(p,q))\, u_q$. Four loops and an `if`. Nobody can misread it, and every later version will be
# held against it. That is what it is for; it is much too slow for more than a corner of the photograph.


# %%
def pool_loops(u, y, r, w):
    H, W = u.shape
    out = np.zeros_like(u)
    for i in range(H):
        for j in range(W):
            total = 0.0
            for a in range(max(0, i - r), min(H, i + r + 1)):
                for b in range(max(0, j - r), min(W, j + r + 1)):
                    if y[a, b] == y[i, j]:
                        total += w[max(abs(a - i), abs(b - j))] * u[a, b]
            out[i, j] = total
    return out


corner = (slice(60, 100), slice(80, 120))
by_definition = pool_loops(u[corner], y[corner], r, w)

# %% [markdown]
# ## 2. Whole images at a time
#
# Turn the loops inside out. The outer loops run over the 25 *places* of the window, the inner ones over all pixels, and those
# NumPy does. lalref's array engine is written this way, and so runs on NumPy, CuPy, PyTorch and JAX.


# %%
def pool_array(u, y, r, w):
    H, W = u.shape
    u_padded, y_padded = np.pad(u, r), np.pad(y, r, constant_values=-1)
    out = np.zeros_like(u)
    for a in range(2 * r + 1):
        for b in range(2 * r + 1):
            u_q, y_q = u_padded[a : a + H, b : b + W], y_padded[a : a + H, b : b + W]
            out += np.where(y_q == y, w[max(abs(a - r), abs(b - r))] * u_q, 0)
    return out


np.testing.assert_allclose(pool_array(u[corner], y[corner], r, w), by_definition, rtol=1e-4, atol=1e-5)

# %% [markdown]
# Its weakness is not the arithmetic. Each of the 25 places reads the image and reads and writes the sum: 25 trips through
# memory for one result. The processor waits.
#
# ## 3. Compiled
#
# numba takes the four loops *as they stand* and makes machine code of them. Now a pixel's sum stays in a register, the image
# is read once (its neighbours are in the cache), and nothing is written but the result.

# %%
pool_numba = numba.njit(pool_loops)
np.testing.assert_allclose(pool_numba(u, y, r, w), pool_array(u, y, r, w), rtol=1e-4, atol=1e-4)

# %% [markdown]
# lalref's numba engine begins here, and goes on: classes side by side in vector registers, the three stages in two sweeps
# over the logits, and threads. What remains of the trouble is the inner loop: it has an `if` that no vector unit likes, and
# $(2r+1)^2$ turns.
#
# ## 4. A window in O(r)
#
# A 31×31 window has 961 places. Must each be added? If the weights were a product of one function of the row and one of
# the column, as an ordinary Gaussian is, one would filter rows, then columns: $2(2r+1)$ operations. The chessboard distance
# is a *maximum*, and its weights are no product. As matrices: an ordinary Gaussian has rank 1, ours has rank $r + 1$.

# %%
far = 3
d_row, d_column = np.abs(np.mgrid[-far : far + 1, -far : far + 1])
chessboard = np.exp(-0.5 * (np.maximum(d_row, d_column) / 1.5) ** 2)
ordinary = np.exp(-0.5 * (d_row**2 + d_column**2) / 1.5**2)
print("ranks:", np.linalg.matrix_rank(ordinary), "and", np.linalg.matrix_rank(chessboard))

figure, axes = plt.subplots(1, 5, figsize=(10, 2.2))
boxes = [np.maximum(d_row, d_column) <= t for t in range(far, -1, -1)]
steps = -np.diff(np.exp(-0.5 * (np.arange(far + 2) / 1.5) ** 2), append=0)[: far + 1]
steps[far] = chessboard[0, 0]
for axis, picture, title in zip(
    axes,
    [chessboard, *(steps[t] * boxes[far - t] for t in range(far, -1, -1))],
    ["7×7 weights  =", *(f"{steps[t]:.2f} × box of radius {t}" for t in range(far, -1, -1))],
    strict=True,
):
    axis.imshow(picture, cmap="Blues", vmin=0, vmax=1)
    axis.set_title(title)
    axis.set_axis_off()
plt.show()

np.testing.assert_allclose(
    sum(s * box for s, box in zip(steps, boxes[::-1], strict=True)), chessboard, rtol=1e-12
)

# %% [markdown]
# The weights are a pile of $r + 1$ boxes, and a box *is* a product. Running sums would give each box in a few operations,
# whatever its size; but they add and subtract, and in float32 what should cancel doesn't. lalref only adds. Take one column of
# the window, at distance $t$ from the centre. Its cells weigh $w(\max(|i|, t))$: within $\pm t$ all weigh $w(t)$, beyond
# they weigh $w(|i|)$. So the column's sum is
#
# $$U_t = w(t) \underbrace{\sum_{|i| \le t} x_i}_{\text{grows outwards}} \;+\; \underbrace{\sum_{|i| > t} w(|i|)\, x_i}_{\text{grows inwards}}$$
#
# and *all* $U_0, \dots, U_r$ of a column come from reading it once. Then the window is $U_0$ of its middle column plus
# $U_t$ of the two columns at distance $t$. Neighbouring windows share their columns.


# %%
def pool_by_columns(u, r, w):
    """The window sums of one class, nothing else in the image: u (H, W), zeros outside."""
    H, W = u.shape
    x = np.pad(u, r)
    P = [x[r : r + H]] + [x[r - i : r - i + H] + x[r + i : r + i + H] for i in range(1, r + 1)]  # rows ±i
    outer = [np.zeros_like(P[0])]
    for i in range(r, 0, -1):
        outer.insert(0, outer[0] + w[i] * P[i])
    inner, out = 0.0, 0.0
    for t in range(r + 1):
        inner = inner + P[t]
        U = w[t] * inner + outer[t]  # (H, W + 2r)
        out = out + (U[:, r : r + W] if t == 0 else U[:, r - t : r - t + W] + U[:, r + t : r + t + W])
    return out


one_class = np.zeros_like(y)
for radius in (1, 2, 5, 15):
    weights = np.exp(-0.5 * (np.arange(radius + 1) / 4.0) ** 2).astype(np.float32)
    np.testing.assert_allclose(
        pool_by_columns(u, radius, weights), pool_numba(u, one_class, radius, weights), rtol=1e-3, atol=1e-2
    )

# %% [markdown]
# And the labels? Pool each class by itself, with zeros where the label is another: the sum for the class of the centre is the
# one to keep. That costs once for each class *in reach*, and in a label map that is nearly everywhere one.

# %%
by_class = np.zeros_like(u)
for k in np.unique(y):
    by_class = np.where(y == k, pool_by_columns(np.where(y == k, u, 0), r, w), by_class)
np.testing.assert_allclose(by_class, pool_numba(u, y, r, w), rtol=1e-4, atol=1e-4)

# %% [markdown]
# Count before you time. Additions and multiply-adds for one number: $(2r+1)^2$ cell by cell; by columns $r$ for the pairs
# of rows, $r$ and $r$ for the two running sums, $r + 1$ for the $U_t$, and $2r$ across: $6r + 1$. Of these $r + (r + 1)$ are
# multiply-adds, which are two operations each.
#
# On the right what was measured for the whole loss, value and gradient, of 2×21×321×321 scores (`roofline.json`; the command
# is at the end). From 3×3 to 31×31 the places grow by a factor of 107.

# %%
measured = json.loads(Path("roofline.json").read_text())
radii = np.arange(1, 16)
sizes = [int(k) for k in measured["numba seconds"]]
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8))
axes[0].loglog(2 * radii + 1, (2 * radii + 1) ** 2, label="cell by cell, $(2r+1)^2$")
axes[0].loglog(2 * radii + 1, 6 * radii + 1, label="by columns, $6r+1$")
axes[0].set(ylabel="additions a number")
milliseconds = [1e3 * s for s in measured["numba seconds"].values()]
axes[1].loglog(sizes, milliseconds, "o-", color="C1", label="lalref, numba engine")
places = [milliseconds[0] * (k / 3) ** 2 for k in sizes]
axes[1].loglog(sizes, places, ":", color="0.5", label="as the number of places")
axes[1].set(ylabel="milliseconds")
for axis in axes:
    axis.set(xlabel="window")
    axis.set_xticks(sizes, [f"{k}×{k}" for k in sizes])
    axis.minorticks_off()
    axis.legend()
plt.show()

# %% [markdown]
# ## 5. The roof
#
# Is it fast? Compared with what *can be*. A machine has a speed of arithmetic and a speed of memory. A program that does few
# operations for each byte it moves is bounded by the second: the slope of the roof. Many operations a byte, and the first
# bounds it: the flat part. Operations and bytes are counted from the code, for one score in float32; *each way* is forward, and
# again backward. What softmax and padding cost in NumPy is left out:
#
# | engine | operations | bytes |
# |---|---|---|
# | array | 7 at each of $(2r+1)^2$ places: an addition for the mean; a subtraction and an addition for what rounding took from it; the same three again on the way back; and an addition for the gradient | 124 at each place: a pooling selects (read, write) and adds (read both, write), 20; with a subtraction before it (read both, write) 32; in all $3 \cdot 20 + 2 \cdot 32$ |
# | numba | $(6r+1) + (2r+1) = 8r+2$ each way, and about 20 for exp | 16 in all: read the score, write its slope, read it, write the gradient |


# %%
def counted(engine, k):
    """(operations, bytes) a score."""
    r = (k - 1) // 2
    if engine == "array":
        return 7 * k * k, 124 * k * k
    return 2 * (8 * r + 2) + 20, 16


scores = np.prod(measured["shape"])
peak, bandwidth = measured["flops per second"], measured["bytes per second"]
intensity = np.geomspace(0.03, 300, 100)
figure, axis = plt.subplots(figsize=(6.5, 3.4))
axis.loglog(intensity, np.minimum(peak, intensity * bandwidth) / 1e9, color="k", lw=1.2)
for engine, colour in (("array", "C0"), ("numba", "C1")):
    for k, seconds in measured[f"{engine} seconds"].items():
        operations, moved = counted(engine, int(k))
        speed = operations * scores / seconds
        assert speed < min(peak, operations / moved * bandwidth)  # else the counts are wrong
        axis.plot(operations / moved, speed / 1e9, "o", color=colour)
        if engine == "numba":
            at = {"xy": (operations / moved, speed / 1e9), "xytext": (0, 6), "textcoords": "offset points"}
            axis.annotate(f"{k}×{k}", color=colour, fontsize=8, ha="center", rotation=30, **at)
axis.plot([], [], "o", color="C0", label="array engine, 3×3 to 7×7")
axis.plot([], [], "o", color="C1", label="numba engine")
axis.annotate("memory", (0.05, 0.06 * bandwidth / 1e9), rotation=32, va="bottom")
axis.annotate("arithmetic", (60, peak / 1e9), va="bottom")
axis.set(xlabel="operations for each byte moved", ylabel="billion operations a second")
axis.legend(loc="lower right")
plt.show()

# %% [markdown]
# The array engine sits on the far left: it moves some eighteen bytes for each operation, so that even a program that used all of
# the memory's speed would stay below this low piece of roof. Its dots lie well below it still, and the picture does not say why:
# NumPy uses one core of the two, and more is moved than was counted. The numba engine moved to the right (it fuses: what is loaded
# is used for everything), and only then up. "How far below the roof, and why" is a question that one can work on; "how many times
# faster than NumPy" is not.
#
# ## 6. The same in CUDA, on a CPU
#
# On a GPU thousands of threads run the same text. The rule that keeps it simple: *gather*. One thread owns one output and
# reads whatever it needs; nobody else writes there, so there is no atomic addition, and every run has the same bits. Because
# pooling is its own adjoint, the backward gathers, too.
#
# A block of threads shares a little fast memory. Each thread loads one pixel, all wait at a barrier, then each reads its
# neighbours' pixels. A forgotten barrier is the classic mistake: most of the time the others happen to be ready.

# %%
KERNEL = """
extern "C" __global__ void pool(const float* u, const int* y, const float* w, float* out, int H, int W, int r) {
    __shared__ float tile[16][16];
    const int i = blockIdx.y * (16 - 2 * r) + (int)threadIdx.y - r;  // the tile overlaps its neighbours by r
    const int j = blockIdx.x * (16 - 2 * r) + (int)threadIdx.x - r;
    const bool inside = 0 <= i && i < H && 0 <= j && j < W;
    tile[threadIdx.y][threadIdx.x] = inside ? u[i * W + j] : 0.0f;
    __syncthreads();  // BARRIER
    const int a = threadIdx.y, b = threadIdx.x;
    if (!inside || a < r || a >= 16 - r || b < r || b >= 16 - r) return;
    float total = 0.0f;
    for (int di = -r; di <= r; ++di)
        for (int dj = -r; dj <= r; ++dj)
            if (0 <= i + di && i + di < H && 0 <= j + dj && j + dj < W && y[(i + di) * W + j + dj] == y[i * W + j])
                total += w[max(abs(di), abs(dj))] * tile[a + di][b + dj];
    out[i * W + j] = total;
}
"""
GPP = shutil.which("g++")
if GPP:
    sys.path.insert(0, "../tests")
    from cuda_host.host import (
        HostModule,  # lalref's tests run kernels with it: a thread is a fiber of the CPU
    )

# %% [markdown]
# `HostModule` compiles this very text with g++ and runs it, one thread after the other, switching only at barriers. In which
# order? That is ours to choose: as numbered, backwards, shuffled. A right kernel gives the same bytes in all.


# %%
def launch(text, order):
    kernel = HostModule(text, ["pool"], order=order).get_function("pool")
    (H, W), inner = u.shape, 16 - 2 * r
    out = np.full_like(u, np.nan)
    kernel((-(-W // inner), -(-H // inner)), (16, 16), (u, y, w, out, np.int32(H), np.int32(W), np.int32(r)))
    return out


if GPP:
    numbered, backwards, shuffled = (launch(KERNEL, order) for order in (0, 1, 7))
    np.testing.assert_allclose(numbered, pool_numba(u, y, r, w), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(numbered, backwards)
    np.testing.assert_array_equal(numbered, shuffled)

    forgetful = KERNEL.replace("__syncthreads();  // BARRIER", "")
    wrong = [np.mean(~np.isclose(launch(forgetful, order), numbered, rtol=1e-4)) for order in (0, 1, 7)]
    print("without the barrier, wrong pixels in three orders:", [f"{share:.0%}" for share in wrong])
    assert min(wrong) > 0
else:
    print("skipped: there is no g++ here to compile the kernel with")

# %% [markdown]
# lalref's cuda engine is tested this way, every kernel, on any machine with a compiler; sanitizers look for races and for
# writes out of bounds on the way. What that can't tell is how fast it is. Here is the engine itself, on a corner of the
# photograph:

# %%
small = x[:, :, 60:92, 80:120].astype(np.float32), labels[None, 60:92, 80:120]
if GPP:
    from cuda_host.engine import served_by_name

    with served_by_name():
        value, gradient = LocallyAdaptiveLoss(engine="cuda").value_and_grad(*small)
    expected, expected_gradient = LocallyAdaptiveLoss(engine="array").value_and_grad(*small)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-7)
    print(f"kernels {value:.4f}, array engine {expected:.4f}")
else:
    print("skipped: there is no g++ here to compile the kernels with")

# %% [markdown]
# ## 7. Recompute, do not store
#
# A framework's backward keeps what the forward made: for each of the 25 places a copy of the shifted scores or a mask, then
# $z$, then softmax. For large images memory ends before patience does. The numba engine writes its slopes where the gradient
# will be, and pools them there; the cuda engine pools the scores a second time. Beside the gradient both keep a few numbers a
# *window*, none of them for each class; cuda also a scratch of a few channels: 32 MiB at most, or one channel where that is more.
#
# The figures above, each the fastest of several runs: `python notebooks/roofline.py`, on the two cores of an AVX-512 server; `lalref bench` compares with PyTorch
# and JAX on your machine, and [docs/performance.md](../docs/performance.md) tells the whole story, with what did not work.

# %% [markdown]
# ## Exercises
#
# 1. How many different $U_t$ does a window of radius $r$ use, and how many of them does it share with its right neighbour?
# 2. Why does $w(\max(|i|, |j|))$ need rank $r + 1$, and when does it need less?
# 3. In the kernel the tile is 16×16 and overlaps by $2r$. Which fraction of the loads is wasted at $r = 2$? At $r = 6$?
# 4. The kernel reads `y` from slow memory 25 times. Put the labels into the tile, too, and test it in three orders.
# 5. A scatter kernel (each thread adds its pixel to its neighbours' sums) needs atomic additions. What is lost besides time?

# %% [markdown]
# <details>
# <summary>Answers</summary>
#
# **1.** $2r + 1$ columns, each with one $U_t$. The right neighbour uses the same columns at *other* distances: it shares none of
# these sums, but it shares the reading and the running sums of $2r$ columns, from which all $U_t$ come.
#
# **2.** Its rows at distance $0, \dots, r$ from the middle are different: row $i$ is constant $w(|i|)$ for $|j| \le |i|$. They are
# independent unless two weights are equal. With `sigma=None` all are equal and the rank is 1.
#
# ```python
# assert np.linalg.matrix_rank(np.ones((7, 7))) == 1
# assert np.linalg.matrix_rank(chessboard) == far + 1
# ```
#
# **3.** $1 - (12/16)^2 = 44\,\%$ at $r = 2$, and at $r = 6$ $1 - (4/16)^2 = 94\,\%$. lalref loads no square tile there: each thread
# of a 256×1 block sums one column, and only 12 of 268 columns, 4 %, are summed for the neighbours' sake.
#
# **4.** Declare `__shared__ int label[16][16];`, load it beside the score with −1 outside, and compare
# `label[a + di][b + dj] == label[a][b]`. The test for the image's border can go, since −1 is no label.
#
# ```python
# if GPP:
#     shared = KERNEL.replace("__shared__ float tile[16][16];", "__shared__ float tile[16][16];\n__shared__ int label[16][16];")
#     shared = shared.replace("    __syncthreads();", "    label[threadIdx.y][threadIdx.x] = inside ? y[i * W + j] : -1;\n    __syncthreads();")
#     test = "0 <= i + di && i + di < H && 0 <= j + dj && j + dj < W && y[(i + di) * W + j + dj] == y[i * W + j]"
#     assert test in shared
#     shared = shared.replace(test, "label[a + di][b + dj] == label[a][b]")
#     for order in (0, 1, 7):
#         np.testing.assert_array_equal(launch(shared, order), numbered)
# ```
#
# **5.** The order of the additions is left to chance, and with it the last bits: two runs differ, and a test can no longer ask
# for equality. NaN that should stay with its class has to be kept out by hand, as before.
#
# </details>
