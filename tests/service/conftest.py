"""Fixtures that connect the SDK and the ``cdka`` command to the application in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from service import errors
from service.cli import program as cli
from service.cli.commands import session
from service.client import Client
from service.client.testing import AppTransport
from service.context.context import Context
from service.db.checks import check
from tests.conftest import Api


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client("http://localhost", api.token("admin"), transport=AppTransport(api.http)) as made:
        yield made


@pytest.fixture
def command(api: Api, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run ``cdka`` against the application in this process. Returns exit code, stdout and stderr."""
    admin = api.token("admin")
    monkeypatch.setattr(session, "connect", lambda: Client("http://localhost", admin, transport=AppTransport(api.http)))

    def run(*arguments: str) -> tuple[int, str, str]:
        found = CliRunner().invoke(cli.app, list(arguments))
        if isinstance(found.exception, errors.ServiceError):
            raise found.exception
        return found.exit_code, found.stdout, found.stderr

    return run


@pytest.fixture
def in_order(ctx: Context) -> Any:
    """After each test, check the database's invariants: counts, leases, events without gaps."""
    yield
    assert check(ctx.db) == []
