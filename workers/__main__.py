"""Runs the pool: ``python -m workers``.

Ray reads its authentication mode once, when it is imported. So the environment is made first and Ray comes after it.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from pathlib import Path

from pydantic import ValidationError

from service.client import Client
from service.settings import Settings

_log = logging.getLogger("workers")
TICK_SECONDS = 1.0
OBJECT_STORE_BYTES = 100 * 1024 * 1024


def own_cluster_environment(settings: Settings) -> None:
    """Give a cluster of our own a token of our own.

    Without one Ray would write a token into the user's home, and every later cluster there would ask for it.
    """
    token = settings.home / "ray-token"
    if not token.exists():
        _write_secret(token, secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)


def _write_secret(file: Path, secret: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secret)


def main() -> None:
    """Run until SIGTERM or SIGINT. On a cluster of our own, runners end with us; on a joined one they stay."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = Settings()
        token = settings.read_token()
    except (ValidationError, OSError) as error:
        raise SystemExit(f"The settings are not valid: {error}") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = not settings.ray_address
    if own:
        own_cluster_environment(settings)

    import ray

    from .actor import NAMESPACE
    from .pool import Pool

    if own:
        ray.init(
            address="local",
            namespace=NAMESPACE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    else:
        ray.init(address=settings.ray_address, namespace=NAMESPACE, log_to_driver=False)
    # After ray.init, which installs handlers of its own.
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    pool = Pool(Client(settings.server_url, token), settings)
    _log.info("on Ray %s with %s", ray.__version__, ray.cluster_resources())
    while not stopping.is_set():
        pool.tick()
        stopping.wait(TICK_SECONDS)
    if own:
        pool.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
