"""CDKA's layer on a GPU: over the base linear and over LoRA of equal parameters, with and without the Triton kernels.

    python -m benchmarks.adapter_gpu [--tokens 4096] [--width 4096]

bf16, forward and backward, medians of interleaved rounds timed with CUDA events. Needs a CUDA device.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from cdka import triton_kernels

from .adapter import CONFIGURATIONS, Structure, _adapted, _cdka, _lora, _step


def medians(contenders: dict[str, Callable[[], None]], rounds: int = 30, inner: int = 10) -> dict[str, float]:
    """Median milliseconds of one call of each contender."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        for _ in range(5):
            call()
    for _ in range(rounds):
        for name, call in contenders.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(inner):
                call()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end) / inner)
    return {name: statistics.median(values) for name, values in times.items()}


def report(d: int, tokens: int, structure: Structure) -> None:
    """Print one line of ratios."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    x = torch.randn(tokens, d, dtype=dtype, device=device, requires_grad=True)
    cotangent = torch.randn(tokens, d, dtype=dtype, device=device)
    configs = {"base": None, "cdka": _cdka(structure), "lora": _lora(d, structure)}
    steps = {name: _step(_adapted(d, dtype, c).to(device), x, cotangent) for name, c in configs.items()}

    def without_kernels(step: Callable[[], None] = steps["cdka"]) -> None:
        available, triton_kernels.AVAILABLE = triton_kernels.AVAILABLE, False
        try:
            step()
        finally:
            triton_kernels.AVAILABLE = available

    found = medians(steps | {"without kernels": without_kernels})
    ours = found["cdka"]
    ratios = "  ".join(f"/{name} {ours / found[name]:5.2f}" for name in ("base", "lora", "without kernels"))
    print(f"d={d} tokens={tokens} bf16 {structure!s:<12} {ours:7.3f} ms   cdka {ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "benchmarks.adapter_gpu needs a CUDA device; there is none\n")
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}")
    for structure in CONFIGURATIONS:
        report(options.width, options.tokens, structure)


if __name__ == "__main__":
    main()
