"""The counts of a whole run of a score, kept in docs/oracle-scores.json: the pages that tell them are held to it.

A run of all ports is compared with what is kept, and fails where it is otherwise; `--write` keeps what it found.
"""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lalref.oracle.mistakes import CATALOGUE

FILE = Path(__file__).parents[2] / "docs" / "oracle-scores.json"
KINDS = ("right", "single", "pair", "unlisted")


def counts(rows: Iterable[tuple[str, str, bool, str]], false_names: list[str]) -> dict[str, Any]:
    """Of rows (kind, port, whether it is as it should be, what to tell of it): counts by kind and port.

    Of a row that is not as it should be the text is kept, and of how many mistakes the catalogue then had.
    """
    kinds: dict[str, Any] = {kind: {"good": 0, "of": 0, "ports": {}, "otherwise": []} for kind in KINDS}
    for kind, port, good, told in rows:
        found = kinds[kind]
        in_port = found["ports"].setdefault(port, {"good": 0, "of": 0})
        for each in (found, in_port):
            each["good"] += good
            each["of"] += 1
        found["otherwise"] += [] if good else [told]
    return {"catalogue": len(CATALOGUE), **kinds, "false_names": false_names}


def versions() -> dict[str, str]:
    """Of what the ports are written in."""
    gxx = subprocess.run(["g++", "-dumpfullversion"], check=True, capture_output=True, text=True)
    found = {name: importlib.metadata.version(name) for name in ("numpy", "torch", "jax")}
    return {"python": platform.python_version(), **found, "g++": gxx.stdout.strip()}


def compared(score: str, found: dict[str, Any], write: bool) -> str:
    """What to say of a whole run that is not as it was kept; with `write` it is kept, and nothing to be said."""
    kept = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    if write:
        kept[score] = {**found, "versions": versions()}
        FILE.write_text(
            json.dumps(kept, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
        )
        return ""
    before = kept.get(score, {})
    other = [what for what in found if found[what] != before.get(what)]
    said = "; ".join(f"{what}: {found[what]}, and {before.get(what)} is kept" for what in other)
    return f"not what {FILE.name} says (--write keeps it): {said}" if other else ""
