"""Body sizes, request rates and invalid tokens are limited."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from service.app import create_app
from service.context.context import Context
from tests.conftest import Api


def post(api: Api, path: str, key: str, body: Any = None, role: str = "member") -> Any:
    return api.call("POST", path, role, json=body, headers={"Idempotency-Key": key})


def test_a_body_that_is_too_large_is_rejected(api: Api) -> None:
    limit = api.ctx.settings.max_body_bytes
    said = api.call("POST", "/studies", content=b"x" * (limit + 1))
    assert said.status_code == 413
    assert said.json()["type"] == "urn:cdka:problem:too-large"

    def pieces() -> Any:
        for _ in range(limit // 2**20 + 2):
            yield b"x" * 2**20

    headers = {"Authorization": f"Bearer {api.token('member')}", "Content-Type": "application/json"}
    assert api.http.post("/api/v1/studies", content=pieces(), headers=headers).status_code == 413


def test_rate_limits_return_retry_after_and_exempt_workers(api: Api, ctx: Context) -> None:
    ctx.settings.rate_limit = 5
    with TestClient(create_app(ctx)) as http:
        limited = Api(ctx, http, api.secrets)
        for _ in range(5):
            assert limited.call("GET", "/studies").status_code == 200
        refused = limited.call("GET", "/studies")
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 61
        assert limited.call("GET", "/studies", "viewer").status_code == 200
        for _ in range(20):
            assert limited.call("GET", "/demand", "worker").status_code == 200


def test_an_address_with_many_invalid_tokens_is_limited(api: Api) -> None:
    codes = [api.http.get("/api/v1/studies", headers={"Authorization": f"Bearer {k}"}).status_code for k in range(70)]
    assert codes[0] == 401
    assert codes[-1] == 429
    assert api.call("GET", "/studies").status_code == 200  # valid tokens behind the same proxy still work
