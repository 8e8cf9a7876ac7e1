"""Look over the built site for what Sphinx does not warn of: python docs/check_site.py docs/_build/html

A formula that MathJax will not find, an empty cell in a table, a link or picture that leads nowhere, a page that no
toctree has. `make docs` ends with it; tests/test_check_site.py plants each of these mistakes.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
NOT_PROSE = {"pre", "code", "script", "style", "textarea", "title"}
PICTURES = {"img", "svg", "video"}
LATEX = re.compile(r"\\[a-zA-Z]+|\\[()\[\]]|\$[^$\s][^$]*\$|[_^]\{")
FORMULA = re.compile(r"\\\(.*\\\)|\\\[.*\\\]", re.DOTALL)
MADE_BY_SPHINX = {"genindex.html", "search.html"}  # in no toctree


class Page(HTMLParser):
    """What is looked at in one page: formulas, prose, cells, what it links to, and what can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, bool]] = []  # tag, whether it is a formula's
        self.cells: list[list[str]] = []  # of tables around the place where the parser is
        self.formula = ""
        self.faults: list[str] = []
        self.links: list[str] = []
        self.targets = {""}
        self.in_a_toctree = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.targets.add(given.get("id", ""))
        if tag in ("a", "link", "img", "script", "source"):
            self.links += [given[name] for name in ("href", "src") if name in given]
        if tag == "link" and given.get("rel") == "prev":
            self.in_a_toctree = True
        if tag in ("td", "th"):
            self.cells.append([])
        elif tag in PICTURES and self.cells:
            self.cells[-1].append(tag)
        if tag not in VOID:
            self.open.append((tag, "math" in given.get("class", "").split()))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self.cells:
            seen = "".join(self.cells.pop())
            if not seen.strip():
                self.faults.append(f"line {self.getpos()[0]}: an empty cell in a table")
            if self.cells:
                self.cells[-1].append(seen)
        while any(tag == name for name, _ in self.open):
            name, is_formula = self.open.pop()
            if is_formula and not FORMULA.fullmatch(self.formula.strip()):
                self.faults.append(f"line {self.getpos()[0]}: MathJax does not see {self.formula.strip()!r}")
            if is_formula:
                self.formula = ""
            if name == tag:
                break

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1].append(data)
        if any(is_formula for _, is_formula in self.open):
            self.formula += data
        elif not any(tag in NOT_PROSE for tag, _ in self.open) and (raw := LATEX.search(data)):
            self.faults.append(f"line {self.getpos()[0]}: raw LaTeX {raw[0]!r} in {data.strip()[:60]!r}")


def faults(site: Path) -> list[str]:
    """Return what is wrong in the site, a line each that names the page."""
    files = sorted(file for file in site.rglob("*.html") if "_static" not in file.relative_to(site).parts)
    pages = {file.resolve(): Page(file.read_text(encoding="utf-8")) for file in files}
    found = []
    for file, page in pages.items():
        name = file.relative_to(site.resolve()).as_posix()
        found += [f"{name}: {fault}" for fault in page.faults]
        if name not in MADE_BY_SPHINX | {"index.html"} and not page.in_a_toctree:
            found.append(f"{name}: no toctree has this page")
        for link in sorted(set(page.links)):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not target.is_file():
                found.append(f"{name}: {link} leads to no file")
            elif target in pages and unquote(parts.fragment) not in pages[target].targets:
                found.append(f"{name}: {link} leads to no place in that page")
    if not files:
        found.append(f"{site}: there are no pages")
    return found


def main() -> None:
    """Tell the faults of the site that is named, and end with 1 if there are any."""
    found = faults(Path(sys.argv[1]))
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
