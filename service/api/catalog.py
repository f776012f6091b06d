"""What a study can name: samplers and pruners with their options."""

from __future__ import annotations

from fastapi import APIRouter

from ..schemas.studies import StrategyOut
from ..schemas.wire import Page
from ..studies import strategies
from .dependencies import Reader, problems

router = APIRouter(tags=["studies"])


@router.get("/samplers", responses=problems())
def samplers(principal: Reader) -> Page[StrategyOut]:
    """The samplers, with the JSON schema of ``search.sampler_options``."""
    return Page(items=[StrategyOut.model_validate(s) for s in strategies.samplers()])


@router.get("/pruners", responses=problems())
def pruners(principal: Reader) -> Page[StrategyOut]:
    """The pruners, with the JSON schema of ``search.pruner_options``."""
    return Page(items=[StrategyOut.model_validate(s) for s in strategies.pruners()])
