"""docs/ and the README: a page's code runs as it stands, in an empty folder; what the page names exists."""

from __future__ import annotations

import importlib.util
import re
import shlex
from glob import glob
from pathlib import Path

import pytest
import torch

from pysel.__main__ import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and code, in the page's order."""
    return FENCE.findall(page.read_text())


def commands_of(code: str) -> list[list[str]]:
    """The words of each line of shell code, without comments."""
    return [words for line in code.splitlines() if (words := shlex.split(line, comments=True))]


def commands(page: Path) -> list[list[str]]:
    """Those of a page."""
    return [words for language, code in blocks(page) if language == "bash" for words in commands_of(code)]


RUN = [page for page in PAGES if any(language == "python" for language, _ in blocks(page))]
TYPED = [page for page in PAGES if commands(page)]


def test_pages_have_code() -> None:
    assert len(RUN) >= 14 and len(TYPED) >= 4
    assert {"README.md", "docs/quickstart.md", "docs/learned-selection.md"} <= {name(page) for page in RUN}


@pytest.mark.parametrize("page", RUN, ids=name)
def test_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    for module in ("pyarrow", "tensorboard", "matplotlib"):
        if f"import {module}" in page.read_text():
            pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for number, (language, code) in enumerate(blocks(page)):
            if language == "python":
                exec(compile(code, f"{name(page)}, block {number}", "exec"), names)
            else:
                for program, *words in commands_of(code):
                    if program == "pysel":
                        assert main([file for word in words for file in sorted(glob(word)) or [word]]) == 0


def rows(page: Path, head: str) -> list[list[str]]:
    """Cells of the tables of a page whose head begins so."""
    found: list[list[str]] = []
    for table in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
        found += lines[2:] if table.startswith(head) else []
    return found


def test_the_readmes_speeds_are_those_of_the_benchmarks() -> None:
    avx512, avx2 = (
        {row[0]: row for row in rows(ROOT / "docs" / "benchmarks.md", f"| case | {variant} | torch eager")}
        for variant in ("avx512", "avx2")
    )
    told = rows(ROOT / "README.md", "| case | pysel |")
    assert len(told) == 8
    for case, ours, eager, compiled, eager_avx2 in told:
        time, rival, _, theirs = avx512[case][1:5]
        assert time.startswith(ours + " ") and f": {eager} " in rival and compiled == theirs
        assert f": {eager_avx2} " in avx2[case][2]
    texts = ((ROOT / page).read_text() for page in ("README.md", "docs/benchmarks.md"))
    commits = [set(re.findall(r"commit (\w{12})", text)) for text in texts]
    assert commits[0] == commits[1] != set()


def test_the_readme_is_a_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", TYPED, ids=name)
def test_commands_exist(page: Path) -> None:
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    for words in commands(page):
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), words
        else:
            assert words[0] in ("pysel", "pip"), words


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_targets_named_in_the_text_exist(page: Path) -> None:
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    text = page.read_text()
    assert set(re.findall(r"`make ([\w-]+)", text)) <= targets
    for module in re.findall(r"`python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    """To files of the repository, or to pages; headings are the site's to check (test_site.py)."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    pictures = "made/"  # the gallery's: made as the site is built
    missing = [link for link in links if link and not link.startswith(pictures) and not (page.parent / link).exists()]
    assert missing == []
