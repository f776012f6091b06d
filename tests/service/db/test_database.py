"""Old databases upgrade without losing rows, backups move between databases, and ``db check`` finds faults."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from fastapi.testclient import TestClient
from sqlalchemy import event, inspect, text

from service.app import create_app, make_context
from service.db.backup import back_up, restore
from service.db.checks import check
from service.db.engine import Database, alembic_config
from service.domain.records import Role
from service.errors import Conflict, InvalidRequest, Unavailable
from service.server.bootstrap import prepare_database
from service.settings import Settings
from service.tenancy.tokens import create_token
from tests.conftest import Api, FakeClock

# A database of every earlier revision, filled by that release in every state that a study and a trial can have.
ASSETS = sorted((Path(__file__).parents[2] / "assets").glob("revision-*.cdka"))
SPECS = text("SELECT name, spec FROM studies")
TINY = {"configuration": {"r1": 1, "r2": 1, "r": 4}, "min_fill": 0.0}


def contents(file: Path) -> dict[str, Counter[str]]:
    """The rows of a backup by table, without their order."""
    tables: dict[str, Counter[str]] = {}
    columns: list[str] = []
    current = ""
    with gzip.open(file, "rt") as stream:
        for line in map(json.loads, stream):
            if isinstance(line, list):
                row = dict(zip(columns, line, strict=True))
                tables[current][json.dumps(row, sort_keys=True)] += 1
            elif "table" in line:
                current, columns = line["table"], line["columns"]
                tables[current] = Counter()
    return tables


def server(url: str, home: Path, data_root: Path, clock: FakeClock) -> Api:
    """A server on an upgraded database, with admin and worker tokens of the asset's team."""
    settings = Settings(home=home, database_url=url, data_dirs=[data_root], lease_seconds=60, rate_limit=0)
    ctx = make_context(settings, clock, clock.elapsed)
    api = Api(ctx, TestClient(create_app(ctx), base_url="http://localhost"))
    api.secrets["default/member"] = create_token(ctx, "default", "admin", Role.ADMIN)[1]
    api.secrets["default/worker"] = create_token(ctx, "default", "worker", Role.WORKER)[1]
    return api


@pytest.mark.parametrize("asset", ASSETS, ids=lambda p: p.stem)
def test_populated_databases_of_every_earlier_revision_upgrade(
    asset: Path, blank_url: str, tmp_path: Path, data_root: Path, clock: FakeClock
) -> None:
    database = Database(blank_url)
    restore(database, asset)
    assert database.is_current()
    assert check(database) == []
    command.check(alembic_config(database.url))
    database.engine.dispose()
    clock.advance(3600)
    api = server(blank_url, tmp_path, data_root, clock)
    studies = {s["name"]: s for s in api.call("GET", "/studies").json()["items"]}
    assert {name: s["state"] for name, s in studies.items()} == {
        "done": "completed",
        "tuned": "completed",
        "cancelled": "cancelled",
        "failed": "failed",
        "running": "running",
        "waiting": "queued",
    }
    done = api.call("GET", f"/studies/{studies['done']['id']}/comparison").json()
    assert done["best_trial"]["value"] == 0.53
    assert [c["finished"] for c in done["candidates"]] == [2] * len(done["candidates"])
    trials = api.call("GET", f"/studies/{studies['running']['id']}/trials").json()["items"]
    assert [t["state"] for t in trials] == ["completed", "pruned", "infeasible", "running", "queued"]
    # The old runner is gone: its trial is leased again, and both open studies complete.
    clock.advance(61)
    api.ctx.expiry_from = clock()
    again = api.run_all(lambda t: 0.5)
    assert len({t["id"] for t in again}) == len(again)
    read = {s["name"]: s["state"] for s in api.call("GET", "/studies").json()["items"]}
    assert (read["running"], read["waiting"]) == ("completed", "completed")
    assert check(api.ctx.db) == []
    api.ctx.db.engine.dispose()


@pytest.mark.parametrize("asset", ASSETS, ids=lambda p: p.stem)
def test_a_downgrade_keeps_every_row_of_the_earlier_revision(asset: Path, blank_url: str, tmp_path: Path) -> None:
    database = Database(blank_url)
    restore(database, asset)
    with gzip.open(asset, "rt") as stream:
        revision = json.loads(next(stream))["revision"]
    command.downgrade(alembic_config(database.url), revision)
    back_up(database, tmp_path / "down.cdka")
    assert contents(tmp_path / "down.cdka") == contents(asset)
    database.upgrade()
    assert check(database) == []
    database.engine.dispose()


def test_a_downgrade_to_0006_leaves_no_key_that_the_release_before_cannot_read(api: Api) -> None:
    groups = {"attention": ["query", "key", "value"], "mlp": ["intermediate.dense"]}
    start = {"groups": {g: {"r1": 1, "r2": 1, "r": 1} for g in groups}, "alpha": 8, "learning_rate": 0.001}
    grouped = api.create(
        name="grouped", adapter={"groups": groups}, search={"start": [start], "prior": "predictors"}, budget=TINY
    )
    choices = {"choices": {"attention": ["query", "value"], "all": "all-linear"}}
    api.create(name="chosen", search_space={"target_modules": choices})
    database = api.ctx.db
    command.downgrade(alembic_config(database.url), "0006")
    with database.engine.connect() as connection:
        specs = {name: json.loads(spec) if isinstance(spec, str) else spec for name, spec in connection.execute(SPECS)}
    for spec in specs.values():
        assert "groups" not in spec["adapter"]
        assert "target_modules" not in spec["search_space"]
        assert not {"prior", "repeats"} & spec["search"].keys()
    assert specs["grouped"]["search"]["start"] == []
    database.upgrade()
    assert check(database) == []
    assert api.call("GET", f"/studies/{grouped['id']}").status_code == 200


def test_a_backup_restores_exactly_on_either_database(api: Api, blank_url: str, tmp_path: Path) -> None:
    api.create(search={"trials": 3}, compare={"seeds": 1, "learning_rate": "shared"})
    api.run_all(lambda t: 0.5)
    api.create(name="ünïcode ✓ study")
    lease = api.lease()
    assert lease is not None
    api.report(lease, 0.25)
    rows = back_up(api.ctx.db, tmp_path / "one.cdka")
    assert (tmp_path / "one.cdka").stat().st_mode & 0o077 == 0  # it holds digests and signing keys
    other = Database(f"sqlite:///{tmp_path}/moved.db")
    assert restore(other, tmp_path / "one.cdka") == rows
    back_up(other, tmp_path / "two.cdka")
    third = Database(blank_url)
    restore(third, tmp_path / "two.cdka")
    back_up(third, tmp_path / "three.cdka")
    assert contents(tmp_path / "one.cdka") == contents(tmp_path / "two.cdka") == contents(tmp_path / "three.cdka")
    assert check(third) == []
    with pytest.raises(Conflict, match="not empty"):
        restore(third, tmp_path / "one.cdka")
    other.engine.dispose()
    third.engine.dispose()


def test_an_incomplete_backup_is_rejected(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "whole.cdka"
    back_up(api.ctx.db, file)
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    a_row = max(k for k, line in enumerate(lines) if line.startswith(b"["))
    broken = {
        "cut": gzip.compress(b"".join(lines[:-1])),
        "short": gzip.compress(b"".join(line for k, line in enumerate(lines) if k != a_row)),
        "bytes": file.read_bytes()[:-20],
        "text": b"no gzip",
        "other": gzip.compress(b'{"format": "other"}\n'),
        "empty": gzip.compress(b""),
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        target = Database(f"sqlite:///{tmp_path}/{name}.db")
        with pytest.raises(InvalidRequest, match="is no"):
            restore(target, tmp_path / name)
        # The database is unchanged, so the next attempt succeeds.
        assert inspect(target.engine).get_table_names() == []
        assert restore(target, file) > 0
        target.engine.dispose()


def test_db_check_finds_every_kind_of_fault(api: Api) -> None:
    study = api.create(search={"trials": 2})
    lease = api.lease()
    assert lease is not None
    assert check(api.ctx.db) == []
    with api.ctx.db.write() as session:
        session.execute(text("UPDATE study_counts SET count = count + 1 WHERE state = 'running'"))
        session.execute(text("UPDATE leases SET state = 'finished'"))
        session.execute(text("DELETE FROM events WHERE number = 2"))
    faults = check(api.ctx.db)
    assert any("counts 2 trials in search/running but has 1" in f for f in faults)
    assert any("running without a held lease" in f for f in faults)
    assert any(f"events of study {study['id']} have gaps" in f for f in faults)


def run(url: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "", "CDKA_HOME": str(home), "CDKA_DATABASE_URL": url, "HF_HUB_OFFLINE": "1"}
    command_line = [sys.executable, "-m", "service.cli", "db", *arguments]
    return subprocess.run(command_line, capture_output=True, text=True, env=environment)


def test_the_db_commands_check_upgrade_back_up_and_restore(blank_url: str, tmp_path: Path) -> None:
    behind = run(blank_url, tmp_path, "check")
    assert behind.returncode == 3
    assert "cdka db upgrade" in behind.stderr
    assert "was: none" in run(blank_url, tmp_path, "upgrade").stdout
    assert "no problems found" in run(blank_url, tmp_path, "check").stdout
    assert "rows written" in run(blank_url, tmp_path, "backup", str(tmp_path / "b.cdka")).stdout
    refused = run(blank_url, tmp_path, "restore", str(tmp_path / "b.cdka"))
    assert refused.returncode == 3
    assert "not empty" in refused.stderr
    assert "rows restored" in run(f"sqlite:///{tmp_path}/new.db", tmp_path, "restore", str(tmp_path / "b.cdka")).stdout


def test_a_server_exits_on_an_old_postgresql_schema_and_names_the_command(cluster: Any, tmp_path: Path) -> None:
    url = cluster.create("old")
    database = Database(url)
    command.upgrade(alembic_config(database.url), "0001")
    before = inspect(database.engine).get_table_names()
    ctx = make_context(Settings(home=tmp_path, database_url=url))
    with pytest.raises(SystemExit, match="cdka db upgrade"):
        prepare_database(ctx)
    ctx.db.engine.dispose()
    assert inspect(database.engine).get_table_names() == before
    database.engine.dispose()


@contextmanager
def no_room(database: Database) -> Iterator[None]:
    """SQLite raises its own error at a limit on the file's pages; on PostgreSQL a trigger raises 53100."""
    if not database.is_sqlite:
        with database.engine.begin() as connection:
            connection.execute(
                text(
                    "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
                )
            )
            connection.execute(
                text("CREATE TRIGGER no_room BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION no_room()")
            )
        yield
        with database.engine.begin() as connection:
            connection.execute(text("DROP FUNCTION no_room CASCADE"))
        return

    def limit(connection: Any, _: Any) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    database.engine.dispose()
    event.listen(database.engine, "connect", limit)
    yield
    event.remove(database.engine, "connect", limit)
    database.engine.dispose()


def test_a_full_disk_is_a_clear_error_and_nothing_is_lost(api: Api, ctx: Any) -> None:
    study = api.create()
    kept = api.call("GET", f"/studies/{study['id']}").json()
    with no_room(ctx.db):
        answers = [api.call("POST", "/studies", json=kept["spec"]) for _ in range(60)]
    full = [a for a in answers if a.status_code == 503]
    assert full
    assert "disk is full" in full[0].json()["detail"]
    assert full[0].headers["retry-after"]
    assert {a.status_code for a in answers} <= {201, 503}
    made = [s["id"] for s in api.call("GET", "/studies", params={"limit": 200}).json()["items"]]
    assert sorted(made) == sorted([study["id"], *[a.json()["id"] for a in answers if a.status_code == 201]])
    assert api.call("POST", "/studies", json=kept["spec"]).status_code == 201  # there is room again
    assert check(ctx.db) == []


def test_an_exhausted_connection_pool_returns_overloaded(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "busy.db")
    database = Database(f"sqlite:///{tmp_path}/busy.db")
    database.engine.pool._timeout = 0.1  # type: ignore[attr-defined]
    held = [database.engine.connect() for _ in range(20)]
    with pytest.raises(Unavailable, match="every connection"):
        database.ping()
    for connection in held:
        connection.close()
    database.ping()
    database.engine.dispose()
