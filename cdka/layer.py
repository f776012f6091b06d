"""A linear layer with CDKA adapters beside its frozen weight."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from peft.utils.other import transpose
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .config import CdkaConfig, cdka_scale
from .divisors import require_divides
from .errors import AdapterError, TargetError
from .initializers import initialize_
from .kronecker import kron_delta, kron_linear


class CdkaLayer(BaseTunerLayer):
    """A layer's adapters: factors ``cdka_A[name]`` ``(r, r1, d_in/r2)`` and ``cdka_B[name]`` ``(r, d_out/r1, r2)``."""

    adapter_layer_names: tuple[str, ...] = ("cdka_A", "cdka_B")
    other_param_names: tuple[str, ...] = ("r", "r1", "r2", "alpha", "scaling", "cdka_dropout")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self.r: dict[str, int] = {}
        self.r1: dict[str, int] = {}
        self.r2: dict[str, int] = {}
        self.alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.cdka_dropout = nn.ModuleDict()
        self.cdka_A = nn.ParameterDict()
        self.cdka_B = nn.ParameterDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        in_features, out_features = _get_in_out_features(self.get_base_layer())
        if in_features is None or out_features is None:
            raise TargetError(f"a {type(self.get_base_layer()).__name__} cannot carry a CDKA adapter")
        self.in_features, self.out_features = int(in_features), int(out_features)

    def update_layer(
        self,
        adapter_name: str,
        config: CdkaConfig,
        *,
        r: int,
        r1: int,
        r2: int,
        alpha: float,
        layer_name: str = "this layer",
        inference_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        """Add the adapter ``adapter_name`` to this layer, or replace it.

        Raises:
            IndivisibleError: r1 does not divide d_out or r2 does not divide d_in of this layer.
        """
        require_divides("r1", r1, "d_out", self.out_features, layer_name)
        require_divides("r2", r2, "d_in", self.in_features, layer_name)
        self.r[adapter_name], self.r1[adapter_name], self.r2[adapter_name] = r, r1, r2
        self.alpha[adapter_name] = alpha
        self.scaling[adapter_name] = cdka_scale(alpha, r, r2)
        self.cdka_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout > 0 else nn.Identity()
        self.cdka_A[adapter_name] = nn.Parameter(torch.empty(r, r1, self.in_features // r2))
        self.cdka_B[adapter_name] = nn.Parameter(torch.empty(r, self.out_features // r1, r2))
        initialize_(self.cdka_A[adapter_name], self.cdka_B[adapter_name], config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """``dW`` of one adapter in the base weight's layout: ``(d_out, d_in)``, or transposed for Conv1D."""
        A, B = self.cdka_A[adapter_name], self.cdka_B[adapter_name]
        # Half-precision products on a CPU are slow and coarse; fp32 costs little at merge time.
        half_on_cpu = A.device.type == "cpu" and A.dtype in (torch.float16, torch.bfloat16)
        if half_on_cpu:
            delta = kron_delta(A.float(), B.float(), self.scaling[adapter_name]).to(A.dtype)
        else:
            delta = kron_delta(A, B, self.scaling[adapter_name])
        return transpose(delta, self.fan_in_fan_out)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' dW to the base weight.

        Raises:
            ValueError: ``safe_merge`` is set and the result would hold NaN or infinity; the weight is left alone.
        """
        for name in check_adapters_to_merge(self, adapter_names) or []:
            if name not in self.cdka_A:
                continue
            weight = self.get_base_weight()
            dtype = weight.dtype
            merged = weight.clone() if safe_merge else weight
            merged += self.get_delta_weight(name).to(dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
            self.set_base_weight(merged)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take every merged adapter's dW out of the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.cdka_A:
                weight = self.get_base_weight()
                weight -= self.get_delta_weight(name).to(weight.dtype)
                self.set_base_weight(weight)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the adapter's scale to ``scale`` times its own lambda."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale * cdka_scale(self.alpha[adapter], self.r[adapter], self.r2[adapter])

    def scale_layer(self, scale: float) -> None:
        """Multiply the scale of the active adapters."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scale of the active adapters, or, with ``None``, put it back to lambda."""
        for name in self.active_adapters:
            if name in self.scaling:
                if scale is None:
                    self.set_scale(name, 1.0)
                else:
                    self.scaling[name] /= scale


class CdkaLinear(nn.Module, CdkaLayer):
    """``y = W x + b + sum over active adapters of lambda * sum_i (B_i (x) A_i) x``; dW is never built."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: CdkaConfig, **kwargs: Any) -> None:
        super().__init__()
        CdkaLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, **kwargs)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``(..., d_in) -> (..., d_out)``."""
        if kwargs.pop("adapter_names", None) is not None:
            raise AdapterError("CDKA does not mix adapters within a batch; call the model once per adapter")
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        dtype = result.dtype
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for name in self.active_adapters:
            if name not in self.cdka_A:
                continue
            A, B = self.cdka_A[name], self.cdka_B[name]
            features = self.cdka_dropout[name](self._cast_input_dtype(x, A.dtype))
            result = result + kron_linear(features, A, B, self.scaling[name])
        return result.to(dtype)

    def __repr__(self) -> str:
        return "cdka." + super().__repr__()
