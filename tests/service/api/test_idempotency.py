"""A POST with an idempotency key has one effect."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from fastapi.testclient import TestClient

from service.app import create_app, make_context
from service.context.context import Context
from service.db.models import Base
from service.server.maintenance import KEPT_ANSWERS, tidy
from tests.conftest import Api, FakeClock, make_study


def post(api: Api, path: str, key: str, body: Any = None, role: str = "member") -> Any:
    return api.call("POST", path, role, json=body, headers={"Idempotency-Key": key})


def test_a_repeated_post_has_one_effect_even_after_a_restart(api: Api, ctx: Context) -> None:
    first = post(api, "/studies", "key-1", make_study())
    again = post(api, "/studies", "key-1", make_study())
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert len(api.call("GET", "/studies").json()["items"]) == 1
    restarted = make_context(ctx.settings, ctx.clock)
    with TestClient(create_app(restarted)) as http:
        assert post(Api(restarted, http, api.secrets), "/studies", "key-1", make_study()).content == first.content
    restarted.db.engine.dispose()


def test_a_key_with_another_body_path_or_query_is_rejected(api: Api) -> None:
    post(api, "/studies", "key-1", make_study())
    for path, body in (("/studies", make_study(name="other")), ("/predictions", make_study())):
        refused = post(api, path, "key-1", body)
        assert refused.status_code == 422
        assert refused.json()["type"] == "urn:cdka:problem:idempotency-key-reused"
    made = post(api, "/studies", "key-2", make_study(name="other"))
    assert made.status_code == 201
    # The query string is part of the request, too.
    path = f"/studies/{made.json()['id']}/pause"
    assert post(api, f"{path}?drain=true", "key-3").status_code == 200
    assert post(api, f"{path}?drain=false", "key-3").status_code == 422


def test_keys_belong_to_their_token_and_rejected_requests_are_not_stored(api: Api) -> None:
    post(api, "/studies", "key-1", make_study())
    theirs = api.call(
        "POST", "/studies", "member", "other", json=make_study(name="x"), headers={"Idempotency-Key": "key-1"}
    )
    assert theirs.status_code == 201
    assert post(api, "/studies", "key-3", make_study(name="")).status_code == 422
    assert post(api, "/studies", "key-3", make_study()).status_code == 201


def test_simultaneous_posts_with_one_key_create_one_study(api: Api) -> None:
    api.token("member")
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: post(api, "/studies", "race", make_study()), range(6)))
    assert {a.status_code for a in answers} == {201}
    assert len({a.json()["id"] for a in answers}) == 1
    assert len(api.call("GET", "/studies").json()["items"]) == 1


def test_leases_and_pauses_accept_a_key(api: Api) -> None:
    study = post(api, "/studies", "create", make_study()).json()
    lease = post(api, "/leases", "lease", {"runner": "r"}, "worker").json()
    assert post(api, "/leases", "lease", {"runner": "r"}, "worker").json() == lease
    pause = post(api, f"/studies/{study['id']}/pause", "pause")
    assert post(api, f"/studies/{study['id']}/pause", "pause").json() == pause.json()
    assert post(api, f"/studies/{study['id']}/pause", "another").status_code == 409


def test_secrets_in_stored_answers_are_encrypted(api: Api) -> None:
    body = {"name": "ci", "role": "viewer"}
    made = post(api, "/tokens", "token", body, "admin").json()
    assert post(api, "/tokens", "token", body, "admin").json()["token"] == made["token"]
    with api.ctx.db.read() as session:
        rows = [str(row) for table in Base.metadata.sorted_tables for row in session.execute(table.select())]
    assert not [row for row in rows if made["token"] in row]


def test_revoked_tokens_get_no_stored_answer_and_answers_expire(api: Api, ctx: Context, clock: FakeClock) -> None:
    made = api.call("POST", "/tokens", "admin", json={"name": "ci", "role": "member"}).json()
    headers = {"Authorization": f"Bearer {made['token']}", "Idempotency-Key": "k"}
    assert api.http.post("/api/v1/studies", json=make_study(), headers=headers).status_code == 201
    api.call("DELETE", f"/tokens/{made['id']}", "admin")
    assert api.http.post("/api/v1/studies", json=make_study(), headers=headers).status_code == 401
    post(api, "/studies", "old", make_study())
    clock.advance(KEPT_ANSWERS / timedelta(seconds=1) + 1)
    tidy(ctx)
    post(api, "/studies", "old", make_study())
    assert len(api.call("GET", "/studies").json()["items"]) == 3
