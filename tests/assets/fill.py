"""Make the assets of the upgrade tests: a backup with studies and trials in every state.

Run this at a release, before the next schema revision is written:

    python -m tests.assets.fill tests/assets/revision-0004.cdka
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from service.app import create_app, make_context
from service.db.backup import back_up
from service.settings import Settings
from service.tenancy.tokens import ensure_team
from tests.conftest import Api, FakeClock, data_root


def _lease(api: Api, runner: str = "runner-1") -> dict[str, Any]:
    found = api.lease(runner, host="gpu-03")
    assert found is not None
    return found


def fill(api: Api, clock: FakeClock) -> None:
    """Create six studies. The last two stay open."""
    values = iter([0.5, 0.51, 0.52, 0.53])
    api.create(name="done", compare={"seeds": 2, "learning_rate": "shared"})
    api.run_all(lambda trial: next(values, 0.5))
    api.create(name="tuned", compare={"seeds": 2, "learning_rate": "tuned"}, search={"trials": 2})
    api.run_all(lambda trial: 0.4 + trial["params"]["learning_rate"])
    cancelled = api.create(name="cancelled")
    api.finish(_lease(api), value=0.4)
    api.call("POST", f"/studies/{cancelled['id']}/cancel")
    api.create(name="failed")
    api.finish(_lease(api), "failed", None, failure={"kind": "rejected", "message": "no such data"})
    running = api.create(name="running", search={"trials": 5, "pruner": "asha", "concurrency": 1})
    first = _lease(api)
    api.report(first, 0.9)
    api.finish(first, value=0.9, resources={"seconds": 1.5, "gpu_seconds": 0.0})
    second = _lease(api)
    api.report(second, 0.1)
    api.finish(second, "pruned", 0.1)
    api.finish(_lease(api), "infeasible", None, failure={"kind": "diverged", "message": "the loss became nan"})
    api.report(_lease(api, "old-runner"), 0.6)
    enqueued = {"r1": 2, "r2": 4, "r": 4, "alpha": 8, "learning_rate": 0.001}
    answer = api.call("POST", f"/studies/{running['id']}/trials", json={"params": enqueued})
    assert answer.status_code in (200, 201), answer.text
    api.create(name="waiting")


def main(target: Path) -> None:
    """Write the backup."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        class Factory:
            def mktemp(self, name: str) -> Path:
                (folder / name).mkdir()
                return folder / name

        make: Any = getattr(data_root, "__wrapped__", data_root)
        models = make(Factory())
        clock = FakeClock()
        settings = Settings(
            home=folder, database_url=f"sqlite:///{folder}/cdka.db", data_dirs=[models], lease_seconds=60, rate_limit=0
        )
        ctx = make_context(settings, clock, clock.elapsed)
        ctx.db.upgrade()
        ensure_team(ctx, "default")
        clock.advance(61)
        with TestClient(create_app(ctx), base_url="http://localhost") as http:
            fill(Api(ctx, http), clock)
        back_up(ctx.db, target)
        ctx.db.engine.dispose()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
