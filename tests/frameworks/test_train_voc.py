"""examples/train_voc.py, end to end on a small folder in the layout of Pascal VOC 2012."""

import contextlib
import functools
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_voc.py"
MODELS = str(SCRIPT.parents[1] / "experiments" / "digits" / "models.py")
SMALL = ["--steps", "6", "--crop", "33", "--checkpoint-every", "2", "--kernel-size", "3", "--rate", "0.01"]
SIZES = {
    "a": (40, 50),
    "b": (30, 28),
    "c": (36, 45),
    "d": (41, 33),
    "e": (35, 35),
    "v": (39, 44),
    "w": (33, 30),
}


@pytest.fixture(scope="module")
def train_voc():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)  # as for a program that is run, which finds voc.py beside it
        module = importlib.import_module("train_voc")
    torch.set_num_threads(1)
    return module


@pytest.fixture
def voc(tmp_path):
    """A folder as the archive of VOC unpacks to: photographs, palette masks with a void rim, lists."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i, (name, (height, width)) in enumerate(SIZES.items()):
        row, column = np.mgrid[:height, :width]
        distance = np.maximum(abs(row - height // 2), abs(column - width // 2))
        mask = np.where(distance < 9, 1 + i % 3, 0)
        mask[distance == 9] = 255
        photo = np.stack([40 * (mask % 255), 2 * row, 3 * column], axis=-1).astype(np.uint8)
        Image.fromarray(photo).save(root / "JPEGImages" / f"{name}.jpg")
        palette_mask = Image.fromarray(mask.astype(np.uint8)).convert("P")
        palette_mask.putpalette([channel for index in range(256) for channel in (index, 255 - index, 7)])
        palette_mask.putdata(mask.ravel().tolist())
        palette_mask.save(root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("a\nb\nc\nd\ne\n")
    (lists / "val.txt").write_text("v\nw\n")
    return root


@pytest.fixture
def command(train_voc, voc, tmp_path):
    """Run the program in this process: (exit code, output, result.json or None)."""

    def call(*more, out="out"):
        answer = CliRunner().invoke(
            train_voc.main, [str(voc), "--out", str(tmp_path / out), *SMALL, *more], catch_exceptions=False
        )
        file = tmp_path / out / "result.json"
        said = " ".join(answer.output.split())  # wherever the console broke its lines
        return answer.exit_code, said, json.loads(file.read_text()) if file.exists() else None

    return call


@pytest.mark.parametrize("loss", ["locally-adaptive", "cross-entropy"])
def test_it_trains_and_counts_miou_on_the_val_list(command, loss):
    code, _, result = command("--loss", loss, "--steps", "40", "--rate", "0.05")
    assert code == 0
    assert result["images evaluated"] == 2
    assert result["skipped"] == []
    assert len(result["losses"]) == 40
    assert np.mean(result["losses"][-5:]) < 0.7 * np.mean(result["losses"][:5])
    assert 0 < result["miou"] <= 1


def test_a_killed_run_goes_on_to_the_same_end(command, voc, tmp_path):
    uninterrupted = command(out="whole")[2]
    slow = tmp_path / "slow.py"  # the same network, which gives the test time to kill it
    slow.write_text(
        "import os, time, importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('m', {MODELS!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "def unet(classes, channels):\n"
        "    net = module.unet(classes, channels)\n"
        "    net.register_forward_pre_hook(lambda *_: time.sleep(0.5) if 'SLOW' in os.environ else None)\n"
        "    return net\n"
    )
    arguments = [*SMALL, "--model", f"{slow}:unet"]
    program = subprocess.Popen(
        [sys.executable, SCRIPT, voc, "--out", tmp_path / "killed", *arguments],
        stdout=subprocess.DEVNULL,
        env={
            **os.environ,
            "SLOW": "1",
            "OMP_NUM_THREADS": "1",
        },  # as the rest, for sums are rounded otherwise by two
    )
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and program.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    program.send_signal(signal.SIGKILL)
    program.wait()
    assert checkpoint.exists()
    assert not (tmp_path / "killed" / "result.json").exists()
    code, said, resumed = command("--model", f"{slow}:unet", out="killed")
    assert code == 0
    assert "going on after step" in said
    assert resumed["losses"] == uninterrupted["losses"]
    assert resumed["miou"] == uninterrupted["miou"]


@pytest.mark.parametrize("dropout", [False, True])
def test_a_run_told_to_end_keeps_the_step_it_was_in(train_voc, command, monkeypatch, tmp_path, dropout):
    """And the random numbers of a network that draws some."""
    (tmp_path / "net.py").write_text(
        "from torch.nn import Conv2d, Dropout2d, Sequential\n"
        "def net(classes, channels):\n"
        "    return Sequential(Conv2d(channels, 8, 3, padding=1), Dropout2d(0.5), Conv2d(8, classes, 1))\n"
    )
    command = functools.partial(command, *(["--model", f"{tmp_path / 'net.py'}:net"] if dropout else []))
    uninterrupted = command(out="whole")[2]
    batch = train_voc.next_batch

    def told_to_end_in_step_3(root, names, position, *rest):
        if position == 4:
            signal.raise_signal(signal.SIGTERM)
        return batch(root, names, position, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train_voc, "next_batch", told_to_end_in_step_3)
        assert command()[0] == 130
    code, said, resumed = command()
    assert code == 0
    assert "going on after step 3 of 6" in said
    assert resumed["losses"] == uninterrupted["losses"]


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
    assert len(result["skipped"]) == 1
    assert name in result["skipped"][0]
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
    assert result["skipped"] == []


def test_a_missing_list_an_unreadable_checkpoint_and_other_options_are_refused(command, voc, tmp_path):
    assert command()[0] == 0
    code, said, _ = command("--seed", "1")
    assert code == 1
    assert "seed was 0 and is now 1" in said
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"PK")
    code, said, _ = command()
    assert code == 1
    assert "delete it to start anew" in said
    (voc / "ImageSets" / "Segmentation" / "train.txt").unlink()
    code, said, _ = command(out="new")
    assert code == 1
    assert "train.txt" in said


def test_a_network_of_lower_resolution_is_enlarged_to_the_labels(command, tmp_path):
    (tmp_path / "low.py").write_text(
        "import torch\ndef net(classes, channels): return torch.nn.Conv2d(channels, classes, 8, stride=8)\n"
    )
    code, _, result = command("--model", f"{tmp_path / 'low.py'}:net")
    assert code == 0
    assert np.isfinite(result["losses"]).all()


def test_miou_is_of_one_confusion_matrix_for_the_whole_set_without_void(train_voc):
    first = train_voc.confusion(np.array([[0, 0, 1, 255]], np.uint8), np.array([[0, 1, 1, 2]]))
    second = train_voc.confusion(np.array([[1, 1, 1, 1]], np.uint8), np.array([[1, 1, 0, 1]]))
    assert (first + second).sum() == 7
    # class 0: 1 of {2 there + 2 called so - 1} = 1/3; class 1: 4 of {5 + 5 - 4} = 2/3
    assert train_voc.mean_iou(first + second) == pytest.approx(0.5)
