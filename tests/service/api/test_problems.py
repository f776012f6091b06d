"""Errors are ``application/problem+json`` with a type; the API docs load nothing from other servers."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from tests.conftest import Api, make_study


def test_unreadable_bodies_and_unknown_paths_return_problems(api: Api) -> None:
    headers = {"Content-Type": "application/json"}
    for content in (b"{", b"\xff\xfe", b'{"name": "\xc3\x28"}', b"[" * 100_000):
        said = api.call("POST", "/leases", "worker", content=content, headers=headers)
        assert said.status_code == 422, content[:10]
        assert said.headers["content-type"] == "application/problem+json"
    assert api.call("GET", "/nothing").json()["status"] == 404
    assert api.call("PUT", "/studies").json()["status"] == 405


def test_control_characters_are_rejected_in_names_and_removed_from_messages(api: Api) -> None:
    assert api.call("POST", "/studies", json=make_study(name="a\x00b")).status_code == 422
    study = api.create()
    assert api.call("PATCH", f"/studies/{study['id']}", json={"name": "\x1b[31m"}).status_code == 422
    lease = api.lease()
    assert lease is not None
    failure = {"kind": "error", "message": "a\x00b\x1b[31mc\n"}
    assert api.finish(lease, "failed", None, failure=failure).status_code == 200
    assert api.call("GET", f"/trials/{lease['trial']['id']}").json()["failure"]["message"] == "ab[31mc\n"
    with api.ctx.db.read() as session:
        session.execute(text("SELECT 1"))


def test_docs_load_nothing_from_other_servers(api: Api) -> None:
    page = api.http.get("/docs")
    assert "https://" not in page.text
    for path in ("/static/swagger-ui/swagger-ui-bundle.js", "/static/swagger-ui/swagger-ui.css", "/static/docs.js"):
        assert api.http.get(path).status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_every_documented_error_has_an_example_of_its_status(api: Api) -> None:
    schema = api.http.get("/openapi.json").json()
    seen = set()
    for path, item in schema["paths"].items():
        for operation in item.values():
            for status, response in operation["responses"].items():
                content = response.get("content", {}).get("application/problem+json")
                if content is not None and path.startswith("/api/v1"):
                    example = content["example"]
                    assert example["status"] == int(status)
                    assert example["type"].startswith("urn:cdka:problem:")
                    assert {"type", "title", "status", "detail"} <= example.keys()
                    seen.add(int(status))
    assert seen == {401, 403, 404, 408, 409, 412, 413, 422, 429, 503}


@pytest.mark.parametrize(
    ("method", "path", "body", "pointer"),
    [
        ("POST", "/teams", {"name": "x", "max_storage_bytes": False}, "#/max_storage_bytes"),
        ("POST", "/teams", {"name": "x", "weight": True}, "#/weight"),
        ("POST", "/leases", {"runner": "r", "max": True}, "#/max"),
        ("POST", "/leases", {"runner": "r", "cpus": "2"}, "#/cpus"),
    ],
)
def test_booleans_and_text_are_rejected_as_numbers(api: Api, method: str, path: str, body: Any, pointer: str) -> None:
    refused = api.call(method, path, "admin", json=body)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == pointer
