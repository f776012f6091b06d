"""The repository follows its layout rules: top level, imports, exported names, pins."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path
from types import SimpleNamespace

import pytest

import cdka

ROOT = Path(__file__).parents[1]
# A package of the name docker exists.
lock = SimpleNamespace(**runpy.run_path(str(ROOT / "docker/lock.py")))
TOP = {"pyproject.toml", "README.md", "service", "workers", "cdka", "docker", "tests", "alembic"}
TOOLS = {
    "Makefile",
    ".ci",
    "benchmarks",
    "docs",
    "examples",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "constraints.txt",
    ".gitignore",
}


def tracked() -> set[str]:
    """Top-level names of the tracked files. A user's own untracked files are ignored."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split("/")[0] for name in listed.stdout.split("\0") if name}


def test_the_top_level_has_only_the_agreed_names() -> None:
    assert tracked() <= TOP | TOOLS
    assert TOP - {"docker"} <= tracked()
    assert not (ROOT / "alembic" / "__init__.py").exists()  # it would shadow the library


def imports_of(package: str) -> dict[str, set[str]]:
    """For each module of a package, the modules of the package that it imports, including imports inside functions."""
    files = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in (ROOT / package).rglob("*.py")}
    modules = {name.removesuffix(".__init__"): file for name, file in files.items()}
    graph: dict[str, set[str]] = {}
    for name, file in modules.items():
        own = name if file.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom):
                continue
            parts = own.split(".")[: len(own.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parts, *([node.module] if node.module else [])])
            for imported in node.names:
                whole = f"{source}.{imported.name}"
                graph[name].add(whole if whole in modules else source)
        graph[name] = {m for m in graph[name] if m in modules and m != name}
    return graph


@pytest.mark.parametrize("package", ["cdka", "service", "workers"])
def test_there_are_no_import_cycles(package: str) -> None:
    sorter = TopologicalSorter(imports_of(package))
    sorter.prepare()  # raises CycleError, which names the cycle


def test_no_module_has_a_name_without_a_subject() -> None:
    names = {p.stem for package in ("cdka", "service", "workers") for p in (ROOT / package).rglob("*")}
    assert names.isdisjoint({"util", "utils", "helpers", "common", "common_utils", "manager", "misc"})


def test_cdka_exports_the_promised_names() -> None:
    assert all(hasattr(cdka, name) for name in cdka.__all__)
    promised = {
        "CdkaConfig",
        "kron_linear",
        "ModuleShape",
        "module_shapes",
        "count_parameters",
        "rank_bound",
        "feasible",
        "predict",
    }
    assert promised <= set(cdka.__all__)


@pytest.mark.parametrize("role", sorted(lock.ROLES))
def test_lock_files_hold_what_is_pinned_and_all_that_a_role_needs(role: str) -> None:
    """``make lock`` was run after the last change of constraints.txt or of the dependencies."""
    text = (lock.FOLDER / f"{role}.txt").read_text()
    locked = lock.pins(text)
    assert set(locked) == lock.needed(*lock.ROLES[role]) - lock.WITHOUT_HASHES
    assert locked.items() <= lock.pins((ROOT / "constraints.txt").read_text()).items()
    blocks = re.findall(r"^\S+==.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)+", text, re.MULTILINE)
    assert len(blocks) == len(locked), "every package has a hash"


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in lines), "constraints are exact pins"
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    text = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[0]
    asked = set(re.findall(r'^    "([A-Za-z0-9-]+)(?:\[[^\]]*\])?[><=]', text, re.MULTILINE))
    assert asked - {"cdka"} <= pinned


def test_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in ("make demo", "make test", "cdka serve", "cdka submit", "cdka predict", "cdka compare"):
        assert command in readme


def test_no_test_file_imports_another() -> None:
    """What suites share lies in helpers and fixtures."""
    found = [
        f"{file.relative_to(ROOT)}: {line}"
        for file in (ROOT / "tests").rglob("*.py")
        for line in file.read_text().splitlines()
        if re.match(r"(from|import) \S*\btest_\w+", line)
    ]
    assert found == []
