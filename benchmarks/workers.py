"""Time a whole sweep with fresh processes, with a warm runner, and with a warm runner that prunes.

    python -m benchmarks.workers [--full]

All run the same trials of the demo's model and articles, one at a time, one thread, against a real server. Random
search with one seed proposes the same configurations to all three, so the best scores can be compared. A fresh process
pays for imports, model and data every time; a pruned trial ends at the evaluation that prunes it.
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
from typing import Any

from service.cli.demo import Sizes, demo_study, prepare_data
from service.cli.processes import Server, free_port
from service.client import Client
from service.settings import Settings

ONE = "from benchmarks.workers import run_trials; run_trials(1)"
ALL = "from benchmarks.workers import run_trials; run_trials(10**6)"
SEEDS = (0, 1, 2)


def run_trials(most: int) -> None:
    """Run up to ``most`` trials in this process, until there is nothing to do."""
    import torch

    from workers.runner.runner import Runner

    torch.set_num_threads(1)
    settings = Settings()
    runner = Runner(Client(settings.server_url, settings.read_token()), settings, f"bench-{os.getpid()}")
    for _ in range(most):
        lease = runner._next_lease()
        if lease is None:
            return
        runner.run_lease(lease)


def _sweep(client: Client, study: dict[str, Any], environment: dict[str, str], *, warm: bool) -> tuple[float, float]:
    """Seconds of a whole sweep, and the best score that it found."""
    made = client.create_study(study)
    started = time.perf_counter()
    while client.study(made.id).state in ("queued", "running"):
        subprocess.run([sys.executable, "-c", ALL if warm else ONE], env=environment, check=True)
    seconds = time.perf_counter() - started
    metric = study["task"].get("metric", "accuracy")
    finished = [t.metrics[metric] for t in client.trials(made.id) if t.state == "completed"]
    swaps = sorted(t.resources["swap_seconds"] for t in client.trials(made.id))
    if warm:
        print(f"    swap of a warm runner: median {statistics.median(swaps[:-1]):.3f} s, most {swaps[-2]:.3f} s")
    return seconds, max(finished)


def measure(sizes: Sizes, trials: int) -> None:
    """Print every sweep, and the medians as ratios."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare_data(home / "data", sizes)
        settings = Settings(
            home=home, database_url="", artifacts_url="", data_dirs=[home / "data"], port=free_port(18800)
        )
        server = Server(settings, with_pool=False)
        server.start()
        try:
            _compare(server, sizes, trials)
        finally:
            server.stop()


def _compare(server: Server, sizes: Sizes, trials: int) -> None:
    home = server.settings.home
    environment = {**server.api.environment, "CDKA_TOKEN_FILE": str(home / "worker-token"), "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = "1"
    print(f"{sizes.train} articles, {sizes.epochs} epochs, {sizes.max_length} tokens; {trials} trials, seeds {SEEDS}")
    kinds = {"cold": (False, "none"), "warm": (True, "none"), "warm, pruning": (True, "asha")}
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    with Client(server.settings.server_url, (home / "admin-token").read_text().strip()) as client:
        for seed in SEEDS:
            for kind, (warm, pruner) in kinds.items():
                study = demo_study(sizes)
                study["search"] |= {"trials": trials, "concurrency": 1, "sampler": "random", "seed": seed}
                study["search"]["pruner"] = pruner
                study["compare"] = {"seeds": 0}
                seconds, best = _sweep(client, study, environment, warm=warm)
                taken[kind].append(seconds)
                print(f"  seed {seed}  {kind:14} {seconds:7.1f} s   best {best:.4f}", flush=True)
    medians = {kind: statistics.median(seconds) for kind, seconds in taken.items()}
    for kind, seconds in medians.items():
        print(f"  median  {kind:14} {seconds:7.1f} s   {medians['cold'] / seconds:.2f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="also at the demo's sizes")
    options = parser.parse_args()
    measure(Sizes(train=32, validation=16, test=16, epochs=3, max_length=32), trials=6)
    if options.full:
        measure(Sizes(), trials=12)


if __name__ == "__main__":
    main()
