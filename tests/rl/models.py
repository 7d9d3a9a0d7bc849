"""Tiny models with sharp opinions, so that rounding changes no token."""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 40
_LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3, "tie_word_embeddings": False, "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama with grouped queries": _LLAMA,
    "llama with tied weights": {**_LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 4},
    "gpt2 with learnt positions": {
        "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3, "n_positions": 256,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "gpt_neox": {
        "model_type": "gpt_neox", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "initializer_range": 0.3,
    },
    "bloom with alibi": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    "opt": {
        "model_type": "opt", "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "word_embed_proj_dim": 32, "init_std": 0.3,
    },
    "mistral with a wide window": {**_LLAMA, "model_type": "mistral", "sliding_window": 64},
    "gemma2 with a wide window": {**_LLAMA, "model_type": "gemma2", "head_dim": 8, "sliding_window": 64},
}  # fmt: skip


def model_of(config: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """A model in fp32 and eval mode."""
    torch.manual_seed(seed)
    kind, rest = config["model_type"], {k: v for k, v in config.items() if k != "model_type"}
    special = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **special, **rest))
    assert isinstance(made, PreTrainedModel)
    return made.eval()


def adapted(model: PreTrainedModel) -> PeftModel:
    """With adapters that change what the model says."""
    made = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()
