"""Run the pool: ``python -m workers``.

Ray reads its authentication mode when it is imported, so the environment is prepared before the import.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import signal
import threading
from pathlib import Path

from pydantic import ValidationError

from service.client import Client
from service.paths import write_secret
from service.settings import Settings

_log = logging.getLogger("workers")
TICK_SECONDS = 1.0
OBJECT_STORE_BYTES = 100 * 1024 * 1024
# The exit code for a lost cluster. A supervisor starts the pool again, which then joins the restarted head.
CLUSTER_LOST = 75


def own_cluster_environment(settings: Settings) -> None:
    """Set a token for a local Ray cluster.

    Otherwise Ray writes one into the user's home, and every later cluster of the user requires it.
    """
    token = settings.home / "ray-token"
    if not token.exists():
        write_secret(token, secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)


def main() -> None:
    """Run until SIGTERM or SIGINT. Runners end with a local cluster; on a joined cluster they stay."""
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

    from .cluster.pool import Pool

    connect(settings.ray_address)
    # After ray.init, which installs handlers of its own.
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    pool = Pool(Client(settings.server_url, token), settings)
    # A health check looks at its modification time.
    alive = Path(os.environ["CDKA_POOL_ALIVE"]) if "CDKA_POOL_ALIVE" in os.environ else None
    while not stopping.is_set():
        try:
            pool.tick()
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            _log.warning("the Ray cluster does not answer (%s); joining it again", str(error).splitlines()[0])
            ray.shutdown()
            # A driver cannot join another cluster reliably: a new process does.
            raise SystemExit(CLUSTER_LOST) from None
        if alive is not None:
            alive.touch()
        stopping.wait(TICK_SECONDS)
    if own:
        pool.stop()
    ray.shutdown()


def connect(address: str | None) -> None:
    """Start a local cluster, or join the one at ``address``.

    ``HOST:PORT`` is for a machine that is a node of the cluster, ``ray://HOST:PORT`` for any other, such as a container
    or a pod beside KubeRay's head service.

    Raises:
        SystemExit: the cluster cannot be joined; the message says what would be right.
    """
    import ray

    from .cluster.actor import NAMESPACE

    if address is None or not address:
        ray.init(
            address="local",
            namespace=NAMESPACE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            object_store_memory=OBJECT_STORE_BYTES,
        )
        return
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())
        if "mismatch" in words.lower() or "version" in words.lower():
            raise SystemExit(
                f"The Ray cluster at {address} runs another version of Ray or Python than this pool ({ours()}): use "
                f"the same on all of its nodes. Ray says: {words}"
            ) from None
        raise SystemExit(
            f"The Ray cluster at {address} cannot be joined: {words}\n"
            "RAY_ADDRESS is HOST:PORT on a node of the cluster (ray start --address=HOST:PORT), or "
            "ray://HOST:10001 from elsewhere; RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH must be the cluster's."
        ) from None
    _log.info("joined the Ray cluster at %s (%s) with %s", address, ours(), ray.cluster_resources())


def ours() -> str:
    """The versions of Python and Ray, which all nodes of a cluster must share."""
    import ray

    return f"Ray {ray.__version__}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
