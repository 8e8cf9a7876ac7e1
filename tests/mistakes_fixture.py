"""A textbook implementation as dense matrices, and deliberate mistakes in it: one override each.

Written for the oracle's own tests: it shares no code with the engines, the truth or the error unit, works
in the dtype it is given, and takes every option. A mistake in a forward stage has the backward that belongs
to it, so no gradient checker would find it.
"""

from types import SimpleNamespace

import numpy as np


class Textbook:
    """``f(logits, labels, **options) -> (value, gradient)``; P windows, Q pixels, C classes."""

    stage = ""

    def __call__(
        self, logits, labels, *, kernel_size=5, sigma=1.0, stride=1, space="logits", normalize="weights",
        p=5.0, label_smoothing=0.0, ignore_index=255, class_weight=None, reduction="mean", axis=1,
        empty="zero", pixel_weight=None, grad_output=1.0,
    ):  # fmt: skip
        o = SimpleNamespace(**{k: v for k, v in locals().items() if k not in ("self", "logits", "labels")})
        dtype = np.float64 if logits.dtype == np.float64 else np.float32
        x = np.moveaxis(logits.astype(dtype), axis, -1)  # (N, *S, C)
        N, *S, C = x.shape
        o.dtype, o.C, o.shape, o.axes = dtype, C, (N, *S), len(S)
        x, y = x.reshape(N * int(np.prod(S)), C), labels.reshape(-1).astype(int)
        at = np.indices((N, *S)).reshape(1 + o.axes, -1).T  # (Q, 1 + axes)
        ignored = np.isin(y, [] if ignore_index is None else ignore_index)  # (Q,)
        x = np.where(ignored[:, None], 0, x)
        omega = self.omega(y, o)
        on_grid = self.on_grid(at[:, 1:], np.array(self.per_axis(stride, o.axes), int), o)
        windows = np.flatnonzero(~ignored & on_grid & (omega > 0))
        omega, y_p = omega[windows], y[windows]

        member = self.member(at, y, windows, omega, o)  # (P, Q)
        d = self.distance(abs(at[windows, None, 1:] - at[None, :, 1:])).astype(dtype)
        w = np.where(member, 1 if sigma is None else self.gaussian(d, dtype(sigma)), 0).astype(dtype)
        D = self.divisor(w, member, o)  # (P,)
        if space == "logits":
            z = w @ x / D[:, None]
            t = self.target(y_p, z, o)
            ell = self.cross_entropy(z, t)
        else:
            ell = self.merged_entropy(w, D, x, y)

        value, share = self.pooled(ell, omega, at[windows], o)
        upstream = np.asarray(grad_output, dtype)
        if reduction == "none":
            index = (at[windows] // np.array([1, *self.per_axis(stride, o.axes)])).T
            grid = np.zeros(
                [N, *(-(-n // s) for n, s in zip(S, self.per_axis(stride, o.axes), strict=True))], dtype
            )
            grid[tuple(index)] = omega * ell
            value, share = grid, omega
            upstream = np.broadcast_to(upstream, grid.shape)[tuple(index)]
        ell_bar = self.upstream(upstream, share).astype(dtype)
        if space == "logits":
            z_bar = ell_bar[:, None] * self.slope(z, t, x[windows], y_p)
            x_bar = self.pool_back(w, D, z_bar, windows)
        else:
            x_bar = self.probabilities_back(ell_bar, w, D, x, y)
        x_bar = self.finish(x_bar, ignored)
        if len(windows) == 0 and reduction != "none":
            value = dtype(np.nan if empty == "nan" else 0)
        return value, np.moveaxis(x_bar.reshape(N, *S, C), -1, axis).astype(logits.dtype)

    # stage 1

    def per_axis(self, value, axes):
        return (value,) * axes if np.ndim(value) == 0 else value

    def omega(self, y, o):
        omega = np.ones(y.shape, o.dtype)
        if o.class_weight is not None:
            omega = np.asarray(o.class_weight, o.dtype)[np.clip(y, 0, o.C - 1)]
        return omega if o.pixel_weight is None else omega * o.pixel_weight.reshape(-1)

    def on_grid(self, at, stride, o):
        return (at % stride == 0).all(1)

    def box(self, at_p, at_q, o):
        radius = (np.array(self.per_axis(o.kernel_size, o.axes), int) - 1) // 2
        return (abs(at_p - at_q) <= radius).all(-1)

    def member(self, at, y, windows, omega, o):
        same_image = at[windows, None, 0] == at[None, :, 0]
        return same_image & self.box(at[windows, None, 1:], at[None, :, 1:], o) & (y[windows, None] == y)

    def distance(self, apart):
        return apart.max(-1, initial=0)

    def gaussian(self, d, sigma):
        return np.exp(-((d / sigma) ** 2) / 2)

    def divisor(self, w, member, o):
        return (member if o.normalize == "count" else w).sum(1).astype(w.dtype)

    # stage 2

    def log_softmax(self, z):
        a = z - z.max(1, keepdims=True, initial=-np.inf)
        return a - np.log(np.exp(a).sum(1, keepdims=True))

    def target(self, y, z, o):
        alpha = o.label_smoothing
        return ((1 - alpha) * (y[:, None] == np.arange(o.C)) + alpha / o.C).astype(z.dtype)

    def cross_entropy(self, z, t):
        return -(t * self.log_softmax(z)).sum(1)

    def merged_entropy(self, w, D, x, y):
        u = np.exp(self.log_softmax(x))[np.arange(len(y)), np.clip(y, 0, x.shape[1] - 1)]  # (Q,)
        return -np.log(w @ u / D)

    # stage 3

    def pooled(self, ell, omega, at, o):
        if o.reduction == "none" or ell.size == 0:
            return None, omega
        top = ell.max()
        if top == 0:
            return top, 0 * ell
        if o.p == np.inf:
            tied = np.where(ell >= (1 - 16 * np.finfo(ell.dtype).eps) * top, omega, 0)
            return top, tied / tied.sum()
        r = ell / top
        S, B = (omega * r**o.p).sum(), self.base(omega, o)
        return self.rooted(top, S / B, o.p), self.shares(omega, r, S, B, o.p)

    def base(self, omega, o):
        return omega.sum() if o.reduction == "mean" else omega.dtype.type(1)

    def rooted(self, top, mean, p):
        return top * mean ** (1 / p)

    def shares(self, omega, r, S, B, p):
        return omega * r ** (p - 1) / S * (S / B) ** (1 / p)

    # backward

    def upstream(self, grad_output, share):
        return grad_output * share

    def slope(self, z, t, x_p, y):
        return np.exp(self.log_softmax(z)) - t

    def pool_back(self, w, D, z_bar, windows):
        return w.T @ (z_bar / D[:, None])

    def probabilities_back(self, ell_bar, w, D, x, y):
        u = np.exp(self.log_softmax(x))  # (Q, C)
        own = u[np.arange(len(y)), np.clip(y, 0, x.shape[1] - 1)]
        R = ell_bar @ (w * own / (w @ own)[:, None])  # (Q,)
        return R[:, None] * (u - (y[:, None] == np.arange(x.shape[1])))

    def finish(self, x_bar, ignored):
        return x_bar


MISTAKES = []


def mistake(stage):
    """Collect a subclass; its docstring is the sentence, its name the id."""

    def collect(cls):
        cls.stage = stage
        MISTAKES.append(cls)
        return cls

    return collect


# ---- stage 1, each with the backward that belongs to it


@mistake("pooling")
class EuclideanDistance(Textbook):
    """The weight falls with the Euclidean distance."""

    def distance(self, apart):
        return np.sqrt((apart**2).sum(-1))


@mistake("pooling")
class CityBlockDistance(Textbook):
    """The weight falls with the sum of the distances along the axes."""

    def distance(self, apart):
        return apart.sum(-1)


@mistake("pooling")
class GaussianWithoutHalf(Textbook):
    """The weight is exp(-(d/sigma)²)."""

    def gaussian(self, d, sigma):
        return np.exp(-((d / sigma) ** 2))


@mistake("pooling")
class SigmaNotSquared(Textbook):
    """The weight is exp(-d²/(2 sigma)): nobody notices at sigma = 1."""

    def gaussian(self, d, sigma):
        return np.exp(-(d**2) / (2 * sigma))


@mistake("pooling")
class WindowTooShort(Textbook):
    """The window lacks its last row and column, as range(-r, r) does."""

    def box(self, at_p, at_q, o):
        radius = (o.kernel_size - 1) // 2
        step = at_q - at_p
        return ((step >= -radius) & (step <= max(radius - 1, 0))).all(-1)


@mistake("pooling")
class WrapsAround(Textbook):
    """The window continues at the opposite border, as with np.roll."""

    def box(self, at_p, at_q, o):
        size, radius = np.array(o.shape[1:]), (np.array(self.per_axis(o.kernel_size, o.axes)) - 1) // 2
        apart = abs(at_p - at_q)
        return (np.minimum(apart, size - apart) <= radius).all(-1)


@mistake("pooling")
class ReadsEveryClass(Textbook):
    """The window averages all its pixels, of whatever class."""

    def member(self, at, y, windows, omega, o):
        return super().member(at, 0 * y, windows, omega, o)


@mistake("pooling")
class LeavesOutTheCentre(Textbook):
    """The window averages the neighbours without the pixel itself, unless it has none."""

    def member(self, at, y, windows, omega, o):
        member = super().member(at, y, windows, omega, o)
        others = member & (np.arange(len(y)) != windows[:, None])
        return np.where(others.any(1)[:, None], others, member)


@mistake("pooling")
class WeightlessPixelsAreNoNeighbours(Textbook):
    """Pixels of weight 0 are left out of the groups too, not only their windows."""

    def member(self, at, y, windows, omega, o):
        return super().member(at, y, windows, omega, o) & (self.omega(y, o) > 0)


@mistake("pooling")
class DividesByTheWindowArea(Textbook):
    """The sum is divided by the weights of the whole window, members or not."""

    def divisor(self, w, member, o):
        r = (o.kernel_size - 1) // 2
        d = np.maximum(*abs(np.mgrid[-r : r + 1, -r : r + 1]))
        return np.full(len(w), self.gaussian(d.astype(w.dtype), w.dtype.type(o.sigma)).sum(), w.dtype)


@mistake("pooling")
class IgnoresNormalize(Textbook):
    """normalize="count" is taken and forgotten."""

    def divisor(self, w, member, o):
        return w.sum(1)


@mistake("pooling")
class GridStartsHalfAStrideIn(Textbook):
    """Windows stand at stride // 2, stride // 2 + stride, and so on."""

    def on_grid(self, at, stride, o):
        return ((at - stride // 2) % stride == 0).all(1)


# ---- stage 2


@mistake("cross-entropy")
class LogOfSoftmaxPlusEpsilon(Textbook):
    """log(softmax + 1e-7), against log 0."""

    def log_softmax(self, z):
        a = np.exp(z - z.max(1, keepdims=True, initial=-np.inf))
        return np.log(a / a.sum(1, keepdims=True) + z.dtype.type(1e-7))


@mistake("cross-entropy")
class SmoothsOnlyTheOthers(Textbook):
    """The smoothed target gives alpha / (C - 1) to each of the other classes, nothing to its own."""

    def target(self, y, z, o):
        onehot = (y[:, None] == np.arange(o.C)).astype(z.dtype)
        return (1 - o.label_smoothing) * onehot + o.label_smoothing / max(o.C - 1, 1) * (1 - onehot)


@mistake("cross-entropy")
class SmoothingOnTop(Textbook):
    """alpha / C is added to the one-hot target, which then sums to more than 1."""

    def target(self, y, z, o):
        return ((y[:, None] == np.arange(o.C)) + o.label_smoothing / o.C).astype(z.dtype)


@mistake("cross-entropy")
class IgnoresSmoothing(Textbook):
    """label_smoothing is taken and forgotten."""

    def target(self, y, z, o):
        return (y[:, None] == np.arange(o.C)).astype(z.dtype)


@mistake("cross-entropy")
class ExpWithoutTheMaximum(Textbook):
    """exp of the logits as they are, which overflows."""

    def log_softmax(self, z):
        return z - np.log(np.exp(z).sum(1, keepdims=True))


@mistake("cross-entropy")
class AverageOfLogarithms(Textbook):
    """In probability space, the average of log u and not the logarithm of the average."""

    def merged_entropy(self, w, D, x, y):
        own = self.log_softmax(x)[np.arange(len(y)), np.clip(y, 0, x.shape[1] - 1)]
        return -(w @ own) / D

    def probabilities_back(self, ell_bar, w, D, x, y):
        R = (ell_bar / D) @ w
        return R[:, None] * (np.exp(self.log_softmax(x)) - (y[:, None] == np.arange(x.shape[1])))


# ---- stage 3


@mistake("minkowski")
class NoRoot(Textbook):
    """The mean of the powers, its root forgotten, in value and gradient alike."""

    def pooled(self, ell, omega, at, o):
        if o.reduction == "none" or ell.size == 0:
            return None, omega
        B = self.base(omega, o)
        return (omega * ell**o.p).sum() / B, o.p * omega * ell ** (o.p - 1) / B


@mistake("minkowski")
class PerImageThenMean(Textbook):
    """Each image is pooled by itself, then the images are averaged."""

    def pooled(self, ell, omega, at, o):
        if o.reduction == "none" or ell.size == 0:
            return None, omega
        images = np.unique(at[:, 0])
        value, share = ell.dtype.type(0), np.zeros_like(ell)
        for n in images:
            here = at[:, 0] == n
            part, share[here] = super().pooled(ell[here], omega[here], at[here], o)
            value = value + part / len(images)
        return value, share / len(images)


@mistake("minkowski")
class IgnoredPixelsCount(Textbook):
    """The mean divides by all windows, valid or not."""

    def base(self, omega, o):
        total = np.prod([-(-n // o.stride) for n in o.shape[1:]]) * o.shape[0]
        return omega.dtype.type(total if o.reduction == "mean" else 1)


@mistake("minkowski")
class CountsInsteadOfWeights(Textbook):
    """The mean divides by the number of windows where windows have weights."""

    def base(self, omega, o):
        return omega.dtype.type(len(omega) if o.reduction == "mean" else 1)


@mistake("minkowski")
class WeightsInsideThePower(Textbook):
    """The weight multiplies the loss before the power is taken."""

    def pooled(self, ell, omega, at, o):
        value, share = super().pooled(omega * ell, np.ones_like(omega), at, o)
        return value, omega * share


@mistake("minkowski")
class WholeExponents(Textbook):
    """The exponent is cast to an integer."""

    def pooled(self, ell, omega, at, o):
        return super().pooled(ell, omega, at, SimpleNamespace(**{**vars(o), "p": int(o.p)}))


# ---- backward alone: the loss is right


@mistake("backward")
class NeighboursDivisor(Textbook):
    """Pools first and divides by the neighbour's weight sum, not by the window's own."""

    def pool_back(self, w, D, z_bar, windows):
        x_bar = w.T @ z_bar
        x_bar[windows] /= D[:, None]
        return x_bar


@mistake("backward")
class CentreOnly(Textbook):
    """Only the centre of a window receives its gradient."""

    def pool_back(self, w, D, z_bar, windows):
        x_bar = np.zeros((w.shape[1], z_bar.shape[1]), w.dtype)
        x_bar[windows] = z_bar / D[:, None]
        return x_bar


@mistake("backward")
class UnweightedNeighbours(Textbook):
    """All members of a window receive the same, however far away."""

    def pool_back(self, w, D, z_bar, windows):
        return (w > 0).astype(w.dtype).T @ (z_bar / (w > 0).sum(1)[:, None].astype(w.dtype))


@mistake("backward")
class SoftmaxOfThePixelsOwnLogits(Textbook):
    """softmax(x_p) where softmax of the merged vector belongs."""

    def slope(self, z, t, x_p, y):
        return np.exp(self.log_softmax(x_p)) - t


@mistake("backward")
class OnehotForASmoothedTarget(Textbook):
    """The backward subtracts the one-hot label, though the target is smoothed."""

    def slope(self, z, t, x_p, y):
        return np.exp(self.log_softmax(z)) - (y[:, None] == np.arange(z.shape[1]))


@mistake("backward")
class ExponentNotLowered(Textbook):
    """The shares carry r^p in place of r^(p - 1)."""

    def shares(self, omega, r, S, B, p):
        return omega * r**p / S * (S / B) ** (1 / p)


@mistake("backward")
class RootNotDifferentiated(Textbook):
    """The shares are those of the mean power: the factor that the root adds is left out."""

    def shares(self, omega, r, S, B, p):
        return omega * r ** (p - 1) / B


@mistake("backward")
class UpstreamIgnored(Textbook):
    """The upstream gradient is taken and forgotten."""

    def upstream(self, grad_output, share):
        return share + 0 * grad_output


@mistake("backward")
class UpstreamTwice(Textbook):
    """The upstream gradient is multiplied in twice."""

    def upstream(self, grad_output, share):
        return grad_output**2 * share


@mistake("backward")
class IgnoredPixelsReceive(Textbook):
    """Ignored pixels receive a gradient: the softmax part that was never masked."""

    def finish(self, x_bar, ignored):
        leak = np.mean(abs(x_bar)) if x_bar.size else 0
        return np.where(ignored[:, None], leak, x_bar)


@mistake("backward")
class MergedProbabilityForThePixelsOwn(Textbook):
    """In probability space, every member receives by its weight alone, however small its own probability."""

    def probabilities_back(self, ell_bar, w, D, x, y):
        R = ell_bar @ (w / w.sum(1)[:, None])
        return R[:, None] * (np.exp(self.log_softmax(x)) - (y[:, None] == np.arange(x.shape[1])))


@mistake("state")
class WritesToItsInput(Textbook):
    """Takes the maximum out of the caller's logits in place."""

    def __call__(self, logits, labels, *, axis=1, **options):
        answer = super().__call__(logits, labels, axis=axis, **options)
        logits -= logits.max(axis=axis, keepdims=True)
        return answer
