"""The behaviour shared by all layers with CDKA adapters beside a frozen weight; ``modules.py`` has the layer types."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from peft.utils.other import transpose
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .config import SCALES, CdkaConfig
from .divisors import require_divides
from .errors import AdapterError, TargetError
from .initializers import initialize_
from .kronecker import kron_delta
from .rearrangement import nearest_factors

BASE = "__base__"  # PEFT's name for the rows of a mixed batch that use no adapter


def layer_dimensions(layer: nn.Module) -> tuple[int, int]:
    """``(d_in, d_out)`` of a layer as a matrix; a convolution's kernel is flattened into the input side.

    Raises:
        TargetError: the layer is not a linear map, or is a grouped convolution.
    """
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1:
            raise TargetError(f"a convolution with groups={layer.groups} cannot carry a CDKA adapter; groups must be 1")
        height, width = layer.kernel_size
        return layer.in_channels * height * width, layer.out_channels
    d_in, d_out = _get_in_out_features(layer)
    if d_in is None or d_out is None:
        raise TargetError(f"a {type(layer).__name__} cannot carry a CDKA adapter")
    return int(d_in), int(d_out)


class CdkaLayer(BaseTunerLayer):
    """A layer's adapters: factors ``cdka_A[name]`` ``(r, r1, d_in/r2)`` and ``cdka_B[name]`` ``(r, d_out/r1, r2)``."""

    adapter_layer_names: tuple[str, ...] = ("cdka_A", "cdka_B")
    other_param_names: tuple[str, ...] = ("r", "r1", "r2", "alpha", "scaling", "scale_rule", "cdka_dropout")

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
        self.scale_rule: dict[str, str] = {}
        self.cdka_dropout = nn.ModuleDict()
        self.cdka_A = nn.ParameterDict()
        self.cdka_B = nn.ParameterDict()
        # The dW that ``init_weights="weight"`` took out of the base weight, as factors that include the scale.
        self.taken_out: dict[str, tuple[Tensor, Tensor]] = {}
        # Whether other modules hold the same weight, as tied embeddings do.
        self.shares_weight = bool(kwargs.get("shares_weight", False))
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        self.in_features, self.out_features = layer_dimensions(self.get_base_layer())

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
            AdapterError: an adapter with ``init_weights="weight"`` would share this layer with another adapter.
        """
        require_divides("r1", r1, "d_out", self.out_features, layer_name)
        require_divides("r2", r2, "d_in", self.in_features, layer_name)
        self.give_back_weight(adapter_name)
        from_weight = config.init_weights == "weight"
        if self.taken_out or (from_weight and set(self.cdka_A) - {adapter_name}):
            raise AdapterError(
                f"init_weights='weight' moves part of the base weight of {layer_name} into its adapter, so no other "
                "adapter can share the layer; delete one, or use another initialisation"
            )
        self.r[adapter_name], self.r1[adapter_name], self.r2[adapter_name] = r, r1, r2
        self.alpha[adapter_name], self.scale_rule[adapter_name] = alpha, config.scaling
        self.scaling[adapter_name] = SCALES[config.scaling](alpha, r, r2)
        self.cdka_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout > 0 else nn.Identity()
        self.cdka_A[adapter_name] = nn.Parameter(torch.empty(r, r1, self.in_features // r2))
        self.cdka_B[adapter_name] = nn.Parameter(torch.empty(r, self.out_features // r1, r2))
        if from_weight:
            self.start_from_weight(adapter_name, layer_name)
        else:
            initialize_(self.cdka_A[adapter_name], self.cdka_B[adapter_name], config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    @torch.no_grad()
    def start_from_weight(self, adapter_name: str, layer_name: str = "this layer") -> None:
        """Take the factors nearest to W as the adapter and freeze ``W - dW`` in W's place: the output is unchanged.

        The idea of PiSSA (Meng et al. 2024), with the nearest sum of Kronecker products in place of the truncated SVD.
        Without the adapter (disabled, deleted or unloaded), the layer computes with the original W again.

        Raises:
            AdapterError: the base weight is quantised, so dW cannot be subtracted from it exactly, or it belongs to
                other modules, too, whose output would change.
        """
        if self.shares_weight:
            raise AdapterError(
                f"init_weights='weight' would take part of a weight that {layer_name} shares with another module, such "
                "as tied embeddings; leave the layer out, or use another initialisation"
            )
        if self.quantization_backend is not None:
            raise AdapterError(f"init_weights='weight' needs an unquantised weight, but {layer_name} is quantised")
        scale = self.scaling[adapter_name]
        r, r1, r2 = self.r[adapter_name], self.r1[adapter_name], self.r2[adapter_name]
        weight = self.get_base_weight()
        if weight.is_meta:
            return
        A, B = nearest_factors(self._as_matrix(weight), r1, r2, r)
        if not self.cdka_A[adapter_name].is_meta:
            self.cdka_A[adapter_name].copy_(A / scale**0.5)
            self.cdka_B[adapter_name].copy_(B / scale**0.5)
        self.taken_out[adapter_name] = (A.to(weight.dtype), B.to(weight.dtype))
        self._add_to_base(adapter_name, -1.0)

    @torch.no_grad()
    def give_back_weight(self, adapter_name: str) -> None:
        """Undo :meth:`start_from_weight` on the base weight; does nothing for adapters initialised in other ways."""
        if adapter_name in self.taken_out:
            self._add_to_base(adapter_name, 1.0)
            del self.taken_out[adapter_name]

    def _add_to_base(self, adapter_name: str, sign: float) -> None:
        A, B = self.taken_out[adapter_name]
        weight = self.get_base_weight()
        delta = kron_delta(A.to(weight.device).float(), B.to(weight.device).float(), sign)
        self.set_base_weight(weight + self._as_weight(delta).to(weight.dtype))

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove the adapter, and restore the part of the base weight that it took, if any."""
        self.give_back_weight(adapter_name)
        super().delete_adapter(adapter_name)

    def _as_matrix(self, weight: Tensor) -> Tensor:
        """The base weight as ``(d_out, d_in)``."""
        return transpose(weight, self.fan_in_fan_out).reshape(self.out_features, self.in_features)

    def _as_weight(self, matrix: Tensor) -> Tensor:
        """A ``(d_out, d_in)`` matrix in the base weight's layout."""
        return transpose(matrix, self.fan_in_fan_out).reshape(self.get_base_weight().shape)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """``dW`` of one adapter in the base weight's layout: ``(d_out, d_in)``, or as Conv1D and Conv2d hold it."""
        A, B = self.cdka_A[adapter_name], self.cdka_B[adapter_name]
        # Half-precision products on a CPU are slow and coarse; fp32 costs little at merge time.
        half_on_cpu = A.device.type == "cpu" and A.dtype in (torch.float16, torch.bfloat16)
        if half_on_cpu:
            delta = kron_delta(A.float(), B.float(), self.scaling[adapter_name]).to(A.dtype)
        else:
            delta = kron_delta(A, B, self.scaling[adapter_name])
        return self._as_weight(delta)

    def _own_weight(self) -> None:
        """Part from modules that share the weight: dW is this layer's alone."""
        if self.shares_weight and self.quantization_backend is None:
            base: Any = self.get_base_layer()
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=base.weight.requires_grad)
            self.shares_weight = False

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' dW to the base weight. A weight that others share is copied first.

        Raises:
            ValueError: ``safe_merge`` is set and the result contains NaN or infinity; the weight is unchanged.
        """
        for name in check_adapters_to_merge(self, adapter_names) or []:
            if name not in self.cdka_A:
                continue
            self._own_weight()
            weight = self.get_base_weight()
            dtype = weight.dtype
            merged = weight.clone() if safe_merge else weight
            merged += self.get_delta_weight(name).to(dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
            self.set_base_weight(merged)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract every merged adapter's dW from the base weight."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.cdka_A:
                weight = self.get_base_weight()
                weight -= self.get_delta_weight(name).to(weight.dtype)
                self.set_base_weight(weight)

    def own_scale(self, adapter: str) -> float:
        """The adapter's lambda, whatever :meth:`set_scale` made of it."""
        return SCALES[self.scale_rule[adapter]](self.alpha[adapter], self.r[adapter], self.r2[adapter])

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the adapter's scale to ``scale`` times its own lambda."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale * self.own_scale(adapter)

    def scale_layer(self, scale: float) -> None:
        """Multiply the scale of the active adapters."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scale of the active adapters by ``scale``; ``None`` resets it to lambda."""
        for name in self.active_adapters:
            if name in self.scaling:
                if scale is None:
                    self.set_scale(name, 1.0)
                else:
                    self.scaling[name] /= scale

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus that of the active adapters, or of one adapter per row (``adapter_names``).

        Raises:
            AdapterError: ``adapter_names`` does not name one adapter per row, or adapters are merged.
        """
        adapter_names = kwargs.pop("adapter_names", None)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self._base_output(x, *args, **kwargs)
        if adapter_names is not None:
            return self._mixed_batch_forward(x, *args, adapter_names=adapter_names, **kwargs)
        names = [name for name in self.active_adapters if name in self.cdka_A]
        if self.merged:
            return self.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        if not names:
            return self._base_output(x, *args, **kwargs)
        if len(names) == 1 and not args and not kwargs:
            output = self._fused_forward(x, names[0])
            if output is not None:
                return output
        result: Tensor = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for name in names:
            result = self._add_product(result, self.cdka_dropout[name](x), name)
        return result.to(dtype)

    def _base_output(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output as before any adapter was added."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        for A, B in self.taken_out.values():
            result = result + self._product(x, A.to(x), B.to(x), 1.0).to(result.dtype)
        return result

    def _mixed_batch_forward(self, x: Tensor, *args: Any, adapter_names: list[str], **kwargs: Any) -> Tensor:
        if self.merged:
            raise AdapterError("adapter_names cannot be used while adapters are merged; unmerge them first")
        if len(adapter_names) != len(x):
            raise AdapterError(f"adapter_names has {len(adapter_names)} names for a batch of {len(x)} rows")
        result: Tensor = self.base_layer(x, *args, **kwargs).clone()
        for name in sorted(set(adapter_names)):
            rows = torch.tensor([i for i, n in enumerate(adapter_names) if n == name], device=x.device)
            if name in self.cdka_A:
                A, B, scale = self.cdka_A[name], self.cdka_B[name], self.scaling[name]
                part = self._product(self._cast_input_dtype(x[rows], A.dtype), A, B, scale)
                result[rows] += part.to(result.dtype)
            else:
                for A, B in self.taken_out.values():
                    result[rows] += self._product(x[rows], A.to(x), B.to(x), 1.0).to(result.dtype)
        return result

    def _fused_forward(self, x: Tensor, name: str) -> Tensor | None:
        """The output of base layer and adapter from one fused function; ``None`` if they cannot be fused."""
        return None

    def _add_product(self, result: Tensor, features: Tensor, name: str) -> Tensor:
        """``result`` with the output of one adapter added."""
        A, B = self.cdka_A[name], self.cdka_B[name]
        return result + self._product(self._cast_input_dtype(features, A.dtype), A, B, self.scaling[name])

    def _product(self, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        """``dW`` applied to the layer's input."""
        raise NotImplementedError
