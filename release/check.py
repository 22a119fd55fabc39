"""What must hold before a version is released: python -m release.check

Each check is told as it begins; all are made, and the faults of all of them are told at the end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from release import wheel

ROOT = Path(__file__).parent.parent


def declared(text: str) -> str:
    """The version in a pyproject.toml, which has the one copy of it."""
    return re.findall(r'^version = "(.+)"$', text, re.MULTILINE)[0]


def told(version: str, changelog: str, citation: str) -> list[str]:
    """What is wrong with what the changelog and the citation say of the version."""
    faults = []
    section = re.search(rf"^## {re.escape(version)} \((.+)\)\n+[^#\s]", changelog, re.MULTILINE)
    date = section[1] if section else ""
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        faults.append(f"CHANGELOG.md has no section '## {version} (YEAR-MONTH-DAY)' with anything in it")
        date = "YEAR-MONTH-DAY"
    wanted = (f"version: {version}", f"date-released: {date}")
    return faults + [f"CITATION.cff does not say '{line}'" for line in wanted if line not in citation.splitlines()]


def compatible(old: str, new: str) -> bool:
    """Whether new may not break what old promised: it is of the same major version, or before 1.0 of the same minor."""
    parts = [re.findall(r"\d+", version)[:2] for version in (old, new)]
    return parts[0] == parts[1] if parts[0][0] == "0" else parts[0][0] == parts[1][0]


def changed(old: list[object], new: list[object]) -> int:
    """How many of the old golden vectors are no longer there as they were."""
    kept = {json.dumps(row, sort_keys=True) for row in new}
    return sum(json.dumps(row, sort_keys=True) not in kept for row in old)


def says_what_it_is() -> list[str]:
    text = {name: (ROOT / name).read_text() for name in ("pyproject.toml", "CHANGELOG.md", "CITATION.cff")}
    return told(declared(text["pyproject.toml"]), text["CHANGELOG.md"], text["CITATION.cff"])


def golden_vectors_are_those_of_the_last_release() -> list[str]:
    def git(*command: str) -> str:
        return subprocess.check_output(["git", *command], cwd=ROOT, text=True)

    version = declared((ROOT / "pyproject.toml").read_text())
    tags = git("tag", "--list", "v*", "--merged=HEAD", "--sort=-version:refname").split()
    earlier = [tag for tag in tags if tag != f"v{version}"]
    if not earlier:
        print("pysel: nothing has been released yet, so no vector can have changed")
        return []
    if not compatible(earlier[0][1:], version):
        return []
    faults = []
    for name in git("ls-tree", "--name-only", earlier[0], "tests/golden/").split():
        if name.endswith(".json"):
            now = json.loads((ROOT / name).read_text()) if (ROOT / name).exists() else []
            if count := changed(json.loads(git("show", f"{earlier[0]}:{name}")), now):
                faults.append(f"{name}: {count} vectors of {earlier[0]} have changed: that is a major version")
    return faults


def tests(*arguments: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-q", "--long", *arguments]
    return [f"{' '.join(arguments)}: failed, see above"] if subprocess.run(command, cwd=ROOT).returncode else []


def sources_build_from_themselves() -> list[str]:
    """The archive holds what git does, and a wheel comes of it without a network."""
    faults = tests("tests/test_build.py", "-k", "archive")
    with tempfile.TemporaryDirectory() as folder:
        wheel.run(
            sys.executable, "setup.py", "--quiet", "egg_info", f"--egg-base={folder}", "sdist", f"--dist-dir={folder}"
        )
        (archive,) = Path(folder).glob("*.tar.gz")
        command = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation"]
        outside = dict(os.environ, PYSEL_CUDA="OFF", PIP_NO_INDEX="1")
        # in sight, as it compiles
        done = subprocess.run([*command, "--verbose", "--wheel-dir", folder, archive], env=outside)
        return faults + ([f"no wheel comes of {archive.name}"] if done.returncode else [])


def wheels_are_clean() -> list[str]:
    made = list((ROOT / "dist").glob("*.whl"))
    named = f"pysel-{declared((ROOT / 'pyproject.toml').read_text())}"
    others = [f"dist/{path.name} is not of this version" for path in made if not re.match(rf"{named}[+-]", path.name)]
    return others + [fault for path in made for fault in wheel.faults(path)] + ([] if made else ["there is no wheel"])


def the_site_is_whole() -> list[str]:
    return tests("tests/test_site.py", "--capture=no")  # in sight, as it is built


CHECKS: list[Callable[[], list[str]]] = [
    says_what_it_is,
    golden_vectors_are_those_of_the_last_release,
    wheels_are_clean,
    the_site_is_whole,
    sources_build_from_themselves,
]


def main() -> int:
    faults = []
    for number, check in enumerate(CHECKS, 1):
        print(f"pysel: [{number}/{len(CHECKS)}] {check.__name__.replace('_', ' ')}", flush=True)
        faults += check()
    print(*(f"pysel: {fault}" for fault in faults), sep="\n")
    print(f"pysel: {len(CHECKS)} checks, {len(faults)} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
