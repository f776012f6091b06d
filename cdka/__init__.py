"""Component Designed Kronecker Adapters (arXiv 2602.01267) for PEFT.

Importing this package registers the method ``cdka`` with PEFT. Import it before you load a CDKA adapter.
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
from .exchange import from_reference, read_adapter, to_lokr, to_lora
from .gradients import Spectra, collect_spectra, initialize_from_gradients
from .hotswap import hotswap_adapter
from .kronecker import kron_delta, kron_linear
from .layer import CdkaLayer
from .memory import MemoryEstimate, TrainingStep, estimate_memory
from .model import CdkaModel
from .modules import CdkaConv2d, CdkaLinear
from .predictors import FROM_BUDGET, PREDICTORS, Prediction, predict
from .rearrangement import nearest_factors, rearrange, truncate_factors
from .registration import register
from .shapes import meta_model, module_shapes

register()

__all__ = [
    "FROM_BUDGET",
    "PREDICTORS",
    "AdapterError",
    "BudgetError",
    "CdkaConfig",
    "CdkaConv2d",
    "CdkaError",
    "CdkaLayer",
    "CdkaLinear",
    "CdkaModel",
    "Configuration",
    "IndivisibleError",
    "MemoryEstimate",
    "ModuleShape",
    "Prediction",
    "Spectra",
    "TargetError",
    "TrainingStep",
    "collect_spectra",
    "count_lora_parameters",
    "count_parameters",
    "estimate_memory",
    "feasible",
    "from_reference",
    "hotswap_adapter",
    "initialize_from_gradients",
    "kron_delta",
    "kron_linear",
    "largest_r",
    "meta_model",
    "module_shapes",
    "nearest_factors",
    "predict",
    "rank_bound",
    "read_adapter",
    "rearrange",
    "register",
    "require_divisible",
    "to_lokr",
    "to_lora",
    "truncate_factors",
]
