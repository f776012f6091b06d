"""The documentation matches the code: links, commands, study files, code, state diagrams and generated pages."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
import yaml

from service.cli.program import app
from service.domain.states import STUDY_TRANSITIONS, TRIAL_TRANSITIONS
from service.domain.study_spec import StudySpec
from service.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
)
WRITTEN = [page for page in PAGES if page.parent.name != "reference" and page.name != "CHANGELOG.md"]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)
    return [text for language, text in found if language in languages]


def all_blocks(*languages: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{name(page)}-{k}")
        for page in PAGES
        for k, text in enumerate(blocks(page, *languages), 1)
    ]


def test_the_generated_pages_are_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    for file, make in generate["PAGES"].items():
        assert (ROOT / "docs/reference" / file).read_text() == make().rstrip() + "\n", f"run make docs: {file} is stale"


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_a_section_that_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, section = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        assert not section or section in anchors(file), f"{target}: no such section"


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_lines_of_prose_fit_a_screen(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    unbreakable = re.compile(r"\||- \[[^\]]*\]\([^)]*\)$")
    long = [line for line in text.splitlines() if len(line) > 120 and not unbreakable.match(line)]
    assert not long


def test_the_readme_is_short_and_has_both_pictures() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130
    assert any(line.startswith("![") for line in lines)
    assert "```mermaid" in lines


def commands_in(page: Path) -> Iterator[list[str]]:
    text = page.read_text()
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *re.findall(r"`(cdka [^`]+)`", text)]:
        for part in re.split(r"&&|\|", line.split("#")[0]):
            if re.match(r"\s*(\.venv/bin/)?cdka\b", part):
                yield shlex.split(part.replace("[", " ").replace("]", " "))[1:]


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_every_command_and_option_exists(page: Path) -> None:
    for words in commands_in(page):
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while rest and hasattr(command, "commands") and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        shown = " ".join(["cdka", *words])
        if words[:1] == ["adapter"] or words[:1] == ["--install-completion"]:
            continue  # arguments of `python -m cdka`; an option of typer's
        assert not hasattr(command, "commands") or words == [] or not rest, f"{shown}: no such command"
        options = {flag for p in command.params for flag in [*p.opts, *p.secondary_opts]}
        for word in rest:
            if word.startswith("-"):
                assert word in options, f"{shown}: no option {word}"


@pytest.mark.parametrize("text", all_blocks("yaml"))
def test_study_files_validate(text: str) -> None:
    """Each fragment is first inserted into a complete study."""
    given = yaml.safe_load(text)
    study: dict[str, Any] = {
        "name": "fragment",
        "model": {"path": "model"},
        "task": {
            "kind": "sequence_classification",
            "dataset": {"path": "json", "data_files": {"train": "train.jsonl"}},
        },
        "budget": {"lora_rank": 8},
    }
    study.update({"task": given} if "kind" in given else given)
    StudySpec.model_validate(study)


# tests/system/test_tutorial.py runs the first page in a real service; tests/workers/tasks/test_tasks.py runs the second
# in a runner.
RUN_ELSEWHERE = ("docs/tutorial.md", "docs/your-own-task.md")


def test_python_blocks_run(data_root: Path) -> None:
    """The tiny model replaces the download. The blocks of a page run in order and share variables."""
    for page in WRITTEN:
        # Variables that the text around the blocks defines.
        space: dict[str, Any] = {"budget": 20_000, "batches": []}
        for text in blocks(page, "python"):
            compile(text, name(page), "exec")
            if name(page) in RUN_ELSEWHERE or "Client(" in text or "pipeline(" in text:
                continue  # tests/system/test_tutorial.py runs those
            tiny = text.replace('"sentence-transformers/all-MiniLM-L6-v2"', repr(str(data_root / "tiny-bert")))
            if "batches" in text:
                ids = torch.ones(2, 4, dtype=torch.long)
                space["batches"] = [{"input_ids": ids, "labels": torch.zeros(2, dtype=torch.long)}]
                space["model"] = space["model"].unload()
            exec(compile(tiny, name(page), "exec"), space)
            if "ranking" in space:
                assert space["ranking"][0].score >= space["ranking"][-1].score
            else:
                assert any("cdka_A" in parameter for parameter, _ in space["model"].named_parameters())


def transitions(title: str) -> set[tuple[str, str]]:
    text = (ROOT / "docs/concepts.md").read_text()
    diagram = text.split(f"\n{title}:\n")[1].split("```")[1]
    return {(a, b) for a, b in re.findall(r"(\w+) --> (\w+)", diagram)}


def test_the_state_diagrams_match_the_transition_tables() -> None:
    for title, table in (("A study", STUDY_TRANSITIONS), ("A trial", TRIAL_TRANSITIONS)):
        assert transitions(title) == {(str(a), str(b)) for a, after in table.items() for b in after}


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_every_cdka_variable_in_the_docs_is_a_setting(page: Path) -> None:
    known = {f"CDKA_{field.upper()}" for field in Settings.model_fields}
    files = [*(ROOT / "docker").glob("*.yaml"), ROOT / "docker/.env.example"]
    compose = {found for file in files for found in re.findall(r"CDKA_[A-Z_]+", file.read_text())}
    assert set(re.findall(r"CDKA_[A-Z]+(?:_[A-Z]+)*", page.read_text())) <= known | compose
