"""Which mistake each port of this folder holds, in the catalogue's words.

The names were given to the author together with the sentences; whether the oracle finds them was not looked at
when the ports were written. `EXPECTED` maps (framework, file, port) to what a diagnosis may be held against.
"""

from typing import NamedTuple

# Options of lalref.lal_loss that every port takes, and those that it takes beside them.
TAKES = "kernel_size,sigma,stride,space,normalize,p,label_smoothing,ignore_index,class_weight,reduction,axis"
TAKES_TOO = {
    "torch": "pixel_weight,empty",
    "jax": "pixel_weight",
    "numpy": "pixel_weight,empty,grad_output",
    "cpp": "pixel_weight,empty,grad_output",
}


class Mistake(NamedTuple):
    """`ids`: of the catalogue, none for a right port; None for a mistake of the author's own, told in `own`."""

    ids: tuple[str, ...] | None
    own: str = ""


RIGHT = {
    ("torch", "torch_right.py", "right"): Mistake(()),
    ("jax", "jax_right.py", "right"): Mistake(()),
    ("numpy", "numpy_right.py", "right"): Mistake(()),
    ("cpp", "cpp_ports.cpp", "right"): Mistake(()),
}

# One mistake each: the port has the catalogue's name, with underscores.
_SINGLE = {
    ("torch", "torch_single.py"): [
        "divided-by-the-batch-size",
        "upstream-of-the-first-window",
        "weights-twice",
        "flat-weights",
        "leaves-out-the-centre",
        "ignored-pixels-count",
        "no-windows-at-the-border",
        "flows-to-other-classes",
    ],
    ("jax", "jax_single.py"): [
        "only-the-labels-entry",
        "distance-not-squared",
        "reads-the-grid-only",
        "half-precision-inside",
        "no-root",
        "mirrors-the-border",
        "divisor-forgotten",
        "ignores-p",
    ],
    ("numpy", "numpy_single.py"): [
        "always-counts",
        "weights-missing-in-the-shares",
        "wraps-around",
        "smoothing-turned-round",
        "always-mean",
        "one-axis-only",
        "probability-without-logarithm",
        "counts-the-centre-twice",
    ],
    ("cpp", "cpp_ports.cpp"): [
        "drops-the-last-windows",
        "counts-instead-of-weights",
        "smaller-distance",
        "reads-every-class",
        "unweighted-neighbours",
        "upstream-twice",
        "average-of-logarithms",
        "ignores-pixel-weight",
    ],
}
SINGLE = {
    (*where, name.replace("-", "_")): Mistake((name,)) for where, names in _SINGLE.items() for name in names
}

PAIRS = {
    ("torch", "torch_more.py", "per_image_sum_and_swapped"): Mistake(
        ("per-image-then-sum", "height-and-width-swapped")
    ),
    ("torch", "torch_more.py", "single_precision_and_weights_only_below"): Mistake(
        ("single-precision-inside", "weights-only-below")
    ),
    ("torch", "torch_more.py", "too_little_label_and_per_image_mean"): Mistake(
        ("keeps-too-little-of-the-label", "per-image-then-mean")
    ),
    ("jax", "jax_more.py", "channels_last_as_first_and_no_factor_p"): Mistake(
        ("channels-last-read-as-first", "factor-p-forgotten")
    ),
    ("jax", "jax_more.py", "no_border_windows_and_maximum_detached"): Mistake(
        ("no-windows-at-the-border", "maximum-detached-outside")
    ),
    ("jax", "jax_more.py", "whole_exponents_and_void_as_zero"): Mistake(
        ("whole-exponents", "void-pools-as-class-zero")
    ),
    ("numpy", "numpy_single.py", "weights_add_and_wrong_layout"): Mistake(
        ("weights-add", "gradient-in-the-wrong-layout")
    ),
}

OWN = {
    ("torch", "torch_more.py", "divergence"): Mistake(
        None, "The divergence from the smoothed target, not the cross-entropy: its own entropy is taken away."
    ),
    # The author's own, but found in the catalogue by the score, and true of the port:
    ("torch", "torch_more.py", "neighbours_by_pixel_weight"): Mistake(
        ("weights-pool-too",), "A neighbour's pixel_weight weighs it in the average of its group too."
    ),
    ("torch", "torch_more.py", "sigma_of_the_kernel"): Mistake(
        None, "sigma grows with the kernel: it is multiplied by r / 2, which is 1 for a 5x5 window."
    ),
    # And so is this one.
    ("torch", "torch_more.py", "classes_one_by_one"): Mistake(
        ("per-class-then-mean",),
        "Each class has its own power mean; those of the classes that occur are averaged, or added up.",
    ),
    ("jax", "jax_more.py", "distance_in_strides"): Mistake(
        None, "The distance is measured in strides, not in pixels."
    ),
    # And this one.
    ("jax", "jax_more.py", "sum_bypasses_the_power_mean"): Mistake(
        ("plain-sum",), 'reduction="sum" adds up the weighted losses, without p.'
    ),
    ("jax", "jax_more.py", "smoothing_by_the_neighbourhood"): Mistake(
        None, "alpha goes to the classes of the pixels around, under the Gaussian, not to all classes alike."
    ),
    ("jax", "jax_more.py", "pixel_weight_merged_too"): Mistake(
        None, "A window's pixel_weight is the average of its group's, where its own is not 0."
    ),
    ("numpy", "numpy_own.py", "rows_in_place"): Mistake(
        None,
        "Rows are averaged in place from above: the rows below read averages; the backward does not know.",
    ),
    ("numpy", "numpy_own.py", "reached_step_by_step"): Mistake(
        None, "A neighbour counts only if an outward walk within its class leads to it."
    ),
    ("numpy", "numpy_own.py", "unit_noise"): Mistake(
        None, "The divisor is the root of the sum of the squared weights."
    ),
    ("numpy", "numpy_own.py", "integrated_gaussian"): Mistake(
        None, "A weight is the Gaussian's integral over the pixel, as a part of the centre's."
    ),
}

# Written later, by another hand, with the list of the catalogue's sentences at hand to be sure that they are not in it.
UNLISTED = {
    ("torch", "torch_own.py", "scaled_as_attention"): Mistake(
        None, "Merged scores are divided by the root of the number of classes."
    ),
    ("torch", "torch_own.py", "with_margin"): Mistake(
        None, "0.35 is taken from the label's merged score before softmax."
    ),
    ("jax", "jax_own.py", "rows_of_a_film"): Mistake(
        None, "Rows count as two pixels apart, columns as one, in the chessboard distance."
    ),
    ("jax", "jax_own.py", "weighted_by_their_own_powers"): Mistake(
        None, "The mean of the losses, each weighted by its power p - 1, in place of the power mean."
    ),
    ("numpy", "numpy_own.py", "poly_loss"): Mistake(
        None, "Half of what the target lacks in probability is added to the cross-entropy."
    ),
    ("cpp", "cpp_ports.cpp", "chamfer_distance"): Mistake(
        None, "The distance is the larger one and half of the smaller one."
    ),
    ("cpp", "cpp_ports.cpp", "classes_as_grades"): Mistake(
        None, "A group takes in the classes before and after its own."
    ),
}

EXPECTED = RIGHT | SINGLE | PAIRS | OWN | UNLISTED
