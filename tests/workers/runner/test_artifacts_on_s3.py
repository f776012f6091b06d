"""Artifacts in an S3 store: real trials against a local S3 server."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from service.client import Client
from service.client.testing import AppTransport
from service.server.maintenance import collect_checkpoints
from service.studies.removal import purge
from tests.conftest import Api
from workers.runner.runner import Runner

from ..helpers import LONG, SPACE, checkpoint_of, only_trial, release_at, run


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "k"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    # A deployment sets this with FSSPEC_S3.
    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}", "use_listings_cache": False}
    )
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket/cdka"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture
def runner(api: Api, store: str) -> Iterator[Runner]:
    api.ctx.settings.artifacts_url = store
    with Client("http://localhost", api.token("worker"), transport=AppTransport(api.http)) as client:
        yield Runner(client, api.ctx.settings, "runner-1")


def test_trials_store_and_resume_from_an_s3_bucket(api: Api, runner: Runner, store: str) -> None:
    options: dict[str, Any] = {"training": LONG, "search": {"trials": 1}, "search_space": SPACE}
    whole = api.create(**options)
    run(runner)
    interrupted = api.create(**options)
    release_at(runner, 7)
    run(runner)
    checkpoint = checkpoint_of(api, interrupted)
    assert checkpoint == f"{store}/studies/{interrupted['id']}/trials/00000/checkpoints/001-00000007"
    run(Runner(runner.client, runner.settings, "runner-2"))
    ended = only_trial(api, interrupted)
    assert ended["state"] == "completed"
    assert ended["resources"]["resumed_from"] == checkpoint
    assert ended["metrics"] == only_trial(api, whole)["metrics"]
    files = fsspec.filesystem("s3")
    assert ended["artifact"].startswith(f"{store}/studies/")
    assert files.exists(f"{ended['artifact']}/adapter_model.safetensors")
    assert not [f for f in files.find("bucket") if "partial" in f]
    answer = api.call("GET", f"/trials/{ended['id']}/adapter")
    assert answer.status_code == 200
    assert "adapter_model.safetensors" in zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
    assert collect_checkpoints(api.ctx) >= 1
    assert not [f for f in files.find("bucket") if "/checkpoints/" in f]
    assert api.call("DELETE", f"/studies/{interrupted['id']}").status_code == 204
    assert purge(api.ctx, interrupted["id"])
    left = files.find("bucket")
    assert not [f for f in left if interrupted["id"] in f]
    assert [f for f in left if whole["id"] in f]
