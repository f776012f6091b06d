"""Studies cannot read private files on the server's or the workers' disks."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from fastapi.testclient import TestClient

from service.app import create_app, make_context
from service.data_files import PACKAGED, names_shown
from service.db.backup import back_up
from service.db.engine import Database
from service.errors import InvalidRequest
from service.paths import DataRoots, resolve_inside
from service.schemas.specs import TaskSpec
from service.server.bootstrap import close_to_others, embedded_tokens
from service.settings import Settings
from tests.conftest import Api, FakeClock, make_study, write_lines
from workers.failures import Rejected
from workers.inputs.splits import load_splits


@pytest.fixture
def started_here(tmp_path: Path, clock: FakeClock, data_root: Path, database_url: str) -> Any:
    """A server with the default folders: the data folder is the working folder, and the home lies inside it."""
    home = tmp_path / ".cdka"
    home.mkdir()
    (tmp_path / "tiny-bert").symlink_to(data_root / "tiny-bert")
    settings = Settings(
        home=home, database_url=database_url, data_dirs=[tmp_path, data_root], lease_seconds=60, rate_limit=0
    )
    ctx = make_context(settings, clock, clock.elapsed)
    embedded_tokens(ctx)
    (home / "logs").mkdir()
    (home / "logs" / "api.log").write_text("secret line\n")
    with TestClient(create_app(ctx), base_url="http://localhost", raise_server_exceptions=False) as http:
        yield Api(ctx, http), tmp_path
    ctx.db.engine.dispose()


def refused(api: Api, role: str = "member", **dataset: Any) -> str:
    study = make_study()
    study["task"]["dataset"] = dataset
    answer = api.call("POST", "/studies", role, json=study)
    assert answer.status_code == 422, answer.text
    return str(answer.text)


SECRETS = (".cdka/admin-token", ".cdka/worker-token", ".cdka/cdka.db", ".cdka/logs/api.log", ".env", ".ssh/id_rsa")


@pytest.mark.parametrize("builder", ["csv", "json", "parquet", "arrow"])
@pytest.mark.parametrize("secret", SECRETS)
def test_a_member_cannot_read_the_servers_files(started_here: Any, builder: str, secret: str) -> None:
    api, folder = started_here
    for name in (".env", ".ssh/id_rsa"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("hunter2,secret line\n")
    said = refused(api, path=builder, data_files={"train": secret})
    for token in (".cdka/admin-token", ".cdka/worker-token"):
        assert (folder / token).read_text().strip() not in said
    assert "hunter2" not in said
    assert "secret line" not in said


@pytest.mark.parametrize(
    "name", ["link.csv", "folder/link.csv", "absolute.csv", "tiny-bert/../.cdka/admin-token", "./.cdka/./admin-token"]
)
def test_links_and_relative_paths_do_not_reach_the_servers_files(started_here: Any, name: str) -> None:
    api, folder = started_here
    (folder / "folder").mkdir()
    (folder / "link.csv").symlink_to(".cdka/admin-token")
    (folder / "folder" / "link.csv").symlink_to("../.cdka/admin-token")
    (folder / "absolute.csv").symlink_to(folder / ".cdka" / "admin-token")
    said = refused(api, path="csv", data_files={"train": name})
    assert (folder / ".cdka/admin-token").read_text().strip() not in said


def test_a_home_with_a_visible_name_is_rejected_as_data(tmp_path: Path) -> None:
    home = tmp_path / "state"
    home.mkdir()
    (home / "admin-token.csv").write_text("text,label\n")
    settings = Settings(home=home, data_dirs=[tmp_path])
    with pytest.raises(InvalidRequest, match="belongs to the server itself"):
        resolve_inside("state/admin-token.csv", settings.data_roots)
    with pytest.raises(InvalidRequest, match="belongs to the server itself"):
        resolve_inside(".", settings.data_roots)
    assert settings.data_roots.holding_private()[0] == (tmp_path.resolve(), home.resolve())


def test_a_data_folder_configured_inside_the_home_can_be_read(tmp_path: Path) -> None:
    data = tmp_path / ".cdka" / "demo" / "data"
    data.mkdir(parents=True)
    (data / "train.csv").touch()
    settings = Settings(home=tmp_path / ".cdka", data_dirs=[data])
    assert resolve_inside("train.csv", settings.data_roots) == data.resolve() / "train.csv"


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (["text", "label"], "text, label"),
        (["text", " label"], "text, ' label'"),
        (["topic"], "topic"),
        (["cdka_Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9v"], None),
        (["-----BEGIN OPENSSH PRIVATE KEY-----"], None),
        (["x" * 65, "label"], None),
        (["a\x00b", "label"], None),
        (["root:x:0:0:root:/root:/bin/bash"], None),
        ([], None),
    ],
)
def test_columns_are_shown_only_if_they_look_like_a_header(content: list[str], shown: str | None) -> None:
    assert names_shown(content) == shown


def test_a_first_line_that_is_not_a_header_is_not_shown(api: Api, data_root: Path) -> None:
    (data_root / "keys.csv").write_text("AKIAIOSFODNN7EXAMPLE/wJalrXUtnFEMI/K7MDENG\nsecond\n")
    said = refused(api, path="csv", data_files={"train": "keys.csv"})
    assert "does not look like a header" in said
    assert "AKIA" not in said


@pytest.mark.parametrize("name", ["passwd", "notes.md", "model.safetensors", "train.py", "archive.zip"])
def test_files_without_a_data_suffix_are_rejected(api: Api, data_root: Path, name: str) -> None:
    (data_root / name).write_text("text,label\na,b\n")
    assert "ends in one of: .csv, .tsv" in refused(api, path="csv", data_files={"train": name})
    task = TaskSpec.model_validate({**make_study()["task"], "dataset": {"path": "csv", "data_files": {"train": name}}})
    with pytest.raises(Rejected, match="does not end as csv data does"):
        load_splits(task, [data_root], data_root)


# --- the workers


def test_every_packaged_builder_is_known() -> None:
    assert set(_PACKAGED_DATASETS_MODULES) <= PACKAGED


@pytest.mark.parametrize("builder", sorted(_PACKAGED_DATASETS_MODULES))
def test_a_packaged_builder_without_files_does_not_read_the_working_folder(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builder: str
) -> None:
    (tmp_path / "secret.txt").write_text("a secret\n")
    monkeypatch.chdir(tmp_path)
    assert "a secret" not in refused(api, path=builder)
    try:
        task = TaskSpec.model_validate({**make_study()["task"], "dataset": {"path": builder}})
    except ValueError:
        return
    with pytest.raises(Rejected, match="there is no folder"):
        load_splits(task, DataRoots([tmp_path / "data"]), tmp_path)


def outside(tmp_path: Path) -> Path:
    """A folder beside the data folder, with something to steal."""
    folder = tmp_path / "outside"
    folder.mkdir()
    write_lines(folder / "train.jsonl", [{"text": "stolen", "label": "x"}, {"text": "too", "label": "y"}] * 20)
    return folder


CARDS = {
    "data_files upwards": "configs:\n- config_name: default\n  data_files: ../outside/*.jsonl\n",
    "path upwards": (
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: ../outside/train.jsonl\n"
    ),
    "paths upwards": (
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n"
        "    path: ['a.jsonl', 'x/../../outside/train.jsonl']\n"
    ),
    "data_dir upwards": "configs:\n- config_name: default\n  data_dir: ../outside\n",
    "an absolute path": "configs:\n- config_name: default\n  data_files: /etc/*\n",
    "a url": "configs:\n- config_name: default\n  data_files: https://example.org/train.jsonl\n",
    "another protocol": "configs:\n- config_name: default\n  data_files: file:///etc/passwd\n",
}


@pytest.mark.parametrize("form", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("case", CARDS)
def test_a_dataset_card_that_names_files_outside_its_folder_is_rejected(tmp_path: Path, case: str, form: str) -> None:
    outside(tmp_path)
    folder = tmp_path / "data" / "news"
    folder.mkdir(parents=True)
    write_lines(folder / "a.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}] * 20)
    text = CARDS[case]
    (folder / form).write_text(f"---\n{text}---\n# News\n" if form == "README.md" else text)
    task = TaskSpec.model_validate({**make_study()["task"], "dataset": {"path": "news"}})
    with pytest.raises(Rejected, match="names files"):
        load_splits(task, DataRoots([tmp_path / "data"]), tmp_path)


@pytest.mark.parametrize("target", ["file", "folder", "hidden"])
def test_links_that_lead_out_of_the_data_directories_are_rejected(tmp_path: Path, target: str) -> None:
    stolen = outside(tmp_path)
    folder = tmp_path / "data" / "news"
    folder.mkdir(parents=True)
    if target == "file":
        (folder / "train.jsonl").symlink_to(stolen / "train.jsonl")
    elif target == "folder":
        (folder / "more").symlink_to(stolen)
    else:
        (tmp_path / "data" / ".hidden").mkdir()
        (tmp_path / "data" / ".hidden" / "train.jsonl").write_text("{}")
        (folder / "train.jsonl").symlink_to("../.hidden/train.jsonl")
    task = TaskSpec.model_validate({**make_study()["task"], "dataset": {"path": "news"}})
    with pytest.raises(Rejected, match="has a link that leads out of the data directories"):
        load_splits(task, DataRoots([tmp_path / "data"]), tmp_path)


def test_a_dataset_folder_with_links_within_the_data_folders_is_read(tmp_path: Path) -> None:
    """The hub's cache has this layout: snapshots are links to blobs."""
    blobs, snapshot = tmp_path / "data" / "blobs", tmp_path / "data" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    write_lines(blobs / "abc", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}] * 20)
    (snapshot / "train.jsonl").symlink_to("../../blobs/abc")
    (snapshot / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train.jsonl\n---\n")
    task = TaskSpec.model_validate({**make_study()["task"], "dataset": {"path": "snapshots/1"}})
    splits = load_splits(task, DataRoots([tmp_path / "data"]), tmp_path)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 40


# --- permissions


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_can_enter_the_home_or_read_the_database(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        settings = Settings(home=tmp_path / "home")
        database = Database(settings.database_url)
        database.upgrade()
        assert mode(tmp_path / "home") == 0o700
        assert {mode(file) for file in (tmp_path / "home").iterdir()} == {0o600}
        # The permissions that an earlier release set.
        (tmp_path / "home").chmod(0o755)
        (tmp_path / "home" / "cdka.db").chmod(0o644)
        close_to_others(settings)
        assert (mode(tmp_path / "home"), mode(tmp_path / "home" / "cdka.db")) == (0o700, 0o600)
        database.engine.dispose()
    finally:
        os.umask(before)


def test_a_folder_that_is_not_the_servers_own_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)
    (tmp_path / "shared").chmod(0o755)
    close_to_others(Settings(home=tmp_path / "shared"))
    assert mode(tmp_path / "shared") == 0o755


def test_a_backup_does_not_reuse_a_file_at_its_temporary_name(api: Api, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("of another")
    (tmp_path / "one.cdka.part").symlink_to(target)
    back_up(api.ctx.db, tmp_path / "one.cdka")
    assert target.read_text() == "of another"
    (tmp_path / "two.cdka.part").write_text("readable by all")
    (tmp_path / "two.cdka.part").chmod(0o666)
    back_up(api.ctx.db, tmp_path / "two.cdka")
    assert mode(tmp_path / "one.cdka") == mode(tmp_path / "two.cdka") == 0o600


# --- the artifact store


def with_adapter(api: Api, **files: str) -> tuple[str, Path]:
    """A finished trial with an adapter of these files; returns its id and the adapter's folder."""
    study = api.create(search={"trials": 1})
    folder = Path(api.ctx.settings.artifacts_url) / "studies" / study["id"] / "trials" / "00000" / "adapter"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    lease = api.lease()
    assert lease is not None
    assert api.finish(lease, artifact=str(folder)).status_code == 200
    return lease["trial"]["id"], folder


@pytest.mark.parametrize("kind", ["a file", "a folder", "the adapter's folder", "a folder on the way", "a device"])
def test_links_in_the_artifact_store_are_not_served(api: Api, tmp_path: Path, kind: str) -> None:
    trial, folder = with_adapter(api, weights="w")
    secret = tmp_path / "elsewhere"
    (secret / "adapter").mkdir(parents=True)
    (secret / "passwd").write_text("stolen")
    (secret / "adapter" / "passwd").write_text("stolen")
    if kind == "a file":
        (folder / "link").symlink_to(secret / "passwd")
    elif kind == "a folder":
        (folder / "link").symlink_to(secret)
    elif kind == "the adapter's folder":
        folder.rename(folder.with_name("moved"))
        folder.symlink_to(secret)
    elif kind == "a folder on the way":
        folder.parent.rename(folder.parent.with_name("moved"))
        folder.parent.symlink_to(secret)
    else:
        os.mkfifo(folder / "pipe")
    answer = api.call("GET", f"/trials/{trial}/adapter")
    assert answer.status_code == 404, answer.content[:200]
    assert b"stolen" not in answer.content


def test_an_adapter_is_sent_without_a_temporary_file(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise several slow downloads of a large adapter would fill the temporary folder."""
    import io
    import tempfile
    import zipfile

    trial, folder = with_adapter(api, a="1" * 700_000)
    (folder / "sub").mkdir()
    (folder / "sub" / "b").write_bytes(os.urandom(3_000_000))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "does-not-exist"))
    answer = api.call("GET", f"/trials/{trial}/adapter")
    assert answer.headers["content-disposition"] == 'attachment; filename="trial-00000-adapter.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.read("a") == b"1" * 700_000
        assert archive.read("sub/b") == (folder / "sub" / "b").read_bytes()
