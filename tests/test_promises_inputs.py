"""What is promised about wrong inputs: each is refused by name, with its value and what to do instead."""

import copy
import dataclasses
import inspect
import math
import pickle

import ml_dtypes
import numpy as np
import pytest
from samples import INF, NAN, OMEGA, V, X, Y, each_engine, refused

import lalref
from lalref import LocallyAdaptiveLoss, lal_hvp, lal_jvp, lal_loss, lal_value_and_grad
from lalref.options import Options
from lalref.oracle.inputs import VOID

CALLS = {
    "loss": lal_loss,
    "gradient": lal_value_and_grad,
    "jvp": lambda x, y, **options: lal_jvp(x, y, V, **options),
    "hvp": lambda x, y, **options: lal_hvp(x, y, V, **options),
    "inspect": lambda x, y, pixel_weight=None, **options: LocallyAdaptiveLoss(**options).inspect(
        x, y, pixel_weight=pixel_weight
    ),
    "parts": lambda x, y, pixel_weight=None, **options: LocallyAdaptiveLoss(**options).parts(
        x, y, pixel_weight=pixel_weight
    ),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


# ---- options --------------------------------------------------------------------------------------

EVEN = ["kernel_size", "odd int >= 1"]
WRONG = [
    ("kernel_size", 4, EVEN), ("kernel_size", 0, EVEN), ("kernel_size", -3, EVEN), ("kernel_size", 3.0, EVEN),
    ("kernel_size", (3, 2), EVEN), ("kernel_size", True, EVEN), ("kernel_size", "3", EVEN),
    ("kernel_size", None, EVEN),
    ("sigma", 0, ["> 0", "None"]), ("sigma", -1.0, ["> 0"]), ("sigma", NAN, ["> 0"]), ("sigma", "1", ["> 0"]),
    ("sigma", -INF, ["> 0"]), ("sigma", True, ["> 0"]),
    ("p", 0.5, [">= 1", "inf"]), ("p", NAN, [">= 1"]), ("p", -INF, [">= 1"]), ("p", None, [">= 1"]),
    ("p", "inf", [">= 1"]), ("p", 1 - 2**-53, [">= 1"]),
    ("stride", 0, ["int >= 1"]), ("stride", -1, ["int >= 1"]), ("stride", 1.5, ["int >= 1"]),
    ("stride", (1, 0), ["int >= 1"]),
    ("label_smoothing", -0.1, ["[0, 1]"]), ("label_smoothing", 1.5, ["[0, 1]"]),
    ("label_smoothing", NAN, ["[0, 1]"]), ("label_smoothing", None, ["[0, 1]"]),
    ("class_weight", [1, -1, 1], ["finite", ">= 0", "each class"]), ("class_weight", [1, INF, 1], ["finite"]),
    ("class_weight", [1, NAN, 1], ["finite"]), ("class_weight", 2.0, ["finite"]),
    ("class_weight", [[1], [1], [1]], ["finite"]), ("class_weight", "123", ["finite"]),
    ("class_weight", {0: 1.0, 1: 2.0, 2: 3.0}, ["sequence"]), ("class_weight", {1.0, 2.0, 3.0}, ["sequence"]),
    ("ignore_index", {255: 0}, ["sequence"]),
    ("ignore_index", 1.5, ["int", "sequence", "None"]), ("ignore_index", "255", ["int"]),
    ("ignore_index", (1, 2.5), ["int"]), ("ignore_index", True, ["int"]),
    ("space", "logit", ["'logits'", "'probabilities'"]), ("normalize", "sum", ["'weights'", "'count'"]),
    ("normalize", None, ["'weights'", "'count'"]),
    ("reduction", "average", ["'none'", "'mean'", "'sum'"]), ("reduction", None, ["'none'"]),
    ("empty", 0, ["'zero'", "'nan'", "'raise'"]), ("engine", "torch", ["'auto'", "'array'"]),
    ("axis", 1.0, ["int"]), ("axis", None, ["int"]), ("check", 1, ["True or False"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "words"), WRONG, ids=[f"{n}={v!r}" for n, v, _ in WRONG])
def test_a_wrong_option_is_refused_by_name_with_its_value_and_what_is_allowed(name, value, words):
    with refused(ValueError, f"{name}={value!r}", *words):
        LocallyAdaptiveLoss(**{name: value})


@pytest.mark.parametrize(("name", "value", "words"), WRONG[::5], ids=[f"{n}={v!r}" for n, v, _ in WRONG[::5]])
@each_call
def test_options_are_checked_before_any_array_is_looked_at(call, name, value, words):
    with refused(ValueError, name, *words):
        call(None, None, **{name: value})


def test_label_smoothing_has_no_meaning_in_probability_space():
    with refused(ValueError, "label_smoothing=0.1", "only 0", "probabilities"):
        LocallyAdaptiveLoss(space="probabilities", label_smoothing=0.1)
    assert LocallyAdaptiveLoss(space="probabilities", label_smoothing=0).label_smoothing == 0


def test_the_limits_themselves_are_allowed():
    for options in (
        {"p": 1}, {"p": INF}, {"label_smoothing": 0}, {"label_smoothing": 1}, {"kernel_size": 1},
        {"sigma": INF}, {"sigma": 5e-324}, {"sigma": 1e-160}, {"sigma": 1e300}, {"class_weight": [0, 0.0, 1]},
        {"ignore_index": ()}, {"kernel_size": np.int64(3), "p": np.float32(2), "stride": np.int8(2)},
        {"p": 1e300}, {"class_weight": np.ones(3)}, {"ignore_index": np.array([1, 2])},
    ):  # fmt: skip
        assert math.isfinite(lal_loss(X, Y % 3, **options))


def test_a_sigma_that_hardly_reaches_is_a_kernel_of_one_pixel():
    """w(d) that rounds to 0 reads nothing, however small sigma is."""
    right = lal_value_and_grad(X, Y, kernel_size=1)
    for sigma in (1e-3, 1e-160, 1e-300, 5e-324):
        value, grad = lal_value_and_grad(X, Y, sigma=sigma)
        assert value == right[0]
        assert (grad == right[1]).all()


def test_tuples_need_one_entry_for_each_spatial_axis():
    for name in ("kernel_size", "stride"):
        with refused(ValueError, f"{name}=(3, 1, 3)", "3 axes", "2 spatial axes", "give one int"):
            lal_loss(X, Y, **{name: (3, 1, 3)})
        with refused(ValueError, f"{name}=(3,)", "2 spatial axes"):
            lal_value_and_grad(X, Y, **{name: (3,)})


def test_a_class_weight_for_each_class():
    with refused(ValueError, "class_weight", "3 classes", "got 2"):
        lal_loss(X, Y, class_weight=[1, 1])
    with refused(ValueError, "class_weight", "3 classes", "got 4"):
        lal_loss(X, Y, class_weight=[1, 1, 1, 1])


def test_everything_after_the_arrays_is_by_keyword():
    for call in (lal_loss, lal_value_and_grad):
        with pytest.raises(TypeError, match="positional"):
            call(X, Y, 5)
    with pytest.raises(TypeError, match="positional"):
        lal_jvp(X, Y, V, 5)
    with pytest.raises(TypeError, match="positional"):
        LocallyAdaptiveLoss(5)
    with pytest.raises(TypeError, match="positional"):
        LocallyAdaptiveLoss()(X, Y, OMEGA)


def test_the_object_is_frozen_comparable_hashable_and_printable():
    one = LocallyAdaptiveLoss(kernel_size=3, class_weight=np.array([1, 2.0]), ignore_index=[255, 0])
    two = LocallyAdaptiveLoss(kernel_size=np.int32(3), class_weight=(1, 2), ignore_index=(255, 0))
    assert one == two
    assert hash(one) == hash(two)
    assert one != LocallyAdaptiveLoss(kernel_size=3)
    assert eval(repr(one)) == one
    with pytest.raises(AttributeError, match="kernel_size"):
        one.kernel_size = 5


def test_255_by_default_is_another_loss_than_255_asked_for():
    """Above 255 classes the first is refused and the second works; a cache by options must tell them apart."""
    default, asked = LocallyAdaptiveLoss(), LocallyAdaptiveLoss(ignore_index=255)
    assert default != asked
    assert len({default, asked, LocallyAdaptiveLoss(), LocallyAdaptiveLoss(ignore_index=np.uint8(255))}) == 2
    for one in (default, asked):
        copies = (
            eval(repr(one)),
            copy.deepcopy(one),
            pickle.loads(pickle.dumps(one)),
            dataclasses.replace(one),
        )
        assert all(each == one and hash(each) == hash(one) for each in copies)
    assert default != Options()
    assert default != 255


# ---- engines --------------------------------------------------------------------------------------


def test_an_engine_that_cannot_serve_the_call_says_so():
    for call in (lal_value_and_grad, CALLS["jvp"], CALLS["hvp"], CALLS["inspect"]):
        with refused(ValueError, 'engine="definition"', "loss alone", 'engine="array"'):
            call(X, Y, engine="definition")
    with refused(ValueError, 'engine="definition"', "no parts"):
        CALLS["parts"](X, Y, engine="definition")
    with refused(ValueError, 'engine="cuda"'):  # no GPU here, or no CuPy array
        lal_loss(X, Y, engine="cuda")


# ---- dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [np.int64, bool, complex, np.longdouble, ml_dtypes.float8_e4m3fn, object], ids=str
)
@each_call
def test_logits_of_another_dtype_are_refused(call, dtype):
    with refused(
        TypeError, "logits", "float16, bfloat16, float32, float64", np.dtype(dtype).name, "definition"
    ):
        call(X.astype(dtype), Y)


@pytest.mark.parametrize("dtype", [bool, float, np.float32, complex])
@each_call
def test_bool_and_float_labels_are_refused(call, dtype):
    with refused(TypeError, "labels must be integers", np.dtype(dtype).name):
        call(X, Y.astype(dtype))


def test_tangents_weights_and_upstream_are_floats():
    with refused(TypeError, "tangent", "int64"):
        lal_jvp(X, Y, V.astype(int))
    with refused(TypeError, "pixel_weight", "int64"):
        lal_loss(X, Y, pixel_weight=np.ones(Y.shape, int))
    with refused(TypeError, "grad_output", "int64"):
        lal_value_and_grad(X, Y, reduction="none", grad_output=np.ones(Y.shape, int))


@each_call
def test_what_is_no_array_is_refused(call):
    with refused(TypeError, "logits", "list", "numpy.asarray()"):
        call(X.tolist(), Y)
    with refused(TypeError, "labels", "list", "numpy.asarray()"):
        call(X, Y.tolist())
    with refused(TypeError, "pixel_weight", "float", "numpy.asarray()"):
        call(X, Y, pixel_weight=1.0)
    with refused(TypeError, "logits", "mask", "labels"):
        call(np.ma.masked_array(X), Y)
    with refused(TypeError, "labels", "mask"):
        call(X, np.ma.masked_array(Y))


# ---- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "y",
    [Y[:1], Y[:, None], Y[..., None], Y[0], Y[:, :4], Y.ravel(), Y.swapaxes(1, 2), np.zeros((), int)],
    ids=lambda y: str(y.shape),
)
@each_call
def test_shapes_that_do_not_fit_are_refused_with_both(call, y):
    """Never a silent squeeze, cast or resize."""
    with refused(ValueError, "(2, 5, 4)", "(2, 3, 5, 4)", f"got {y.shape}"):
        call(X, y)


def test_logits_of_a_wrong_rank_are_refused():
    for shape in ((3,), (), (1,) * 8):
        with refused(ValueError, "2 to 7 axes", "got shape ("):
            lal_loss(np.zeros(shape), np.zeros(shape[1:], int))
    with refused(ValueError, "at least one class", "axis 1", "(2, 0, 4)"):
        lal_loss(np.zeros((2, 0, 4)), np.zeros((2, 4), int))


def test_the_batch_axis_is_no_class_axis():
    for axis in (0, 4, -4, -5, 7):
        with refused(ValueError, f"axis={axis}", "(2, 3, 5, 4)", "1 to 3", "-1 to -3"):
            lal_loss(X, Y, axis=axis)


def test_tangents_weights_and_upstream_have_the_shape_of_what_they_go_with():
    with refused(ValueError, "tangent", "(2, 3, 5, 4)", "got (3, 5, 4)"):
        lal_jvp(X, Y, V[0])
    with refused(ValueError, "tangent", "(2, 5, 4, 3)", "got (2, 3, 5, 4)"):
        lal_hvp(np.moveaxis(X, 1, -1), Y, V, axis=-1)
    with refused(ValueError, "pixel_weight", "(2, 5, 4)", "got (1, 5, 4)"):
        lal_loss(X, Y, pixel_weight=OMEGA[:1])
    for wrong in (OMEGA, OMEGA[:, :1], np.ones(1)):
        with refused(ValueError, "grad_output", "scala", "'mean'", "got ("):
            lal_value_and_grad(X, Y, grad_output=wrong)
    with refused(ValueError, "grad_output", "map", "(2, 3, 2)", "got (2, 5, 4)"):
        lal_value_and_grad(X, Y, reduction="none", stride=2, grad_output=OMEGA)


# ---- labels and weights ---------------------------------------------------------------------------


@each_call
@each_engine
def test_a_label_out_of_range_is_refused_with_values_number_position_and_ignore_index(engine, call):
    y = Y.copy()
    y[0, 2, 1], y[1, 0, 0], y[1, 4, 3] = 17, -1, 17
    with refused(ValueError, "[0, 3)", "ignore_index=255", "3 of 40", "-1, 17", "first at (0, 2, 1)",
                 "ignore_index="):  # fmt: skip
        call(X, y, engine=engine)


def test_many_wrong_labels_are_not_all_listed():
    with refused(ValueError, "100, 101, 102, 103, 104, …", "first at (0, 0, 0)", "ignore_index=(1, 2)"):
        lal_loss(X, np.arange(100, 140).reshape(Y.shape), ignore_index=(1, 2))


@pytest.mark.parametrize("ignore_index", [None, 0, -100, (7, 8), ()])
def test_255_is_wrong_where_another_label_is_ignored(ignore_index):
    with refused(ValueError, "255", "ignore_index="):
        lal_loss(X, Y, ignore_index=ignore_index)


def test_more_than_255_classes_need_ignore_index_to_be_said():
    x, y = np.zeros((2, 256, 3)), np.array([[0, 1, 255], [255, 255, 4]])
    for call in (lal_loss, lal_value_and_grad):
        with refused(ValueError, "256 classes", "ignore_index=255", "ignore_index=None"):
            call(x, y)
    assert lal_loss(x, y, ignore_index=255, reduction="none")[0, 2] == 0
    assert lal_loss(x, y, ignore_index=None, reduction="none")[0, 2] > 0
    assert lal_loss(x[:, :255], np.minimum(y, 254), reduction="none").all()


@pytest.mark.parametrize("wrong", [-1.0, NAN, INF, -INF])
@each_call
def test_a_pixel_weight_that_is_negative_or_not_finite_is_refused(call, wrong):
    omega = OMEGA.copy()
    assert Y[1, 2, 3] != VOID
    omega[1, 2, 3] = wrong
    with refused(ValueError, "pixel_weight", "finite and >= 0", "1 are not", str(wrong), "(1, 2, 3)"):
        call(X, Y, pixel_weight=omega)


@each_call
def test_no_valid_window_is_refused_if_asked_for(call):
    y = np.full_like(Y, VOID)
    with refused(ValueError, "no valid window", "40 labels", 'empty="raise"'):
        call(X, y, empty="raise")
    with refused(ValueError, "no valid window"):
        call(X[:0], V[:0, 0].astype(int), empty="raise") if call is lal_loss else call(X, y, empty="raise")
    with refused(ValueError, "no valid window", "weight 0"):
        call(X, Y, empty="raise", pixel_weight=np.zeros(Y.shape))


def test_help_shows_the_options():
    names = {"kernel_size", "sigma", "stride", "space", "normalize", "p", "label_smoothing", "ignore_index",
             "class_weight", "reduction", "axis", "empty", "check", "engine", "pixel_weight"}  # fmt: skip
    defaults = {"kernel_size": 5, "sigma": 1.0, "stride": 1, "space": "logits", "p": 5.0, "engine": "auto"}
    for name in lalref.__all__:
        if name.startswith("lal_"):
            parameters = inspect.signature(getattr(lalref, name)).parameters
            assert names <= set(parameters)
            assert {n: parameters[n].default for n in defaults} == defaults
            assert all(parameters[n].kind is inspect.Parameter.KEYWORD_ONLY for n in names)
