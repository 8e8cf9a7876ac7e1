"""Does the loss help? Digits over photographs, a U-Net and a linear model, this loss against cross-entropy.

    python -m experiments.digits

`scenes` makes the images, `models` the two models, `training` trains one of them once, `metrics` scores it,
`runs` does all the runs and keeps what is done, and `report` turns the kept results into tables and pictures.
"""
