"""The wheel carries migrations, templates and static files: it serves from an environment without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from service.cli.processes import free_port

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_wheel_serves_outside_of_the_repository(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"service/db/migrations/env.py", "service/dashboard/static/dashboard.js", "cdka/py.typed"} <= names
    assert any(n.startswith("service/db/migrations/versions/0001") for n in names)
    assert not any(n.startswith(("tests/", "benchmarks/")) for n in names)

    # An environment with nothing of ours in it; the dependencies are lent by path, so nothing is downloaded twice.
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
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline, "the server did not start"
            assert server.poll() is None
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.3)
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
