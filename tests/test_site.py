"""The site of docs/: it is built without a warning, and every link within it leads somewhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.browser import Browser

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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not importlib.util.find_spec("sphinx"):
        pytest.skip("sphinx is not installed: make docs brings it")
    folder = tmp_path_factory.mktemp("docs")
    command = f"-m sphinx --builder html --nitpicky --fail-on-warning --keep-going -d {folder}/doctrees"
    subprocess.run([sys.executable, *command.split(), ROOT / "docs", folder / "site"], cwd=ROOT, check=True)
    return folder / "site"


@pytest.mark.long
def test_the_site_is_whole(site: Path) -> None:
    assert broken(site) == []
    assert "pysel.selection.DynamicSelector" in Page(site / "reference" / "dynamic.html").ids
    assert len(list((site / "_images").glob("*.png"))) >= 15


# What a reader would see at once: text that runs out of the window, pictures that are not there, text that cannot be
# told from what is behind it.
LOOK = """(() => {
    const number = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => {
        const part = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    };
    const behind = e => {
        for (; e; e = e.parentElement) {
            const colour = number(getComputedStyle(e).backgroundColor);
            if (colour.length < 4 || colour[3] > 0.9) return colour;
        }
        return [255, 255, 255];
    };
    const faint = new Set();
    for (const e of document.querySelectorAll('article *')) {
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.offsetParent) continue;
        const [a, b] = [light(number(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 3) faint.add(e.tagName + ' ' + e.textContent.trim().slice(0, 40));
    }
    return {
        width: document.documentElement.scrollWidth,
        ground: getComputedStyle(document.body).backgroundColor,
        words: document.querySelector('article').innerText.length,
        lost: [...document.images].filter(i => i.loading !== 'lazy' && !i.naturalWidth).map(i => i.src),
        faint: [...faint],
    };
})()"""


@pytest.mark.long
@pytest.mark.parametrize("width", [1300, 360])
def test_every_page_can_be_read_in_both_themes(site: Path, browser: Browser, width: int) -> None:
    browser.requests.clear()
    pages = [path for path in sorted(site.rglob("*.html")) if path.name not in ("genindex.html", "search.html")]
    pages = [path for path in pages if "_modules" not in path.parts and "<article" in path.read_text()]
    assert len(pages) >= 25
    browser("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
    wrong, grounds = [], {}
    for theme in ("light", "dark"):
        browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        for page in pages:
            browser.open(page.as_uri())
            seen = browser.js(LOOK)
            grounds.setdefault(theme, set()).add(seen["ground"])
            faults = {"lost": seen["lost"], "faint": seen["faint"]}
            faults |= {"wide": seen["width"]} if seen["width"] > width else {}
            faults |= {"empty": seen["words"]} if seen["words"] < 100 else {}
            wrong += [(theme, page.name, name, what) for name, what in faults.items() if what]
    browser("Emulation.clearDeviceMetricsOverride")
    assert wrong == []
    assert grounds["light"] == {"rgb(255, 255, 255)"} and grounds["light"].isdisjoint(grounds["dark"])
    assert [url for url in browser.requests if not url.startswith(("file:", "about:", "data:"))] == []


def test_what_cannot_be_read_is_found(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<body style='background: #111'><article style='width: 900px'><p style='color: #222'>Faint.</p>"
        "<p style='color: #eee'>Clear.</p><div style='background: #eee'><p style='color: #111'>Clear, too.</p></div>"
        "<img src='nowhere.png'></article>"
    )
    browser("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=True)
    browser.open(page.as_uri())
    seen = browser.js(LOOK)
    browser("Emulation.clearDeviceMetricsOverride")
    assert seen["faint"] == ["P Faint."] and seen["width"] > 360 and seen["words"] < 100
    assert [Path(url).name for url in seen["lost"]] == ["nowhere.png"]


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="b.html#there"></a><a href="#here"></a><img src="c.png"></p>'
    )
    (tmp_path / "b.html").write_text('<a id="there" href="a.html#nowhere"></a><a href="https://example.org"></a>')
    assert sorted(broken(tmp_path)) == ["a.html: c.png", "b.html: a.html#nowhere"]
