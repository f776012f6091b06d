"""Exports and adapters are downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna

from service.context.context import Context
from tests.conftest import Api


def exported(api: Api, study: dict[str, Any], form: str) -> Any:
    answer = api.call("GET", f"/studies/{study['id']}/export", params={"format": form})
    assert answer.status_code == 200
    return answer


def test_exports_hold_every_trial(api: Api, tmp_path: Path) -> None:
    search = {"trials": 5, "pruner": "asha", "pruner_options": {"promotion": False}, "concurrency": 1}
    study = api.create(name="=cmd()", search=search)
    values = iter([0.9, 0.1, 0.8, 0.7])
    for value in values:
        lease = api.lease()
        assert lease is not None
        if api.report(lease, value).json()["directive"] == "stop":
            api.finish(lease, "pruned", value)
        else:
            api.finish(lease, value=value, resources={"seconds": 1.5, "runner": "@evil"})
    lease = api.lease()
    assert lease is not None
    api.finish(lease, "infeasible", None, failure={"kind": "diverged", "message": "=1+1"})
    lines = exported(api, study, "csv").text.splitlines()
    assert len(lines) == 6
    header = lines[0].split(",")
    rows = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
    assert rows[0]["metrics.accuracy"] == "0.9"
    assert rows[0]["resources.runner"] == "'@evil"  # escaped, because a spreadsheet would run it as a formula
    assert rows[4]["failure_message"] == "'=1+1"
    everything = exported(api, study, "json").json()
    assert [t["number"] for t in everything["trials"]] == [0, 1, 2, 3, 4]
    assert everything["comparison"]["best_trial"]["value"] == 0.9
    file = tmp_path / "study.db"
    file.write_bytes(exported(api, study, "optuna").content)
    loaded = optuna.load_study(study_name=study["id"], storage=f"sqlite:///{file}")
    states = [t.state.name for t in loaded.trials]
    assert states[0] == "COMPLETE"
    assert states[1] == "PRUNED"
    assert states[4] == "FAIL"
    assert loaded.best_value == 0.9
    assert loaded.best_params["r1"] == everything["trials"][0]["params"]["r1"]
    assert loaded.user_attrs["name"] == "=cmd()"
    loaded._storage.remove_session()
    loaded._storage._backend.engine.dispose()  # type: ignore[attr-defined]


def test_an_optuna_export_is_what_optuna_itself_writes(api: Api, tmp_path: Path) -> None:
    search = {"trials": 6, "pruner": "asha", "pruner_options": {"promotion": False}, "concurrency": 1}
    study = api.create(search=search, search_space={"method": {"choices": ["cdka", "lora"]}})
    for value in (0.9, 0.1, 0.8):
        lease = api.lease()
        assert lease is not None
        stop = api.report(lease, value).json()["directive"] == "stop"
        api.finish(lease, "pruned" if stop else "completed", value)
    lease = api.lease()
    assert lease is not None
    api.finish(lease, "infeasible", None, failure={"kind": "diverged", "message": "x"})
    api.lease()
    file = tmp_path / "study.db"
    file.write_bytes(exported(api, study, "optuna").content)
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    loaded = optuna.load_study(study_name=study["id"], storage=storage)
    again = optuna.create_study(storage="sqlite://", direction="maximize")
    again.add_trials(loaded.trials)
    assert len(loaded.trials) >= 5
    for mine, theirs in zip(loaded.trials, again.trials, strict=True):
        for name in ("number", "state", "params", "distributions", "user_attrs", "intermediate_values"):
            assert getattr(mine, name) == getattr(theirs, name), name
        assert mine.values == theirs.values
    assert loaded.trials[0].datetime_start is not None
    # It can be searched on.
    loaded.sampler = optuna.samplers.RandomSampler(seed=0)
    asked = loaded.ask()
    assert asked.number == len(again.trials)
    for used in (storage, again._storage._backend):  # type: ignore[attr-defined]
        used.remove_session()
        used.engine.dispose()


def test_an_adapter_is_served_as_a_zip_but_not_from_outside_the_store(api: Api, ctx: Context, tmp_path: Path) -> None:
    import io
    import zipfile

    study = api.create(search={"trials": 2})
    folder = Path(ctx.settings.artifacts_url) / "studies" / study["id"] / "trials" / "00000" / "attempt-1" / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    lease = api.lease()
    assert lease is not None
    api.finish(lease, artifact=str(folder))
    answer = api.call("GET", f"/trials/{lease['trial']['id']}/adapter")
    assert zipfile.ZipFile(io.BytesIO(answer.content)).namelist() == ["adapter_config.json"]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    lease = api.lease()
    assert lease is not None
    api.finish(lease, artifact=f"{folder}/../../../../../../../{outside}")
    assert api.call("GET", f"/trials/{lease['trial']['id']}/adapter").status_code == 404
