"""Every Python and shell block of the README, the tutorial, the guides and the page on numerics does what it says."""

import re

import pytest
from documents import ROOT, blocks, run

from lalref.oracle.mistakes import CATALOGUE

PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("tutorial.md", "numerics.md", "frameworks.md", "golden-files.md")),
    *sorted((ROOT / "docs" / "howto").glob("*.md")),
]
# of which readers copy the one section that they came for
LOOKED_UP = {"shard", "mix", "lower-resolution", "frameworks"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_s_blocks_run_and_print_what_they_say(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")  # as in a clone
    if left_out := run(page, tmp_path, sections_alone=page.stem in LOOKED_UP):
        pytest.skip("; ".join(left_out))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nprint(1 + 1)  # 3\n```", AssertionError),
        ("```python\n1 / 0\n```", ZeroDivisionError),
        ("```sh\nfalse\n```", AssertionError),
        ("<!-- exit: 3 -->\n\n```sh\nexit 1\n```", AssertionError),
        ("<!-- by ci -->\n\n```sh\nmake coffee\n```", AssertionError),
        ("Run\n\n    true\n", AssertionError),
    ],
)
def test_a_block_that_does_not_do_what_it_says_is_found(text, error, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(error):
        run(page, tmp_path)


def test_a_section_that_needs_another_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("## One\n\n```python\nx = 1\n```\n\n## Two\n\n```python\nx\n```\n")
    assert run(page, tmp_path) == []
    with pytest.raises(NameError):
        run(page, tmp_path, sections_alone=True)


def test_what_a_block_needs_is_said_where_it_is_missing(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- needs: no_such_library, make -->\n\n```python\n1 / 0\n```\n")
    assert run(page, tmp_path) == ["page.md:3: needs no_such_library"] or "make" in run(page, tmp_path)[0]


def test_the_readme_has_blocks():
    assert len(blocks(ROOT / "README.md")) > 3


def test_readme_and_changelog_count_the_catalogue_as_the_report_does():
    """Of the checkers the README counts torch's, as the report's table of stages has it."""
    report, readme = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("docs/oracle-report.md", "README.md")
    )
    rows = re.findall(r"^\| [\w-]+ \((\d+)\) \| (\d+) \| (\d+) of (\d+) \|", report, flags=re.MULTILINE)
    mistakes, refused, seen, tried = (sum(map(int, column)) for column in zip(*rows, strict=True))
    assert mistakes == refused == len(CATALOGUE)
    said = (
        f"Of {mistakes} single mistakes in this loss, {tried} could be put to torch's `gradcheck`: it sees {seen}."
        f" lalref sees all {refused} "
    )
    assert said in " ".join(readme.split())
    forms = sum(len(mistake.forms) for mistake in CATALOGUE)
    changelog = " ".join((ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split())
    assert f"A catalogue of {mistakes} single mistakes in {forms} forms" in changelog
