"""CDKA's layer, forward and backward, beside the frozen base layer, PEFT LoRA and PEFT LoKr of equal parameters.

python -m benchmarks.layer [--full]
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
from peft import LoKrConfig, LoraConfig, get_peft_model
from torch import nn

import cdka

from .measure import medians

CONFIGURATIONS = ((1, 1, 8), (2, 2, 8), (2, 8, 4), (4, 16, 4))


class _One(nn.Module):
    def __init__(self, d: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(d, d, bias=False, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def _adapted(d: int, dtype: torch.dtype, config: object) -> nn.Module:
    model = _One(d, dtype)
    return model if config is None else get_peft_model(model, config, autocast_adapter_dtype=False)


def _step(model: nn.Module, x: torch.Tensor, cotangent: torch.Tensor) -> Callable[[], None]:
    """Forward and backward into x and the adapter; the base weight is frozen in all contenders."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(prefix in name for prefix in ("cdka_", "lora_", "lokr_")))

    def run() -> None:
        x.grad = None
        model(x).backward(cotangent)

    return run


def contenders(
    d: int, tokens: int, dtype: torch.dtype, structure: tuple[int, int, int]
) -> dict[str, Callable[[], None]]:
    """The layers to time; LoRA's and LoKr's sizes are those closest in parameters to CDKA's."""
    r1, r2, r = structure
    shape = [cdka.ModuleShape("linear", d, d)]
    parameters = cdka.count_parameters(shape, r1, r2, r)
    rank = max(1, round(parameters / (2 * d)))
    x = torch.randn(tokens, d, dtype=dtype, requires_grad=True)
    cotangent = torch.randn(tokens, d, dtype=dtype)
    configs = {
        "base": None,
        "cdka": cdka.CdkaConfig(r1=r1, r2=r2, r=r, target_modules=["linear"], init_weights=False),
        "lora": LoraConfig(r=rank, target_modules=["linear"], init_lora_weights=False),
        "lokr": _lokr(d, parameters),
    }
    return {name: _step(_adapted(d, dtype, c), x, cotangent) for name, c in configs.items()}


def _lokr(d: int, parameters: int) -> LoKrConfig:
    """The LoKr, over its factor and rank, whose size is closest to ``parameters``."""
    best = None
    for factor in (4, 8, 16, 32):
        for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            config = LoKrConfig(
                r=rank, alpha=rank, decompose_factor=factor, target_modules=["linear"], init_weights=False
            )
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = get_peft_model(_One(d, torch.float32), config, low_cpu_mem_usage=True)
            size = sum(p.numel() for n, p in model.named_parameters() if "lokr_" in n)
            if best is None or abs(size - parameters) < abs(best[0] - parameters):
                best = (size, config)
    assert best is not None
    return best[1]


def report(d: int, tokens: int, dtype: torch.dtype, structure: tuple[int, int, int], rounds: int) -> None:
    """Print one line of ratios."""
    made = contenders(d, tokens, dtype, structure)
    inner = max(1, int(4e8 / (d * d * tokens)))
    seconds = medians(made, rounds, inner)
    ours = seconds["cdka"]
    ratios = "  ".join(f"/{name} {ours / seconds[name]:5.2f}" for name in ("base", "lora", "lokr"))
    kind = str(dtype).removeprefix("torch.")
    print(f"d={d:<5} tokens={tokens:<5} {kind:<9} {structure!s:<12} {1e3 * ours:8.2f} ms   cdka {ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all shapes, token counts and precisions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("CDKA layer, forward + backward, one thread; medians; ratios over contenders of equal parameters")
    shapes = [(384, 128), (384, 512), (384, 2048), (1024, 128), (1024, 512), (1024, 2048), (2048, 512), (4096, 512)]
    for d, tokens in shapes if options.full else [(1024, 512)]:
        for dtype in (torch.float32, torch.bfloat16) if options.full else (torch.float32,):
            for structure in CONFIGURATIONS:
                report(d, tokens, dtype, structure, rounds=9 if options.full else 15)


if __name__ == "__main__":
    main()
