"""The files in ``docker/`` agree with the code: settings, metrics, versions. ``make test-compose`` runs them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.conftest import Api

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
FILES = sorted(DOCKER.glob("compose*.yaml"))
# The node, the pool and the runners read these from the environment, not through Settings.
OWN = {f"CDKA_NODE_{name}" for name in ("ADDRESS", "CPUS", "DEVICES", "RESOURCES")}
OWN |= {"CDKA_POOL_ALIVE", "CDKA_GRACE_SECONDS"}


def services(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())["services"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_compose_files_pass_only_known_settings(file: Path) -> None:
    known = {f"CDKA_{name.upper()}" for name in Settings.model_fields} | OWN
    for name, service in services(file).items():
        given = {key for key in service.get("environment", {}) if key.startswith("CDKA_")}
        assert given <= known, (name, given - known)


def test_the_example_env_file_explains_every_compose_variable() -> None:
    explained = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", (DOCKER / ".env.example").read_text(), re.MULTILINE))
    for file in FILES:
        used = set(re.findall(r"\$\{([A-Z][A-Z0-9_]+)", file.read_text()))
        # The compose files of optional stores and monitors explain these themselves.
        apart = {
            "S3_PORT",
            "S3_IMAGE",
            "S3_ENDPOINT",
            "PROMETHEUS_IMAGE",
            "GRAFANA_IMAGE",
            "CDKA_SECRETS",
            "CDKA_RUNNER_SERVER_URL",
        }
        assert used - apart <= explained, (file.name, used - apart - explained)


def test_compose_services_are_hardened_and_bounded() -> None:
    ours = {n: s for n, s in services(DOCKER / "compose.yaml").items() if n != "postgres"}
    ours |= services(DOCKER / "compose.node.yaml")
    for name, service in ours.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["logging"]["options"]["max-size"], name
    for name, service in ours.items():
        published = [p for p in service.get("ports", []) if "127.0.0.1" not in p]
        assert not published, f"{name} is bound beyond loopback unless told"
    secrets = yaml.safe_load((DOCKER / "compose.yaml").read_text())["secrets"]
    plain = (DOCKER / "compose.yaml").read_text()
    assert all("file" in secret for secret in secrets.values())
    assert "PASSWORD:" not in plain.replace("POSTGRES_PASSWORD_FILE:", "")


def test_alerts_and_panels_query_only_existing_metrics(api: Api) -> None:
    study = api.create()
    api.run_all(lambda t: 0.5)
    assert study["id"]
    text = api.http.get("/metrics", headers={"Authorization": f"Bearer {api.token('viewer')}"}).text
    there = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    there |= {f"{name}_bucket" for name in there}
    rules = [r for g in yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"] for r in g["rules"]]
    panels = json.loads((DOCKER / "grafana/dashboards/cdka.json").read_text())["panels"]
    asked = [r["expr"] for r in rules] + [t["expr"] for p in panels for t in p["targets"]]
    assert len(asked) > 10
    for expression in asked:
        names = set(re.findall(r"\bcdka_\w+", expression))
        assert names <= there, (expression, names - there)
        for label in re.findall(r"by \(([^)]*)\)", expression):
            for name in (n.strip() for n in label.split(",")):
                assert name in ("le", "instance") or f'{name}="' in text, (expression, name)


def test_kuberay_has_the_pinned_ray_version_and_only_known_settings() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    cluster, pool = yaml.safe_load_all((DOCKER / "kuberay/raycluster.yaml").read_text())
    assert cluster["spec"]["rayVersion"] == pinned["ray"]
    (container,) = pool["spec"]["template"]["spec"]["containers"]
    settings = {e["name"] for e in container["env"] if e["name"].startswith("CDKA_")}
    assert settings <= {f"CDKA_{name.upper()}" for name in Settings.model_fields}


def test_secrets_are_made_once_and_kept(tmp_path: Path) -> None:
    command = [str(DOCKER / "make-secrets"), str(tmp_path / "secrets")]
    subprocess.run(command, check=True, capture_output=True)
    first = {f.name: f.read_text() for f in (tmp_path / "secrets").iterdir()}
    assert all(
        v.startswith("cdka_") and len(v) >= 40 for n, v in first.items() if n.endswith("_token") and n[0] in "amw"
    )
    assert len(set(first.values())) == len(first)
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stdout == ""
    assert {f.name: f.read_text() for f in (tmp_path / "secrets").iterdir()} == first
