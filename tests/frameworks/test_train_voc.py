"""examples/train_voc.py, end to end on a small folder in the layout of Pascal VOC 2012. Bad files: the next room."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from voc_folder import SCRIPT, SIZES, SMALL

pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

ROOT = SCRIPT.parents[1]
MODELS = str(ROOT / "experiments" / "digits" / "models.py")


@pytest.mark.parametrize("loss", ["locally-adaptive", "cross-entropy"])
def test_it_trains_and_counts_miou_on_the_val_list(command, loss):
    code, _, result = command("--loss", loss, "--steps", "40", "--rate", "0.05")
    assert code == 0
    assert result["images evaluated"] == 2
    assert result["skipped at some time"] == []
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


def test_a_run_goes_on_where_the_clone_was_moved(command, voc, tmp_path):
    assert command("--steps", "2")[2]["options"]["model"] == "small-unet"
    moved = tmp_path / "moved"
    for folder in ("examples", "experiments/digits"):
        shutil.copytree(
            ROOT / folder, moved / folder, ignore=shutil.ignore_patterns("__pycache__", "results")
        )
    script = moved / "examples" / SCRIPT.name
    done = subprocess.run(
        [sys.executable, script, voc, "--out", tmp_path / "out", *SMALL, "--steps", "2"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on after step 2 of 2" in done.stdout


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


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_checkpoint_of_other_lists_is_refused(command, voc, split):
    assert command()[0] == 0
    names = voc / "ImageSets" / "Segmentation" / f"{split}.txt"
    names.write_text(names.read_text().replace("\n", "\n\n"))
    assert command()[0] == 0  # the same names
    names.write_text("\n".join(names.read_text().split()[:-1]))
    code, said, _ = command()
    assert code == 1
    assert "other options: lists was" in said


@pytest.mark.parametrize("loss", ["locally-adaptive", "cross-entropy"])
def test_crops_of_void_alone_are_drawn_again(command, voc, loss):
    for name in "abce":  # only d is labelled
        Image.fromarray(np.full(SIZES[name], 255, np.uint8)).save(voc / "SegmentationClass" / f"{name}.png")
    code, _, result = command("--loss", loss, "--batch", "1")
    assert code == 0
    assert len(result["losses"]) == 6
    assert np.isfinite(result["losses"]).all()
    assert min(result["losses"]) > 0


def test_a_train_list_of_void_alone_is_an_error(command, voc):
    for name in "abcde":
        Image.fromarray(np.full(SIZES[name], 255, np.uint8)).save(voc / "SegmentationClass" / f"{name}.png")
    code, said, result = command()
    assert code == 1
    assert "no label but void" in said
    assert result is None


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
