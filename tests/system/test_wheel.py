"""The wheel carries migrations, templates and static files: it serves from an environment without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import files, requires
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.cli.processes import free_port

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def live_server(tmp_path: Path) -> Iterator[str]:
    """Start an API server without authentication. Yields its address."""
    port = free_port(18890)
    env = {**os.environ, "CDKA_HOME": str(tmp_path / "server"), "CDKA_PORT": str(port), "CDKA_AUTH": "off"}
    server = subprocess.Popen([sys.executable, "-m", "service.app", "serve", "--embedded"], env=env)
    try:
        wait_until_ready(server, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 240
    while True:
        assert time.monotonic() < deadline, "the server did not start"
        assert server.poll() is None
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)


def build_wheel(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def base_packages() -> set[str]:
    """What the base installation depends on, directly or not."""
    found: set[str] = set()

    def add(name: str) -> None:
        for text in requires(name) or []:
            requirement = Requirement(text)
            wanted = canonicalize_name(requirement.name)
            if wanted not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                found.add(wanted)
                add(wanted)

    add("cdka")
    return found


@pytest.mark.slow
def test_the_base_wheel_runs_the_command_and_the_sdk_without_torch_ray_and_the_server(
    tmp_path: Path, live_server: str
) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    site = next(environment.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(build_wheel(tmp_path)) as wheel:
        wheel.extractall(site)
    for name in base_packages():
        for entry in {Path(file).parts[0] for file in files(name) or [] if Path(file).parts[0] != ".."}:
            if not (site / entry).exists():
                (site / entry).symlink_to(Path(sysconfig.get_paths()["purelib"]) / entry)
    for package in ("torch", "ray", "fastapi", "sqlalchemy", "optuna", "peft"):
        assert not (site / package).exists()

    def cdka(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "CDKA_SERVER_URL": live_server, "CDKA_HOME": str(tmp_path / "home")}
        command = [str(environment / "bin/python"), "-m", "service.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

    assert cdka("--help").returncode == 0
    checked = cdka("validate", str(REPOSITORY / "examples/bbc-news.yaml"))
    assert (checked.returncode, checked.stdout) == (
        0,
        "bbc-news.yaml is valid. Model and data are checked at submit.\n",
    )
    listed = cdka("studies", "--json")
    assert (listed.returncode, listed.stdout) == (0, "[]\n"), listed.stderr
    for arguments, extra in (
        (["serve"], "server,workers"),
        (["serve", "--no-pool"], "server"),
        (["work"], "workers"),
        (["adapter", "inspect", "."], "adapter"),
        (["db", "check"], "server"),
        (["demo"], "server,workers"),
        (["token", "create", "--name", "x", "--local"], "server"),
    ):
        done = cdka(*arguments)
        assert done.returncode == 2
        assert f"pip install 'cdka[{extra}]'" in done.stderr


@pytest.mark.slow
def test_the_wheel_serves_outside_of_the_repository(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"service/db/migrations/env.py", "service/dashboard/static/dashboard.js", "cdka/py.typed"} <= names
    assert any(n.startswith("service/db/migrations/versions/0001") for n in names)
    assert not any(n.startswith(("tests/", "benchmarks/")) for n in names)

    # A new environment without our code. It borrows the installed dependencies, so nothing is downloaded again.
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    site = next(environment.glob("lib/python*/site-packages"))
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    lent = tmp_path / "lent"
    lent.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "cdka" not in entry.name:
            (lent / entry.name).symlink_to(entry)
    (site / "lent.pth").write_text(str(lent))

    port = free_port(18790)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"CDKA_HOME": str(tmp_path / "home"), "CDKA_PORT": str(port)}
    where = subprocess.run(
        [str(python), "-c", "import service; print(service.__file__)"],
        cwd=tmp_path, env=env, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert str(site) in where.stdout
    server = subprocess.Popen([str(environment / "bin" / "cdka"), "serve", "--no-pool"], cwd=tmp_path, env=env)
    try:
        wait_until_ready(server, port)
        for path in (
            "/login",
            "/static/dashboard.css",
            "/static/dashboard.js",
            "/static/plotly.min.js",
            "/openapi.json",
        ):
            assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200, path
        token = (tmp_path / "home" / "admin-token").read_text().strip()
        assert (tmp_path / "home" / "admin-token").stat().st_mode & 0o077 == 0
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"http://127.0.0.1:{port}/api/v1/studies", headers=headers).json()["items"] == []
    finally:
        server.terminate()
        assert server.wait(60) == 0
