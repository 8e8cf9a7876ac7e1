"""What the tests of examples/train_voc.py say of their folder: no code may come in here."""

from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "train_voc.py"
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
