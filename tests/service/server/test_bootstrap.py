"""Tokens that a deployment or an embedded server makes valid at start."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.domain.records import Role
from service.errors import InvalidRequest
from service.server.bootstrap import embedded_tokens, prepare
from service.tenancy.tokens import authenticate
from tests.conftest import Api

SECRET = "cdka_" + "s" * 43


def test_a_deployments_worker_token_becomes_a_pools_and_never_more(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "worker_token"
    file.write_text(SECRET)
    prepare(api.ctx, [(Role.WORKER, file)])
    assert authenticate(api.ctx, SECRET).role is Role.WORKER
    prepare(api.ctx, [(Role.POOL, file)])
    assert authenticate(api.ctx, SECRET).role is Role.POOL
    prepare(api.ctx, [(Role.POOL, file)])
    for role in (Role.ADMIN, Role.WORKER):
        with pytest.raises(InvalidRequest, match="belongs to another role"):
            prepare(api.ctx, [(role, file)])
    assert authenticate(api.ctx, SECRET).role is Role.POOL


def test_an_embedded_servers_pool_gets_a_pools_token(api: Api) -> None:
    embedded_tokens(api.ctx)
    home = api.ctx.settings.home
    first = (home / "worker-token").read_text()
    assert authenticate(api.ctx, first.strip()).role is Role.POOL
    assert authenticate(api.ctx, (home / "admin-token").read_text().strip()).role is Role.ADMIN
    embedded_tokens(api.ctx)
    assert (home / "worker-token").read_text() == first
    # An earlier version made a worker's token of one team.
    (home / "worker-token").write_text(api.token("worker"))
    embedded_tokens(api.ctx)
    assert authenticate(api.ctx, (home / "worker-token").read_text().strip()).role is Role.POOL
