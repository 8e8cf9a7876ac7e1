"""examples/train_voc.py where files are missing or damaged: before the first step, while it trains, and after."""

import contextlib
import re
import shutil

import numpy as np
import pytest
from voc_folder import SIZES

pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")


def spoil(voc, how):
    photo, mask = voc / "JPEGImages" / "c.jpg", voc / "SegmentationClass" / "c.png"
    if how == "photograph missing":
        photo.unlink()
    elif how == "photograph cut short":
        photo.write_bytes(photo.read_bytes()[:300])
    elif how == "mask missing":
        mask.unlink()
    elif how == "mask damaged":
        whole = mask.read_bytes()
        mask.write_bytes(whole[: len(whole) // 2])
    elif how == "mask of colours":
        Image.open(mask).convert("RGB").save(mask)
    elif how == "mask of another size":
        Image.open(mask).resize((9, 9)).save(mask)
    else:
        Image.fromarray(np.full(SIZES["c"], 77, np.uint8)).save(mask)
    return (photo if "photograph" in how else mask).name


WAYS = [
    "photograph missing",
    "photograph cut short",
    "mask missing",
    "mask damaged",
    "mask of colours",
    "mask of another size",
    "mask of an unknown class",
]


@pytest.mark.parametrize("spoilt", ["train list", "val list", "val list of another kind", "val mask", *WAYS])
def test_what_is_missing_or_damaged_is_named_before_the_first_step(
    train_voc, command, voc, monkeypatch, tmp_path, spoilt
):
    if spoilt.endswith("list"):
        name = f"{spoilt.split()[0]}.txt"
        (voc / "ImageSets" / "Segmentation" / name).unlink()
    elif spoilt == "val list of another kind":
        name = "val.txt"
        (voc / "ImageSets" / "Segmentation" / name).write_bytes(b"\x89PNG\xff")
    elif spoilt == "val mask":
        name = "w.png"
        (voc / "SegmentationClass" / name).write_bytes(b"\x89PNG")
    else:
        name = spoil(voc, spoilt)
    monkeypatch.setattr(train_voc, "next_batch", lambda *_: pytest.fail("training has begun"))
    code, said, result = command()
    assert code == 1
    assert name in said
    assert result is None
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_no_image_that_can_be_read_is_an_error_even_where_bad_ones_are_skipped(command, voc):
    for name in "vw":
        (voc / "JPEGImages" / f"{name}.jpg").unlink()
    code, said, result = command("--on-bad-file", "skip")
    assert code == 1
    assert "no image of the 2 in val.txt can be read" in said
    assert result is None


@pytest.mark.parametrize("how", WAYS)
def test_a_bad_file_is_named_and_skipped_when_asked(command, voc, how):
    name = spoil(voc, how)
    code, said, result = command("--on-bad-file", "skip")
    assert code == 0
    assert len(result["skipped at some time"]) == 1
    assert name in result["skipped at some time"][0]
    assert "skipped:" in said
    assert len(result["losses"]) == 6


@pytest.fixture
def breaks_in_step_3(train_voc, voc, monkeypatch):
    """Run in this context, all masks of the train list break when the third step asks for its images."""
    batch = train_voc.next_batch

    def next_batch(root, names, position, *rest):
        if position == 4:
            for name in "abcde":
                (voc / "SegmentationClass" / f"{name}.png").write_bytes(b"\x89PNG")
        return batch(root, names, position, *rest)

    @contextlib.contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr(train_voc, "next_batch", next_batch)
            yield

    return context


def test_a_file_that_breaks_while_training_stops_the_run_and_once_mended_nothing_is_lost(
    command, voc, tmp_path, breaks_in_step_3
):
    uninterrupted = command(out="whole")[2]
    shutil.copytree(voc, tmp_path / "whole files")
    with breaks_in_step_3():
        code, said, result = command()
    assert code == 1
    assert re.search(r"[abcde]\.png", said)
    assert "--on-bad-file skip" in said
    assert result is None
    shutil.copytree(tmp_path / "whole files", voc, dirs_exist_ok=True)
    code, said, result = command()
    assert code == 0
    assert "going on after step 2 of 6" in said
    assert result["losses"] == uninterrupted["losses"]
    assert result["miou"] == uninterrupted["miou"]
    assert result["skipped at some time"] == []


@pytest.fixture
def breaks(train_voc, voc, monkeypatch):
    """Break a file of the train list when the third step asks for its images, or of the val list after the last."""
    batch, evaluate = train_voc.next_batch, train_voc.evaluate

    def spoil(name):
        (voc / "SegmentationClass" / f"{name}.png").write_bytes(b"\x89PNG")

    def next_batch(root, names, position, *rest):
        if position == 4:
            spoil(train_voc.voc.sample_name(names, 0, position))
        return batch(root, names, position, *rest)

    def late_evaluate(*arguments):
        spoil("w")
        return evaluate(*arguments)

    def start(split):
        if split == "train":
            monkeypatch.setattr(train_voc, "next_batch", next_batch)
        else:
            monkeypatch.setattr(train_voc, "evaluate", late_evaluate)

    return start


def test_a_train_file_that_breaks_while_training_is_skipped_when_asked(train_voc, command, voc, breaks):
    name = train_voc.voc.sample_name(list("abcde"), 0, 4)
    breaks("train")
    code, _, result = command("--on-bad-file", "skip")
    assert code == 0
    assert len(result["losses"]) == 6
    assert np.isfinite(result["losses"]).all()
    assert [f"{name}.png" in told for told in result["skipped at some time"]] == [True]
    assert result["images evaluated"] == 2


def test_a_val_file_that_breaks_while_training_stops_the_run_or_is_skipped(command, voc, tmp_path, breaks):
    shutil.copytree(voc, tmp_path / "whole files")
    uninterrupted = command(out="whole")[2]
    breaks("val")
    code, said, result = command()
    assert code == 1
    assert "w.png" in said
    assert result is None
    shutil.copytree(tmp_path / "whole files", voc, dirs_exist_ok=True)
    code, _, skipping = command("--on-bad-file", "skip")
    assert code == 0
    assert skipping["losses"] == uninterrupted["losses"]
    assert skipping["images evaluated"] == 1
    assert ["w.png" in told for told in skipping["skipped at some time"]] == [True]


def test_a_skipped_file_is_told_of_even_if_it_was_mended_before_the_end(command, voc):
    mask = voc / "SegmentationClass" / "w.png"
    whole = mask.read_bytes()
    mask.write_bytes(b"\x89PNG")
    assert command("--on-bad-file", "skip")[2]["images evaluated"] == 1
    mask.write_bytes(whole)
    code, said, result = command()
    assert code == 0
    assert "going on after step 6 of 6" in said
    assert result["images evaluated"] == 2
    assert "w.png" in result["skipped at some time"][0]
