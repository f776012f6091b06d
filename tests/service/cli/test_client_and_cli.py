"""The SDK and the ``cdka`` command, against the real application."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service import errors
from service.client import Client
from service.schemas.specs import Shape
from service.schemas.studies import StudyOut
from service.schemas.study_file import StudyFile
from tests.conftest import Api, make_study


def study_file(folder: Path, **changes: Any) -> Path:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(make_study(**changes)))
    return file


def test_the_sdk_covers_the_whole_trial_loop(client: Client) -> None:
    assert client.ready()
    study = client.create_study(make_study(search={"trials": 2}))
    assert client.demand().items[0].slots == 2
    for _ in range(2):
        (lease,) = client.lease("runner", Shape()).leases
        assert client.report(lease.id, [(1, {"accuracy": 0.5})]).directive == "continue"
        assert client.finish(lease.id, {"state": "completed", "metrics": {"accuracy": 0.5}}).trial_state == "completed"
    nothing = client.lease("runner", Shape())
    assert (nothing.leases, nothing.retry_after_seconds) == ([], 1.0)
    trials = list(client.trials(study.id))
    assert [t.number for t in trials] == [0, 1]
    assert client.trial(trials[0].id) == trials[0]
    assert client.metrics(trials[0].id)[0].value == 0.5
    assert client.study(study.id).state == "completed"
    assert [s.id for s in client.studies()] == [study.id]
    assert client.comparison(study.id).best_trial is not None
    assert client.predictions(study.id)[0].predictor == "guideline"
    assert client.predict(make_study()).budget == study.budget


def test_the_sdk_reads_page_after_page(client: Client, api: Api) -> None:
    made = []
    for k in range(5):
        api.ctx.clock.advance(1)  # type: ignore[attr-defined]  # ids sort by time
        made.append(client.create_study(make_study(name=f"s{k}")).id)
    assert [s.id for s in client._pages(StudyOut, "/studies", limit=2)] == made[::-1]


def test_the_sdk_raises_the_servers_errors(client: Client) -> None:
    with pytest.raises(errors.InvalidStudy) as caught:
        client.create_study(make_study(search={"pruner": "shears"}))
    assert caught.value.faults[0].pointer == "#/search/pruner"
    with pytest.raises(errors.NotFound):
        client.study("nope")
    study = client.create_study(make_study())
    client.cancel_study(study.id)
    with pytest.raises(errors.Conflict):
        client.cancel_study(study.id)
    (lease,) = client.lease("r", Shape()).leases or [None]
    assert lease is None


def test_an_unreachable_server_raises_unavailable_after_retries() -> None:
    calls = []

    def refuse(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        raise httpx.ConnectError("refused")

    client = Client("http://localhost:1", transport=httpx.MockTransport(refuse), attempts=3)
    with pytest.raises(errors.Unavailable, match="cannot be reached"):
        client.study("x")
    assert len(calls) == 3
    with pytest.raises(errors.Unavailable):
        client.create_study({})
    keys = {call.headers["idempotency-key"] for call in calls[3:]}
    assert (len(calls), len(keys)) == (6, 1)  # repeated with the same key, so there are never two studies
    with pytest.raises(errors.Unavailable):
        client.lease("r", Shape())  # not repeated: a second request could take a second lease
    assert len(calls) == 7


def test_submit_show_compare_and_json(command: Any, tmp_path: Path, api: Api) -> None:
    code, out, _ = command("submit", str(study_file(tmp_path, search={"trials": 1})))
    assert code == 0
    study_id = out.strip()
    api.run_all(lambda t: 0.5)
    assert json.loads(command("studies", "--json")[1])[0]["id"] == study_id
    shown = json.loads(command("show", study_id, "--json")[1])
    assert shown["trials"][0]["state"] == "completed"
    assert json.loads(command("compare", study_id, "--json")[1])["best_trial"]["value"] == 0.5
    assert "tiny" in command("studies")[1]
    assert "0.5000" in command("show", study_id)[1]
    assert "guideline" in command("compare", study_id)[1]
    assert "guideline: best pairs of" in command("predict", str(study_file(tmp_path)))[1]
    assert command("token", "create", "--name", "x", "--role", "viewer")[1].startswith("cdka_")


def test_faults_in_a_study_file_are_reported_with_lines(command: Any, tmp_path: Path) -> None:
    file = study_file(tmp_path, search={"pruner": "shears"})
    with pytest.raises(errors.InvalidStudy):
        command("submit", str(file))
    line = next(k for k, text in enumerate(file.read_text().splitlines(), 1) if "shears" in text)
    assert StudyFile(file).line("#/search/pruner") == line
    said = StudyFile(file).describe(errors.Fault("#/search/pruner", "unknown"))
    assert said == f"{file}:{line}: search.pruner: unknown"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "holds no study"),
        ("", "holds no study"),
        ("a: [1\n", "is not YAML at line"),
        ("a: !!python/object/apply:os.system ['true']\n", "is not YAML at line"),
        ("a: &x [*x]\n", "JSON has no form for"),
        ("a: 1\nb: 2\na: 3\n", "line 3.*duplicate key"),
        ("a: @x\n", "line 1.*quote"),
        ("a: !!python/object:os.system 1\n", "line 1.*quote"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("a: .nan\n", "JSON has no form for"),
    ],
)
def test_a_file_without_a_study_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    with pytest.raises(errors.InvalidStudy, match=message):
        StudyFile(file)
    with pytest.raises(errors.InvalidStudy, match="cannot be read"):
        StudyFile(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", 0.001),
        ("1E-3", 0.001),
        ("5.e-4", 0.0005),
        ("010", 10),
        ("0o10", 8),
        ("08", 8),
        ("1_000", 1000),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("2026-11-29", "2026-11-29"),
        ("2026-11-29T10:00:00Z", "2026-11-29T10:00:00Z"),
        ("true", True),
        ("~", None),
    ],
)
def test_values_are_read_by_the_rules_of_yaml_1_2(tmp_path: Path, written: str, meant: Any) -> None:
    """YAML 1.1 reads 1e-3 as text, 010 as eight, no as false, 1:30 as ninety and a date as no text."""
    file = tmp_path / "study.yaml"
    file.write_text(f"a: {written}\nb: {{c: {written}}}\n")
    assert StudyFile(file).content == {"a": meant, "b": {"c": meant}}


def test_a_number_where_text_belongs_is_rejected_with_its_line_and_a_hint_to_quote_it(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**make_study(), "name": 2026}, sort_keys=False))
    read = StudyFile(file)
    with pytest.raises(errors.InvalidStudy) as caught:
        read.check()
    (fault,) = caught.value.faults
    assert (
        read.describe(fault)
        == f"{file}:1: name: Input should be a valid string; quote it in the file if it is meant as text"
    )


def test_a_study_named_no_keeps_its_name_and_a_rate_without_a_dot_is_a_number(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    text = yaml.safe_dump({k: v for k, v in make_study().items() if k not in ("name", "search_space")})
    file.write_text(f"name: no\nsearch_space: {{learning_rate: {{low: 1e-4, high: 1e-2, log: true}}}}\n{text}")
    read = StudyFile(file)
    read.check()
    assert read.content["name"] == "no"
    assert read.content["search_space"]["learning_rate"]["low"] == 1e-4


def test_the_command_starts_without_torch_ray_or_fastapi() -> None:
    script = (
        "import sys, service.cli, service.client\n"
        "heavy = {'torch', 'ray', 'fastapi', 'sqlalchemy', 'transformers', 'optuna', 'scipy', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_usage_errors_faulty_files_and_an_absent_server_have_their_exit_codes(tmp_path: Path) -> None:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": "", "CDKA_HOME": str(tmp_path), "CDKA_SERVER_URL": "http://127.0.0.1:1", **environment}
        return subprocess.run(
            [sys.executable, "-m", "service.cli", *arguments], capture_output=True, text=True, env=env, cwd=tmp_path
        )

    assert run("--help").returncode == 0
    assert run("nonsense").returncode == 2
    wrong = run("studies", CDKA_PORT="x")
    assert wrong.returncode == 2
    assert "CDKA_PORT" in wrong.stderr
    refused = run("submit", "missing.yaml")
    assert refused.returncode == 3
    assert "cannot be read" in refused.stderr
    away = run("studies")
    assert away.returncode == 4
    assert "cannot be reached" in away.stderr
    assert "Traceback" not in away.stderr


def test_the_adapter_commands_run_the_library(tmp_path: Path) -> None:
    """Runs in a process of its own, to check the exit code and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "adapter", "inspect", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "adapter_config.json is missing" in done.stderr
