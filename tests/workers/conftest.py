"""Fixtures of the workers' suites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from service.client import Client
from service.client.testing import AppTransport
from tests.conftest import Api, write_lines
from workers.runner.runner import Runner

from .helpers import DIGITS, WORDS, tokenizer


@pytest.fixture
def runner(api: Api) -> Iterator[Runner]:
    with Client("http://localhost", api.token("worker"), transport=AppTransport(api.http)) as client:
        yield Runner(client, api.ctx.settings, "runner-1")


@pytest.fixture(scope="session")
def zoo(data_root: Path) -> Path:
    """A tiny decoder, a tiny T5 and a tiny ViT in hub layout, and data for each."""
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(llama).save_pretrained(data_root / "tiny-llama")
    chat = tokenizer()
    chat.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    chat.save_pretrained(data_root / "tiny-llama")
    t5 = T5Config(
        vocab_size=len(WORDS),
        d_model=32,
        d_ff=64,
        d_kv=16,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(t5).save_pretrained(data_root / "tiny-t5")
    tokenizer(ends="yes").save_pretrained(data_root / "tiny-t5")
    vit = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=2,
        num_labels=2,
    )
    model = ViTForImageClassification(vit)
    model.vit.save_pretrained(data_root / "tiny-vit")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(data_root / "tiny-vit")
    rows = []
    for k in range(60):
        a, b = k % 5, (k // 5) % 5
        rows.append(
            {
                "prompt": f"{DIGITS[a]} plus {DIGITS[b]} is ?",
                "completion": f"#### {a + b}",
                "a": DIGITS[a],
                "parity": (a + b) % 2,
                "size": float(a + b),
                "messages": [
                    {"role": "user", "content": f"{DIGITS[a]} plus {DIGITS[b]} ?"},
                    {"role": "assistant", "content": DIGITS[a + b]},
                ],
            }
        )
    write_lines(data_root / "sums.jsonl", rows)
    return data_root
