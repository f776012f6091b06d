"""The service behind a proxy: below a path prefix, and with trusted forwarded headers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service.app import create_app
from service.client import Client
from service.client.testing import AppTransport
from service.settings import Settings
from tests.conftest import Api, make_study

LINK = re.compile(r'(?:href|src|action|data-chart)="(/[^"]*)"')


@dataclass
class Proxied:
    """A server below a path, as a browser sees it. The proxy strips the prefix from requests or keeps it."""

    http: TestClient
    prefix: str
    strips: bool

    def request(self, method: str, link: str, **options: Any) -> Any:
        """Follow a link of a page."""
        assert link.startswith(self.prefix + "/"), link
        path = link.removeprefix(self.prefix) if self.strips else link
        return self.http.request(method, f"http://localhost{path}", follow_redirects=False, **options)


def below(
    api: Api, root_path: str = "", *, strips: bool = False, said: str | None = None, trusted: str = "testclient"
) -> Proxied:
    """The same server with a ``CDKA_ROOT_PATH``, or behind a proxy that sends a prefix."""
    api.ctx.settings = api.ctx.settings.model_copy(update={"root_path": root_path, "trusted_proxies": trusted})
    headers = {} if said is None else {"X-Forwarded-Prefix": said}
    http = TestClient(create_app(api.ctx), base_url="http://localhost", headers=headers)
    return Proxied(http, root_path if said is None else said, strips)


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("by_header", [False, True])
def test_every_link_of_every_page_works_below_a_prefix(api: Api, strips: bool, by_header: bool) -> None:
    study = api.create(search={"trials": 1})
    prefix = "/tools/cdka"
    proxied = below(api, said=prefix, strips=strips) if by_header else below(api, prefix, strips=strips)
    assert proxied.request("GET", f"{prefix}/").headers["location"] == f"{prefix}/login"
    entered = proxied.request("POST", f"{prefix}/login", data={"token": api.token("admin")})
    assert entered.headers["location"] == f"{prefix}/"
    assert f"Path={prefix};" in entered.headers["set-cookie"]
    session = {"Cookie": entered.headers["set-cookie"].split(";")[0]}
    links: set[str] = set()
    for page in ("/", "/login", "/docs", "/operation", f"/studies/{study['id']}", f"/studies/{study['id']}/body"):
        found = proxied.request("GET", prefix + page, headers=session)
        assert found.status_code == 200, page
        links |= set(LINK.findall(found.text))
    assert len(links) > 10
    for link in sorted(links):
        # Forms take only POST.
        assert proxied.request("GET", link, headers=session).status_code in (200, 405), link
    assert proxied.request("GET", f"{prefix}/openapi.json").json()["servers"] == [{"url": prefix}]


def test_the_sdk_and_locations_use_the_prefix(api: Api) -> None:
    proxied = below(api, "/cdka")
    headers = {"Authorization": f"Bearer {api.token('member')}"}
    made = proxied.request("POST", "/cdka/api/v1/studies", json=make_study(search={"trials": 1}), headers=headers)
    assert made.status_code == 201
    assert made.headers["location"] == f"/cdka/api/v1/studies/{made.json()['id']}"
    with Client("http://localhost/cdka", api.token("member"), transport=AppTransport(proxied.http)) as client:
        assert [study.id for study in client.studies()] == [made.json()["id"]]


@pytest.mark.parametrize(
    "said", ["//evil.example", "/a//b", "/..", "/a/./b", "https://evil.example", '/"><script>', "/a b", "tools"]
)
def test_a_prefix_that_is_not_a_path_is_ignored(api: Api, said: str) -> None:
    http = below(api, said=said).http
    assert http.get("/", follow_redirects=False).headers["location"] == "/login"
    assert said not in http.get("/login").text


@pytest.mark.parametrize("trusted", [True, False])
def test_only_a_trusted_proxy_sets_prefix_and_scheme(api: Api, trusted: bool) -> None:
    http = below(api, said="/cdka", trusted="testclient" if trusted else "10.0.0.0/8").http
    answer = http.get("/", headers={"X-Forwarded-Proto": "https"}, follow_redirects=False)
    assert answer.headers["location"] == ("/cdka/login" if trusted else "/login")
    assert ("strict-transport-security" in answer.headers) is trusted


@pytest.mark.parametrize("value", ["cdka", "//x", "/..", "/a b", "/a//b", "https://host/cdka"])
def test_an_invalid_root_path_is_rejected_at_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CDKA_ROOT_PATH", value)
    with pytest.raises(ValidationError, match="give a path such as /cdka"):
        Settings()


def test_trusted_proxies_are_read_from_uvicorns_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.1.0.0/16")
    assert Settings().trusted_proxies == "10.1.0.0/16"
    monkeypatch.setenv("CDKA_ROOT_PATH", "/cdka/")
    assert Settings().root_path == "/cdka"
