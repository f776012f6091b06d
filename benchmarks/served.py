"""A server in a process of its own, and studies with results that no training made, for benchmarks."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import insert
from transformers import BertConfig

from service.app import make_context
from service.cli.processes import free_port
from service.client import Client
from service.db.models import StudyCountRow, StudyRow, TrialRow
from service.domain.records import Role
from service.settings import Settings
from service.tenancy.tokens import create_token, ensure_team


def study_body(**search: Any) -> dict[str, Any]:
    """A study on a small model in the data folder."""
    return {
        "name": "bench",
        "model": {"path": "model"},
        "task": {
            "kind": "sequence_classification",
            "dataset": {"path": "json", "data_files": {"train": "train.jsonl"}},
        },
        "budget": {"lora_rank": 8},
        # Without trials of the predictors' choices, so that ``fill`` begins at number 0.
        "search": {
            "start": [],
            "pruner": "none",
            "recheck": "none",
            "trials": 100_000,
            "concurrency": 10_000,
            **search,
        },
        "compare": {"seeds": 0},
    }


def make_data(folder: Path) -> None:
    """Write a model's configuration (BERT-base's shapes) and one line of data, which is all that the server reads."""
    BertConfig().save_pretrained(folder / "model")
    (folder / "train.jsonl").write_text(json.dumps({"text": "a", "label": "b"}) + "\n")


@dataclass
class Service:
    """A server in a process of its own, as in production."""

    url: str
    token: str
    context: Any
    process: psutil.Process

    def client(self) -> Client:
        """A client with an admin's token."""
        return Client(self.url, self.token)


@contextmanager
def service(database_url: str, data: Path) -> Iterator[Service]:
    home = Path(tempfile.mkdtemp(prefix="cdka-bench-"))
    port = free_port(20_000 + secrets.randbelow(12_000))
    settings = Settings(home=home, database_url=database_url, data_dirs=[data], port=port, rate_limit=0)
    ctx = make_context(settings)
    ctx.db.upgrade()
    ensure_team(ctx, "default")
    token = create_token(ctx, "default", "bench", Role.ADMIN)[1]
    environment = {
        **os.environ,
        "CDKA_HOME": str(home),
        "CDKA_DATABASE_URL": database_url,
        "CDKA_DATA_DIRS": str(data),
        "CDKA_PORT": str(port),
        "CDKA_RATE_LIMIT": "0",
        "HF_HUB_OFFLINE": "1",
    }
    log = (home / "api.log").open("wb")
    child = subprocess.Popen([sys.executable, "-m", "service.app", "serve"], env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        with Client(url, attempts=1) as probe:
            deadline = time.monotonic() + 60
            while not probe.ready():
                assert time.monotonic() < deadline, (home / "api.log").read_text()[-2000:]
                time.sleep(0.1)
        yield Service(url, token, ctx, psutil.Process(child.pid))
    finally:
        child.terminate()
        child.wait(20)
        log.close()
        ctx.db.engine.dispose()
        shutil.rmtree(home, ignore_errors=True)


def fill(made: Service, study_id: str, count: int) -> None:
    """Give a study ``count`` finished trials, as the server would have written them: with points and evaluations."""
    now = datetime.now(UTC)
    order = random.Random(0)
    with made.context.db.read() as session:
        plan = session.get(StudyRow, study_id).plan
    structures = plan["structures"]
    rows: list[dict[str, Any]] = []
    for number in range(count):
        k = order.randrange(len(structures))
        rate = 10 ** order.uniform(-4, -2.4)
        alpha = order.choice([8.0, 16.0, 32.0])
        value = 1 - abs(rate - 1e-3) * 100 - 0.01 * k + order.gauss(0, 0.01)
        s = structures[k]
        rows.append(
            {
                "id": f"{number:020x}{study_id[-12:]}",
                "study_id": study_id,
                "number": number,
                "phase": "search",
                "method": "cdka",
                "params": {"r1": s["r1"], "r2": s["r2"], "r": s["r_high"], "alpha": alpha, "learning_rate": rate},
                "point": {"structure": k, "alpha": alpha, "learning_rate": rate},
                "seed": 0,
                "state": "completed",
                "parameters": s["unit_parameters"] * s["r_high"],
                "metrics": {"accuracy": value},
                "curve": [value - 0.1, value - 0.05, value],
                "attempts": 1,
                "errors": 0,
                "losses": 0,
                "artifact_bytes": 0,
                "resources": {"seconds": 1.0, "steps": 30, "device": "cpu"},
                "version": 1,
                "created_at": now,
                "started_at": now,
                "finished_at": now,
            }
        )
    with made.context.db.write() as session:
        for start in range(0, count, 2000):
            session.execute(insert(TrialRow), rows[start : start + 2000])
        if count:
            session.execute(
                insert(StudyCountRow),
                [{"study_id": study_id, "phase": "search", "state": "completed", "count": count}],
            )


def timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
