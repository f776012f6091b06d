"""Component Designed Kronecker Adapters (arXiv 2602.01267) for PEFT.

Importing this package registers the method ``cdka`` with PEFT; do so before loading an adapter of it.
"""

from .config import CdkaConfig
from .counts import (
    Configuration,
    ModuleShape,
    count_lora_parameters,
    count_parameters,
    feasible,
    largest_r,
    rank_bound,
    require_divisible,
)
from .errors import AdapterError, BudgetError, CdkaError, IndivisibleError, TargetError
from .kronecker import kron_delta, kron_linear
from .layer import CdkaLayer, CdkaLinear
from .model import CdkaModel
from .predictors import PREDICTORS, Prediction, predict
from .registration import register
from .shapes import meta_model, module_shapes

register()

__all__ = [
    "PREDICTORS",
    "AdapterError",
    "BudgetError",
    "CdkaConfig",
    "CdkaError",
    "CdkaLayer",
    "CdkaLinear",
    "CdkaModel",
    "Configuration",
    "IndivisibleError",
    "ModuleShape",
    "Prediction",
    "TargetError",
    "count_lora_parameters",
    "count_parameters",
    "feasible",
    "kron_delta",
    "kron_linear",
    "largest_r",
    "meta_model",
    "module_shapes",
    "predict",
    "rank_bound",
    "register",
    "require_divisible",
]
