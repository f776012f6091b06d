"""The modules that replace adapted layers. Each type of layer applies dW to its input in its own way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from .config import CdkaConfig
from .fused import can_fuse, compute_dtype, fused
from .groups import LayerGroup, LayerTensors
from .kronecker import kron_linear
from .layer import CdkaLayer


class CdkaModule(nn.Module, CdkaLayer):
    """A module that replaces an adapted layer; subclasses apply dW to the layer's input."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: CdkaConfig, **kwargs: Any) -> None:
        super().__init__()
        CdkaLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, **kwargs)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See :meth:`CdkaLayer.forward`."""
        return CdkaLayer.forward(self, x, *args, **kwargs)

    def __repr__(self) -> str:
        return "cdka." + super().__repr__()


class CdkaLinear(CdkaModule):
    """``y = W x + b + sum over active adapters of lambda * sum_i (B_i (x) A_i) x``; dW is never built.

    ``(..., d_in) -> (..., d_out)``.
    """

    group: LayerGroup | None = None

    def _fused_forward(self, x: Tensor, name: str) -> Tensor | None:
        tensors = self._fusible_tensors(x, name)
        if tensors is None:
            return None
        if self._drops(name):
            return fused(x, *tensors, features=self.cdka_dropout[name](x))
        if self.group is not None and torch.is_grad_enabled():
            output = self.group.output(self, x, tensors)
            if output is not None:
                return output
        return fused(x, *tensors)

    def shared_tensors(self, x: Tensor) -> LayerTensors | None:
        """See :class:`~cdka.groups.GroupedLayer`."""
        names = [name for name in self.active_adapters if name in self.cdka_A]
        if self.disable_adapters or self.merged or len(names) != 1 or self._drops(names[0]):
            return None
        return self._fusible_tensors(x, names[0])

    def _drops(self, name: str) -> bool:
        return self.training and not isinstance(self.cdka_dropout[name], nn.Identity)

    def _fusible_tensors(self, x: Tensor, name: str) -> LayerTensors | None:
        """The arguments of the fused function; ``None`` if it would not compute the same as base layer and adapter."""
        base = self.base_layer
        # The base layer itself must be called if it is a subclass, has hooks, or has a forward replaced on the
        # instance, as accelerate does for offloaded weights.
        if type(base) is not nn.Linear or "forward" in base.__dict__ or _is_hooked(base):
            return None
        weight, bias = base.weight, base.bias
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            return None
        # Without autocast, a linear layer rejects an input of another precision; so must the adapted layer.
        if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            return None
        A, B = self.cdka_A[name], self.cdka_B[name]
        return LayerTensors(A, B, self.scaling[name], weight, bias) if can_fuse(x, A, B, weight, bias) else None

    def _add_product(self, result: Tensor, features: Tensor, name: str) -> Tensor:
        A, B = self.cdka_A[name], self.cdka_B[name]
        if result.dtype == compute_dtype(features) and can_fuse(features, A, B, result):
            return fused(features, A, B, self.scaling[name], base=result)
        return super()._add_product(result, features, name)

    def _product(self, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        return kron_linear(x, A, B, scale)


def _is_hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


class CdkaConv2d(CdkaModule):
    """A convolution as a linear map of patches: ``d_in = C_in * k_h * k_w``, ``d_out = C_out``.

    ``(N, C_in, H, W) -> (N, C_out, H', W')``.
    """

    def _product(self, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        conv: Any = self.get_base_layer()
        padding = conv._reversed_padding_repeated_twice
        if any(padding):
            mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
            x = pad(x, padding, mode=mode)
        height, width = (
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, dilation, stride in zip(
                x.shape[-2:], conv.kernel_size, conv.dilation, conv.stride, strict=True
            )
        )
        patches = unfold(x, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
        y = kron_linear(patches.transpose(1, 2), A, B, scale)
        return y.transpose(1, 2).reshape(x.shape[0], self.out_features, height, width)
