"""Time CDKA's layer on a GPU against the base layer, LoRA, rsLoRA and MiSS of equal parameters.

    python -m benchmarks.adapter_gpu [--tokens 4096] [--width 4096]

bf16, forward and backward, medians of interleaved rounds timed with CUDA events. Each CDKA layer is measured expanded
and shuffled, and is printed with the traffic that ``benchmarks/traffic.py`` predicts. Needs a CUDA device. It has not
been run on one yet.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from cdka import fused

from .adapter import CONFIGURATIONS, Structure, _adapted, _configs, _parameters, _step, group_contenders
from .traffic import Traffic, cdka_traffic, grouped_traffic, lora_traffic


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


def _with_limit(step: Callable[[], None], limit: int) -> Callable[[], None]:
    def run() -> None:
        before, fused.LARGEST_EXPANSION["cuda"] = fused.LARGEST_EXPANSION["cuda"], limit
        try:
            step()
        finally:
            fused.LARGEST_EXPANSION["cuda"] = before

    return run


def report(d: int, tokens: int, structure: Structure) -> None:
    """Print the milliseconds of one configuration and of its contenders, with the activations moved as modelled."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    x = torch.randn(tokens, d, dtype=dtype, device=device, requires_grad=True)
    cotangent = torch.randn(tokens, d, dtype=dtype, device=device)
    configs = _configs(d, structure)
    steps = {name: _step(_adapted(d, dtype, c).to(device), x, cotangent) for name, c in configs.items()}
    ours = steps.pop("cdka")
    steps |= {"expanded": _with_limit(ours, 10**9), "shuffled": _with_limit(ours, 0)}
    found = medians(steps)
    r1, r2, r = structure
    rank = round(_parameters(d, structure) / (2 * d))
    moved: dict[str, Traffic] = {
        "expanded": cdka_traffic(d, r1, r2, r, expanded=True),
        "shuffled": cdka_traffic(d, r1, r2, r, expanded=r1 == 1),
        "lora": lora_traffic(d, rank),
    }
    chosen = "expanded" if fused.expands("cuda", r, r1, r2) else "shuffled"
    print(f"d={d} tokens={tokens} bf16 {structure!s:<12} chosen: {chosen}")
    for name, milliseconds in found.items():
        extra = milliseconds - found["base"]
        model = ""
        if name in moved:
            numbers = moved[name].forward + moved[name].backward
            rate = numbers * tokens * d * 2 / (extra * 1e-3) / 1e12 if extra > 0 else float("nan")
            model = f"  moves {numbers:5.2f} N*d beyond the base, {rate:5.2f} TB/s if that were all"
        ratio = milliseconds / found["lora"]
        print(
            f"  {name:<9} {milliseconds:7.3f} ms  over LoRA {ratio:5.2f}  beyond base {extra:7.3f} ms{model}",
            flush=True,
        )


def report_group(d: int, tokens: int, structure: Structure) -> None:
    """Print the milliseconds of three layers that see the same input."""
    x = torch.randn(tokens, d, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    cotangent = torch.randn(tokens, 3 * d, dtype=torch.bfloat16, device="cuda")
    found = medians(group_contenders(d, x, cotangent, structure))
    r1, r2, r = structure
    model = grouped_traffic(d, r1, r2, r, 3)
    moves = model.forward + model.backward
    print(f"three layers, d={d} tokens={tokens} bf16 {structure!s:<12} moves {moves:.2f} N*d each")
    for name, milliseconds in found.items():
        print(f"  {name:<20} {milliseconds:7.3f} ms  over LoRA {milliseconds / found['lora']:5.2f}", flush=True)


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
        if fused.expands("cuda", structure[2], structure[0], structure[1]):
            report_group(options.width, options.tokens, structure)


if __name__ == "__main__":
    main()
