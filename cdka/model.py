"""The PEFT tuner that adds CDKA adapters to a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, get_quantization_kwargs, resolve_quantization_backend
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .config import SCALES, CdkaConfig
from .divisors import largest_divisor
from .errors import AdapterError, TargetError
from .groups import LayerGroup, group_layers
from .layer import BASE, CdkaLayer, layer_dimensions
from .modules import CdkaConv2d, CdkaLinear
from .rearrangement import truncate_factors


class CdkaModel(BaseTuner):
    """The tuner behind ``get_peft_model(model, CdkaConfig(...))``; see :class:`~cdka.CdkaConfig`."""

    prefix: str = "cdka_"
    tuner_layer_cls = CdkaLayer
    target_module_mapping: dict[str, Any] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _create_and_replace(  # type: ignore[override]  # like every PEFT tuner, takes its own config class
        self,
        config: CdkaConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        layer_class = _layer_class(base, current_key)
        sizes = {
            "r": _by_module(config.rank_pattern, current_key, config.r),
            "r1": _by_module(config.r1_pattern, current_key, config.r1),
            "r2": _by_module(config.r2_pattern, current_key, config.r2),
            "alpha": _by_module(config.alpha_pattern, current_key, config.alpha),
        }
        if config.fit == "nearest":
            d_in, d_out = layer_dimensions(base)
            for symbol, dimension, pattern in (("r1", d_out, config.r1_pattern), ("r2", d_in, config.r2_pattern)):
                fitted = largest_divisor(dimension, sizes[symbol])
                if fitted != sizes[symbol]:
                    sizes[symbol] = pattern[current_key] = fitted
        if isinstance(target, CdkaLayer):
            target.update_layer(adapter_name, config, layer_name=current_key, **sizes)
            return
        kwargs = get_quantization_kwargs(self)
        shares = id(getattr(base, "weight", None)) in self._shared
        new_module = layer_class(
            target, adapter_name, config, layer_name=current_key, shares_weight=shares, **sizes, **kwargs
        )
        if adapter_name not in self.active_adapters:
            # An additional adapter is frozen until it is activated.
            new_module.requires_grad_(False)
        self._replace_module(parent, target_name, new_module, target)

    def inject_adapter(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Inject the adapter as PEFT does, then group the layers that share an input (:mod:`cdka.groups`)."""
        owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
        # Weights that several modules hold, such as tied embeddings.
        self._shared = {key for key, count in owners.items() if count > 1}
        super().inject_adapter(model, *args, **kwargs)
        self._groups: list[LayerGroup | None] = [*group_layers(model, CdkaLinear)]

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's hook for mixed batches: passes ``adapter_names`` to every adapted layer for one forward pass.

        Raises:
            AdapterError: the model is training, or no layer has an adapter of a given name.
        """
        names = kwargs.pop("adapter_names", None)
        if names is None:
            try:
                yield
            finally:
                # Also after an error: outputs left in a group would keep this pass's graph alive.
                for group in filter(None, self._groups):  # None in a copied model
                    group.clear()
            return
        if self.training:
            raise AdapterError("adapter_names is for inference; call model.eval() first")
        known = {name for layer in self.modules() if isinstance(layer, CdkaLayer) for name in layer.cdka_A}
        unknown = sorted(set(names) - known - {BASE})
        if unknown:
            raise AdapterError(f"no adapter named {', '.join(unknown)}; available: {', '.join(sorted(known))}")
        hook = partial(_choose_adapters, names=list(names), beams=kwargs.get("num_beams") or 1)
        handles = [
            module.register_forward_pre_hook(hook, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, CdkaLayer | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "cat",
        r: int | None = None,
    ) -> None:
        """Add an adapter whose dW is ``sum_k weights[k] * dW_k``.

        Args:
            adapters: existing adapters; in every layer that they share, they must have the same (r1, r2).
            weights: one factor per adapter.
            adapter_name: name of the new adapter.
            combination_type: ``"cat"`` concatenates the components: it is exact, and the new r is the sum of theirs.
                ``"svd"`` takes the r components nearest to that sum (Frobenius norm). LoRA's ``"linear"`` is not
                offered, because averaging the factors does not average dW.
            r: number of components for ``"svd"``; by default the first adapter's.

        Raises:
            AdapterError: an adapter or the combination type is unknown, the new name is taken or is none, the number
                of weights is wrong, a weight is not finite, r is not a positive integer, an adapter started from the
                base weight, or adapters of one layer differ in (r1, r2). Nothing is changed.
        """
        self._check_combination(adapters, weights, adapter_name, combination_type, r)
        first: Any = self.peft_config[adapters[0]]
        components = None if combination_type == "cat" else (r or first.r)
        combined = {
            name: _combined(name, layer, adapters, weights, components)
            for name, layer in self.model.named_modules()
            if isinstance(layer, CdkaLayer) and any(a in layer.cdka_A for a in adapters)
        }
        self.peft_config[adapter_name] = replace(
            first,
            alpha=1.0,
            scaling="constant",
            alpha_pattern={},
            init_weights=True,
            inference_mode=True,
            # The base model has them already.
            bias="none",
            target_modules=set(combined),
            exclude_modules=None,
            layers_to_transform=None,
            layers_pattern=None,
            rank_pattern={name: A.shape[0] for name, (A, _) in combined.items()},
            r1_pattern={name: A.shape[1] for name, (A, _) in combined.items()},
            r2_pattern={name: B.shape[2] for name, (_, B) in combined.items()},
        )
        try:
            self.inject_adapter(self.model, adapter_name)
            with torch.no_grad():
                for name, (A, B) in combined.items():
                    layer = self.model.get_submodule(name)
                    layer.cdka_A[adapter_name].copy_(A)
                    layer.cdka_B[adapter_name].copy_(B)
        except BaseException:
            for layer in self.model.modules():
                if isinstance(layer, CdkaLayer) and adapter_name in layer.cdka_A:
                    layer.delete_adapter(adapter_name)
            self.peft_config.pop(adapter_name, None)
            raise

    def _check_combination(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str,
        r: int | None,
    ) -> None:
        if not isinstance(adapter_name, str) or not adapter_name or "." in adapter_name:
            raise AdapterError(f"{adapter_name!r} is no name of an adapter; give a word without dots")
        if adapter_name in self.peft_config:
            raise AdapterError(f"an adapter named {adapter_name!r} already exists")
        missing = [name for name in adapters if name not in self.peft_config]
        if not adapters or missing:
            raise AdapterError(f"no adapter named {', '.join(missing)}; available: {', '.join(self.peft_config)}")
        if len(adapters) != len(weights):
            raise AdapterError(f"got {len(weights)} weights for {len(adapters)} adapters; give one weight per adapter")
        wrong = [weight for weight in weights if not _is_finite(weight)]
        if wrong:
            raise AdapterError(f"the weight {wrong[0]!r} is not a finite number")
        if combination_type not in ("cat", "svd"):
            raise AdapterError(f"combination_type={combination_type!r} is unknown; available: cat, svd")
        if r is not None and (isinstance(r, bool) or not isinstance(r, int) or r < 1):
            raise AdapterError(f"r={r!r} is not a number of components; give an integer of at least 1")
        started = [name for name in adapters if getattr(self.peft_config[name], "init_weights", None) == "weight"]
        if started:
            raise AdapterError(
                f"{started[0]!r} has init_weights='weight': its update depends on the base weight that it was taken "
                "from, so it cannot be combined; merge it instead"
            )

    def unload(self) -> nn.Module:
        """The base model without adapters; weight that adapters took out of it is restored."""
        for layer in self.modules():
            if isinstance(layer, CdkaLayer):
                for name in list(layer.taken_out):
                    layer.give_back_weight(name)
        return super().unload()


def _layer_class(base: nn.Module, name: str) -> type[CdkaLinear] | type[CdkaConv2d]:
    if isinstance(base, nn.Conv2d):
        return CdkaConv2d
    backend = resolve_quantization_backend(base)
    if isinstance(base, nn.Linear | Conv1D) or (backend is not None and backend.layer_type == "linear"):
        return CdkaLinear
    raise TargetError(
        f"target module {name} is a {type(base).__name__}; CDKA adapts linear layers "
        "(torch.nn.Linear, GPT-2's Conv1D) and torch.nn.Conv2d"
    )


def _is_finite(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def _combined(
    name: str, layer: CdkaLayer, adapters: Sequence[str], weights: Sequence[float], r: int | None
) -> tuple[Tensor, Tensor]:
    present = [(a, w) for a, w in zip(adapters, weights, strict=True) if a in layer.cdka_A]
    structures = {(layer.r1[a], layer.r2[a]) for a, _ in present}
    if len(structures) > 1:
        raise AdapterError(f"adapters of different (r1, r2) cannot be combined; {name} has {sorted(structures)}")
    A = torch.cat([layer.cdka_A[a].detach() for a, _ in present])
    B = torch.cat([layer.cdka_B[a].detach() * (w * layer.scaling[a]) for a, w in present])
    if r is not None:
        A, B, _ = truncate_factors(A, B, r)
    return A, B


def _choose_adapters(module: nn.Module, args: Any, kwargs: Any, names: list[str], beams: int) -> Any:
    rows = len(args[0]) if args else len(next(iter(kwargs.values())))
    # Beam search repeats the decoder's rows, but not the encoder's.
    per_row = [name for name in names for _ in range(beams)] if rows == len(names) * beams else names
    return args, {**kwargs, "adapter_names": per_row}


def scale_by_module(config: CdkaConfig, module: str, r: int, r2: int) -> float:
    """The scale of one layer, by the config's rule and patterns."""
    return SCALES[config.scaling](_by_module(config.alpha_pattern, module, config.alpha), r, r2)


def _by_module(patterns: dict[str, Any], module: str, default: Any) -> Any:
    if module in patterns:  # recorded by fit="nearest" for exactly this module
        return patterns[module]
    return patterns.get(get_pattern_key(list(patterns), module), default)
