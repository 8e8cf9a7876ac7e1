"""Train on Pascal VOC 2012 with this loss, and count mIoU as VOC does. Needs PyTorch and pillow.

    python examples/train_voc.py VOCdevkit/VOC2012 --out out/voc

The folder is the one that the VOC archive unpacks to:

    JPEGImages/2007_000032.jpg                   photographs
    SegmentationClass/2007_000032.png            palette PNGs: 0 background, 1-20 the classes, 255 void
    ImageSets/Segmentation/{train,val}.txt       one name a line

Settings of the paper that are known are the defaults: crops of 321x321, two a step. Its network, DeepLabV2 with
ResNet-101, is not: the default here is a small U-Net from random weights, so that the program runs anywhere. The
paper's Table 2 reports, for its own network on VOC 2012 val, mIoU 74.6 with softmax cross-entropy, and 75.7, 76.1 and
75.1 with this loss at 3x3, 5x5 and 7x7: their numbers, which nothing here was measured against.

`--model FILE.py:FUNCTION` takes another network: FUNCTION(classes, channels) returns a Module from (N, 3, H, W) to
logits (N, classes, h, w), which are enlarged to the labels' size where they are smaller.

Before the first step both lists are read and every file that they name, so that a missing or damaged one is told at
once and not after hours; `--on-bad-file skip` goes on without it, and result.json names what was skipped at some time,
mended since or not. A file that breaks while training runs is met in the same way.

It may be killed at any time. The same command goes on from the last checkpoint in --out and ends with the same
numbers as a run that was never interrupted: which image, crop and flip come next depends on the seed and the count
of images read so far, and on nothing else, and torch's random numbers (dropout) go on where they were. On a GPU
(--device cuda, which needs CuPy, and which nobody has run yet) that holds as far as its kernels add in a fixed order.
How VOC is read and counted is in `voc.py` beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import voc
from rich.console import Console
from rich.progress import Progress
from torch.nn import functional as F
from voc import CLASSES, VOID, BadFile, confusion, crop_and_flip, mean_iou, read_names, read_pair

from lalref.adapters.torch import LocallyAdaptiveLoss

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as pretrained networks expect
SMALL_UNET = "small-unet"  # its name in a checkpoint, wherever the clone lies
VOID_CROPS = 1000  # in one batch: the labels are to blame then, and not chance
console = Console(highlight=False)


class BadState(Exception):
    """What is in --out can't be continued with these options."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the numbers of a run; a checkpoint is continued only with the same."""

    model: str
    loss: str
    kernel_size: int
    p: float
    rate: float
    steps: int
    batch: int
    crop: int
    seed: int
    lists: str  # the sha256 of their names, for the stream of samples is made from them


# --- Bad files ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class BadFiles:
    """What to do about them: raise the first, or note it and go on."""

    stop: bool
    noted: list[str]

    def read(self, root: Path, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the pair, or None for one that is skipped."""
        try:
            return read_pair(root, name)
        except BadFile as error:
            if self.stop:
                raise
            if str(error) not in self.noted:
                self.noted.append(str(error))
                console.print(f"skipped: {error}")
            return None


def check_files(root: Path, split: str, names: list[str], bad: BadFiles) -> None:
    """Read all files of a split once: bad ones are met before training, not hours into it or after it."""
    with Progress(console=console) as progress:  # rich's track would be left open by an error
        readable = [
            bad.read(root, name) is not None
            for name in progress.track(names, description=f"checking {split}")
        ]
    if not any(readable):
        raise BadFile(f"no image of the {len(names)} in {split}.txt can be read; the last: {bad.noted[-1]}")


# --- One training sample after another ----------------------------------------------------------------------------


def as_tensor(images: np.ndarray) -> torch.Tensor:
    """Photographs (N, H, W, 3) uint8 as a network's input (N, 3, H, W)."""
    scaled = (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(scaled, -1, 1)))


def next_batch(
    root: Path, names: list[str], position: int, options: Options, bad: BadFiles
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the next images and labels, and the position after them.

    A crop of void alone is drawn again: torch's cross-entropy of a batch of them is NaN.
    """
    images, masks, skipped, void = [], [], 0, 0
    while len(images) < options.batch:
        name = voc.sample_name(names, options.seed, position)
        pair = bad.read(root, name)
        if pair is None:
            skipped += 1
            if skipped > len(names):
                raise BadFile(
                    f"no image of the {len(names)} in the list can be read; the last: {bad.noted[-1]}"
                )
        else:
            rng = np.random.default_rng([options.seed, 1, position])
            image, mask = crop_and_flip(*pair, options.crop, rng)
            if (mask != VOID).any():
                images.append(image)
                masks.append(mask)
            elif (void := void + 1) == VOID_CROPS:
                raise BadFile(f"{void} crops have no label but void; the last is of {name}")
        position += 1
    return as_tensor(np.stack(images)), torch.from_numpy(np.stack(masks).astype(np.int64)), position


# --- The network and its score ------------------------------------------------------------------------------------


def logits_of(net: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the network's logits at the images' size, on the network's device."""
    images = images.to(next(net.parameters()).device)
    found = net(images)
    if found.shape[-2:] != images.shape[-2:]:
        found = F.interpolate(found, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return found


def evaluate(net: torch.nn.Module, root: Path, names: list[str], bad: BadFiles) -> tuple[float, int]:
    """Return the mIoU over all images of a list, each at its full size, and how many there were."""
    counts, images = np.zeros((CLASSES, CLASSES), np.int64), 0
    net.eval()
    with torch.no_grad(), Progress(console=console) as progress:
        for name in progress.track(names, description="evaluating"):
            pair = bad.read(root, name)
            if pair is not None:
                predicted = logits_of(net, as_tensor(pair[0][None])).argmax(1)[0].cpu().numpy()
                counts += confusion(pair[1], predicted)
                images += 1
    net.train()
    return mean_iou(counts), images


# --- The run ------------------------------------------------------------------------------------------------------


def load_model(spelt: str) -> torch.nn.Module:
    """Return FUNCTION(CLASSES, 3) of FILE.py:FUNCTION, or the small U-Net."""
    if spelt == SMALL_UNET:
        spelt = f"{Path(__file__).resolve().parents[1] / 'experiments/digits/models.py'}:unet"
    file, _, function = spelt.rpartition(":")
    spec = importlib.util.spec_from_file_location("pluggable_model", file)
    if not Path(file).is_file() or spec is None or spec.loader is None:
        raise click.BadParameter(f"{spelt!r} is not of the form FILE.py:FUNCTION with a file that is there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise click.BadParameter(f"{file} has no function {function!r}")
    return getattr(module, function)(CLASSES, 3)


def save(file: Path, state: dict) -> None:
    """Write a checkpoint so that the file is the old one or the new one, whenever the program ends."""
    unfinished = file.with_suffix(".part")
    with unfinished.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, file)


def continued(file: Path, options: Options) -> dict:
    """Return the checkpoint, or an empty one for a new run."""
    if not file.exists():
        return {"step": 0, "position": 0, "losses": [], "skipped": []}
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        stored = state["options"]
    except Exception as error:  # a damaged file raises all kinds
        raise BadState(f"{file} can't be read ({error}): delete it to start anew") from error
    asked = dataclasses.asdict(options)
    other = {name: (stored.get(name), value) for name, value in asked.items() if stored.get(name) != value}
    if other:
        told = ", ".join(f"{name} was {was!r} and is now {now!r}" for name, (was, now) in other.items())
        raise BadState(f"{file} is of a run with other options: {told}. Give the same, or another --out")
    return state


def restore_random(states: list[torch.Tensor]) -> None:
    """Let torch's random numbers go on where they were: the CPU's, then those of each GPU that there was."""
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1 : 1 + torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Give a list that Ctrl-C and SIGTERM put themselves into, so that a step is never left half done."""
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: asked.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    root: Path,
    names: list[str],
    checkpoint: Path,
    state: dict,
    options: Options,
    device: str,
    every: int,
    bad: BadFiles,
) -> torch.nn.Module:
    """Train from the checkpoint's state to the end; whatever stops it, the finished steps are kept."""
    torch.manual_seed(options.seed)
    net = load_model(options.model).to(device)
    optimiser = torch.optim.SGD(net.parameters(), lr=options.rate, momentum=0.9, weight_decay=5e-4)
    if state["step"]:
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        restore_random(state["random"])
        console.print(f"going on after step {state['step']} of {options.steps}")
    if options.loss == "cross-entropy":
        criterion: torch.nn.Module = torch.nn.CrossEntropyLoss(ignore_index=VOID)
    else:
        criterion = LocallyAdaptiveLoss(kernel_size=options.kernel_size, p=options.p, ignore_index=VOID)

    def keep() -> None:
        now = {"net": net.state_dict(), "optimiser": optimiser.state_dict(), "skipped": bad.noted}
        now["random"] = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        save(checkpoint, {**state, **now, "options": dataclasses.asdict(options)})

    with interruptible() as interrupted, Progress(console=console) as progress:
        task = progress.add_task("training", total=options.steps, completed=state["step"])
        while state["step"] < options.steps:
            try:
                images, labels, position = next_batch(root, names, state["position"], options, bad)
            except BadFile:
                keep()
                raise
            for group in optimiser.param_groups:
                group["lr"] = options.rate * (1 - state["step"] / options.steps) ** 0.9  # DeepLab's "poly"
            optimiser.zero_grad()
            value = criterion(logits_of(net, images), labels.to(device))
            value.backward()
            optimiser.step()
            state["step"] += 1
            state["position"] = position
            state["losses"].append(value.item())
            progress.update(task, completed=state["step"], description=f"training, loss {value.item():.3f}")
            if state["step"] % every == 0 or state["step"] == options.steps or interrupted:
                keep()
            if interrupted:
                raise KeyboardInterrupt
    return net


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/voc"))
@click.option(
    "--model", default=SMALL_UNET, help="Or FILE.py:FUNCTION; FUNCTION(classes, channels) -> Module."
)
@click.option("--loss", type=click.Choice(["locally-adaptive", "cross-entropy"]), default="locally-adaptive")
@click.option("--kernel-size", default=5)
@click.option("--p", default=5.0, help="The exponent of Minkowski pooling.")
@click.option("--rate", default=2.5e-4, help="The learning rate of the first step.")
@click.option("--steps", default=20000)
@click.option("--batch", default=2)
@click.option("--crop", default=321)
@click.option("--seed", default=0)
@click.option("--device", default="cpu", help="Where torch trains, as cuda or cuda:1.")
@click.option("--checkpoint-every", default=100, help="Steps.")
@click.option("--on-bad-file", type=click.Choice(["stop", "skip"]), default="stop")
def main(root: Path, out: Path, device: str, checkpoint_every: int, on_bad_file: str, **options: Any) -> None:
    """Train on the VOC 2012 folder ROOT and write mIoU on its val list to OUT/result.json."""
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    try:
        lists = {split: read_names(root, split) for split in ("train", "val")}
        asked = Options(**options, lists=voc.digest(lists))
        state = continued(checkpoint, asked)
        bad = BadFiles(on_bad_file == "stop", state["skipped"])
        for split, names in lists.items():
            check_files(root, split, names, bad)
        net = train(root, lists["train"], checkpoint, state, asked, device, checkpoint_every, bad)
        miou, images = evaluate(net, root, lists["val"], bad)
    except BadFile as error:
        raise click.ClickException(
            f"{error}\nNothing is lost: mend the file and give the same command, or add --on-bad-file skip"
        ) from error
    except BadState as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        console.print(f"stopped, and kept in {out}: give the same command to go on")
        raise SystemExit(130) from None
    result = {
        "options": dataclasses.asdict(asked),
        "miou": miou,
        "images evaluated": images,
        "losses": state["losses"],
        "skipped at some time": bad.noted,
    }
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console.print(f"mIoU {miou:.4f} over {images} images; {len(bad.noted)} bad; written: {out}/result.json")


if __name__ == "__main__":
    main()
