"""Small random models under the names that PEFT's tests load, in the layout of the hub's local cache."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VOCABULARY = {"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {**SIZES, "vocab_size": 128, "max_position_embeddings": 64}
GQA = {**SIZES, **VOCABULARY, "num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **VOCABULARY}

CAUSAL = hf.AutoModelForCausalLM
TEXT_TO_TEXT = hf.AutoModelForSeq2SeqLM
CLASSIFIER = hf.AutoModelForSequenceClassification
ENCODER = hf.AutoModel

MODELS = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": (
        CAUSAL,
        hf.OPTConfig(
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            **VOCABULARY,
        ),
    ),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": (CAUSAL, hf.GPT2Config(**GPT)),
    "hf-internal-testing/tiny-random-gpt2": (CAUSAL, hf.GPT2Config(**GPT)),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": (CAUSAL, hf.GPTJConfig(rotary_dim=4, **GPT)),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": (CAUSAL, hf.LlamaConfig(**GQA)),
    "hf-internal-testing/tiny-random-MistralForCausalLM": (CAUSAL, hf.MistralConfig(**GQA)),
    "peft-internal-testing/tiny-dummy-qwen2": (CAUSAL, hf.Qwen2Config(**GQA)),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": (CAUSAL, hf.Gemma3TextConfig(head_dim=8, **GQA)),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": (
        TEXT_TO_TEXT,
        hf.BartConfig(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=64,
            decoder_start_token_id=2,
            **VOCABULARY,
        ),
    ),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": (
        TEXT_TO_TEXT,
        hf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=128, decoder_start_token_id=0),
    ),
    "peft-internal-testing/tiny-random-BertModel": (ENCODER, hf.BertConfig(**BERT)),
    "peft-internal-testing/tiny-random-RobertaModel": (ENCODER, hf.RobertaConfig(**BERT)),
    "peft-internal-testing/tiny-random-DebertaModel": (ENCODER, hf.DebertaConfig(**BERT)),
    "peft-internal-testing/tiny-random-DebertaV2Model": (ENCODER, hf.DebertaV2Config(**BERT)),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": (CLASSIFIER, hf.BertConfig(**BERT)),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (CLASSIFIER, hf.RobertaConfig(**BERT)),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": (CLASSIFIER, hf.LlamaConfig(**GQA)),
    "trl-internal-testing/tiny-Qwen3ForCausalLM": (CAUSAL, hf.Qwen3Config(head_dim=8, **GQA)),
}


def write_models(hub: Path) -> None:
    """Write every model into ``hub`` as ``models--owner--name/snapshots/local``, once."""
    for name, (auto, config) in MODELS.items():
        folder = hub / f"models--{name.replace('/', '--')}"
        if (folder / "refs" / "main").exists():
            continue
        torch.manual_seed(0)
        auto.from_config(config).save_pretrained(folder / "snapshots" / "local")
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text("local")
