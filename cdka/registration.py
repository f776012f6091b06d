"""Register the method ``cdka`` with PEFT."""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from .config import CdkaConfig
from .model import CdkaModel
from .peft_type import cdka_peft_type

NAME = "cdka"


def register() -> None:
    """Register config and tuner with PEFT; a second call changes nothing."""
    if cdka_peft_type() not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME, config_cls=CdkaConfig, model_cls=CdkaModel)
