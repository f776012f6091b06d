"""Access rules: every route, by role and by team."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import text

from service.db.models import Base
from service.tenancy import webhooks
from service.tenancy.tokens import TOKEN_PREFIX, digest
from service.tenancy.webhooks import create_webhook
from tests.conftest import Api, FakeClock, make_study

ROLES = ("admin", "member", "viewer", "worker", "pool")
READERS, WRITERS, RUNNERS = {"admin", "member", "viewer"}, {"admin", "member"}, {"admin", "worker", "pool"}
# (method, path): the roles that may call it. A route that is missing here fails the test.
ROUTES: dict[tuple[str, str], set[str]] = {
    ("POST", "/api/v1/studies"): WRITERS,
    ("GET", "/api/v1/studies"): READERS,
    ("GET", "/api/v1/studies/{study_id}"): READERS,
    ("PATCH", "/api/v1/studies/{study_id}"): WRITERS,
    ("DELETE", "/api/v1/studies/{study_id}"): WRITERS,
    ("POST", "/api/v1/studies/{study_id}/pause"): WRITERS,
    ("POST", "/api/v1/studies/{study_id}/resume"): WRITERS,
    ("POST", "/api/v1/studies/{study_id}/cancel"): WRITERS,
    ("GET", "/api/v1/studies/{study_id}/predictions"): READERS,
    ("GET", "/api/v1/studies/{study_id}/comparison"): READERS,
    ("GET", "/api/v1/studies/{study_id}/front"): READERS,
    ("GET", "/api/v1/studies/{study_id}/export"): READERS,
    ("GET", "/api/v1/studies/{study_id}/events"): READERS,
    ("GET", "/api/v1/studies/{study_id}/events/log"): READERS,
    ("GET", "/api/v1/studies/{study_id}/charts/{kind}"): READERS,
    ("GET", "/api/v1/studies/{study_id}/report"): READERS,
    ("GET", "/api/v1/studies/{study_id}/trials"): READERS,
    ("POST", "/api/v1/studies/{study_id}/trials"): WRITERS,
    ("GET", "/api/v1/compare"): READERS,
    ("POST", "/api/v1/groups"): WRITERS,
    ("GET", "/api/v1/groups/{group_id}"): READERS,
    ("GET", "/api/v1/groups/{group_id}/report"): READERS,
    ("GET", "/api/v1/predictors/record"): READERS,
    ("GET", "/api/v1/trials/{trial_id}"): READERS,
    ("POST", "/api/v1/trials/{trial_id}/stop"): WRITERS,
    ("POST", "/api/v1/trials/{trial_id}/retry"): WRITERS,
    ("GET", "/api/v1/trials/{trial_id}/metrics"): READERS,
    ("GET", "/api/v1/trials/{trial_id}/chart"): READERS,
    ("GET", "/api/v1/trials/{trial_id}/logs"): READERS,
    ("GET", "/api/v1/trials/{trial_id}/adapter"): READERS,
    ("POST", "/api/v1/predictions"): READERS,
    ("GET", "/api/v1/samplers"): READERS,
    ("GET", "/api/v1/pruners"): READERS,
    ("POST", "/api/v1/leases"): RUNNERS,
    ("POST", "/api/v1/leases/{lease_id}/reports"): RUNNERS,
    ("POST", "/api/v1/leases/{lease_id}/logs"): RUNNERS,
    ("PUT", "/api/v1/leases/{lease_id}/inputs"): RUNNERS,
    ("PUT", "/api/v1/leases/{lease_id}/result"): RUNNERS,
    ("GET", "/api/v1/demand"): RUNNERS,
    ("POST", "/api/v1/tokens"): {"admin"},
    ("GET", "/api/v1/tokens"): {"admin"},
    ("POST", "/api/v1/tokens/{token_id}/rotate"): {"admin"},
    ("DELETE", "/api/v1/tokens/{token_id}"): {"admin"},
    ("GET", "/api/v1/teams"): READERS,
    ("POST", "/api/v1/teams"): {"admin"},
    ("PATCH", "/api/v1/teams/{team_id}"): {"admin"},
    ("GET", "/api/v1/workers"): READERS,
    ("GET", "/api/v1/hosts"): {"admin"},
    ("POST", "/api/v1/hosts/release"): {"admin"},
    ("GET", "/api/v1/audit"): READERS,
    ("POST", "/api/v1/webhooks"): WRITERS,
    ("GET", "/api/v1/webhooks"): READERS,
    ("DELETE", "/api/v1/webhooks/{webhook_id}"): WRITERS,
    ("GET", "/api/v1/webhooks/{webhook_id}/deliveries"): READERS,
}
# The status that a permitted caller gets if it is not 2xx: the study's state does not allow the call, or there is no
# adapter or host yet.
OTHERWISE = {"/resume": 409, "/retry": 409, "/adapter": 404, "/hosts/release": 404}
# These need no token: health, the API's own docs, the login, and pages (which redirect to the login).
OPEN = {
    "/healthz",
    "/readyz",
    "/metrics",
    "/docs",
    "/static/docs.js",
    "/login",
    "/logout",
    "/operation",
    "/",
    "/studies/{study_id}",
    "/static/plotly.min.js",
}
# Pages that handle a missing login themselves.
PAGES = {"/studies/{study_id}/body", "/studies/{study_id}/{verb}"}


def routes(api: Api) -> set[tuple[str, str]]:
    schema = api.http.app.openapi()  # type: ignore[attr-defined]
    return {(m.upper(), p) for p, item in schema["paths"].items() for m in item if p.startswith("/api/v1")}


def test_every_route_is_in_the_matrix(api: Api) -> None:
    assert routes(api) == set(ROUTES)
    known = {p for _, p in ROUTES} | OPEN | PAGES | {"/openapi.json"}
    for route in api.http.app.routes:  # type: ignore[attr-defined]
        if isinstance(route, APIRoute):
            assert route.path in known or route.path.startswith("/api/v1") or f"/api/v1{route.path}" in known


def things(api: Api) -> dict[str, str]:
    """Create one resource of each kind that a path can name, in the default team. Returns their ids."""
    study = api.create()
    lease = api.lease()
    assert lease is not None
    token = api.call("POST", "/tokens", "admin", json={"name": "spare", "role": "viewer"}).json()
    webhook = create_webhook(api.ctx, caller(api), "https://203.0.113.9/", ["study.state"])
    team = api.call("POST", "/teams", "admin", json={"name": "spare"}).json()
    return {
        "study_id": study["id"],
        "trial_id": lease["trial"]["id"],
        "lease_id": lease["id"],
        "token_id": token["id"],
        "webhook_id": webhook.id,
        "team_id": team["id"],
        "kind": "history",
        "group_id": group_of(api),
    }


def group_of(api: Api) -> str:
    """A group of ended studies, which take no runner's time."""
    made = api.call("POST", "/groups", json=group_body()).json()
    for study in made["studies"]:
        api.call("POST", f"/studies/{study['id']}/cancel")
    return str(made["id"])


def group_body() -> dict[str, Any]:
    body = make_study()
    del body["budget"]
    return {**body, "budgets": [{"lora_rank": 2, "min_fill": 0}, {"lora_rank": 4, "min_fill": 0}]}


def caller(api: Api) -> Any:
    from service.tenancy.tokens import authenticate

    return authenticate(api.ctx, api.token("member"))


def request(
    api: Api, route: tuple[str, str], ids: dict[str, str], headers: dict[str, str], *, let_in: bool = False
) -> Any:
    method, template = route
    bodies: dict[str, Any] = {
        "/studies": make_study(),
        "/groups": group_body(),
        "/studies/{study_id}": {"priority": 1},
        "/studies/{study_id}/trials": {"params": {"r1": 2, "r2": 4, "r": 4, "alpha": 8, "learning_rate": 0.001}},
        "/leases": {"runner": "r"},
        "/predictions": {"model": {"path": "tiny-bert"}, "budget": {"lora_rank": 4}},
        "/tokens": {"name": "n", "role": "viewer"},
        "/tokens/{token_id}/rotate": {},
        "/teams": {"name": "new"},
        "/teams/{team_id}": {"max_studies": 9},
        "/webhooks": {"url": "https://203.0.113.9/"},
        "/leases/{lease_id}/inputs": {"splits": {}},
        "/leases/{lease_id}/result": {"state": "released"},
        "/leases/{lease_id}/reports": {"reports": []},
        "/leases/{lease_id}/logs": {"start": 0, "text": "a line"},
        "/hosts/release": {"host": "nobody"},
    }
    body = bodies.get(template.removeprefix("/api/v1")) if method != "GET" else None
    query = {"study": ids["study_id"]} if template.endswith("/compare") else None
    if let_in and template.endswith("/events"):
        # The event stream of an open study does not end.
        api.call("POST", f"/studies/{ids['study_id']}/cancel")
        api.call("PUT", f"/leases/{ids['lease_id']}/result", "worker", json={"state": "cancelled"})
    return api.http.request(method, template.format(**ids), headers=headers, json=body, params=query)


@pytest.fixture(autouse=True)
def _public_webhooks(monkeypatch: pytest.MonkeyPatch) -> None:
    # 203.0.113.0/24 is for documentation; here it stands for an address on the public internet.
    monkeypatch.setattr(webhooks, "permitted_address", lambda url, private, resolve=None: "203.0.113.9")


def assert_let_in(api: Api, route: tuple[str, str], role: str, ids: dict[str, str]) -> None:
    response = request(api, route, ids, {"Authorization": f"Bearer {api.token(role)}"}, let_in=True)
    otherwise = next((status for tail, status in OTHERWISE.items() if route[1].endswith(tail)), None)
    if otherwise is None:
        assert response.is_success, (route, response.text)
    else:
        assert response.status_code == otherwise, (route, response.text)


def assert_untouched(api: Api, ids: dict[str, str], before: list[str]) -> None:
    assert rows_of(api) == before
    study = api.call("GET", f"/studies/{ids['study_id']}").json()
    assert (study["revision"], study["name"], study["state"]) == (0, "tiny", "running")


def rows_of(api: Api) -> list[str]:
    """All stored rows, except tokens and runners, whose last-used and last-seen times change."""
    tables = [t for t in Base.metadata.sorted_tables if t.name not in ("tokens", "runners")]
    with api.ctx.db.read() as session:
        return [str(row) for table in tables for row in session.execute(table.select())]


@pytest.mark.parametrize("role", [None, *ROLES])
def test_roles_outside_the_matrix_are_rejected_and_change_nothing(api: Api, role: str | None) -> None:
    ids = things(api)
    headers = {} if role is None else {"Authorization": f"Bearer {api.token(role)}"}
    before = rows_of(api)
    for route, admitted in ROUTES.items():
        if role in admitted:
            continue
        response = request(api, route, ids, headers)
        if role is None:
            assert response.status_code == 401, route
            assert response.headers["www-authenticate"] == "Bearer"
        else:
            assert response.status_code == 403, (route, response.text)
            assert response.json()["type"] == "urn:cdka:problem:forbidden"
    assert_untouched(api, ids, before)


@pytest.mark.parametrize("role", ROLES)
def test_roles_in_the_matrix_may_read(api: Api, role: str) -> None:
    ids = things(api)
    # A stream ends with its study, so it is read last.
    for route in sorted((r for r in ROUTES if r[0] == "GET"), key=lambda r: r[1].endswith("/events")):
        if role in ROUTES[route]:
            assert_let_in(api, route, role, ids)


@pytest.mark.parametrize(
    ("route", "role"),
    [(route, role) for route, admitted in ROUTES.items() for role in sorted(admitted) if route[0] != "GET"],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_roles_in_the_matrix_may_write(api: Api, route: tuple[str, str], role: str) -> None:
    assert_let_in(api, route, role, things(api))


@pytest.mark.parametrize("role", ["member", "viewer", "worker"])
def test_other_teams_resources_return_404(api: Api, role: str) -> None:
    ids = things(api)
    headers = {"Authorization": f"Bearer {api.token(role, 'other')}"}
    before = rows_of(api)
    for route, admitted in ROUTES.items():
        # Roles outside the matrix get 403 in every team.
        if role in admitted and ("{" in route[1] or route[1].endswith("/compare")):
            response = request(api, route, ids, headers)
            assert response.status_code == 404, (route, response.text)
            assert response.json()["type"] == "urn:cdka:problem:not-found"
    assert_untouched(api, ids, before)


@pytest.mark.parametrize("role", ["member", "viewer", "worker"])
def test_lists_contain_only_the_callers_team(api: Api, role: str) -> None:
    things(api)
    if role == "worker":
        answer = api.call("POST", "/leases", "worker", "other", json={"runner": "theirs"}).json()
        assert answer["leases"] == []
        assert api.call("GET", "/demand", "worker", "other").json() == {"items": []}
        return
    for path in ("/studies", "/webhooks", "/workers", "/audit"):
        assert api.call("GET", path, role, "other").json()["items"] == [], path
        assert api.call("GET", path, "admin", "other").json()["items"], path
    assert [t["name"] for t in api.call("GET", "/teams", role, "other").json()["items"]] == ["other"]


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic dXNlcjpwYXNz", "bearer cdka_" + "x" * 43]
)
def test_an_invalid_token_is_rejected(api: Api, header: str) -> None:
    response = api.http.get("/api/v1/studies", headers={"Authorization": header})
    assert response.status_code == 401
    assert response.json()["type"] == "urn:cdka:problem:unauthorized"


def test_tokens_are_stored_only_as_digests(api: Api) -> None:
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


def test_a_browser_session_is_read_only_and_expires(api: Api, clock: FakeClock) -> None:
    response = api.http.post("/login", data={"token": api.token("member")}, follow_redirects=False)
    assert response.status_code == 303
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert api.http.get("/api/v1/studies").status_code == 200
    assert api.http.post("/api/v1/studies", json=make_study()).status_code == 401
    clock.advance(13 * 3600)
    assert api.http.get("/api/v1/studies").status_code == 401


def test_a_pools_token_leases_the_trials_of_every_team(api: Api) -> None:
    """So a pool does not need an admin's token."""
    for team in ("default", "other"):
        api.token("member", team)
        made = api.call("POST", "/studies", "member", team, json=make_study(search={"trials": 1}))
        assert made.status_code == 201
    assert [item["slots"] for item in api.call("GET", "/demand", "pool").json()["items"]] == [2]
    leased = [api.call("POST", "/leases", "pool", json={"runner": f"r{k}"}).json()["leases"] for k in range(2)]
    assert len({lease["trial"]["study_id"] for (lease,) in leased}) == 2
    for (lease,) in leased:
        body = {"state": "completed", "metrics": {"accuracy": 0.5}}
        assert api.call("PUT", f"/leases/{lease['id']}/result", "pool", json=body).status_code == 200


@pytest.mark.parametrize("role", ["worker", "pool"])
def test_a_stolen_worker_token_cannot_use_other_runners_leases(api: Api, role: str) -> None:
    api.create(search={"trials": 3, "concurrency": 3})
    held = api.lease("theirs")
    assert held is not None
    seen = api.call("POST", "/leases", role, json={"runner": "thief"}).text + api.call("GET", "/demand", role).text
    assert held["id"] not in seen
    # No id that the thief can see gives access to the lease.
    for guess in (held["trial"]["id"], held["trial"]["study_id"], held["id"][:-1] + "x", "0" * 32):
        for method, path, body in (
            ("POST", "reports", {"reports": []}),
            ("POST", "logs", {"start": 0, "text": "x"}),
            ("PUT", "result", {"state": "cancelled"}),
        ):
            assert api.call(method, f"/leases/{guess}/{path}", role, json=body).status_code in (404, 422), guess
    assert api.report(held).status_code == 200


def test_worker_and_invalid_tokens_cannot_log_in(api: Api) -> None:
    for role in ("worker", "pool"):
        assert api.http.post("/login", data={"token": api.token(role)}).status_code == 403
    wrong = api.http.post("/login", data={"token": "wrong"})
    assert wrong.status_code == 401
    assert "not valid" in wrong.text


@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}])
def test_forms_from_other_sites_are_rejected(api: Api, headers: dict[str, str]) -> None:
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
