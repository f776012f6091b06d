"""The tutorial, the REST page and README's Python example, run block by block as a reader would."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli.demo import prepare_data
from service.cli.processes import free_port
from service.client import Client
from service.errors import Unavailable

from .conftest import SLICE, until

ROOT = Path(__file__).parents[2]
TOPICS = {"business", "entertainment", "politics", "sports", "tech"}
ADDRESS = "http://127.0.0.1:8765"


def blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"```(\w+)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


class Reader:
    """A new user's folder, in which ``make demo`` has run and ``cdka serve`` is running. Studies are made smaller."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port(18900)
        self.ids: dict[str, str] = {}
        binaries = Path(sys.executable).parent
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("CDKA_")},
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "CDKA_PORT": str(self.port),
            # As the tutorial says.
            "CDKA_DATA_DIRS": ".:.cdka/demo/data",
            "CDKA_SERVER_URL": f"http://127.0.0.1:{self.port}",
        }
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / ".venv/bin/activate").touch()

    def text(self, block: str) -> str:
        for name, value in self.ids.items():
            block = block.replace(name, value)
        small = block.replace(ADDRESS, self.environment["CDKA_SERVER_URL"])
        for old, new in (
            ("epochs: 2", "epochs: 1"),
            ('"epochs": 2', '"epochs": 1'),
            ("trials: 8", "trials: 2"),
            ('"trials": 8', '"trials": 2'),
            ("seeds: 3", "seeds: 1"),
            ('"seeds": 3', '"seeds": 1'),
            ("max_length: 64", "max_length: 32"),
            ('"max_length": 64', '"max_length": 32'),
            ('"trials": 12', '"trials": 3'),
        ):
            small = small.replace(old, new)
        return small

    def run(self, language: str, block: str) -> str:
        """Run a block in the folder; it must succeed. Returns what it printed."""
        command = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, self.text(block)], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("reader"))
    prepare_data(reader.folder / ".cdka/demo/data", SLICE)
    serve = [sys.executable, "-m", "service.cli", "serve"]
    with (reader.folder / "serve.log").open("w") as log:
        server = subprocess.Popen(serve, cwd=reader.folder, env=reader.environment, stdout=log, stderr=log)
        try:
            until(lambda: _answers(reader), 120, "cdka serve to answer")
            yield reader
        finally:
            server.terminate()
            server.wait(120)


def _answers(reader: Reader) -> bool:
    file = reader.folder / ".cdka/admin-token"
    if not file.exists():
        return False
    try:
        with Client(reader.environment["CDKA_SERVER_URL"], file.read_text().strip(), attempts=1) as client:
            return client.workers() is not None
    except Unavailable:
        return False


@pytest.mark.slow
@pytest.mark.ray
def test_the_tutorial_leads_from_a_csv_file_to_a_served_adapter(reader: Reader) -> None:
    printed = ""
    for language, block in blocks("docs/tutorial.md"):
        if language == "yaml":
            (reader.folder / "articles.yaml").write_text(reader.text(block))
            continue
        if block.strip() == "CDKA_DATA_DIRS=.:.cdka/demo/data cdka serve":
            continue  # the fixture has started it
        printed = reader.run(language, block)
        if "cdka submit" in block:
            reader.ids["STUDY_ID"] = re.findall(r"\b[0-9a-f]{32}\b", printed)[0]
            assert "best found" in printed
        elif "pipeline(" in block:
            topic, score = printed.split()
            assert topic in TOPICS
            assert 0 < float(score) <= 1
    assert "LoRA of rank" in printed
    assert (reader.folder / "adapter-lora/adapter_model.safetensors").exists()
    assert (reader.folder / "merged/model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_the_readmes_section_on_the_winner_runs(reader: Reader) -> None:
    assert reader.ids, "the tutorial runs first and has a study"
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Use the winner") : text.index("## The adapter alone")]
    shutil.rmtree(reader.folder / "adapter")
    for language, block in re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL):
        printed = reader.run(language, block)
        if language == "python":
            (answer,) = ast.literal_eval(printed)
            assert answer["label"] in TOPICS
            assert 0 < answer["score"] <= 1


@pytest.mark.slow
@pytest.mark.ray
def test_the_rest_page_runs_a_study(reader: Reader) -> None:
    assert (reader.folder / "articles.csv").exists(), "the tutorial runs first and makes it"
    first, *rest = [block for language, block in blocks("docs/rest.md") if language == "sh"]
    for block in rest:
        printed = reader.run("sh", first + block)
        if '"name": "articles"' in block:
            reader.ids["STUDY_ID"] = json.loads(printed)["id"]
        elif "/events" in block:
            assert "event: study.state" in printed
        elif "/comparison" in block:
            assert (reader.folder / "trials.csv").read_text().startswith("number,")


@pytest.mark.slow
@pytest.mark.ray
def test_the_python_example_of_the_readme_follows_a_study(reader: Reader) -> None:
    (block,) = [text for language, text in blocks("README.md") if language == "python" and "create_study" in text]
    token = (reader.folder / ".cdka/admin-token").read_text().strip()
    prologue = f"import yaml\ntoken = {token!r}\nspec = yaml.safe_load(open('articles.yaml'))\n"
    printed = reader.run("python", prologue + block)
    assert "study.created" in printed
    answer = printed.splitlines()[-1]
    assert answer.startswith(("Too few seeds", "The search found nothing better than the guideline"))
