"""Configuration of a CDKA adapter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peft.config import PeftConfig

from .errors import CdkaError
from .initializers import NAMES
from .peft_type import cdka_peft_type


@dataclass
class CdkaConfig(PeftConfig):
    """Component Designed Kronecker Adapters (arXiv 2602.01267): ``dW = lambda * sum_{i=1..r} B_i (x) A_i``.

    ``A_i`` has shape ``(r1, d_in/r2)``, ``B_i`` has shape ``(d_out/r1, r2)``, and ``lambda = alpha/sqrt(r*r2)``.
    ``r1 = r2 = 1`` is LoRA of rank r with the rsLoRA scale, ``r = 1`` is KronA.

    Args:
        r1: component size on the output side; must divide every adapted layer's d_out.
        r2: component size on the input side; must divide every adapted layer's d_in.
        r: number of components.
        alpha: numerator of the scale. ``(r1, r2, r) = (2, 8, 4)`` is the paper's default; its
            authors train it with alpha 64.
        target_modules: names, suffixes, a regular expression, or ``"all-linear"``; ``None`` is PEFT's mapping for LoRA.
        exclude_modules: modules to leave out of ``target_modules``.
        dropout: probability of dropping an input feature of the adapter while training.
        init_weights: ``True`` or ``"kaiming"`` (the paper's), ``"gaussian"`` and ``"orthogonal"`` start at dW = 0 and
            differ in A; ``"weight"`` takes the factors nearest to W and freezes W - dW, so the output is unchanged;
            ``"gradient"`` is set by :func:`cdka.initialize_from_gradients`; ``False`` draws both factors at random, so
            that dW is not 0 (for tests). See :mod:`cdka.initializers`.
        scaling: ``"cdka"``: ``alpha/sqrt(r*r2)`` (the paper's); ``"rslora"``: ``alpha/sqrt(r)`` (Kalajdzievski 2023,
            with the number of components in place of the rank); ``"constant"``: alpha itself.
        fit: ``"strict"`` rejects layers that r1 or r2 does not divide; ``"nearest"`` uses for them the largest divisor
            not above the configured size, and records it in ``r1_pattern`` and ``r2_pattern``.
        rank_pattern, r1_pattern, r2_pattern, alpha_pattern: per-module values by name or regular expression.
        layers_to_transform, layers_pattern: restrict a list of target modules to layers by index.
        modules_to_save: modules trained in full and saved with the adapter.
        bias: biases of the base model to train along: ``"none"``, ``"all"`` of them, or those of the adapted layers
            (``"cdka_only"``). At most one adapter of a model may train biases. They stay when it is disabled.

    Raises:
        CdkaError: a size is not a positive integer, dropout is outside ``[0, 1)``, or a name is unknown.
    """

    r1: int = field(default=2, metadata={"help": "Component size on the output side; divides every d_out."})
    r2: int = field(default=8, metadata={"help": "Component size on the input side; divides every d_in."})
    r: int = field(default=4, metadata={"help": "Number of Kronecker components."})
    alpha: float = field(default=16, metadata={"help": "Scale: lambda = alpha / sqrt(r * r2)."})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to adapt."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave out."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})
    init_weights: bool | str = field(
        default=True, metadata={"help": "True or the name of an initialisation; False randomises both factors."}
    )
    scaling: str = field(default="cdka", metadata={"help": "Scaling rule: cdka, rslora or constant."})
    fit: str = field(default="strict", metadata={"help": "strict or nearest: how to treat sizes that do not divide."})
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "r by module name."})
    r1_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "r1 by module name."})
    r2_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "r2 by module name."})
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata={"help": "alpha by module name."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layer indices to adapt."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved in full."})
    bias: str = field(default="none", metadata={"help": "Biases to train along: none, all or cdka_only."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type: Any = cdka_peft_type()
        self._check_sizes()
        self._check_scales()
        if isinstance(self.init_weights, str) and self.init_weights not in NAMES:
            raise CdkaError(f"init_weights={self.init_weights!r} is unknown; available: {', '.join(NAMES)}")
        if self.fit not in FITS:
            raise CdkaError(f"fit={self.fit!r} is unknown; available: {', '.join(FITS)}")
        if self.bias not in BIASES:
            raise CdkaError(f"bias={self.bias!r} is unknown; available: {', '.join(BIASES)}")
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise CdkaError(f"{name} works with a list of target_modules, not with a regular expression")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # PEFT's own in-memory form
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]

    def _check_sizes(self) -> None:
        for symbol in ("r1", "r2", "r"):
            _require_size(symbol, getattr(self, symbol))
        for pattern, symbol in (("rank_pattern", "r"), ("r1_pattern", "r1"), ("r2_pattern", "r2")):
            for module, value in getattr(self, pattern).items():
                _require_size(f"{symbol} of {module!r}", value)

    def _check_scales(self) -> None:
        for where, alpha in [("alpha", self.alpha), *self.alpha_pattern.items()]:
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
                raise CdkaError(f"{where}={alpha!r} is not a scale; give a finite number above 0")
        if self.scaling not in SCALES:
            raise CdkaError(f"scaling={self.scaling!r} is unknown; available: {', '.join(SCALES)}")
        if not 0.0 <= self.dropout < 1.0:
            raise CdkaError(f"dropout={self.dropout!r} is not a probability; give a number in [0, 1)")

    @property
    def scale(self) -> float:
        """``lambda`` of layers that no pattern matches."""
        return SCALES[self.scaling](self.alpha, self.r, self.r2)


def cdka_scale(alpha: float, r: int, r2: int) -> float:
    """The paper's stabilised scale ``lambda = alpha / sqrt(r * r2)`` (arXiv 2602.01267)."""
    return alpha / math.sqrt(r * r2)


def rslora_scale(alpha: float, r: int, r2: int) -> float:
    """``alpha / sqrt(r)``: the rank-stabilised scale (Kalajdzievski 2023), with r components in place of the rank."""
    return alpha / math.sqrt(r)


def constant_scale(alpha: float, r: int, r2: int) -> float:
    """``alpha``, independent of the structure."""
    return alpha


SCALES: dict[str, Callable[[float, int, int], float]] = {
    "cdka": cdka_scale,
    "rslora": rslora_scale,
    "constant": constant_scale,
}
FITS = ("strict", "nearest")
BIASES = ("none", "all", "cdka_only")


def _require_size(symbol: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CdkaError(f"{symbol}={value!r} is not a component size; give an integer of at least 1")
