"""Clone a trial: its configuration with changes, trained anew or from the trial's adapter on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..domain.records import NewTrial, Study, Trial
from ..domain.states import TrialPhase
from ..domain.structure import SIZES, by_group, of_groups, told
from ..domain.study_spec import SearchedParameters
from ..errors import Fault
from ..search.coordinates import CDKA, METHOD, TARGETS, has, to_point
from .start import configuration_faults, group_faults, optional_faults
from .structures import count

# Under this name sizes of groups are given.
GROUPS = "groups"
_SIZES = (*SIZES, "factor")


def clone_faults(study: Study, source: Trial, given: Mapping[str, Any], *, warm: bool) -> list[Fault]:
    """Why a clone of ``source`` with the values ``given`` cannot run."""
    if source.phase is TrialPhase.MEASUREMENT:
        return [Fault("#/from", "this trial measures gradients and trains no adapter; name another")]
    if source.method not in (methods := study.spec.search_space.methods()):
        message = f"the study searches {', '.join(methods)}, not {source.method}; clone another trial"
        return [Fault("#/from", message)]
    in_groups = bool(by_group(source.params))
    faults = [
        Fault(f"#/params/{name}", f"{source.method} has no parameter {name}; leave it out")
        for name in given
        if (name in _SIZES and name not in source.params and not in_groups)
        or (name == GROUPS and source.method != CDKA)
        or not has(source.method, name)
    ]
    if source.method != CDKA:
        faults += [
            Fault(f"#/params/{name}", f"the budget determines the sizes of {source.method}; leave {name} out")
            for name in given
            if name in _SIZES and name in source.params and given[name] != source.params[name]
        ]
    elif in_groups and any(name in given for name in SIZES):
        named = ", ".join(study.plan.groups)
        faults.append(Fault("#/params", f"write the sizes of each group in groups ({named}), not r1, r2 and r"))
    if not faults:
        further = {name: value for name, value in given.items() if name in SearchedParameters.model_fields}
        faults += optional_faults(study.spec, SearchedParameters.model_validate(further), "#/params")
        faults += group_faults(study.plan, given.get(GROUPS), "#/params")
    if not faults and source.method == CDKA:
        faults += configuration_faults(study.plan, _changed(study, source, given), "#/params")
    return faults + (_warm_faults(study, source, given) if warm else [])


def _warm_faults(study: Study, source: Trial, given: Mapping[str, Any]) -> list[Fault]:
    """Why a training cannot start from a trial's adapter."""
    if source.artifact is None:
        message = f"trial {source.number} is {source.state} and has left no adapter; leave warm out, or name another"
        return [Fault("#/warm", message)]
    faults = []
    changed = _changed(study, source, given)
    if by_group(changed) != by_group(source.params):
        message = f"the adapter of trial {source.number} has {told(source.params)}; leave groups out to start from it"
        faults.append(Fault("#/params/groups", message))
    if changed.get(TARGETS) != source.params.get(TARGETS):
        message = (
            f"the adapter of trial {source.number} is on {source.params[TARGETS]}; leave this out to start from it"
        )
        faults.append(Fault("#/params/target_modules", message))
    for name in _SIZES:
        if name in given and given[name] != source.params.get(name):
            message = (
                f"the adapter of trial {source.number} has {name}={source.params.get(name)}; leave {name} out to start "
                "from it, or leave warm out to train anew"
            )
            faults.append(Fault(f"#/params/{name}", message))
    return faults


def _changed(study: Study, source: Trial, given: Mapping[str, Any]) -> dict[str, Any]:
    """The source's parameters with the given values; on other target modules, with the sizes of its method there."""
    changed = {**source.params, **{name: value for name, value in given.items() if name != GROUPS}}
    if changed.get(TARGETS) != source.params.get(TARGETS):
        there = study.plan.at(changed).methods.get(source.method)
        changed |= {} if there is None else there.sizes
    groups = given.get(GROUPS) or {}
    return changed | of_groups({g: (s["r1"], s["r2"], s["r"]) for g, s in groups.items()})


def clone_trial(study: Study, source: Trial, given: Mapping[str, Any], number: int, *, warm: bool) -> NewTrial:
    """The clone, as a search trial."""
    params = _changed(study, source, given)
    if study.spec.search_space.method is not None:
        params[METHOD] = source.method
    return NewTrial(
        number=number,
        phase=TrialPhase.SEARCH,
        method=source.method,
        params=params,
        # What a training is worth that began where another ended says little about its configuration.
        point=None if warm or source.method != CDKA else to_point(params, study.spec, study.plan),
        parameters=count(study.plan, source.method, params),
        seed=study.spec.search.seed,
        cloned_from=source.id,
        start_from=source.artifact if warm else None,
    )
