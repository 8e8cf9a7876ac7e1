"""The type of sixteen numbers that `loops_lanes` works with, and its operators + - * / & | == != > >=.

What moves lanes, or does anything with them that has no operator, is `loops_lanes`.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import lower_builtin, models, register_model, type_callable

LANES = 16


class Lanes(types.Type):
    """`LANES` scalars of one type, held in registers."""

    def __init__(self, scalar: Any) -> None:
        self.scalar = scalar
        super().__init__(f"Lanes({scalar})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(ELEMENTS[fe_type.scalar], LANES))


ELEMENTS = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: ir.IntType(32),
    types.int64: ir.IntType(64),
    types.boolean: ir.IntType(1),
}


def _binary(symbol: Any, real: str, integer: str) -> None:
    @type_callable(symbol)
    def typing(context: Any) -> Any:
        return lambda a, b: a if isinstance(a, Lanes) and a == b else None

    @lower_builtin(symbol, Lanes, Lanes)
    def lowering(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        is_real = isinstance(signature.args[0].scalar, types.Float)
        return getattr(builder, real if is_real else integer)(*args)


def _comparison(symbol: Any, sign: str) -> None:
    @type_callable(symbol)
    def typing(context: Any) -> Any:
        return lambda a, b: Lanes(types.boolean) if isinstance(a, Lanes) and a == b else None

    @lower_builtin(symbol, Lanes, Lanes)
    def lowering(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not isinstance(signature.args[0].scalar, types.Float):
            return builder.icmp_signed(sign, *args)
        if sign == "!=":  # unordered, so that x != x tells NaN
            return builder.fcmp_unordered(sign, *args)
        return builder.fcmp_ordered(sign, *args)


for _symbol, _real, _integer in (
    (operator.add, "fadd", "add"),
    (operator.sub, "fsub", "sub"),
    (operator.mul, "fmul", "mul"),
    (operator.truediv, "fdiv", "sdiv"),
    (operator.and_, "", "and_"),
    (operator.or_, "", "or_"),
):
    _binary(_symbol, _real, _integer)
for _symbol, _sign in ((operator.eq, "=="), (operator.ne, "!="), (operator.gt, ">"), (operator.ge, ">=")):
    _comparison(_symbol, _sign)
