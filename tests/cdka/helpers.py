"""Small models with and without adapters, for several suites."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

import cdka

BERT = BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3
)
IDS = torch.arange(12).reshape(2, 6)
X = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(24, 32)
        self.second = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


class ConvNet(nn.Module):
    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 8, **({"kernel_size": 3} | arguments))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def config(**changes: Any) -> cdka.CdkaConfig:
    arguments = {"target_modules": ["first", "second"], "r2": 4, "init_weights": False} | changes
    return cdka.CdkaConfig(**arguments)


def net(**changes: Any) -> PeftModel:
    return get_peft_model(Net(), config(**changes)).eval()


def bert() -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(BERT).eval()


def adapted(**changes: Any) -> PeftModel:
    config = {"target_modules": "all-linear", "task_type": "SEQ_CLS", "init_weights": False, "r2": 4} | changes
    return get_peft_model(bert(), cdka.CdkaConfig(**config)).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits
