"""The base model, loaded once and given back after every trial exactly as it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.config import PeftConfig
from torch import nn
from transformers import set_seed

from .failures import Rejected


class BaseWeightsChanged(RuntimeError):
    """A trial left the frozen base weights different: this process must not train another."""


@dataclass(slots=True)
class WarmModel:
    """A base model that trials borrow.

    ``new_modules`` are those without pretrained weights (a classification head): they are drawn anew, from the
    trial's seed, whenever the model is lent, so a warm runner trains exactly what a cold one would.
    """

    model: Any
    new_modules: tuple[str, ...]
    _fingerprint: int = field(init=False)
    _frozen: dict[str, bool] = field(init=False)

    def __post_init__(self) -> None:
        self._fingerprint = self.fingerprint()
        self._frozen = {name: p.requires_grad for name, p in self.model.named_parameters()}

    def lend(self, config: PeftConfig, seed: int) -> PeftModel:
        """The model with a fresh adapter on it, head and adapter drawn from ``seed``."""
        set_seed(seed)
        for name in self.new_modules:
            self._draw(self.model.get_submodule(name))
        return get_peft_model(self.model, config)

    def _draw(self, module: nn.Module) -> None:
        for child in module.modules():
            for parameter in child.parameters(recurse=False):
                # transformers skips whatever carries this mark.
                parameter._is_hf_initialized = False  # type: ignore[attr-defined]
            self.model._init_weights(child)

    def take_back(self, lent: PeftModel) -> None:
        """Remove the adapter, put the model's own head back and check the base weights.

        Raises:
            BaseWeightsChanged: the frozen weights are no longer those that were loaded.
        """
        wrapped: nn.Module = lent.get_base_model()
        originals = {name: _original(wrapped.get_submodule(name)) for name in self.new_modules}
        lent.unload()
        for name, original in originals.items():
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, original)
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._frozen[name])
            parameter.grad = None
        if self.fingerprint() != self._fingerprint:
            raise BaseWeightsChanged("the base weights changed during the trial")

    def fingerprint(self) -> int:
        """A hash of every bit of the pretrained weights (the head's are left out)."""
        heads = tuple(f"{name}." for name in self.new_modules)
        value = 0
        for name, parameter in sorted(self.model.named_parameters()):
            if not name.startswith(heads):
                value = hash((value, name, int(torch.hash_tensor(parameter.detach()).item())))
        return value


def _original(module: nn.Module) -> nn.Module:
    return getattr(module, "original_module", module)


def load_warm(auto_class: Any, path: str, revision: str | None, **kwargs: Any) -> WarmModel:
    """Load a base model and note which of its modules have no pretrained weights.

    Raises:
        Rejected: it cannot be loaded.
    """
    try:
        model, info = auto_class.from_pretrained(
            path, revision=revision, trust_remote_code=False, output_loading_info=True, **kwargs
        )
    except (OSError, ValueError) as error:
        raise Rejected(f"the model {path!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    new = sorted({key.split(".", 1)[0] for key in info["missing_keys"]})
    return WarmModel(model, tuple(new))
