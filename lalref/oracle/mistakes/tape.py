"""Reverse-mode derivatives of small NumPy programs: each array remembers how it was made.

So that a wrong loss brings its own consistent gradient without anybody deriving it: the catalogue writes
forward formulas only. Nothing about the loss may come in, and no operation that no formula needs.
"""

# mypy: disable-error-code="no-any-return"
# An operation between a Traced and an array, which is Any, is Any to mypy, and a Traced to Python.

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Array = Any  # np.ndarray of the working dtype
Vjp = Callable[[Array], Array]

_order: Iterator[int] = itertools.count()


class Traced:
    """An array, and for each array it was made from, what carries a gradient back to that one."""

    __array_ufunc__ = None  # ndarray + Traced is ours

    def __init__(self, value: Array, *parents: tuple[Traced, Vjp]) -> None:
        self.value, self.parents, self.order = value, parents, next(_order)

    def __add__(self, other: Any) -> Traced:
        return _binary(self, other, np.add, lambda a, b, g: g, lambda a, b, g: g)

    def __sub__(self, other: Any) -> Traced:
        return _binary(self, other, np.subtract, lambda a, b, g: g, lambda a, b, g: -g)

    def __mul__(self, other: Any) -> Traced:
        return _binary(self, other, np.multiply, lambda a, b, g: g * b, lambda a, b, g: g * a)

    def __truediv__(self, other: Any) -> Traced:
        return _binary(self, other, np.divide, lambda a, b, g: g / b, lambda a, b, g: -g * a / b / b)

    def __rsub__(self, other: Any) -> Traced:
        return -self + other

    def __neg__(self) -> Traced:
        return Traced(-self.value, (self, lambda g: -g))

    def __pow__(self, k: float) -> Traced:
        v = self.value
        return Traced(v**k, (self, lambda g: g * (k * v ** (k - 1) if k != 1 else 1)))

    def __getitem__(self, index: Any) -> Traced:
        def back(g: Array) -> Array:
            out = np.zeros_like(self.value)
            np.add.at(out, index, g)
            return out

        return Traced(self.value[index], (self, back))

    __radd__ = __add__
    __rmul__ = __mul__

    def sum(self, axis: int | None = None) -> Traced:
        """Sum over one axis, or over all."""
        shape = self.value.shape
        widen = (lambda g: g) if axis is None else (lambda g: np.expand_dims(g, axis))
        return Traced(self.value.sum(axis), (self, lambda g: np.broadcast_to(widen(g), shape)))


def _binary(a: Traced, b: Any, op: Any, to_a: Any, to_b: Any) -> Traced:
    v, w = a.value, b.value if isinstance(b, Traced) else b
    parents = [(a, lambda g: _fitted(to_a(v, w, g), np.shape(v)))]
    if isinstance(b, Traced):
        parents.append((b, lambda g: _fitted(to_b(v, w, g), np.shape(w))))
    return Traced(op(v, w), *parents)


def _fitted(g: Array, shape: tuple[int, ...]) -> Array:
    """Sum `g` over the axes along which the operand was broadcast."""
    g = g.sum(tuple(range(np.ndim(g) - len(shape)))) if np.ndim(g) > len(shape) else g
    thin = tuple(i for i, n in enumerate(shape) if n == 1 and np.shape(g)[i] != 1)
    return g.sum(thin, keepdims=True) if thin else g


def exp(x: Traced) -> Traced:
    """e to the x."""
    value = np.exp(x.value)
    return Traced(value, (x, lambda g: g * value))


def log(x: Traced) -> Traced:
    """Natural logarithm."""
    return Traced(np.log(x.value), (x, lambda g: g / x.value))


def linear(A: Array, x: Traced) -> Traced:
    """A @ x for a constant matrix A."""
    return Traced(A @ x.value, (x, lambda g: A.T @ g))


def where(mask: Array, x: Traced, other: Any) -> Traced:
    """x where the mask is true, a constant elsewhere; nothing flows through what is left out."""
    return Traced(np.where(mask, x.value, other), (x, lambda g: np.where(mask, g, 0)))


def column(x: Traced) -> Traced:
    """(R,) as (R, 1)."""
    return Traced(x.value[:, None], (x, lambda g: g[:, 0]))


def vjp(f: Callable[[Traced], Traced], x: Array) -> tuple[Array, Vjp]:
    """Return f(x), and the function that carries a gradient of f(x) back to x."""
    leaf = Traced(x)
    out = f(leaf)

    def back(g: Array) -> Array:
        reached, pending = {}, [out]
        while pending:
            node = pending.pop()
            if node.order not in reached:
                reached[node.order] = node
                pending += [parent for parent, _ in node.parents]
        grads: dict[int, Array] = {out.order: g}
        for order in sorted(reached, reverse=True):
            for parent, carry in reached[order].parents:
                share = carry(grads[order])
                grads[parent.order] = grads[parent.order] + share if parent.order in grads else share
        return grads.get(leaf.order, np.zeros_like(x))

    return out.value, back
