"""Who may call what: every route, by role and by team."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import text

from service.db.models import Base
from service.scheduling.access import TOKEN_PREFIX, digest
from tests.conftest import Api, FakeClock, make_study

ROLES = ("admin", "member", "viewer", "worker")
READERS, WRITERS = {"admin", "member", "viewer"}, {"admin", "member"}
# (method, path): roles that are let in. Anything not listed here makes the test fail.
ROUTES: dict[tuple[str, str], set[str]] = {
    ("POST", "/api/v1/studies"): WRITERS,
    ("GET", "/api/v1/studies"): READERS,
    ("GET", "/api/v1/studies/{study_id}"): READERS,
    ("POST", "/api/v1/studies/{study_id}/cancel"): WRITERS,
    ("GET", "/api/v1/studies/{study_id}/predictions"): READERS,
    ("GET", "/api/v1/studies/{study_id}/comparison"): READERS,
    ("GET", "/api/v1/studies/{study_id}/charts/{kind}"): READERS,
    ("GET", "/api/v1/studies/{study_id}/trials"): READERS,
    ("GET", "/api/v1/trials/{trial_id}"): READERS,
    ("GET", "/api/v1/trials/{trial_id}/metrics"): READERS,
    ("POST", "/api/v1/predictions"): READERS,
    ("POST", "/api/v1/leases"): {"admin", "worker"},
    ("POST", "/api/v1/leases/{lease_id}/reports"): {"admin", "worker"},
    ("PUT", "/api/v1/leases/{lease_id}/result"): {"admin", "worker"},
    ("GET", "/api/v1/demand"): {"admin", "worker"},
    ("POST", "/api/v1/tokens"): {"admin"},
    ("GET", "/api/v1/tokens"): {"admin"},
    ("DELETE", "/api/v1/tokens/{token_id}"): {"admin"},
}
# Health, the API's own description, login and pages (which send to the login) take no token.
OPEN = {"/healthz", "/readyz", "/login", "/logout", "/", "/studies/{study_id}", "/static/plotly.min.js"}
# Pages with answers of their own to a missing login.
PAGES = {"/studies/{study_id}/body", "/studies/{study_id}/cancel"}


def routes(api: Api) -> set[tuple[str, str]]:
    schema = api.http.app.openapi()  # type: ignore[attr-defined]
    return {(m.upper(), p) for p, item in schema["paths"].items() for m in item if p.startswith("/api/v1")}


def test_every_route_is_in_the_matrix(api: Api) -> None:
    assert routes(api) == set(ROUTES)
    known = {p for _, p in ROUTES} | OPEN | PAGES | {"/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"}
    for route in api.http.app.routes:  # type: ignore[attr-defined]
        if isinstance(route, APIRoute):
            assert route.path in known or route.path.startswith("/api/v1") or f"/api/v1{route.path}" in known


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: " ".join(r))
@pytest.mark.parametrize("role", [None, *ROLES])
def test_the_matrix(api: Api, route: tuple[str, str], role: str | None) -> None:
    method, path = route
    study = api.create()
    lease = api.lease()
    assert lease is not None
    ids = {
        "study_id": study["id"],
        "trial_id": lease["trial"]["id"],
        "lease_id": lease["id"],
        "kind": "history",
        "token_id": "x",
    }
    path = path.format(**ids)
    bodies: dict[str, Any] = {
        "/api/v1/studies": make_study(),
        "/api/v1/leases": {"runner": "r"},
        "/api/v1/predictions": {"model": {"path": "tiny-bert"}, "budget": {"lora_rank": 4}},
        "/api/v1/tokens": {"name": "n", "role": "viewer"},
        f"/api/v1/leases/{lease['id']}/result": {"state": "released"},
        f"/api/v1/leases/{lease['id']}/reports": {"reports": []},
    }
    headers = {} if role is None else {"Authorization": f"Bearer {api.token(role)}"}
    response = api.http.request(method, path, headers=headers, json=bodies.get(path) if method != "GET" else None)
    if role is None:
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
    elif role in ROUTES[route]:
        expected = {201} if (method, path) in (("POST", "/api/v1/studies"), ("POST", "/api/v1/tokens")) else {200}
        assert response.status_code in ({404} if "/tokens/x" in path else expected), response.text
    else:
        assert response.status_code == 403
        assert response.json()["type"] == "urn:cdka:problem:forbidden"


@pytest.mark.parametrize("role", ["member", "viewer", "worker"])
def test_another_teams_rows_do_not_exist(api: Api, role: str) -> None:
    study = api.create()
    lease = api.lease()
    assert lease is not None
    if role == "worker":
        body = {"runner": "theirs"}
        assert api.call("POST", "/leases", "worker", "other", json=body).json() == {"leases": []}
        assert api.call("GET", "/demand", "worker", "other").json() == {"items": []}
        assert api.call("POST", f"/leases/{lease['id']}/reports", "worker", "other", json={}).status_code == 404
        result = {"state": "released"}
        assert api.call("PUT", f"/leases/{lease['id']}/result", "worker", "other", json=result).status_code == 404
        return
    assert api.call("GET", "/studies", role, "other").json()["items"] == []
    paths = [
        f"/studies/{study['id']}{tail}" for tail in ("", "/trials", "/predictions", "/comparison", "/charts/history")
    ]
    paths += [f"/trials/{lease['trial']['id']}{tail}" for tail in ("", "/metrics")]
    for path in paths:
        assert api.call("GET", path, role, "other").status_code == 404, path
    if role == "member":
        assert api.call("POST", f"/studies/{study['id']}/cancel", role, "other").status_code == 404
    assert api.call("GET", f"/studies/{study['id']}", "admin", "other").status_code == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic dXNlcjpwYXNz", "bearer cdka_" + "x" * 43]
)
def test_what_is_no_token_is_refused(api: Api, header: str) -> None:
    response = api.http.get("/api/v1/studies", headers={"Authorization": header})
    assert response.status_code == 401
    assert response.json()["type"] == "urn:cdka:problem:unauthorized"


def test_tokens_are_stored_as_digests_alone(api: Api) -> None:
    created = api.call("POST", "/tokens", "admin", json={"name": "ci", "role": "viewer"}).json()
    secret = created["token"]
    assert secret.startswith(TOKEN_PREFIX)
    with api.ctx.db.read() as session:
        stored = session.execute(text("SELECT digest FROM tokens WHERE id = :id"), {"id": created["id"]}).scalar_one()
    assert stored == digest(secret)
    with api.ctx.db.read() as session:
        rows = [str(row) for table in Base.metadata.sorted_tables for row in session.execute(table.select())]
    assert len(rows) > 1
    assert not [row for row in rows if secret in row]
    listed = api.call("GET", "/tokens", "admin").json()["items"]
    assert all("token" not in t and "digest" not in t for t in listed)


def test_a_revoked_token_and_its_sessions_end_at_once(api: Api) -> None:
    created = api.call("POST", "/tokens", "admin", json={"name": "ci", "role": "viewer"}).json()
    headers = {"Authorization": f"Bearer {created['token']}"}
    api.http.post("/login", data={"token": created["token"]}, follow_redirects=False)
    assert api.http.get("/api/v1/studies").status_code == 200  # by cookie
    assert api.http.get("/api/v1/studies", headers=headers).status_code == 200
    assert api.call("DELETE", f"/tokens/{created['id']}", "admin").status_code == 204
    assert api.http.get("/api/v1/studies", headers=headers).status_code == 401
    assert api.http.get("/api/v1/studies").status_code == 401


def test_a_session_reads_but_never_writes_the_api_and_ends(api: Api, clock: FakeClock) -> None:
    response = api.http.post("/login", data={"token": api.token("member")}, follow_redirects=False)
    assert response.status_code == 303
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert api.http.get("/api/v1/studies").status_code == 200
    assert api.http.post("/api/v1/studies", json=make_study()).status_code == 401
    clock.advance(13 * 3600)
    assert api.http.get("/api/v1/studies").status_code == 401


def test_a_worker_opens_no_dashboard_and_a_wrong_token_says_so(api: Api) -> None:
    assert api.http.post("/login", data={"token": api.token("worker")}).status_code == 403
    wrong = api.http.post("/login", data={"token": "wrong"})
    assert wrong.status_code == 401
    assert "not valid" in wrong.text


@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}])
def test_forms_from_other_sites_are_refused(api: Api, headers: dict[str, str]) -> None:
    study = api.create()
    api.http.post("/login", data={"token": api.token("member")})
    for path in ("/logout", f"/studies/{study['id']}/cancel", "/login"):
        response = api.http.post(path, headers=headers, data={"token": "x"})
        assert response.status_code == 403, path
    assert api.call("GET", f"/studies/{study['id']}").json()["state"] == "queued"


def test_security_headers_are_on_every_answer(api: Api) -> None:
    for path in ("/login", "/api/v1/studies", "/static/dashboard.css", "/nowhere"):
        headers = api.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
