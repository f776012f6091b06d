"""The OpenAPI document is valid and compatible with the committed one, and generated clients can run a sweep."""

from __future__ import annotations

import asyncio
import copy
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from openapi_spec_validator import OpenAPIV31SpecValidator

from service.app import create_app
from service.cli.processes import free_port
from tests.conftest import Api, make_study

from .compatibility import incompatible_changes

FILE = Path(__file__).parents[2] / "docs" / "reference" / "openapi.json"
# Timeout of the slow tests, in seconds.
LONG = 600


@pytest.fixture
def document(api: Api) -> dict[str, Any]:
    return api.http.get("/openapi.json").json()  # type: ignore[no-any-return]


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for item in document["paths"].values() for operation in item.values()]


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_operation_ids_are_short_and_unique_and_bodies_have_examples(api: Api, document: dict[str, Any]) -> None:
    names = [operation["operationId"] for operation in operations(document)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+){0,3}", name) for name in names)
    bodies = [o["requestBody"]["content"]["application/json"] for o in operations(document) if "requestBody" in o]
    assert bodies
    assert all("example" in body for body in bodies)
    assert document["servers"] == [{"url": "/"}]


def test_every_json_answer_has_a_schema(document: dict[str, Any]) -> None:
    for operation in operations(document):
        for code, answer in operation["responses"].items():
            for kind, body in answer.get("content", {}).items():
                assert kind != "application/json" or body["schema"].keys() - {"title"}, (operation["operationId"], code)


def test_request_examples_are_accepted(api: Api, document: dict[str, Any]) -> None:
    """Except the examples that name an existing resource."""
    examples = {
        o["operationId"]: o["requestBody"]["content"]["application/json"]["example"]
        for o in operations(document)
        if "requestBody" in o
    }
    study = examples["create_study"]
    study["model"]["path"] = examples["predict"]["model"]["path"] = "tiny-bert"
    study["task"]["columns"]["label"] = "label"
    study["training"] = {"max_length": 64}
    made = api.call("POST", "/studies", json=study)
    assert made.status_code == 201, made.text
    place = f"/studies/{made.json()['id']}"
    assert api.call("POST", "/predictions", json=examples["predict"]).status_code == 200
    assert api.call("PATCH", place, json=examples["update_study"]).status_code == 200
    lease = api.call("POST", "/leases", "worker", json=examples["lease_trials"]).json()["leases"][0]["id"]
    for method, path, name in (
        ("POST", "reports", "send_reports"),
        ("POST", "logs", "append_log"),
        ("PUT", "inputs", "record_inputs"),
        ("PUT", "result", "send_result"),
    ):
        answer = api.call(method, f"/leases/{lease}/{path}", "worker", json=examples[name])
        assert answer.status_code == 200, (name, answer.text)
    assert api.call("POST", "/tokens", "admin", json=examples["create_token"]).status_code == 201
    assert api.call("POST", "/teams", "admin", json=examples["create_team"]).status_code == 201


def test_the_api_is_compatible_with_the_committed_document(document: dict[str, Any]) -> None:
    """If this fails, name the change in CHANGELOG.md; ``make docs`` then writes the document."""
    assert incompatible_changes(json.loads(FILE.read_text()), document) == []


Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, tuple[Change, str]] = {
    "an operation": (lambda d: d["paths"].pop("/api/v1/demand"), "operation get_demand is gone"),
    "a path": (
        lambda d: d["paths"].update({"/api/v2/demand": d["paths"].pop("/api/v1/demand")}),
        "operation get_demand has moved from GET /api/v1/demand to GET /api/v2/demand",
    ),
    "a field": (lambda d: d["components"]["schemas"]["StudyOut"]["properties"].pop("state"), "StudyOut has no state"),
    "a type": (
        lambda d: d["components"]["schemas"]["TrialOut"]["properties"].update(number={"type": "string"}),
        "TrialOut.number was integer, it is string",
    ),
    "a new obligation": (
        lambda d: d["components"]["schemas"]["StudySpec"]["required"].append("limits"),
        "StudySpec needs limits",
    ),
    "an obligation less": (
        lambda d: d["components"]["schemas"]["StudyOut"]["required"].remove("name"),
        "StudyOut.name may be missing",
    ),
    "a state": (
        lambda d: d["components"]["schemas"]["TrialState"]["enum"].remove("pruned"),
        "TrialState has no value pruned any more",
    ),
    "an answer": (
        lambda d: d["paths"]["/api/v1/studies"]["post"]["responses"].pop("201"),
        "create_study answers with 201 no more",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_incompatible_change_is_named(document: dict[str, Any], change: str) -> None:
    after = copy.deepcopy(document)
    make, told = CHANGES[change]
    make(after)
    assert any(told in found for found in incompatible_changes(document, after))


# --- generated clients


@pytest.fixture
def server(api: Api) -> Iterator[str]:
    """The address of the application behind uvicorn."""
    port = free_port(19700)
    config = uvicorn.Config(create_app(api.ctx), host="127.0.0.1", port=port, log_config=None)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve()), daemon=True)
    thread.start()
    while not running.started:
        thread.join(0.05)
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(30)


@pytest.mark.slow
@pytest.mark.both_databases
@pytest.mark.timeout(LONG)
def test_a_generated_python_client_runs_a_sweep(
    api: Api, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Installed apart from our own packages, because it needs an older typer.
    target = ["--quiet", "--target", str(tmp_path / "tool"), "openapi-python-client==0.29.1"]
    subprocess.run([sys.executable, "-m", "pip", "install", *target], check=True, capture_output=True)
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path / "tool"),
    }
    options = ["--path", str(FILE), "--output-path", str(tmp_path / "generated"), "--meta", "none"]
    command = [sys.executable, "-m", "openapi_python_client", "generate", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout + done.stderr
    assert "Unable to process" not in done.stdout + done.stderr
    monkeypatch.syspath_prepend(str(tmp_path))

    def call(module: str, *arguments: Any, role: str = "member", **named: Any) -> Any:
        client = importlib.import_module("generated.client").AuthenticatedClient(
            base_url=server, token=api.token(role), raise_on_unexpected_status=True
        )
        with client:
            return importlib.import_module(f"generated.api.{module}").sync(*arguments, client=client, **named)

    models = importlib.import_module("generated.models")
    spec = models.StudySpec.from_dict(make_study(search={"trials": 3}, compare={"seeds": 1, "learning_rate": "shared"}))
    study = call("studies.create_study", body=spec)
    assert type(study).__name__ == "StudyCreated"
    done_trials = 0
    while leases := call("workers.lease_trials", role="worker", body=models.LeaseRequest(runner="generated")).leases:
        (lease,) = leases
        reports = models.ReportsIn.from_dict({"reports": [{"step": 1, "metrics": {"accuracy": 0.5}}]})
        assert call("workers.send_reports", lease.id, role="worker", body=reports).directive == "continue"
        result = models.ResultIn.from_dict({"state": "completed", "metrics": {"accuracy": 0.5 + 0.01 * done_trials}})
        call("workers.send_result", lease.id, role="worker", body=result)
        done_trials += 1
    read = call("studies.get_study", study.id)
    assert (read.state, read.search.finished) == ("completed", 3)
    assert len(call("trials.list_trials", study.id, limit=50).items) == done_trials
    assert call("studies.get_comparison", study.id).best_trial is not None
    refused = call("studies.get_study", "nothing")
    assert (type(refused).__name__, refused.status) == ("Problem", 404)


@pytest.mark.slow
@pytest.mark.timeout(LONG)
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm (Node.js), which .ci/run installs")
def test_typescript_is_generated_and_compiles(tmp_path: Path) -> None:
    packages = ["openapi-typescript@7.10.1", "typescript@5.9.3"]
    subprocess.run(
        ["npm", "install", "--silent", "--prefix", str(tmp_path), *packages], check=True, capture_output=True
    )
    binaries = tmp_path / "node_modules" / ".bin"
    said = subprocess.run(
        [str(binaries / "openapi-typescript"), str(FILE), "-o", str(tmp_path / "api.ts")],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    assert "warn" not in (said.stdout + said.stderr).lower()
    (tmp_path / "use.ts").write_text(
        'import type { components, operations } from "./api";\n'
        'const study: components["schemas"]["StudyOut"]["state"] = "completed";\n'
        'type Body = operations["create_study"]["requestBody"]["content"]["application/json"];\n'
        'const budget: Body["budget"] = { lora_rank: 8 } as Body["budget"];\n'
        "export { study, budget };\n"
    )
    options = ["--noEmit", "--strict", "--skipLibCheck", str(tmp_path / "use.ts")]
    compiled = subprocess.run([str(binaries / "tsc"), *options], capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stdout
