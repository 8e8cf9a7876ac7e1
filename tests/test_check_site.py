"""docs/check_site.py, which `make docs` ends with: a whole site passes, and each planted mistake is found."""

import importlib.util

import pytest
from documents import ROOT

spec = importlib.util.spec_from_file_location("check_site", ROOT / "docs" / "check_site.py")
check_site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_site)

FIRST = """<!DOCTYPE html><html><head><title>C:\\of\\no\\interest</title><link rel="next" href="page.html"></head>
<body><p>Costs $5, a backslash in <code>\\frac</code> and <span class="math notranslate">\\(\\frac{1}{2}\\)</span>.<br>
<img src="_images/a.png" alt="a"><a href="page.html#there">there</a> <a href="https://example.org/nothing">away</a></p>
</body></html>"""
PAGE = """<!DOCTYPE html><html><head><link rel="prev" href="index.html"></head><body><h1 id="there">There</h1>
<div class="math notranslate">\\[\\bar x\\]</div><pre>cost = $a$ \\(\\)</pre>
<table><tr><th>x</th><th><img src="_images/a.png"></th></tr><tr><td><span>1</span></td><td>2</td></tr></table>
</body></html>"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "_images").mkdir()
    (tmp_path / "_images" / "a.png").touch()
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "template.html").write_text("<td></td>")
    (tmp_path / "search.html").write_text("<p>Search</p>")
    (tmp_path / "index.html").write_text(FIRST)
    (tmp_path / "page.html").write_text(PAGE)
    return tmp_path


def test_a_site_without_faults_passes(site):
    assert check_site.faults(site) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("<p>Costs", "<p>where $x$ costs", "page.html: line 2: raw LaTeX '$x$'"),
        ("<p>Costs", "<p>where \\bar costs", "raw LaTeX '\\\\bar'"),
        ("<p>Costs", "<p>where \\(x\\) costs", "raw LaTeX '\\\\('"),
        ("<p>Costs", "<p>where x^{2} costs", "raw LaTeX '^{'"),
        ("\\[\\bar x\\]", "\\bar x", "MathJax does not see '\\\\bar x'"),
        ("\\[\\bar x\\]", "", "MathJax does not see ''"),
        ("<td>2</td>", "<td> </td>", "an empty cell"),
        ("<td>2</td>", "<td>&nbsp;<br></td>", "an empty cell"),
        ("<th>x</th>", "<th></th>", "an empty cell"),
        ("<td>2</td>", "<td><table><tr><td>2</td><td></td></tr></table></td>", "an empty cell"),
        ("</h1>", '</h1><a href="gone.html">x</a>', "gone.html leads to no file"),
        ("</h1>", '</h1><a href="index.html#gone">x</a>', "#gone leads to no place"),
        ("</h1>", '</h1><a href="#gone">x</a>', "#gone leads to no place"),
        ("_images/a.png", "_images/b%20c.png", "_images/b%20c.png leads to no file"),
        ('<link rel="prev" href="index.html">', "", "no toctree has this page"),
    ],
)
def test_a_planted_mistake_is_found(site, old, new, told):
    text = PAGE.replace("</h1>", "</h1>\n<p>Costs</p>", 1)
    assert old in text
    (site / "page.html").write_text(text.replace(old, new, 1))
    (found,) = check_site.faults(site)
    assert found.startswith("page.html: ")
    assert told in found


def test_a_folder_without_pages_is_no_site(tmp_path):
    assert check_site.faults(tmp_path) == [f"{tmp_path}: there are no pages"]
