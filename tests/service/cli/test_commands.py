"""Every command, against the real application; and tokens that expire and rotate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from service import errors
from service.cli import program as cli
from service.tenancy import webhooks
from tests.conftest import Api, FakeClock, make_study


@pytest.fixture(autouse=True)
def _public_webhooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "permitted_address", lambda url, private, resolve=None: "203.0.113.9")


def said(command: Any, *arguments: str) -> str:
    code, out, err = command(*arguments)
    assert code == 0, (arguments, out, err)
    return out.strip()


def read(command: Any, *arguments: str) -> Any:
    return json.loads(said(command, *arguments, "--json"))


def test_validate_finds_what_a_search_space_gets_wrong_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    text = yaml.safe_dump(make_study(), sort_keys=False)
    text = text.replace("search_space:\n", "search_space:\n  weight_decay: {low: 0, high: 2}\n  batch_size: 4\n")
    file.write_text(text)
    found = CliRunner().invoke(cli.app, ["validate", str(file)])
    assert isinstance(found.exception, errors.InvalidStudy)
    lines = text.split("\n")
    for words, key in (("less than or equal to 1", "  weight_decay"), ("one of the two", "  batch_size: 8")):
        number = next(k for k, line in enumerate(lines, 1) if line.startswith(key))
        assert any(words in line and f"{file}:{number}:" in line for line in found.stderr.split("\n")), found.stderr


def test_a_named_configuration_sets_what_else_the_study_searches(command: Any, api: Api) -> None:
    study = api.create(search_space={"schedule": {"choices": ["linear", "cosine"]}, "dropout": {"low": 0, "high": 0.5}})
    point = ["--r1", "2", "--r2", "4", "--r", "4", "--alpha", "8", "--learning-rate", "0.001"]
    trial = said(command, "trial", "enqueue", study["id"], *point, "--set", "schedule=cosine", "--set", "dropout=0.25")
    params = read(command, "trial", "show", trial)["params"]
    assert (params["schedule"], params["dropout"]) == ("cosine", 0.25)
    code, _, err = command("trial", "enqueue", study["id"], *point, "--set", "schedule")
    assert code == 2
    assert "NAME=VALUE" in err
    assert "cosine" in said(command, "show", study["id"])


def test_a_study_is_steered_from_the_command_line(command: Any, api: Api, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(make_study(search={"trials": 3, "concurrency": 1})))
    assert said(command, "validate", str(file)) == f"{file.name} is valid. Model and data are checked at submit."
    study = said(command, "submit", str(file))
    assert said(command, "pause", study) == "paused"
    assert said(command, "resume", study) == "running"
    assert said(command, "extend", study, "4") == "running: 0 of 4 trials"
    assert said(command, "update", study, "--priority", "7", "--limits", '{"hours": 5}') == "running"
    assert read(command, "show", study)["study"]["spec"]["limits"]["hours"] == 5
    point = ["--r1", "2", "--r2", "4", "--r", "4", "--alpha", "8", "--learning-rate", "0.001"]
    trial = said(command, "trial", "enqueue", study, *point)
    assert said(command, "trial", "stop", trial) == "cancelled"
    lease = api.lease()
    assert lease is not None
    api.report(lease, 0.25)
    failure = {"kind": "error", "message": "boom"}
    api.finish(lease, "failed", None, failure=failure)
    lease = api.lease()
    assert lease is not None
    api.finish(lease, "failed", None, failure=failure)
    assert "error: boom" in said(command, "show", study)
    failed = lease["trial"]["id"]
    assert said(command, "trial", "retry", failed) == "queued"
    assert read(command, "trial", "show", failed)["state"] == "queued"
    api.run_all(lambda t: 0.5)
    assert read(command, "trial", "metrics", failed) == []
    kinds = [json.loads(line)["kind"] for line in said(command, "events", study, "--json").splitlines()]
    assert kinds[0] == "study.created"
    assert kinds.count("trial.reported") == 1
    assert "study.state" in said(command, "events", study, "--after", "2")
    assert len(read(command, "front", study)["trials"]) >= 1
    assert len(read(command, "compare", study, study)) == 2
    assert "guideline" in said(command, "compare", study, study)
    for form, suffix in (("csv", "csv"), ("json", "json"), ("optuna", "db")):
        out = tmp_path / f"out.{suffix}"
        assert said(command, "export", study, "--format", form, "--out", str(out)) == str(out)
        assert out.stat().st_size > 100
    assert [s["id"] for s in read(command, "studies", "--state", "completed", "--name", "TIN")] == [study]
    said(command, "delete", study, "--yes", "--purge")
    with pytest.raises(errors.NotFound):
        command("show", study)


def test_an_adapter_can_be_downloaded(command: Any, api: Api, tmp_path: Path) -> None:
    study = api.create(search={"trials": 1})
    folder = Path(api.ctx.settings.artifacts_url) / "studies" / study["id"] / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    lease = api.lease()
    assert lease is not None
    api.finish(lease, artifact=str(folder))
    out = tmp_path / "adapter.zip"
    assert said(command, "trial", "fetch", lease["trial"]["id"], "--out", str(out)) == str(out)
    assert out.read_bytes().startswith(b"PK")


def test_the_best_adapter_of_a_study_is_fetched_into_a_folder(command: Any, api: Api, tmp_path: Path) -> None:
    study = api.create(search={"trials": 2}, compare={"seeds": 2, "learning_rate": "shared"})
    with pytest.raises(errors.Conflict, match="no finished trial yet"):
        command("fetch", study["id"])
    store = Path(api.ctx.settings.artifacts_url) / "studies" / study["id"]
    confirmed = []
    while (lease := api.lease()) is not None:
        folder = store / str(lease["trial"]["number"])
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(str(lease["trial"]["number"]))
        api.finish(lease, value=0.9 if lease["trial"]["number"] == 1 else 0.5, artifact=str(folder))
        if len(confirmed) == 0 and lease["trial"]["number"] == 0:
            assert said(command, "fetch", study["id"], "--out", str(tmp_path / "early")) == str(tmp_path / "early")
            assert (tmp_path / "early" / "adapter_config.json").read_text() == "0"
        confirmed.append(lease["trial"])
    trials = api.call("GET", f"/studies/{study['id']}/trials").json()["items"]
    first = min(t["number"] for t in trials if t["candidate"] == "best")
    said(command, "fetch", study["id"], "--out", str(tmp_path / "best"))
    assert (tmp_path / "best" / "adapter_config.json").read_text() == str(first)
    with pytest.raises(errors.Conflict, match="is not an empty folder"):
        command("fetch", study["id"], "--out", str(tmp_path / "best"))


def test_teams_tokens_webhooks_and_workers_are_managed_from_the_command_line(command: Any, api: Api) -> None:
    team = said(command, "team", "create", "research", "--weight", "2", "--max-gpus", "8")
    assert (
        json.loads(said(command, "team", "update", team, "--max-studies", "5", "--lift", "max_gpus"))["max_gpus"]
        is None
    )
    found = next(t for t in read(command, "team", "list") if t["name"] == "research")
    assert (found["weight"], found["max_studies"], found["usage"]["open_studies"]) == (2, 5, 0)
    secret = said(command, "token", "create", "--name", "ci", "--team", "research", "--days", "30")
    assert secret.startswith("cdka_")
    token = next(t for t in read(command, "token", "list") if t["name"] == "ci")
    assert token["expires_at"] is not None
    assert said(command, "token", "rotate", token["id"]).startswith("cdka_")
    said(command, "token", "revoke", token["id"])
    hook = json.loads(said(command, "webhook", "create", "https://hooks.example.org/", "--event", "trial.ended"))
    assert hook["secret"].startswith("whsec_")
    assert read(command, "webhook", "list")[0]["events"] == ["trial.ended"]
    assert read(command, "webhook", "deliveries", hook["id"]) == []
    said(command, "webhook", "delete", hook["id"])
    api.create(search={"trials": 2})
    (item,) = read(command, "demand")
    assert (item["cpus"], item["gpus"], item["slots"]) == (1.0, 0.0, 2)
    api.lease("runner-9")
    assert read(command, "workers")[0]["name"] == "runner-9"
    assert "token.revoke" in [e["action"] for e in read(command, "audit")]
    assert {s["name"] for s in read(command, "samplers")} >= {"tpe", "cmaes", "nsga2"}
    assert "n_startup_trials: 5" in said(command, "samplers")
    assert "hyperband" in said(command, "pruners")


@pytest.mark.parametrize(
    "arguments",
    [("update", "x"), ("update", "x", "--limits", "{"), ("team", "update", "x", "--lift", "max_fun"), ("extend", "x")],
)
def test_usage_errors_exit_with_2(command: Any, arguments: tuple[str, ...]) -> None:
    assert command(*arguments)[0] == 2


def test_a_faulty_file_is_reported_without_a_server(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(make_study(search={"trials": 0})))
    found = CliRunner().invoke(cli.app, ["validate", str(file)])
    assert isinstance(found.exception, errors.InvalidStudy)
    line = next(k for k, text in enumerate(file.read_text().splitlines(), 1) if "trials:" in text)
    assert f"{file}:{line}: search.trials:" in found.stderr


def test_every_command_that_reads_takes_json() -> None:
    """Every command that shows or lists something has ``--json``, so that programs can read it."""
    reads = {"studies", "show", "events", "front", "compare", "samplers", "pruners", "workers", "demand", "audit"}
    reads |= {"predict", "token list", "team list", "webhook list", "webhook deliveries", "trial show", "trial metrics"}
    root: Any = typer.main.get_command(cli.app)
    found = {}
    for name, made in root.commands.items():
        children = getattr(made, "commands", None)
        found |= {name: made} if children is None else {f"{name} {child}": c for child, c in children.items()}
    assert reads <= set(found)
    for name in reads:
        assert "--json" in [option for p in found[name].params for option in p.opts], name


def test_a_token_expires_and_its_last_use_is_listed(api: Api, clock: FakeClock) -> None:
    end = clock().isoformat().replace("2026-01-01", "2026-01-02")
    made = api.call("POST", "/tokens", "admin", json={"name": "short", "role": "viewer", "expires_at": end}).json()
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert api.http.get("/api/v1/studies", headers=headers).status_code == 200
    listed = next(t for t in api.call("GET", "/tokens", "admin").json()["items"] if t["id"] == made["id"])
    assert listed["last_used_at"] is not None
    clock.advance(86_400)
    assert api.http.get("/api/v1/studies", headers=headers).status_code == 401
    past = {"name": "x", "role": "viewer", "expires_at": "2020-01-01T00:00:00Z"}
    refused = api.call("POST", "/tokens", "admin", json=past)
    assert refused.json()["errors"][0]["pointer"] == "#/expires_at"
    naive = {**past, "expires_at": "2030-01-01T00:00:00"}
    assert api.call("POST", "/tokens", "admin", json=naive).status_code == 422


def test_a_rotated_token_stays_valid_for_the_grace_period(api: Api, clock: FakeClock) -> None:
    old = api.call("POST", "/tokens", "admin", json={"name": "ci", "role": "viewer"}).json()
    new = api.call("POST", f"/tokens/{old['id']}/rotate", "admin", json={"grace_seconds": 600}).json()

    def works(secret: str) -> bool:
        answer = api.http.get("/api/v1/studies", headers={"Authorization": f"Bearer {secret}"})
        return bool(answer.status_code == 200)

    assert (new["name"], new["role"], new["team"]) == ("ci", "viewer", "default")
    assert works(old["token"])
    assert works(new["token"])
    clock.advance(601)
    assert not works(old["token"])
    assert works(new["token"])
    assert api.call("POST", f"/tokens/{old['id']}/rotate", "admin", json={}).status_code == 409
