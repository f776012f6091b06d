"""Component Designed Kronecker Adapters (arXiv 2602.01267) for PEFT.

Importing this package registers the method ``cdka`` with PEFT. Import it before you load a CDKA adapter.
"""

from .checkpoints import load_pretrained, model_source, read_header, tensor_names, weight_files, weights_digest
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
from .errors import AdapterError, BudgetError, CdkaError, CheckpointError, IndivisibleError, TargetError
from .exchange import from_reference, read_adapter, to_lokr, to_lora
from .gradients import Spectra, collect_spectra, initialize_from_gradients
from .heads import head_modules, is_in_heads
from .hotswap import hotswap_adapter
from .kronecker import kron_delta, kron_linear
from .layer import CdkaLayer, layer_dimensions
from .memory import MemoryEstimate, estimate_memory
from .merging import load_adapted, merge_adapter
from .methods import METHODS, MethodSize, count_method_parameters, size_in_budget, unsupported_layers
from .model import CdkaModel
from .modules import CdkaConv2d, CdkaLinear
from .predictors import FROM_BUDGET, PREDICTORS, Prediction, predict
from .rearrangement import nearest_factors, rearrange, truncate_factors
from .registration import register
from .shapes import ALL_LINEAR, linear_layers, listed, meta_model, module_shapes
from .steps import TrainingStep
from .task_file import TaskFile, read_task_file
from .usage import expert_weights, unused_layers

register()

__all__ = [
    "ALL_LINEAR",
    "linear_layers",
    "FROM_BUDGET",
    "METHODS",
    "PREDICTORS",
    "AdapterError",
    "BudgetError",
    "CdkaConfig",
    "CdkaConv2d",
    "CdkaError",
    "CdkaLayer",
    "CdkaLinear",
    "CdkaModel",
    "CheckpointError",
    "Configuration",
    "IndivisibleError",
    "MemoryEstimate",
    "MethodSize",
    "ModuleShape",
    "Prediction",
    "Spectra",
    "TargetError",
    "TaskFile",
    "TrainingStep",
    "collect_spectra",
    "count_lora_parameters",
    "count_method_parameters",
    "count_parameters",
    "estimate_memory",
    "expert_weights",
    "feasible",
    "from_reference",
    "head_modules",
    "hotswap_adapter",
    "initialize_from_gradients",
    "is_in_heads",
    "kron_delta",
    "kron_linear",
    "largest_r",
    "layer_dimensions",
    "listed",
    "load_adapted",
    "merge_adapter",
    "meta_model",
    "load_pretrained",
    "model_source",
    "module_shapes",
    "nearest_factors",
    "predict",
    "rank_bound",
    "read_adapter",
    "read_task_file",
    "rearrange",
    "register",
    "require_divisible",
    "size_in_budget",
    "tensor_names",
    "to_lokr",
    "to_lora",
    "truncate_factors",
    "unsupported_layers",
    "unused_layers",
    "read_header",
    "weight_files",
    "weights_digest",
]
