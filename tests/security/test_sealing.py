"""Webhook secrets are encrypted, so a copy of the database does not reveal them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from sqlalchemy import text

from service.db.models import Base
from service.server.bootstrap import prepare_database
from service.tenancy import webhooks
from service.tenancy.sealing import Sealer, WrongKey, is_sealed, sealer
from tests.conftest import Api


@pytest.fixture(autouse=True)
def _public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "permitted_address", lambda url, private, resolve=None: "203.0.113.9")


def create(api: Api) -> tuple[str, str]:
    made = api.call("POST", "/webhooks", json={"url": "https://hooks.example.org/x", "events": ["study.state"]}).json()
    return made["id"], made["secret"]


def stored(api: Api, webhook_id: str) -> str:
    with api.ctx.db.read() as session:
        return session.execute(text("SELECT secret FROM webhooks WHERE id = :id"), {"id": webhook_id}).scalar_one()


def opened(api: Api, webhook_id: str) -> str:
    (webhook,) = [one for one in webhooks.list_webhooks(api.ctx, None) if one.id == webhook_id]
    return webhooks._secret(api.ctx, webhook)


def test_no_table_holds_a_webhooks_secret(api: Api) -> None:
    webhook_id, secret = create(api)
    raw = base64.b64decode(secret.removeprefix("whsec_"))
    with api.ctx.db.read() as session:
        rows = [str(row) for table in Base.metadata.sorted_tables for row in session.execute(table.select())]
    for form in (secret, secret.removeprefix("whsec_"), raw.hex()):
        assert not [row for row in rows if form in row]
    assert is_sealed(stored(api, webhook_id))
    assert opened(api, webhook_id) == secret
    key = api.ctx.settings.home / "secret-key"
    assert key.stat().st_mode & 0o777 == 0o600


def test_a_copied_row_cannot_be_opened_under_another_id(api: Api) -> None:
    first, _ = create(api)
    second, _ = create(api)
    with pytest.raises(WrongKey):
        sealer(api.ctx.settings).open(stored(api, first), second)


def test_secrets_of_an_earlier_version_are_sealed_at_start(api: Api) -> None:
    webhook_id, secret = create(api)
    with api.ctx.db.write() as session:
        session.execute(text("UPDATE webhooks SET secret = :secret"), {"secret": secret})
    assert opened(api, webhook_id) == secret
    prepare_database(api.ctx)
    assert is_sealed(stored(api, webhook_id))
    assert opened(api, webhook_id) == secret


def test_a_new_key_is_added_as_a_line_above_the_old_one(api: Api) -> None:
    webhook_id, secret = create(api)
    key = api.ctx.settings.home / "secret-key"
    old = key.read_text()
    key.write_text("n" * 40 + "\n" + old)
    assert opened(api, webhook_id) == secret
    later, _ = create(api)
    key.write_text("n" * 40)
    assert opened(api, later)
    with pytest.raises(WrongKey, match="Give every replica the same CDKA_SECRET_KEY_FILE"):
        opened(api, webhook_id)


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "does not exist"), ("short", "at least 32 random characters"), ("", "at least 32 random characters")],
)
def test_a_server_without_a_usable_key_exits_at_start(api: Api, tmp_path: Path, content: str | None, told: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    api.ctx.settings = api.ctx.settings.model_copy(update={"secret_key_file": file})
    with pytest.raises(SystemExit, match=told):
        prepare_database(api.ctx)
    answer = api.call("POST", "/webhooks", json={"url": "https://hooks.example.org/x", "events": ["study.state"]})
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:cdka:problem:wrong-key"


def test_two_sealers_on_one_file_share_its_key(tmp_path: Path) -> None:
    file = tmp_path / "secret-key"
    first, second = Sealer(file, make=True), Sealer(file, make=True)
    sealed = first.seal(b"x" * 32, "one")
    assert second.open(sealed, "one") == b"x" * 32
    assert len(sealed) <= 100, "the column has 100 characters"
