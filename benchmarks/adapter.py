"""Time CDKA against no adapter, LoRA, rsLoRA, MiSS, PEFT's LoKr and LyCORIS' LoKr of equal parameters.

    python -m benchmarks.adapter [--full | --models | --groups | --crossover | --memory | --merged | --profile]

One thread, forward and backward: medians of CPU time over interleaved rounds, as ratios within one run. Without an
option: one layer, then whole models.

--full       layers of all widths, token counts and precisions
--models     a training step of a BERT (384 x 6 layers, 8 x 64 tokens) and a Llama (512 x 8 layers, 4 x 256 tokens)
--groups     three layers that see the same input, computed together and one by one
--crossover  expanded against shuffled products: where ``fused.LARGEST_EXPANSION`` comes from
--memory     peak memory of a training step of a 6-layer model, CDKA over LoRA, each in a process of its own
--merged     inference after merging, over the base layer
--profile    where the time of one layer's step goes
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from peft import LoKrConfig, LoraConfig, MissConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig

import cdka
from cdka import fused
from cdka.modules import CdkaLinear

from .measure import medians

Structure = tuple[int, int, int]  # (r1, r2, r)
CONFIGURATIONS: tuple[Structure, ...] = ((1, 1, 8), (2, 2, 8), (2, 4, 6), (2, 8, 4), (4, 16, 4))
WIDTHS, TOKENS = (384, 1024, 2048, 4096), (128, 512, 2048)
TRAINED = ("cdka_", "lora_", "lokr_", "miss_")


class _One(nn.Module):
    def __init__(self, d: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(d, d, bias=False, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def _adapted(d: int, dtype: torch.dtype, config: Any) -> nn.Module:
    model = _One(d, dtype)
    return model if config is None else get_peft_model(model, config, autocast_adapter_dtype=False)


def _step(model: nn.Module, x: torch.Tensor, cotangent: torch.Tensor) -> Callable[[], None]:
    """Forward and backward into x and the adapter; the base weight is frozen in all contenders."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(prefix in name for prefix in TRAINED))

    def run() -> None:
        x.grad = None
        model(x).backward(cotangent)

    return run


def _cdka(structure: Structure) -> cdka.CdkaConfig:
    r1, r2, r = structure
    return cdka.CdkaConfig(r1=r1, r2=r2, r=r, target_modules=["linear"], init_weights=False)


def _parameters(d: int, structure: Structure) -> int:
    return cdka.count_parameters([cdka.ModuleShape("linear", d, d)], *structure)


def _lora(d: int, structure: Structure, rslora: bool = False) -> LoraConfig:
    rank = max(1, round(_parameters(d, structure) / (2 * d)))
    return LoraConfig(r=rank, use_rslora=rslora, target_modules=["linear"], init_lora_weights=False)


def _miss(d: int, structure: Structure) -> MissConfig:
    # MiSS has r * d_out parameters; its r divides d_in, or its input is padded.
    rank = max(2, 2 * round(_parameters(d, structure) / (2 * d)))
    return MissConfig(r=rank, target_modules=["linear"], init_weights=False)


def _configs(d: int, structure: Structure) -> dict[str, Any]:
    """The adapters that are timed everywhere, by name; ``None`` is the frozen layer alone."""
    return {
        "base": None,
        "cdka": _cdka(structure),
        "lora": _lora(d, structure),
        "rslora": _lora(d, structure, rslora=True),
        "miss": _miss(d, structure),
    }


@cache
def _lokr(d: int, parameters: int) -> LoKrConfig:
    """The LoKr, over its factor and rank, whose size is closest to ``parameters``."""
    sizes = {}
    for factor in (4, 8, 16, 32):
        for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            config = LoKrConfig(
                r=rank, alpha=rank, decompose_factor=factor, target_modules=["linear"], init_weights=False
            )
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = get_peft_model(_One(d, torch.float32), config, low_cpu_mem_usage=True)
            size = sum(p.numel() for n, p in model.named_parameters() if "lokr_" in n)
            sizes[abs(size - parameters), factor, rank] = config
    return sizes[min(sizes)]


def _lycoris(d: int, dtype: torch.dtype, like: LoKrConfig, bypass: bool) -> nn.Module:
    """LyCORIS' LoKr of the size of PEFT's: by default it builds dW in every step, in bypass mode it does not."""
    from lycoris.modules.lokr import LokrModule

    base = nn.Linear(d, d, bias=False, dtype=dtype)
    module = LokrModule(
        "lokr", base, lora_dim=like.r, alpha=like.r, factor=like.decompose_factor, bypass_mode=bypass, use_scalar=False
    ).to(dtype)
    module.apply_to()  # the base layer's forward becomes the module's
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    base.requires_grad_(False)
    return base


def contenders(d: int, tokens: int, dtype: torch.dtype, structure: Structure) -> dict[str, Callable[[], None]]:
    """The layers to time; LoRA's and LoKr's sizes are those closest in parameters to CDKA's."""
    x = torch.randn(tokens, d, dtype=dtype, requires_grad=True)
    cotangent = torch.randn(tokens, d, dtype=dtype)
    lokr = _lokr(d, _parameters(d, structure))
    configs = {**_configs(d, structure), "lokr": lokr}
    steps = {name: _step(_adapted(d, dtype, c), x, cotangent) for name, c in configs.items()}
    for name, bypass in (("lycoris", False), ("lycoris bypass", True)):

        def step(base: nn.Module = _lycoris(d, dtype, lokr, bypass)) -> None:  # noqa: B008
            x.grad = None
            base(x).backward(cotangent)

        steps[name] = step
    return steps


def report(d: int, tokens: int, dtype: torch.dtype, structure: Structure, rounds: int) -> None:
    """Print one line of ratios."""
    made = contenders(d, tokens, dtype, structure)
    seconds = medians(made, rounds, max(1, int(4e8 / (d * d * tokens))))
    ours = seconds["cdka"]
    others = [name for name in made if name != "cdka"]
    ratios = "  ".join(f"/{name} {ours / seconds[name]:5.2f}" for name in others)
    kind = str(dtype).removeprefix("torch.")
    print(f"d={d:<5} tokens={tokens:<5} {kind:<9} {structure!s:<12} {1e3 * ours:8.2f} ms   cdka {ratios}", flush=True)


class _Llama:
    """A Llama of 512 x 8 layers on 4 x 256 tokens."""

    name = "Llama 512x8, 4x256 tokens"
    task_type = "CAUSAL_LM"

    @staticmethod
    def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
        config = LlamaConfig(
            vocab_size=4096,
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=8,
            use_cache=False,
        )
        ids = torch.randint(0, 4096, (4, 256))
        return AutoModelForCausalLM.from_config(config), {"input_ids": ids, "labels": ids}


class _Bert:
    """MiniLM's shape as the demo trains it: 384 x 6 layers on 8 x 64 tokens."""

    name = "BERT 384x6, 8x64 tokens"
    task_type = "SEQ_CLS"

    @staticmethod
    def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
        config = BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, num_labels=5
        )
        model = AutoModelForSequenceClassification.from_config(config)
        return model, {"input_ids": torch.randint(0, 30000, (8, 64)), "labels": torch.randint(0, 5, (8,))}


class _Attention(nn.Module):
    """Three layers that see the same input, named so that they are computed together."""

    def __init__(self, d: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d, d, bias=False, dtype=dtype) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)


def group_contenders(
    d: int, x: torch.Tensor, cotangent: torch.Tensor, structure: Structure
) -> dict[str, Callable[[], None]]:
    """Steps of three layers with the same input: CDKA together and layer by layer, and the others."""
    made = {}
    for name, config in _configs(d, structure).items():
        model: nn.Module = _Attention(d, x.dtype)
        if config is not None:
            config.target_modules = ["q_proj", "k_proj", "v_proj"]
            model = get_peft_model(model, config, autocast_adapter_dtype=False)
        made[name] = model.to(x.device)
    made["cdka, layer by layer"] = alone = deepcopy(made["cdka"])
    for layer in alone.modules():
        if isinstance(layer, CdkaLinear):
            layer.group = None
    return {name: _step(model, x, cotangent) for name, model in made.items()}


def groups() -> None:
    """Time three layers with the same input, relative to computing them one by one, to LoRA and to MiSS."""
    for d, tokens in ((384, 512), (1024, 512)):
        for structure in CONFIGURATIONS:
            x, cotangent = torch.randn(tokens, d, requires_grad=True), torch.randn(tokens, 3 * d)
            seconds = medians(group_contenders(d, x, cotangent, structure), 15, max(1, int(2e8 / (d * d * tokens))))
            ratios = "  ".join(f"/{n} {seconds['cdka'] / s:.2f}" for n, s in seconds.items() if n != "cdka")
            print(f"three layers, d={d:<5} tokens={tokens} {structure!s:<12} cdka {ratios}", flush=True)


def models() -> None:
    """Time a training step (forward, backward, optimizer) of whole models, relative to LoRA of rank 8."""
    for kind in (_Bert, _Llama):
        shared: dict[str, Any] = {"target_modules": "all-linear", "task_type": kind.task_type}
        configs: dict[str, Any] = {
            "none": None,
            "lora": LoraConfig(r=8, **shared),
            "rslora": LoraConfig(r=8, use_rslora=True, **shared),
            "miss": MissConfig(r=16, **shared),
        }
        for r1, r2, r in CONFIGURATIONS:
            configs[f"({r1}, {r2}, {r})"] = cdka.CdkaConfig(r1=r1, r2=r2, r=r, fit="nearest", **shared)
        steps = {name: _model_step(kind, config) for name, config in configs.items()}
        for run in range(3):
            seconds = medians(steps, 15, 1)
            ratios = "  ".join(f"{n} {s / seconds['lora']:.2f}" for n, s in seconds.items() if n != "lora")
            print(f"{kind.name}, run {run + 1}: LoRA r8 {1e3 * seconds['lora']:.0f} ms; over it: {ratios}", flush=True)


def _model_step(kind: Any, config: Any) -> Callable[[], None]:
    torch.manual_seed(0)
    model, batch = kind.make()
    if config is None:
        # Nothing is trained, but the backward pass still runs down to the input.
        model.requires_grad_(False)
        model.enable_input_require_grads()
    else:
        model = get_peft_model(model, config)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if trained else None

    def step() -> None:
        model(**batch).loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def crossover() -> None:
    """Compare expanded and shuffled products by width and inner size ``r*r1*r2``."""
    sizes = ((2, 1, 8), (2, 2, 8), (2, 4, 6), (2, 8, 4), (4, 4, 4), (2, 8, 8), (4, 8, 4), (4, 16, 4))
    for d, tokens in ((384, 512), (1024, 512), (4096, 256)):
        for structure in sizes:
            r1, r2, r = structure
            x, cotangent = torch.randn(tokens, d, requires_grad=True), torch.randn(tokens, d)
            W = torch.randn(d, d)
            A, B = torch.randn(r, r1, d // r2, requires_grad=True), torch.randn(r, d // r1, r2, requires_grad=True)

            def step(limit: int, *, x=x, A=A, B=B, W=W, cotangent=cotangent) -> None:  # type: ignore[no-untyped-def]
                fused.LARGEST_EXPANSION["cpu"] = limit
                x.grad = A.grad = B.grad = None
                fused.fused(x, A, B, 0.5, W).backward(cotangent)

            ways = {"expanded": lambda: step(10**9), "shuffled": lambda: step(0)}
            seconds = medians(ways, 15, max(1, int(4e8 / (d * d * tokens))))
            ratio = seconds["expanded"] / seconds["shuffled"]
            print(f"d={d:<5}{structure!s:<12} r*r1*r2 = {r * r1 * r2:<4} expanded / shuffled {ratio:.3f}", flush=True)


def merged() -> None:
    """Time inference after ``merge_and_unload``, relative to the base layer."""
    model = _adapted(1024, torch.float32, _cdka((2, 8, 4))).merge_and_unload()
    base, x = _One(1024, torch.float32), torch.randn(512, 1024)
    with torch.inference_mode():
        seconds = medians({"base": lambda: base(x), "merged": lambda: model(x)}, 25, 5)
    print(f"inference after merge / base {seconds['merged'] / seconds['base']:.3f}", flush=True)


MEMORY = "from benchmarks.adapter import peak; peak({name!r}, {structure!r})"


def peak(name: str, structure: Structure) -> None:
    """Print this process' resident memory growth over training steps of a 6-layer BERT, in MiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(BertConfig(hidden_size=768, num_hidden_layers=6))
    r1, r2, r = structure
    rank = round(_parameters(768, structure) / (2 * 768))
    shared: dict[str, Any] = {"target_modules": "all-linear", "task_type": "SEQ_CLS"}
    config = cdka.CdkaConfig(r1=r1, r2=r2, r=r, **shared) if name == "cdka" else LoraConfig(r=rank, **shared)
    model = get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, 1000, (16, 128))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        model(ids, labels=torch.zeros(16, dtype=torch.long)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def memory() -> None:
    """Compare CDKA's memory of a step with LoRA's."""
    for structure in CONFIGURATIONS:
        used = {}
        for name in ("cdka", "lora"):
            command = [sys.executable, "-c", MEMORY.format(name=name, structure=structure)]
            runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
            used[name] = sorted(float(text.split()[-1]) for text in runs)[1]
        ratio = used["cdka"] / used["lora"]
        print(f"{structure!s:<12} step memory {used['cdka']:.0f} MiB, over LoRA's {ratio:.3f}", flush=True)


def profile() -> None:
    """Print the operators of one layer's step, sorted by self time."""
    for structure in CONFIGURATIONS:
        step = contenders(1024, 512, torch.float32, structure)["cdka"]
        step()
        with torch.profiler.profile() as recorded:
            for _ in range(20):
                step()
        print(structure)
        print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("full", "models", "groups", "crossover", "memory", "merged", "profile"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    chosen = [f for f in (models, groups, crossover, memory, merged, profile) if getattr(options, f.__name__)]
    if chosen:
        for measure in chosen:
            measure()
        return
    print("CDKA layer, forward + backward, one thread; medians of CPU time; ratios over contenders of equal parameters")
    for d in WIDTHS if options.full else (1024,):
        for tokens in TOKENS if options.full else (512,):
            for dtype in (torch.float32, torch.bfloat16) if options.full else (torch.float32,):
                for structure in CONFIGURATIONS:
                    report(d, tokens, dtype, structure, rounds=5 if options.full else 15)
    merged()
    groups()
    models()


if __name__ == "__main__":
    main()
