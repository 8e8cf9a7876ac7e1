"""NumPy ports with one mistake each, after the descriptions."""

import numpy as np

from blind_ports.described.numpy_right import VOID, Port, log_softmax


class AlwaysCounts(Port):
    def divisor(self, normalize, dtype):
        return sum(self.same).astype(dtype)


class WeightsMissingInTheShares(Port):
    def shares(self, ratio, omega, S, p):
        return ratio ** (p - 1) / S


class WrapsAround(Port):
    def shift(self, u, cell, outside):
        return np.roll(u, (-cell[0], -cell[1]), axis=(-2, -1))


class SmoothingTurnedRound(Port):
    def target(self, onehot, alpha):
        if alpha == 0:
            return super().target(onehot, alpha)
        return alpha * onehot + (1 - alpha) / onehot.shape[1]


class AlwaysMean(Port):
    def base(self, omega, reduction):
        return omega.sum()


class OneAxisOnly(Port):
    def window(self, r):
        return [(0, j) for j in range(-r, r + 1)]


class ProbabilityWithoutLogarithm(Port):
    def cross_entropy(self, z, t):
        P = np.exp(log_softmax(z))
        hit = t * P
        return (t * (1 - P)).sum(1), P * hit.sum(1, keepdims=True) - hit

    def surprisal(self, merged):
        return 1 - merged, -np.ones_like(merged)


class CountsTheCentreTwice(Port):
    def window(self, r):
        return [*super().window(r), (0, 0)]


class WeightsAddAndWrongLayout(Port):
    def omega(self, y, class_weight, pixel_weight):
        omega = np.ones(y.shape)
        if class_weight is not None:
            omega = omega + np.asarray(class_weight)[np.where(y == VOID, 0, y)] - 1
        if pixel_weight is not None:
            omega = omega + pixel_weight - 1
        return omega

    def write(self, x_bar, axis, shape):
        return x_bar.reshape(shape)


always_counts = AlwaysCounts()
weights_missing_in_the_shares = WeightsMissingInTheShares()
wraps_around = WrapsAround()
smoothing_turned_round = SmoothingTurnedRound()
always_mean = AlwaysMean()
one_axis_only = OneAxisOnly()
probability_without_logarithm = ProbabilityWithoutLogarithm()
counts_the_centre_twice = CountsTheCentreTwice()
weights_add_and_wrong_layout = WeightsAddAndWrongLayout()
