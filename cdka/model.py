"""Puts CDKA adapters on a model, as PEFT lays out a tuner."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import get_quantization_kwargs, resolve_quantization_backend
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from .config import CdkaConfig
from .errors import AdapterError, TargetError
from .layer import CdkaLayer, CdkaLinear


class CdkaModel(BaseTuner):
    """The tuner behind ``get_peft_model(model, CdkaConfig(...))``; see :class:`~cdka.CdkaConfig`."""

    prefix: str = "cdka_"
    tuner_layer_cls = CdkaLayer
    target_module_mapping: dict[str, Any] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _create_and_replace(  # type: ignore[override]  # as all tuners of PEFT: its own kind of config
        self,
        config: CdkaConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        sizes = {
            "r": _by_module(config.rank_pattern, current_key, config.r),
            "r1": _by_module(config.r1_pattern, current_key, config.r1),
            "r2": _by_module(config.r2_pattern, current_key, config.r2),
            "alpha": _by_module(config.alpha_pattern, current_key, config.alpha),
        }
        if isinstance(target, CdkaLayer):
            target.update_layer(adapter_name, config, layer_name=current_key, **sizes)
            return
        kwargs = get_quantization_kwargs(self)
        new_module = self._create_new_module(config, adapter_name, target, layer_name=current_key, **sizes, **kwargs)
        if adapter_name not in self.active_adapters:
            # An additional adapter is not trained until it is chosen.
            new_module.requires_grad_(False)
        self._replace_module(parent, target_name, new_module, target)

    @staticmethod
    def _create_new_module(config: CdkaConfig, adapter_name: str, target: nn.Module, **kwargs: Any) -> CdkaLinear:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        backend = resolve_quantization_backend(base)
        linear = isinstance(base, nn.Linear | Conv1D) or (backend is not None and backend.layer_type == "linear")
        if not linear:
            raise TargetError(
                f"target module {kwargs['layer_name']} is a {type(base).__name__}; CDKA goes on linear layers "
                "(torch.nn.Linear, or GPT-2's Conv1D)"
            )
        return CdkaLinear(target, adapter_name, config, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Any:
        # Without this hook PEFT would drop adapter_names in silence and serve every row with the active adapter.
        if kwargs.get("adapter_names") is not None:
            raise AdapterError("CDKA does not mix adapters within a batch; call the model once per adapter")
        yield


def _by_module(patterns: dict[str, Any], module: str, default: Any) -> Any:
    return patterns.get(get_pattern_key(list(patterns), module), default)
