"""Sixteen numbers at a time: a vector type for numba, so that a loop says what the processor is to do.

Numba vectorises plain loops when it can prove enough about them; an index that might be negative, an int32
that widens or two arrays that might overlap is enough to lose it, silently and with it a factor of eight.
Here a kernel takes `LANES` neighbouring numbers as one value, written ``load(a, i)``, works on it with + - *,
comparisons and `select`, and stores it. Machines with narrower registers get the same numbers in several steps.

No arithmetic of the loss may come in: only what a processor can do in an instruction or two. Nothing checks
an index.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import types
from numba.extending import intrinsic

from lalref.engines.loops_type import ELEMENTS, Lanes
from lalref.engines.loops_type import LANES as LANES

# For functions that only a kernel calls: Python needn't be able to, which saves half the time to compile, and they
# allocate nothing, so arrays needn't be counted on the way in and out.
inner = njit(error_model="numpy", _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


_INTEGER_OF = {types.float32: types.int32, types.float64: types.int64}
_FLOAT_OF = {integer: real for real, integer in _INTEGER_OF.items()}


def _vector(scalar: types.Type) -> ir.VectorType:
    return ir.VectorType(ELEMENTS[scalar], LANES)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Address of LANES elements of a 1-d array that are next to each other in memory."""
    data = context.make_array(array_type)(context, builder, array).data
    at = builder.gep(data, [index])
    return builder.bitcast(at, _vector(array_type.dtype).as_pointer())


def load_lanes(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    value = builder.load(_pointer(context, builder, array_type, array, index))
    value.align = array_type.dtype.bitwidth // 8
    return value


def masked_load_lanes(
    context: Any, builder: Any, array_type: Any, array: Any, index: Any, labels: Any, kind: Any
) -> Any:
    """LANES elements of an array, 0 where LANES labels are not `kind`."""
    value = load_lanes(context, builder, array_type, array, index)
    return builder.select(builder.icmp_signed("==", labels, kind), value, ir.Constant(value.type, None))


def splat(builder: Any, scalar_type: types.Type, scalar: Any) -> Any:
    vector = ir.Constant(_vector(scalar_type), ir.Undefined)
    vector = builder.insert_element(vector, scalar, ir.Constant(ir.IntType(32), 0))
    shuffle = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(vector, vector, shuffle)


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Call an intrinsic of LLVM; `name` is without the type."""
    function = builder.module.declare_intrinsic(
        name, fnty=ir.FunctionType(result, [a.type for a in arguments])
    )
    return builder.call(function, arguments)


def _suffix(scalar: Any) -> str:
    letter = "f" if isinstance(scalar, types.Float) else "i"
    return f"v{LANES}{letter}{scalar.bitwidth}"


def add_product(builder: Any, scalar: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the processor can."""
    return _call(builder, f"llvm.fmuladd.{_suffix(scalar)}", a.type, [a, b, c])


def shift_lanes(builder: Any, a: Any, b: Any, first: int) -> Any:
    """The lanes of a from `first` on, then those of b before it."""
    wanted = [first + lane for lane in range(LANES)]
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), LANES), wanted))


def _count_to(builder: Any, number: Any) -> Any:
    """The mask whose first `number` (int64) lanes are set."""
    int64 = ir.VectorType(ir.IntType(64), LANES)
    lane = ir.Constant(int64, list(range(LANES)))
    return builder.icmp_signed("<", lane, splat(builder, types.int64, number))


# --- Between memory and registers ------------------------------------------------------------------------------


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """array[index : index + LANES]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return load_lanes(context, builder, array, *args)

    return Lanes(array.dtype)(array, types.intp), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index : index + LANES] = value."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        done = builder.store(args[2], _pointer(context, builder, array, *args[:2]))
        done.align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def load_any(typingctx: Any, array: Any, index: Any, labels: Any, label_index: Any, label: Any) -> Any:
    """load(array, index), called like `load_of`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return load_lanes(context, builder, array, *args[:2])

    return Lanes(array.dtype)(array, types.intp, labels, types.intp, label), codegen


@intrinsic
def load_of(typingctx: Any, array: Any, index: Any, labels: Any, label_index: Any, label: Any) -> Any:
    """load(array, index) where load(labels, label_index) == label, else 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_at, at, labels_at, label_at, kind = args
        here = load_lanes(context, builder, labels, labels_at, label_at)
        return masked_load_lanes(context, builder, array, array_at, at, here, kind)

    return Lanes(array.dtype)(array, types.intp, labels, types.intp, label), codegen


@intrinsic
def load_members(typingctx: Any, array: Any, index: Any, members: Any, block: Any) -> Any:
    """load(array, index) in the lanes whose bit of members[block], as `bits_of` made it, is set, else 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_at, at, members_at, place = args
        value = load_lanes(context, builder, array, array_at, at)
        data = context.make_array(members)(context, builder, members_at).data
        mask = builder.bitcast(builder.load(builder.gep(data, [place])), ir.VectorType(ir.IntType(1), LANES))
        return builder.select(mask, value, ir.Constant(value.type, None))

    return Lanes(array.dtype)(array, types.intp, members, types.intp), codegen


@intrinsic
def peek(typingctx: Any, array: Any, index: Any) -> Any:
    """array[index] of a 1-d array; a negative index means what lies before it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.gep(context.make_array(array)(context, builder, args[0]).data, [args[1]]))

    return array.dtype(array, types.intp), codegen


@intrinsic
def fetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Let the cache begin to bring in what is at array[index]; any index will do."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        int32, at = ir.IntType(32), _pointer(context, builder, array, *args)
        at = builder.bitcast(at, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [at.type, int32, int32, int32])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=kind)
        builder.call(prefetch, [at, int32(0), int32(2), int32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def load_first(typingctx: Any, array: Any, index: Any, number: Any) -> Any:
    """array[index : index + number], then zeros; nothing beyond is read."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, mask = _pointer(context, builder, array, *args[:2]), _count_to(builder, args[2])
        align = ir.Constant(ir.IntType(32), array.dtype.bitwidth // 8)
        vector = _vector(array.dtype)
        name = f"llvm.masked.load.{_suffix(array.dtype)}.p0"
        return _call(builder, name, vector, [at, align, mask, ir.Constant(vector, None)])

    return Lanes(array.dtype)(array, types.intp, types.int64), codegen


@intrinsic
def store_first(typingctx: Any, array: Any, index: Any, number: Any, value: Any) -> Any:
    """array[index : index + number] = the first of value; nothing beyond is written."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, mask = _pointer(context, builder, array, *args[:2]), _count_to(builder, args[2])
        align = ir.Constant(ir.IntType(32), array.dtype.bitwidth // 8)
        name = f"llvm.masked.store.{_suffix(array.dtype)}.p0"
        _call(builder, name, ir.VoidType(), [args[3], at, align, mask])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64, value), codegen


@intrinsic
def spread(typingctx: Any, scalar: Any) -> Any:
    """The same number in every lane."""
    return Lanes(scalar)(scalar), lambda context, builder, signature, args: splat(builder, scalar, args[0])


@intrinsic
def fill(typingctx: Any, like: Any, number: Any) -> Any:
    """The same number in every lane, in the scalar type of the array or lanes `like`."""
    scalar = like.scalar if isinstance(like, Lanes) else like.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return splat(builder, scalar, context.cast(builder, args[1], number, scalar))

    return Lanes(scalar)(like, number), codegen


# --- Within registers --------------------------------------------------------------------------------------------


@intrinsic
def select(typingctx: Any, mask: Any, yes: Any, no: Any) -> Any:
    """In each lane: yes where mask, else no. What isn't chosen doesn't matter, NaN or not."""
    return yes(mask, yes, yes), lambda context, builder, signature, args: builder.select(*args)


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the processor can."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return add_product(builder, a.scalar, *args)

    return a(a, a, a), codegen


@intrinsic
def square_root(typingctx: Any, a: Any) -> Any:
    """The correctly rounded square root."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, f"llvm.sqrt.{_suffix(a.scalar)}", args[0].type, list(args))

    return a(a), codegen


@intrinsic
def bits(typingctx: Any, a: Any) -> Any:
    """The bit pattern of floats as integers, and the other way round."""
    other = Lanes(_INTEGER_OF.get(a.scalar) or _FLOAT_OF[a.scalar])
    return other(a), lambda context, builder, signature, args: builder.bitcast(args[0], _vector(other.scalar))


@intrinsic
def shift_left(typingctx: Any, a: Any, places: Any) -> Any:
    """Integer lanes times 2**places."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.shl(args[0], ir.Constant(args[0].type, [places.literal_value] * LANES))

    return (a(a, places), codegen) if isinstance(places, types.IntegerLiteral) else None


@intrinsic
def shift_right(typingctx: Any, a: Any, places: Any) -> Any:
    """Integer lanes divided by 2**places, rounded down, the sign kept."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ashr(args[0], ir.Constant(args[0].type, [places.literal_value] * LANES))

    return (a(a, places), codegen) if isinstance(places, types.IntegerLiteral) else None


@intrinsic
def to_float(typingctx: Any, a: Any) -> Any:
    """Integer lanes as floats of the same width."""
    real = Lanes(_FLOAT_OF[a.scalar])
    return real(a), lambda context, builder, signature, args: builder.sitofp(args[0], _vector(real.scalar))


@intrinsic
def widen(typingctx: Any, a: Any) -> Any:
    """Float lanes as float64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = _vector(types.float64)
        return args[0] if a.scalar == types.float64 else builder.fpext(args[0], wide)

    return Lanes(types.float64)(a), codegen


@intrinsic
def round_like(typingctx: Any, a: Any, like: Any) -> Any:
    """Float64 lanes rounded to the type of the lanes `like`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return args[0] if a == like else builder.fptrunc(args[0], _vector(like.scalar))

    return like(a, like), codegen


# --- From lanes to one number ----------------------------------------------------------------------------------


@intrinsic
def any_lane(typingctx: Any, mask: Any) -> Any:
    """Whether any lane of a mask is set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, f"llvm.vector.reduce.or.v{LANES}i1", ir.IntType(1), list(args))

    return types.boolean(mask), codegen


@intrinsic
def bits_of(typingctx: Any, mask: Any) -> Any:
    """A mask as an int16, a bit a lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(LANES))

    return types.int16(mask), codegen


@intrinsic
def largest(typingctx: Any, a: Any) -> Any:
    """The largest of integer lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = f"llvm.vector.reduce.smax.{_suffix(a.scalar)}"
        return _call(builder, name, ELEMENTS[a.scalar], list(args))

    return a.scalar(a), codegen
