"""The folder that examples/train_voc.py is tried on, and that program in this process."""

import importlib
import json

import numpy as np
import pytest
from click.testing import CliRunner
from voc_folder import SCRIPT, SIZES, SMALL


@pytest.fixture(scope="module")
def train_voc():
    torch = pytest.importorskip("torch")
    pytest.importorskip("PIL")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)  # as for a program that is run, which finds voc.py beside it
        module = importlib.import_module("train_voc")
    torch.set_num_threads(1)
    return module


@pytest.fixture
def voc(tmp_path):
    """A folder as the archive of VOC unpacks to: photographs, palette masks with a void rim, lists."""
    from PIL import Image

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
