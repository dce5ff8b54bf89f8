"""Published models: their config.json, as it was published, counts the parameters that were published.

The counts are also those of transformers' classes, built without memory.
"""

from typing import Any

import pytest

from jaxllm.models.config import Rope
from jaxllm.models.count import parameters
from jaxllm.models.families.registry import FAMILIES, model_of_config
from jaxllm.models.families.table import Fields, Surroundings

# fmt: off
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-3-8B": (
        {
            "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu",
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 500000.0,
            "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False, "pretraining_tp": 1,
        },
        8_030_261_248,
    ),
    "Mistral-7B-v0.1": (
        {
            "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu",
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
            "tie_word_embeddings": False,
        },
        7_241_732_096,
    ),
    "Qwen2-7B": (
        {
            "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
            "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_act": "silu",
            "max_position_embeddings": 131072, "max_window_layers": 28, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
            "sliding_window": 131072, "use_sliding_window": False, "attention_dropout": 0.0,
            "tie_word_embeddings": False,
        },
        7_615_616_512,
    ),
    "Qwen3-8B": (
        {
            "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288,
            "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "hidden_act": "silu", "max_position_embeddings": 40960, "max_window_layers": 36, "rms_norm_eps": 1e-06,
            "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "use_sliding_window": False,
            "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False,
        },
        8_190_735_360,
    ),
    "OLMo-2-7B": (
        {
            "model_type": "olmo2", "vocab_size": 100352, "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500000,
            "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False,
        },
        7_298_617_344,
    ),
    "Gemma-2-9B": (
        {
            "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 3584, "intermediate_size": 14336,
            "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
            "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0, "attention_bias": False, "attention_dropout": 0.0,
            "cache_implementation": "hybrid",
        },
        9_241_705_984,
    ),
    "Gemma-3-1B": (
        {
            "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912,
            "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 32768, "rms_norm_eps": 1e-06,
            "rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": None,
            "query_pre_attn_scalar": 256, "sliding_window": 512, "sliding_window_pattern": 6,
            "attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": False,
            "attention_dropout": 0.0, "cache_implementation": "hybrid",
        },
        999_885_952,
    ),
    "Phi-3-mini": (
        {
            "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
            "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
            "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047, "attention_bias": False,
            "attention_dropout": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": False,
        },
        3_821_079_552,
    ),
    "Pythia-6.9B": (
        {
            "model_type": "gpt_neox", "vocab_size": 50432, "hidden_size": 4096, "intermediate_size": 16384,
            "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "gelu", "max_position_embeddings": 2048,
            "layer_norm_eps": 1e-05, "rotary_emb_base": 10000, "rotary_pct": 0.25, "use_parallel_residual": True,
            "tie_word_embeddings": False,
        },
        6_857_302_016,
    ),
    "Mixtral-8x7B": (
        {
            "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu",
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
            "num_local_experts": 8, "num_experts_per_tok": 2, "output_router_logits": False,
            "router_aux_loss_coef": 0.02, "attention_dropout": 0.0, "tie_word_embeddings": False,
        },
        46_702_792_704,
    ),
    "OLMoE-1B-7B": (
        {
            "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024,
            "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_act": "silu",
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
            "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False, "output_router_logits": False,
            "router_aux_loss_coef": 0.01, "clip_qkv": None, "attention_bias": False, "attention_dropout": 0.0,
            "tie_word_embeddings": False,
        },
        6_919_161_856,
    ),
    "Qwen3-30B-A3B": (
        {
            "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
            "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 40960,
            "max_window_layers": 48, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0,
            "sliding_window": None, "use_sliding_window": False, "num_experts": 128, "num_experts_per_tok": 8,
            "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "output_router_logits": False,
            "router_aux_loss_coef": 0.001, "attention_bias": False, "attention_dropout": 0.0,
            "tie_word_embeddings": False,
        },
        30_532_122_624,
    ),
}
# fmt: on


def test_every_family_of_transformers_has_one() -> None:
    assert {raw["model_type"] for raw, _ in PUBLISHED.values()} == {f.model_type for f in FAMILIES if not f.carries}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_what_was_published(name: str) -> None:
    raw, count = PUBLISHED[name]
    _, model = model_of_config(raw, name)
    assert parameters(model) == count


@pytest.mark.torch
@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_what_transformers_counts(name: str) -> None:
    import torch
    import transformers

    raw, count = PUBLISHED[name]
    config = transformers.AutoConfig.for_model(**raw)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(x.numel() for x in theirs.parameters()) == count
    # What transformers makes of it, and saves, is read as the same model.
    assert model_of_config(config.to_dict(), name)[1] == model_of_config(raw, name)[1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_is_read_as_the_same(name: str) -> None:
    raw, _ = PUBLISHED[name]
    family, model = model_of_config(raw, name)
    written = family.write(model, Surroundings(length=raw["max_position_embeddings"]))
    assert family.read(Fields(written, name)) == model
    assert written["max_position_embeddings"] == raw["max_position_embeddings"]


def test_windows_and_thetas_are_where_they_were_published() -> None:
    models = {name: model_of_config(raw, name)[1] for name, (raw, _) in PUBLISHED.items()}
    windows = {name: [model.kind(i).window for i in range(model.layers)] for name, model in models.items()}
    assert windows["Mistral-7B-v0.1"] == [4096] * 32
    assert windows["Qwen2-7B"] == [None] * 28
    assert windows["Gemma-2-9B"] == [4096, None] * 21
    assert windows["Gemma-3-1B"] == ([512] * 5 + [None]) * 4 + [512] * 2
    assert windows["Phi-3-mini"] == [2047] * 32
    gemma = models["Gemma-3-1B"]
    assert gemma.position == Rope(theta=1_000_000.0)
    assert gemma.position_of(gemma.kind(0)) == Rope(theta=10_000.0)
    assert gemma.position_of(gemma.kind(5)) == Rope(theta=1_000_000.0)
    assert models["Pythia-6.9B"].position == Rope(fraction=0.25)
