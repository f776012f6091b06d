"""Other adapters of PEFT at CDKA's parameter budgets: the sizes that fill a budget, and exact counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from peft.tuners.lokr.layer import factorization
from torch import nn

from .counts import ModuleShape, count_lora_parameters, count_parameters, feasible
from .errors import BudgetError, CdkaError

# Adapters on one layer of d_in inputs and d_out outputs:
# LoRA and rsLoRA have rank * (d_in + d_out) parameters, DoRA (arXiv 2402.09353) d_out more, MiSS (arXiv 2409.15371)
# r * d_out; LoKr's (arXiv 2309.14859) are counted as PEFT lays it out. "full" trains the layers' own weights.
METHODS = ("cdka", "krona", "lora", "rslora", "dora", "miss", "lokr", "full")


@dataclass(frozen=True, slots=True)
class MethodSize:
    """The sizes of a method's adapter, as its parameters name them, and what it costs."""

    sizes: dict[str, int]
    parameters: int


def count_method_parameters(method: str, shapes: Sequence[ModuleShape], sizes: Mapping[str, int]) -> int:
    """Trainable parameters of an adapter on ``shapes``.

    Args:
        method: one of :data:`METHODS`.
        shapes: the adapted linear layers.
        sizes: ``r1``, ``r2``, ``r`` for cdka and krona; ``r`` for lora, rslora, dora and miss; ``r`` and ``factor``
            for lokr; none for full.

    Raises:
        CdkaError: the method is unknown, or a size does not fit a layer.
    """
    if method in ("cdka", "krona"):
        return count_parameters(shapes, sizes["r1"], sizes["r2"], sizes["r"])
    if method in ("lora", "rslora"):
        return count_lora_parameters(shapes, sizes["r"])
    if method == "dora":
        return count_lora_parameters(shapes, sizes["r"]) + sum(s.d_out for s in shapes)
    if method == "miss":
        return sizes["r"] * sum(s.d_out for s in shapes)
    if method == "lokr":
        return sum(_lokr_parameters(s, sizes["r"], sizes["factor"]) for s in shapes)
    if method == "full":
        return sum(s.d_in * s.d_out for s in shapes)
    raise CdkaError(f"unknown method {method!r}; available: {', '.join(METHODS)}")


def size_in_budget(method: str, shapes: Sequence[ModuleShape], max_parameters: int) -> MethodSize:
    """The largest adapter of a method that costs at most ``max_parameters``.

    Of LoKr's, with factors that are powers of two, the one that uses most of the budget. ``cdka``
    has many that fill a budget: see :func:`feasible`. ``full`` has one size, whatever the budget.

    Raises:
        BudgetError: not even the smallest fits; names its cost.
        CdkaError: the method is unknown, or is ``cdka``.
    """
    if not shapes:
        raise CdkaError("there is no layer to adapt")
    if method == "krona":
        one = feasible(shapes, max_parameters, r=1)
        pick = max(one, key=lambda c: (c.parameters, -abs(c.r2 - c.r1), -c.r1))
        return MethodSize({"r1": pick.r1, "r2": pick.r2, "r": 1}, pick.parameters)
    if method == "full":
        return MethodSize({}, count_method_parameters(method, shapes, {}))
    if method == "cdka":
        raise CdkaError("a budget does not determine cdka's sizes; see feasible")
    tried = [
        MethodSize(sizes, count_method_parameters(method, shapes, sizes))
        for sizes in _sizes(method, shapes, max_parameters)
    ]
    fitting = [size for size in tried if size.parameters <= max_parameters]
    if not fitting:
        least = min(size.parameters for size in tried)
        raise BudgetError(f"{method} needs at least {least:,} parameters; the budget is {max_parameters:,}")
    return max(fitting, key=lambda size: size.parameters)


def unsupported_layers(model: nn.Module, names: Iterable[str], method: str) -> list[str]:
    """Of the named layers, those that PEFT's layers of a method do not take, or whose cost is not counted here.

    MiSS and LoKr are counted, and built by PEFT, for ``nn.Linear`` alone: not for ``Conv1D`` of GPT-2, or convolutions.
    """
    if method not in ("miss", "lokr"):
        return []
    return [name for name in names if not isinstance(model.get_submodule(name), nn.Linear)]


def _sizes(method: str, shapes: Sequence[ModuleShape], max_parameters: int) -> Iterator[dict[str, int]]:
    """Sizes that may be the largest within a budget, and the smallest ones."""
    if method == "lokr":
        factor = 1
        while factor <= min(min(s.d_in, s.d_out) for s in shapes):
            yield {"r": 1, "factor": factor}
            widest = max(max(s.d_in, s.d_out) for s in shapes)
            # With so many, all factors are full matrices, which may cost less than fewer do.
            yield {"r": widest, "factor": factor}
            low, high = 1, widest
            while low < high:
                middle = (low + high + 1) // 2
                fits = count_method_parameters(method, shapes, {"r": middle, "factor": factor}) <= max_parameters
                low, high = (middle, high) if fits else (low, middle - 1)
            yield {"r": low, "factor": factor}
            factor *= 2
        return
    one = count_method_parameters(method, shapes, {"r": 1})
    each = count_method_parameters(method, shapes, {"r": 2}) - one
    most = max(1, 1 + (max_parameters - one) // each)
    if method == "miss":
        most = min(most, min(s.d_in for s in shapes))
    yield {"r": most}


def _lokr_parameters(shape: ModuleShape, r: int, factor: int) -> int:
    in_m, in_n = factorization(shape.d_in, factor)
    out_l, out_k = factorization(shape.d_out, factor)
    second = r * (out_k + in_n) if r < max(out_k, in_n) / 2 else out_k * in_n
    return out_l * in_m + second
