"""The columns of windows for `loops_pool`: all U_t of `LANES` columns, in registers, and their shifted sum.

With P_t the sum of the two rows (or of the shell) at distance t, S_t that of all within t, and O_t the weighted sum of
all beyond t, U_t = w(t) S_t + O_t is one column of a window under the weights that it has t columns away from
the centre. What is made here is code for a given number of t, one instruction after another: numba has no loop over
registers, and functions that call one another for every t take it several times as long to compile.

Which segments and channels are pooled is not said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.types import containers
from numba.extending import intrinsic

from lalref.engines.loops_lanes import (
    add_product,
    fill,
    inner,
    load_lanes,
    masked_load_lanes,
    peek,
    shift_lanes,
    splat,
)
from lalref.engines.loops_type import Lanes


def _item(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """One number of a 1-d array."""
    return builder.load(builder.gep(context.make_array(array_type)(context, builder, array).data, [index]))


def _tuple(context: Any, builder: Any, tuple_type: Any, values: Sequence[Any]) -> Any:
    return context.make_tuple(builder, tuple_type, values)


def pairs_of_rows(radius: int, masked: bool) -> Any:
    """Make the function that gives P_1 to P_radius of an image, of pixels of class `kind` alone if `masked`."""

    @intrinsic
    def pairs(typingctx: Any, x: Any, at: Any, labels: Any, j: Any, kind: Any, rows: Any) -> Any:
        result = containers.UniTuple(Lanes(x.dtype), radius)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x_at, begin, labels_at, column, wanted, rows_at = args

            def row(number: int) -> Any:
                index = ir.Constant(ir.IntType(64), number)
                place = builder.add(_item(context, builder, rows, rows_at, index), column)
                logits = builder.add(begin, place)
                if not masked:
                    return load_lanes(context, builder, x, x_at, logits)
                here = load_lanes(context, builder, labels, labels_at, place)
                return masked_load_lanes(context, builder, x, x_at, logits, here, wanted)

            pairs = [builder.fadd(row(2 * t - 1), row(2 * t)) for t in range(1, radius + 1)]
            return _tuple(context, builder, result, pairs)

        return result(x, types.int64, labels, types.int64, kind, rows), codegen

    return pairs


def folded_rows(count: int) -> Any:
    """Make the function that gives `count` neighbouring P_t, which are `step` apart in memory from x[at] on."""

    @intrinsic
    def folded(typingctx: Any, x: Any, at: Any, step: Any) -> Any:
        result = containers.UniTuple(Lanes(x.dtype), count)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x_at, place, apart = args
            P = []
            for _ in range(count):
                P.append(load_lanes(context, builder, x, x_at, place))
                place = builder.add(place, apart)
            return _tuple(context, builder, result, P)

        return result(x, types.int64, types.int64), codegen

    return folded


@intrinsic
def columns_of_rings(typingctx: Any, P: Any, S: Any, O: Any, weight: Any, first: Any, reach: Any) -> Any:
    """O before the first of these t, and their U_t, 0 beyond `reach`.

    Given are P, S before the first of them and O beyond the last; its w(t) is weight[first].
    """
    result = containers.Tuple((O, containers.UniTuple(O, len(P))))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        P_t = [builder.extract_value(args[0], t) for t in range(len(P))]
        S_t, O_t, weight_at, first_t, reach_at = args[1:]
        sums = []
        for row in P_t:
            S_t = builder.fadd(S_t, row)
            sums.append(S_t)
        nothing = ir.Constant(O_t.type, None)
        U = []
        for t in reversed(range(len(P))):
            distance = builder.add(first_t, ir.Constant(first_t.type, t))
            w = splat(builder, weight.dtype, _item(context, builder, weight, weight_at, distance))
            column = add_product(builder, O.scalar, w, sums[t], O_t)
            # beyond the window's last column nothing may be read, were it only to be multiplied by 0
            U.append(builder.select(builder.icmp_signed(">", distance, reach_at), nothing, column))
            O_t = add_product(builder, O.scalar, w, P_t[t], O_t)
        columns = _tuple(context, builder, result[1], U[::-1])
        return _tuple(context, builder, result, [O_t, columns])

    return result(P, S, O, weight, types.int64, types.int64), codegen


def shifted(lanes: Sequence[tuple[int, int]]) -> Any:
    """Make the function that adds up, for every (t, lane), U[t] from that lane on; U for two neighbouring vectors."""

    @intrinsic
    def sum_of_shifted(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            total = None
            for t, lane in lanes:
                here, beyond = (builder.extract_value(U, t) for U in args)
                part = shift_lanes(builder, here, beyond, lane)
                total = part if total is None else builder.fadd(total, part)
            return total

        return a.dtype(a, b), codegen

    return sum_of_shifted


def all_columns(cell: Any, radius: int, masked: bool) -> Any:
    """Make the function that works out U_0 to U_radius of a window of an image that is no larger, in one go."""
    pairs = pairs_of_rows(radius, masked)

    @inner
    def only_centre(x, at, labels, j, kind, window, rows):
        centre = peek(rows, 0) + j
        return (fill(x, peek(window.weight, 0)) * cell(x, at + centre, labels, centre, kind),)

    @inner
    def columns(x, at, labels, j, kind, window, rows):
        centre = peek(rows, 0) + j
        S = cell(x, at + centre, labels, centre, kind)
        P = pairs(x, at, labels, j, kind, rows)
        O, U = columns_of_rings(P, S, fill(x, 0), window.weight, 1, window.reach)
        return (fill(x, peek(window.weight, 0)) * S + O, *U)

    return columns if radius else only_centre
