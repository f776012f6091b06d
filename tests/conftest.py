"""Shared fixtures: a tiny model in hub layout, data files, a fake clock, and a service on either database."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import event
from sqlalchemy.pool import Pool
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from service.app import create_app, make_context
from service.context.context import Context
from service.db.engine import Database
from service.domain.records import Role
from service.settings import Settings
from service.tenancy.tokens import create_token, ensure_team

from .postgres import Cluster

torch.set_num_threads(1)

WORDS = {
    "sport": "goal match team league coach score win cup player season".split(),
    "business": "market shares bank profit trade growth economy price firm deal".split(),
}


class FakeClock:
    """A clock that moves only when a test advances it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def elapsed(self) -> float:
        """Monotonic time in seconds. It follows this clock unless a test replaces one of the two."""
        return self.now.timestamp()


def sentences(count: int, offset: int = 0) -> list[dict[str, str]]:
    """Two topics that a tiny model can tell apart."""
    rows = []
    for k in range(offset, offset + count):
        topic = ("sport", "business")[k % 2]
        words = WORDS[topic]
        rows.append({"text": " ".join(words[(k * 7 + j * 3) % 10] for j in range(6)), "label": topic})
    return rows


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with ``tiny-bert`` (hub layout) and train, validation and test files."""
    root = tmp_path_factory.mktemp("data")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS["sport"], *WORDS["business"]]
    folder = root / "tiny-bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    # Saved without its head, like a pretrained encoder.
    BertForSequenceClassification(config).bert.save_pretrained(folder)
    write_lines(root / "train.jsonl", sentences(40))
    write_lines(root / "validation.jsonl", sentences(20, 40))
    write_lines(root / "test.jsonl", sentences(20, 60))
    return root


def make_study(**changes: Any) -> dict[str, Any]:
    """A valid study on the tiny model; keyword arguments replace or merge sections."""
    study: dict[str, Any] = {
        "name": "tiny",
        "model": {"path": "tiny-bert"},
        "task": {
            "kind": "sequence_classification",
            "dataset": {"path": "json", "data_files": {s: f"{s}.jsonl" for s in ("train", "validation", "test")}},
        },
        "training": {"epochs": 2, "batch_size": 8, "max_length": 16},
        "budget": {"configuration": {"r1": 2, "r2": 4, "r": 4}},
        "search_space": {"r1": {"choices": [1, 2, 4]}, "r2": {"choices": [1, 2, 4, 8]}},
        "search": {"trials": 4, "concurrency": 2, "pruner": "none", "start": [], "recheck": "none"},
        "compare": {"seeds": 0},
    }
    for section, value in changes.items():
        if isinstance(value, dict) and isinstance(study.get(section), dict):
            study[section] = {**study[section], **value}
        else:
            study[section] = value
    return study


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that is copied for every test. Migrations create the schema in tests, too."""
    file = tmp_path_factory.mktemp("template") / "cdka.db"
    ctx = make_context(Settings(home=file.parent, database_url=f"sqlite:///{file}"))
    ctx.db.upgrade()
    with ctx.db.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    ctx.db.engine.dispose()
    return file


_opened: list[sqlite3.Connection] = []


@event.listens_for(Pool, "connect")
def _note_connection(connection: Any, _: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        _opened.append(connection)


@pytest.fixture(autouse=True)
def _every_connection_is_closed() -> Iterator[None]:
    """Fail the test that leaves a SQLite connection open.

    From Python 3.13 on, an open connection causes a warning when it is collected, often in a later, unrelated test.
    """
    _opened.clear()
    yield
    left = 0
    for connection in _opened:
        with contextlib.suppress(sqlite3.ProgrammingError):  # raised by a closed connection
            connection.total_changes  # noqa: B018
            left += 1
    _opened.clear()
    assert not left, f"{left} connections to SQLite are still open"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the Ray tests first: they are the longest, and one that starts last delays the end of a parallel run.

    With ``--database postgresql``, deselect tests that use no database: they would repeat the run with SQLite.
    """
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    if config.getoption("--database") == "postgresql":
        idle = [item for item in items if "database_url" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=idle)
        items[:] = [item for item in items if item not in idle]


def pytest_collection_finish() -> None:
    """Exclude what has been imported from garbage collection.

    The Trainer collects garbage twice per training, and scanning all imported objects takes 0.7 s each time.
    """
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--database", choices=["sqlite", "postgresql"], default="sqlite", help="what the service runs on")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A private PostgreSQL cluster with a migrated database ``empty`` that tests copy. Nothing is connected to it."""
    made = Cluster()
    try:
        database = Database(made.create("empty"))
        database.upgrade()
        database.engine.dispose()
        yield made
    finally:
        made.stop()


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh, migrated database of the kind that ``--database`` names."""
    if request.config.getoption("--database") == "sqlite":
        shutil.copy(request.getfixturevalue("empty_database"), tmp_path / "cdka.db")
        yield f"sqlite:///{tmp_path}/cdka.db"
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    name = f"test_{uuid4().hex}"
    yield cluster.create(name, template="empty")
    cluster.drop(name)


@pytest.fixture
def blank_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of the kind that ``--database`` names, without any table."""
    if request.config.getoption("--database") == "sqlite":
        yield f"sqlite:///{tmp_path}/blank.db"
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    name = f"blank_{uuid4().hex}"
    yield cluster.create(name)
    cluster.drop(name)


@pytest.fixture
def ctx(tmp_path: Path, database_url: str, data_root: Path, clock: FakeClock) -> Iterator[Context]:
    """A service context on a fresh database. The clock is past the first lease time, in which no lease expires."""
    settings = Settings(
        home=tmp_path,
        database_url=database_url,
        data_dirs=[data_root],
        lease_seconds=60,
        rate_limit=0,
        commit="0123abc",
    )
    made = make_context(settings, clock, clock.elapsed)
    ensure_team(made, "default")
    clock.advance(61)
    yield made
    made.db.engine.dispose()


@dataclass
class Api:
    """The application in this process, and tokens of every role."""

    ctx: Context
    http: TestClient
    secrets: dict[str, str] = field(default_factory=dict)

    def token(self, role: str, team: str = "default") -> str:
        """The secret of a token of this role and team."""
        key = f"{team}/{role}"
        if key not in self.secrets:
            ensure_team(self.ctx, team)
            self.secrets[key] = create_token(self.ctx, team, key, Role(role))[1]
        return self.secrets[key]

    def call(self, method: str, path: str, role: str = "member", team: str = "default", **kwargs: Any) -> Any:
        """Send a request under /api/v1 with a token of this role and team."""
        headers = {"Authorization": f"Bearer {self.token(role, team)}", **kwargs.pop("headers", {})}
        return self.http.request(method, f"/api/v1{path}", headers=headers, **kwargs)

    def create(self, **changes: Any) -> dict[str, Any]:
        """Create a valid study."""
        response = self.call("POST", "/studies", json=make_study(**changes))
        assert response.status_code == 201, response.text
        return response.json()

    def lease(self, runner: str = "runner-1", **offer: Any) -> dict[str, Any] | None:
        """Lease one trial."""
        response = self.call("POST", "/leases", "worker", json={"runner": runner, **offer})
        assert response.status_code == 200, response.text
        leases = response.json()["leases"]
        return leases[0] if leases else None

    def report(
        self, lease: dict[str, Any], *values: float, first_step: int = 1, metric: str = "accuracy", **more: Any
    ) -> Any:
        """Report one value per step."""
        reports = [{"step": first_step + k, "metrics": {metric: v}} for k, v in enumerate(values)]
        return self.call("POST", f"/leases/{lease['id']}/reports", "worker", json={"reports": reports, **more})

    def finish(self, lease: dict[str, Any], state: str = "completed", value: float | None = 0.5, **more: Any) -> Any:
        """Send a result."""
        metrics = {} if value is None else {"accuracy": value}
        body = {"state": state, "metrics": metrics, **more}
        return self.call("PUT", f"/leases/{lease['id']}/result", "worker", json=body)

    def run_all(self, value: Callable[[dict[str, Any]], float], most: int = 500) -> list[dict[str, Any]]:
        """Lease and finish every trial, one after the other. Returns the trials in order."""
        done = []
        while (lease := self.lease()) is not None:
            assert len(done) < most, "the study does not end"
            assert self.finish(lease, value=value(lease["trial"])).status_code == 200
            done.append(lease["trial"])
        return done


@pytest.fixture
def api(ctx: Context) -> Iterator[Api]:
    with TestClient(create_app(ctx), base_url="http://localhost", raise_server_exceptions=False) as http:
        yield Api(ctx, http)
