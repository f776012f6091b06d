"""The whole stack on a real Docker engine, with everything going wrong that can: ``make test-compose``.

Builds the images on a locally made base, runs the demo's study by REST from outside, and while it runs kills an API
replica and a Ray worker, restarts PostgreSQL and the head and upgrades the schema. Then takes the stack down and up,
and restores a backup into an empty one. Exits non-zero at the first thing that is not as it should be; never skips.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx

from service.cli.demo import Sizes, demo_study, prepare_data
from service.cli.processes import free_port
from service.client import Client
from service.errors import ServiceError

HERE = Path(__file__).resolve().parent
DOCKER = HERE.parent
ROOT = DOCKER.parent
BASE = "cdka-test-base:bookworm"
RAY_SERVICES = ("ray-head", "pool", "ray-worker")
SIZES = Sizes(trials=24, seeds=2, train=96, validation=96, test=96, epochs=4, batch_size=8, max_length=64)
LEASE_SECONDS = 20
# A migration that a next release might bring.
MIGRATION = """
revision = "9999"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("compose_test", sa.Column("id", sa.Integer(), primary_key=True))


def downgrade() -> None:
    op.drop_table("compose_test")
"""

_began = time.monotonic()


def say(words: str) -> None:
    print(f"[{time.monotonic() - _began:6.1f} s] {words}", flush=True)


def run(*command: str, quiet: bool = True, **kwargs: Any) -> str:
    """Run a command; what it printed is shown where it fails."""
    found = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)
    if found.returncode:
        print(found.stdout[-6000:])
        raise SystemExit(f"failed ({found.returncode}): {' '.join(command)[:300]}")
    return found.stdout


def until(what: str, condition: Callable[[], Any], seconds: float) -> Any:
    """Wait for a condition; a wait that is over says what for."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {seconds:.0f} s for {what}")
        time.sleep(1)
    return found


def engine() -> None:
    """A running Docker engine; Debian's is installed and started where there is none."""
    # A distribution's own client goes with its engine; another one earlier on the path may lack BuildKit's plugin.
    os.environ["PATH"] = f"/usr/bin:{os.environ['PATH']}"
    if shutil.which("docker") is None or shutil.which("debootstrap") is None or not compose_command():
        say("installing Debian's engine")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "update", "-qq")
        wanted = ["docker.io", "docker-compose", "debootstrap"]
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted, env=environment)
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        say("starting dockerd")
        log = open(tempfile.gettempdir() + "/cdka-dockerd.log", "ab")  # noqa: SIM115  # the engine keeps it
        subprocess.Popen(["dockerd"], stdout=log, stderr=log, start_new_session=True)
        until("the engine", lambda: not subprocess.run(["docker", "info"], capture_output=True).returncode, 60)
    say(run("docker", "version", "--format", "engine {{.Server.Version}}, client {{.Client.Version}}").strip())


@functools.cache
def compose_command() -> tuple[str, ...]:
    """Compose v2 as the client's plugin, else version 1."""
    if not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return "docker", "compose"
    return ("docker-compose",) if shutil.which("docker-compose") else ()


def base_image() -> None:
    """A Debian with Python, made here: no registry of images is asked."""
    if run("docker", "images", "-q", BASE).strip():
        return
    say("making a base image")
    with tempfile.TemporaryDirectory() as folder:
        packages = "--include=ca-certificates,python3,python3-venv"
        run("debootstrap", "--variant=minbase", packages, "bookworm", f"{folder}/base")
        archive = subprocess.Popen(["tar", "-C", f"{folder}/base", "-c", "."], stdout=subprocess.PIPE)
        run("docker", "import", "-", BASE, stdin=archive.stdout)


@contextmanager
def pip_settings() -> Iterator[list[str]]:
    """This machine's pip settings as build arguments; folders of wheels are served to the builds over loopback."""
    said = dict(
        line.split("=", 1) for line in run(sys.executable, "-m", "pip", "config", "list").splitlines() if "=" in line
    )
    settings = {key.split(".")[-1]: value.strip("'") for key, value in said.items()}
    handler = functools.partial(_Quiet, directory="/")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def served(value: str) -> str:
        found = []
        for place in value.split():
            path = urlparse(place).path if place.startswith("file:") else place
            local = place.startswith(("/", "file:"))
            found.append(f"http://127.0.0.1:{server.server_port}{path.rstrip('/')}/" if local else place)
        return " ".join(found)

    arguments = ["--network", "host", "--build-arg", f"BASE={BASE}"]
    given = {"find-links": "PIP_FIND_LINKS", "extra-index-url": "PIP_EXTRA_INDEX_URL", "index-url": "PIP_INDEX_URL"}
    for key, name in given.items():
        if key in settings:
            arguments += ["--build-arg", f"{name}={served(settings[key])}"]
    if "find-links" in settings:
        # This machine's own torch, instead of the one that the builds would fetch.
        arguments += ["--build-arg", "PIP_TRUSTED_HOST=127.0.0.1"]
        arguments += ["--build-arg", "TORCH_INDEX_URL=", "--build-arg", "TORCH_CPU_INDEX_URL="]
    if "cert" in settings:
        arguments += ["--secret", f"id=ca_bundle,src={settings['cert']}"]
    try:
        yield arguments
    finally:
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def build() -> None:
    """The images of the product, and stand-ins for those that would come from a registry."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    with pip_settings() as arguments:
        for name in ("postgres", "nginx"):
            run(
                *("docker", "build", "--quiet", "--network", "host", "--build-arg", f"BASE={BASE}"),
                *("-t", f"cdka-test-{name}", "-f", f"{HERE}/{name}.Dockerfile", str(HERE)),
                env=environment,
            )
        for target in ("api", "worker"):
            started = time.monotonic()
            run(
                *("docker", "build", *arguments, "--target", target, "-t", f"cdka-test-{target}"),
                *("-f", f"{DOCKER}/Dockerfile", str(ROOT)),
                env=environment,
            )
            size = int(run("docker", "image", "inspect", "-f", "{{.Size}}", f"cdka-test-{target}"))
            say(f"built {target}: {size / 1e9:.2f} GB in {time.monotonic() - started:.0f} s")
    head = newest_revision()
    with tempfile.TemporaryDirectory() as folder:
        imports = '"""Of a next release."""\n\nimport sqlalchemy as sa\nfrom alembic import op\n'
        text = imports + MIGRATION.format(head=head)
        (Path(folder) / "9999_next.py").write_text(text)
        versions = run(
            *("docker", "run", "--rm", "cdka-test-api", "python", "-c"),
            "import service.db, pathlib; print(pathlib.Path(service.db.__file__).parent / 'migrations/versions')",
        ).strip()
        (Path(folder) / "Dockerfile").write_text(f"FROM cdka-test-api\nCOPY --chmod=644 9999_next.py {versions}/\n")
        run("docker", "build", "--quiet", "-t", "cdka-test-api-next", folder, env=environment)


def newest_revision() -> str:
    """The newest migration of this tree."""
    return sorted(p.name for p in (ROOT / "alembic" / "versions").glob("0*.py"))[-1][:4]


class Stack:
    """The composed service, and the ways of an operator with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port(18080)
        self.files = ["compose.yaml"]
        data = folder / "data"
        prepare_data(data, SIZES)
        run("chmod", "-R", "a+rX", str(folder))
        run(str(DOCKER / "make-secrets"), str(folder / "secrets"))
        self.environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": "cdka-test",
            "CDKA_API_IMAGE": "cdka-test-api",
            "CDKA_WORKER_IMAGE": "cdka-test-worker",
            "POSTGRES_IMAGE": "cdka-test-postgres",
            "PROXY_IMAGE": "cdka-test-nginx",
            "CDKA_PORT": str(self.port),
            "CDKA_DATA": str(data),
            "CDKA_SECRETS": str(folder / "secrets"),
            "CDKA_LEASE_SECONDS": str(LEASE_SECONDS),
            "CDKA_CHECKPOINT_SECONDS": "5",
            "HF_HUB_OFFLINE": "1",
            "WORKER_CPUS": "1",
        }
        token = (folder / "secrets" / "admin_token").read_text()
        self.client = Client(f"http://127.0.0.1:{self.port}", token, attempts=30)

    def compose(self, *arguments: str) -> str:
        files = [part for name in self.files for part in ("-f", str(DOCKER / name))]
        return run(*compose_command(), *files, *arguments, env=self.environment)

    def up(self) -> None:
        self.compose("up", "-d", "--no-build", "--scale", "ray-worker=2", "--scale", "api=2")

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).split()

    def kill(self, container: str) -> None:
        """End a container's first process the hard way, as a crash would: the engine starts it again."""
        pid = int(run("docker", "inspect", "-f", "{{.State.Pid}}", container))
        os.kill(pid, signal.SIGKILL)

    def is_ready(self) -> bool:
        try:
            return self.client.ready()
        except ServiceError:
            return False

    def logs(self) -> None:
        for service in ("migrate", "api", "ray-head", "pool", "ray-worker", "proxy", "postgres"):
            print(f"--- {service}")
            shown = subprocess.run(
                [*compose_command(), "-f", str(DOCKER / "compose.yaml"), "logs", "--tail", "25", service],
                env=self.environment,
                capture_output=True,
                text=True,
            )
            print(shown.stdout[-5000:])


def configurations(stack: Stack) -> None:
    """Every combination of files that the guide names is valid, those for GPUs included."""
    for name in ("grafana_password", "tls.crt", "tls.key", "aws_credentials", "s3_root_password"):
        (stack.folder / "secrets" / name).touch()
    environment = {
        **stack.environment,
        "CLUSTER_ADDRESS": "10.0.0.1",
        "HEAD_ADDRESS": "10.0.0.1",
        "NODE_ADDRESS": "10.0.0.2",
        "S3_ENDPOINT": "http://10.0.0.1:9000",
    }
    extras = ("gpu", "cluster", "tls", "s3", "monitoring")
    combinations = [["compose.node.yaml"], ["compose.node.yaml", "compose.node.s3.yaml"]]
    combinations += [
        ["compose.yaml", *(f"compose.{e}.yaml" for k, e in enumerate(extras) if bits >> k & 1)]
        for bits in range(2 ** len(extras))
    ]
    for files in combinations:
        chosen = [part for file in files for part in ("-f", str(DOCKER / file))]
        run(*compose_command(), *chosen, "config", "-q", env=environment)
    say(f"compose config is valid for all {len(combinations)} combinations of files")


def trials_done(stack: Stack, study_id: str) -> int:
    return sum(t.state == "completed" for t in stack.client.trials(study_id))


def faults(stack: Stack, study_id: str) -> None:
    """What goes wrong on a cluster, one after the other, while the study runs."""

    def progress(what: str, since: int) -> None:
        until(f"a trial to end after {what}", lambda: trials_done(stack, study_id) > since, 300)

    until("a first trial to end", lambda: trials_done(stack, study_id) >= 1, 400)
    done = trials_done(stack, study_id)
    stack.kill(stack.containers("api")[0])
    say("killed an API replica")
    assert stack.client.study(study_id).state == "running", "the other replica answers at once"
    progress("an API replica was killed", done)

    done = trials_done(stack, study_id)
    stack.kill(stack.containers("ray-worker")[0])
    say("killed a Ray worker's container")
    progress("a Ray worker was killed", done)

    told_to_end(stack, study_id)

    done = trials_done(stack, study_id)
    started = time.monotonic()
    stack.compose("restart", "postgres")
    until("the service to be back", stack.is_ready, 120)
    say(f"restarted PostgreSQL; ready again after {time.monotonic() - started:.0f} s")
    progress("PostgreSQL was restarted", done)

    done = trials_done(stack, study_id)
    started = time.monotonic()
    stack.environment["CDKA_API_IMAGE"] = "cdka-test-api-next"
    stack.compose("up", "-d", "--no-build", "--no-deps", "migrate")
    until("the migration", lambda: "9999" in stack.compose("logs", "migrate"), 90)
    stack.compose("up", "-d", "--no-build", "--no-deps", "--scale", "api=2", "api")
    until("the service to be back", stack.is_ready, 120)
    say(f"upgraded by one migration; ready again after {time.monotonic() - started:.0f} s")
    progress("the upgrade", done)

    done = trials_done(stack, study_id)
    started = time.monotonic()
    stack.compose("restart", "ray-head")
    say(f"restarted the head in {time.monotonic() - started:.0f} s")
    progress("the head was restarted", done)
    say(f"a trial has ended {time.monotonic() - started:.0f} s after the head was told to restart")


def told_to_end(stack: Stack, study_id: str) -> None:
    """A machine that is stopped has its runner leave a checkpoint and give its trial back, within the grace period."""

    def busy() -> str | None:
        running = {t.id: t for t in stack.client.trials(study_id, state=["running"])}
        for container in stack.containers("ray-worker"):
            name, begun = run("docker", "inspect", "-f", "{{.Config.Hostname}} {{.State.StartedAt}}", container).split()
            # A runner that was killed with a former run of its container looks busy until its lease expires.
            since, now = datetime.fromisoformat(begun[:19] + "+00:00"), datetime.now(UTC)
            on = [w for w in stack.client.workers() if w.host == name and w.busy and w.last_seen_at > since]
            for trial in running.values():
                # One that is under way, so that there is something to keep. Confirmations report nothing before they
                # end, so the time since the start decides.
                started = trial.started_at
                if on and started is not None and (now - started).total_seconds() > 5:
                    return container
        return None

    container = until("a worker in mid-trial", busy, 300)
    started = time.monotonic()
    run("docker", "stop", "--time", "90", container)
    seconds = time.monotonic() - started
    code = run("docker", "inspect", "-f", "{{.State.ExitCode}}", container).strip()
    assert code == "0", f"the worker's container ended with {code}: it was killed"
    words = "told to end (SIGTERM)"
    # The runner may have taken another trial since: quick ones end before the node has told Ray that it leaves.
    attempts = [(t, n) for t in stack.client.trials(study_id) for n in range(1, t.attempts + 1)]
    told = [(t, n) for t, n in attempts if words in stack.client.log(t.id, attempt=n).text]
    assert told, "no runner was told to end in the middle of a trial"
    trial, attempt = told[-1]
    run("docker", "start", container)
    until("the trial to be taken up", lambda: stack.client.trial(trial.id).attempts > attempt, 120)
    say(f"stopped a Ray worker in {seconds:.0f} s: its runner gave trial {trial.number} back, and it goes on")


def tls(stack: Stack) -> None:
    """With a certificate the proxy speaks HTTPS, and only what trusts it gets through."""
    secrets = stack.folder / "secrets"
    for name in ("tls.crt", "tls.key"):
        (secrets / name).unlink()
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["-keyout", str(secrets / "tls.key"), "-out", str(secrets / "tls.crt")]
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject, *made)
    run("chmod", "a+r", str(secrets / "tls.key"))
    port = free_port(18443)
    stack.environment["CDKA_TLS_PORT"] = str(port)
    stack.files.append("compose.tls.yaml")
    stack.compose("up", "-d", "--no-build", "--no-deps", "proxy")
    trusting = ssl.create_default_context(cafile=str(secrets / "tls.crt"))

    def answers() -> bool:
        try:
            return httpx.get(f"https://localhost:{port}/readyz", verify=trusting).json() == {"status": "ready"}
        except httpx.HTTPError:
            return False

    until("HTTPS", answers, 60)
    try:
        httpx.get(f"https://localhost:{port}/readyz")
    except httpx.ConnectError:
        say("HTTPS answers with the certificate that it was given")
        return
    raise SystemExit("a certificate that nobody vouches for was trusted")


def checked(stack: Stack, study_id: str) -> dict[str, Any]:
    """The study has ended with exactly its trials, and its comparison is there."""
    study = stack.client.study(study_id)
    assert study.state == "completed", f"the study is {study.state}: {study.reason}"
    trials = list(stack.client.trials(study_id))
    search = [t for t in trials if t.phase == "search"]
    assert [t.number for t in search] == list(range(SIZES.trials)), [t.number for t in search]
    numbers = [t.number for t in trials]
    assert numbers == list(range(len(numbers))), numbers
    assert all(t.state in ("completed", "pruned") for t in trials), [(t.number, t.state, t.failure) for t in trials]
    comparison = stack.client.comparison(study_id).model_dump(mode="json")
    assert comparison["best_trial"] is not None
    assert all(c["finished"] == SIZES.seeds for c in comparison["candidates"]), comparison["candidates"]
    return comparison


def down_and_up(stack: Stack, study_id: str, before: dict[str, Any]) -> None:
    started = time.monotonic()
    stack.compose("down")
    say(f"down in {time.monotonic() - started:.0f} s")
    started = time.monotonic()
    stack.up()
    until("the service to be back", stack.is_ready, 240)
    say(f"up again in {time.monotonic() - started:.0f} s")
    assert checked(stack, study_id) == before, "nothing is lost"


def backup_and_restore(stack: Stack, study_id: str, before: dict[str, Any]) -> None:
    started = time.monotonic()
    api = stack.containers("api")[0]
    run("docker", "exec", api, "cdka", "db", "backup", "/tmp/backup.cdka")
    kept = stack.folder / "backup"
    kept.mkdir()
    # A file on a tmpfs is not seen by `docker cp`.
    with open(kept / "backup.cdka", "wb") as stream:
        subprocess.run(["docker", "exec", api, "cat", "/tmp/backup.cdka"], stdout=stream, check=True)
    with open(kept / "artifacts.tar", "wb") as stream:
        subprocess.run(["docker", "exec", api, "tar", "-C", "/artifacts", "-c", "."], stdout=stream, check=True)
    size = sum(f.stat().st_size for f in kept.iterdir())
    say(f"backup of database and artifacts: {size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s")

    stack.compose("down", "--volumes")
    started = time.monotonic()
    run("chmod", "-R", "a+rX", str(stack.folder))
    stack.compose("up", "-d", "--no-build", "postgres")
    mounted = ["-v", f"{kept}:/backup:ro"]
    until("PostgreSQL", lambda: "healthy" in run("docker", "inspect", *stack.containers("postgres")), 60)
    stack.compose("run", "--rm", "--no-deps", *mounted, "migrate", "cdka", "db", "restore", "/backup/backup.cdka")
    unpack = "tar -C /artifacts -x -f /backup/artifacts.tar"
    stack.compose("run", "--rm", "--no-deps", *mounted, "api", "sh", "-c", unpack)
    stack.up()
    until("the service to be back", stack.is_ready, 240)
    say(f"restored into an empty stack and ready in {time.monotonic() - started:.0f} s")
    assert checked(stack, study_id) == before, "the backup holds all of it"
    best = next(t for t in stack.client.trials(study_id) if t.artifact)
    file = stack.client.fetch_adapter(best.id, stack.folder / "adapter.zip")
    assert file.stat().st_size > 1000


def hardened(stack: Stack) -> None:
    """As the engine and the kernel see them, our containers have no rights that they do not need."""
    count = 0
    for container in (c for service in ("api", "proxy", *RAY_SERVICES) for c in stack.containers(service)):
        found = json.loads(run("docker", "inspect", container))[0]
        name, host = found["Name"], found["HostConfig"]
        assert host["ReadonlyRootfs"], f"{name} can write to its root"
        assert host["CapDrop"] == ["ALL"], f"{name} keeps capabilities: drops {host['CapDrop']}"
        assert not host["CapAdd"], f"{name} gets capabilities: {host['CapAdd']}"
        assert not host["Privileged"], f"{name} is privileged"
        assert "no-new-privileges:true" in host["SecurityOpt"], f"{name} may gain privileges"
        status = dict(
            line.split(":", 1)
            for line in run("docker", "exec", container, "cat", "/proc/1/status").splitlines()
            if ":" in line
        )
        assert "0" not in status["Uid"].split(), f"{name} runs as root: {status['Uid']}"
        assert int(status["CapEff"], 16) == 0, f"{name} has capabilities: {status['CapEff']}"
        assert status["NoNewPrivs"].strip() == "1", f"{name} may gain privileges"
        touch = subprocess.run(["docker", "exec", container, "touch", "/usr/made"], capture_output=True, text=True)
        assert touch.returncode != 0, f"{name} can write to /usr"
        count += 1
    say(f"{count} containers run without root, capabilities and a writable root")


JOIN_RAY = """
import os, sys, urllib.error, urllib.request
if sys.argv[1] != "ours":
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    os.environ["RAY_AUTH_TOKEN"] = sys.argv[1]
    try:
        status = urllib.request.urlopen("http://ray-head:8265/api/cluster_status", timeout=10).status
    except urllib.error.HTTPError as error:
        status = error.code
    except OSError:
        status = "not reachable"
    assert status in (401, 403, "not reachable"), f"the dashboard of Ray answers {status}"
import ray
try:
    ray.init("ray://ray-head:10001", log_to_driver=False)
except Exception as error:
    print("turned away:", type(error).__name__)
else:
    print("joined with", len(ray.nodes()), "nodes")
"""


def ray_needs_its_token(stack: Stack) -> None:
    """No port of Ray is published. Inside of the network, only a driver with the token joins the cluster."""
    for container in (c for service in RAY_SERVICES for c in stack.containers(service)):
        published = json.loads(run("docker", "inspect", "-f", "{{json .NetworkSettings.Ports}}", container)) or {}
        assert not any(published.values()), f"ports of Ray are published: {published}"
    (pool,) = stack.containers("pool")

    def answer(token: str) -> str:
        said = run("docker", "exec", pool, "timeout", "120", "python", "-c", JOIN_RAY, token)
        # Libraries warn in between.
        return next((line for line in said.splitlines() if line.startswith(("joined with", "turned away"))), said)

    # Ray's client gives up after 30 s, which a busy machine may need to start its server.
    ours = until("Ray to take our token", lambda: a if (a := answer("ours")).startswith("joined with") else None, 240)
    wrong = answer("0" * 64)
    assert wrong.startswith("turned away"), wrong
    say(f"Ray: with the token a driver {ours}; with a wrong one it is {wrong}")


def main() -> None:
    """Run all of it; the stack is taken down whatever comes of it."""
    engine()
    base_image()
    build()
    with tempfile.TemporaryDirectory(prefix="cdka-compose-") as folder:
        stack = Stack(Path(folder))
        configurations(stack)
        try:
            started = time.monotonic()
            stack.up()
            until("the service to be ready", stack.is_ready, 240)
            say(f"up in {time.monotonic() - started:.0f} s: {len(stack.containers('api'))} API replicas")
            hardened(stack)
            ray_needs_its_token(stack)
            body = demo_study(SIZES) | {"name": "compose", "resources": {"cpus": 1}}
            # A trial that successive halving holds would end late.
            body["search"] |= {"pruner": "none"}
            study = stack.client.create_study(body)
            say(f"study {study.id} is created by REST from outside")
            faults(stack, study.id)
            until("the study to end", lambda: stack.client.study(study.id).state != "running", 900)
            before = checked(stack, study.id)
            attempts = sum(t.resources.get("seconds", 0) for t in stack.client.trials(study.id))
            say(f"the study has ended with exactly its trials ({attempts:.0f} s of training) and its comparison")
            down_and_up(stack, study.id, before)
            backup_and_restore(stack, study.id, before)
            tls(stack)
        except BaseException:
            stack.logs()
            raise
        finally:
            stack.compose("down", "--volumes", "--timeout", "20")
    say("all is as it should be")


if __name__ == "__main__":
    main()
