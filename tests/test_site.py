"""The site of docs/: it is built without a warning, and every link within it leads somewhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


class Page(HTMLParser):
    """What a page links and shows, and what in it can be linked."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links |= {link for name in ("href", "src") if (link := given.get(name))}
        self.ids |= {given["id"]} if given.get("id") else set()


def broken(site: Path) -> list[str]:
    """The links between its pages that lead nowhere."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file.partition("?")[0]).resolve() if file else path
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].ids):
                found.append(f"{path.name}: {link}")
    return found


@pytest.mark.long
@pytest.mark.skipif(not importlib.util.find_spec("sphinx"), reason="sphinx is not installed: make docs brings it")
def test_the_site_is_whole(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = f"-m sphinx --builder html --nitpicky --fail-on-warning --keep-going --quiet -d {tmp_path}/doctrees"
    done = subprocess.run(
        [sys.executable, *command.split(), ROOT / "docs", site], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert broken(site) == []
    assert "pysel.selection.DynamicSelector" in Page(site / "reference" / "dynamic.html").ids
    assert len(list((site / "_images").glob("*.png"))) >= 15


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="b.html#there"></a><a href="#here"></a><img src="c.png"></p>'
    )
    (tmp_path / "b.html").write_text('<a id="there" href="a.html#nowhere"></a><a href="https://example.org"></a>')
    assert sorted(broken(tmp_path)) == ["a.html: c.png", "b.html: a.html#nowhere"]
