"""Trials per minute of a warm runner over a fresh process per trial, on the demo's model and a slice of its data.

    python -m benchmarks.runners [--full]

Both run the same trials, one at a time, one thread, against a real server; a fresh process pays for imports, model
and data every time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from service.client import Client
from service.demo import Sizes, demo_study, prepare_data
from service.processes import Server, free_port
from service.settings import Settings

COLD = "from benchmarks.runners import run_trials; run_trials(1)"


def run_trials(count: int) -> None:
    """Run ``count`` trials in this process."""
    import torch

    from workers.runner import Runner

    torch.set_num_threads(1)
    settings = Settings()
    runner = Runner(Client(settings.server_url, settings.read_token()), settings, f"bench-{os.getpid()}")
    for _ in range(count):
        lease = runner._next_lease()
        assert lease is not None
        runner.run_lease(lease)


def _seconds(command: str, times: int, environment: dict[str, str]) -> float:
    started = time.perf_counter()
    for _ in range(times):
        subprocess.run([sys.executable, "-c", command], env=environment, check=True)
    return time.perf_counter() - started


def measure(sizes: Sizes, trials: int, rounds: int) -> None:
    """Print medians over rounds."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare_data(home / "data", sizes)
        settings = Settings(
            home=home, database_url="", artifacts_url="", data_dirs=[home / "data"], port=free_port(18800)
        )
        server = Server(settings, with_pool=False)
        server.start()
        try:
            _rounds(server, sizes, trials, rounds)
        finally:
            server.stop()


def _rounds(server: Server, sizes: Sizes, trials: int, rounds: int) -> None:
    home = server.settings.home
    environment = {**server.api.environment, "CDKA_TOKEN_FILE": str(home / "worker-token"), "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = "1"
    study = demo_study(sizes)
    study["search"] |= {"trials": 2 * trials * rounds, "concurrency": 1, "pruner": "none", "sampler": "random"}
    study["compare"] = {"seeds": 0}
    client = Client(server.settings.server_url, (home / "admin-token").read_text().strip())
    made = client.create_study(study)
    warm, cold = [], []
    for _ in range(rounds):
        warm.append(_seconds(f"from benchmarks.runners import run_trials; run_trials({trials})", 1, environment))
        cold.append(_seconds(COLD, trials, environment))
    swaps = [t.resources["swap_seconds"] for t in client.trials(made.id)]
    warm_rate, cold_rate = (60 * trials / statistics.median(s) for s in (warm, cold))
    print(
        f"{sizes.train} articles, {sizes.epochs} epochs, {sizes.max_length} tokens; "
        f"{trials} trials a round, {rounds} rounds"
    )
    print(f"  fresh process per trial   {cold_rate:6.2f} trials/minute")
    print(f"  one warm process          {warm_rate:6.2f} trials/minute   {warm_rate / cold_rate:.2f}x (start included)")
    print(f"  swap of a warm runner     {min(swaps):.3f} s; of a cold one {max(swaps):.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="also at the demo's sizes")
    options = parser.parse_args()
    measure(Sizes(train=32, validation=16, test=16, epochs=1, max_length=32), trials=5, rounds=3)
    if options.full:
        measure(Sizes(), trials=4, rounds=3)


if __name__ == "__main__":
    main()
