"""The migrations create the schema, and it matches the models."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect

from service.app import main, make_context
from service.db.engine import Database, alembic_config
from service.db.models import Base
from service.errors import Unauthorized
from service.server.bootstrap import prepare_database
from service.settings import Settings
from service.tenancy.tokens import authenticate


def test_upgrade_matches_the_models_and_downgrade_removes_every_table(blank_url: str) -> None:
    database = Database(blank_url)
    assert not database.is_current()
    database.upgrade()
    assert database.is_current()
    command.check(alembic_config(database.url))
    assert set(inspect(database.engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
    command.downgrade(alembic_config(database.url), "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    database.engine.dispose()


def test_every_constraint_and_index_is_named_by_the_convention(blank_url: str) -> None:
    database = Database(blank_url)
    database.upgrade()
    inspector = inspect(database.engine)
    for table in Base.metadata.tables:
        names = [inspector.get_pk_constraint(table)["name"]]
        names += [key["name"] for key in inspector.get_foreign_keys(table)]
        names += [key["name"] for key in inspector.get_unique_constraints(table)]
        names += [index["name"] for index in inspector.get_indexes(table)]
        assert all(n and n.split("_", 1)[0] in ("pk", "fk", "uq", "ix") and table in n for n in names), names
    database.engine.dispose()


def test_a_server_upgrades_its_own_sqlite_and_is_ready(tmp_path: Path) -> None:
    made = make_context(Settings(home=tmp_path, database_url=""))
    prepare_database(made)
    assert made.db.is_current()
    made.db.engine.dispose()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CDKA_PORT", "70000", "less than or equal to 65535"),
        ("CDKA_LEASE_SECONDS", "0", "greater than 0"),
        ("CDKA_AUTH", "off", "only a loopback address may go without tokens"),
    ],
)
def test_invalid_settings_are_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("CDKA_HOST", "0.0.0.0")
    with pytest.raises(ValueError, match=message):
        Settings()


def test_the_database_password_is_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("p@ss/word\n")
    monkeypatch.setenv("CDKA_DATABASE_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("CDKA_DATABASE_URL", "postgresql+psycopg://cdka@postgres:5432/cdka")
    assert Settings().database_url == "postgresql+psycopg://cdka:p%40ss%2Fword@postgres:5432/cdka"
    for url, words in (
        ("postgresql+psycopg://cdka:x@postgres/cdka", "give it once"),
        ("sqlite:///x.db", "such as postgresql"),
    ):
        monkeypatch.setenv("CDKA_DATABASE_URL", url)
        with pytest.raises(ValueError, match=words):
            Settings()
    monkeypatch.setenv("CDKA_DATABASE_URL", "postgresql+psycopg://cdka@postgres:5432/cdka")
    monkeypatch.setenv("CDKA_DATABASE_PASSWORD_FILE", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="cannot be read"):
        Settings()


def test_deployment_tokens_follow_their_files(tmp_path: Path) -> None:
    """A new secret in the file revokes the previous one. The same secret again changes nothing."""
    made = make_context(Settings(home=tmp_path, database_url=f"sqlite:///{tmp_path}/p.db"))
    file = tmp_path / "worker_token"
    file.write_text("cdka_" + "a" * 43)
    for _ in range(2):
        app_main(["prepare", "--token", f"worker={file}"], tmp_path)
    assert authenticate(made, "cdka_" + "a" * 43).role == "worker"
    file.write_text("cdka_" + "b" * 43)
    app_main(["prepare", "--token", f"worker={file}"], tmp_path)
    assert authenticate(made, "cdka_" + "b" * 43).role == "worker"
    with pytest.raises(Unauthorized):
        authenticate(made, "cdka_" + "a" * 43)
    for wrong, words in (("short", "has the wrong form"), ("cdka_" + "a" * 43, "was revoked")):
        file.write_text(wrong)
        with pytest.raises(SystemExit, match=words):
            app_main(["prepare", "--token", f"worker={file}"], tmp_path)
    made.db.engine.dispose()


def app_main(arguments: list[str], home: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDKA_HOME", str(home))
        patch.setenv("CDKA_DATABASE_URL", f"sqlite:///{home}/p.db")
        main(arguments)
