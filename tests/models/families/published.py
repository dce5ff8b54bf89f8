"""config.json as published, for the families that transformers has no class for; the fields, not the layout."""

from typing import Any

Json = dict[str, Any]

# https://huggingface.co/LLM360/Crystal/raw/160aa16462c3c3f6e89e5f140d44a608a382e3c4/config.json
CRYSTAL: Json = {
    "attn_pdrop": 0.0,
    "scale_attn_weights": True,
    "resid_pdrop": 0.0,
    "mup_embeddings_scale": 14.6,
    "n_inner": 10922,
    "n_embd": 4096,
    "layer_norm_epsilon": 1e-05,
    "n_positions": 2048,
    "activation_function": "swiglu",
    "n_head": 32,
    "n_layer": 32,
    "mup_output_alpha": 2.22,
    "mup_width_scale": 0.0625,
    "position_embedding_type": "rotary",
    "rotary_dim": 32,
    "mup_scale_qk_dot_by_d": True,
    "tie_word_embeddings": True,
    "vocab_size": 32032,
    "embd_pdrop": 0.0,
    "model_type": "crystalcoder",
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "auto_map": {"AutoConfig": "configuration_crystalcoder.CrystalCoderConfig"},
    "architectures": ["CrystalCoderLMHeadModel"],
}

# https://huggingface.co/LLM360/CrystalChat/blob/48f06b098a2850245ee5e8faf952952b168199aa/config.json
CRYSTAL_CHAT: Json = {k: v for k, v in CRYSTAL.items() if k != "tie_word_embeddings"} | {
    "_name_or_path": "CrystalCoder",
    "initializer_range": 0.02,
    "reorder_and_upcast_attn": False,
    "scale_attn_by_inverse_layer_idx": False,
    "torch_dtype": "float32",
    "transformers_version": "4.35.2",
}

# https://huggingface.co/cerebras/btlm-3b-8k-base/blame/main/config.json
BTLM: Json = {
    "_name_or_path": "cerebras/btlm-3b-8k-base",
    "activation_function": "swiglu",
    "architectures": ["BTLMLMHeadModel"],
    "attn_pdrop": 0.0,
    "auto_map": {"AutoConfig": "configuration_btlm.BTLMConfig"},
    "bos_token_id": 50256,
    "embd_pdrop": 0.0,
    "mup_embeddings_scale": 14.6,
    "eos_token_id": 50256,
    "initializer_range": 0.073,
    "layer_norm_epsilon": 1e-05,
    "model_type": "btlm",
    "n_embd": 2560,
    "n_head": 32,
    "n_inner": 6826,
    "n_layer": 32,
    "n_positions": 8192,
    "mup_output_alpha": 2.2200000000000003,
    "position_embedding_type": "alibi",
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "mup_scale_qk_dot_by_d": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.30.0",
    "use_cache": True,
    "vocab_size": 50257,
    "mup_width_scale": 0.1,
}

# .../blob/19c31167863267cd396a100a2376cda1bb371710/config.json: the same model, spelled as at first
_FIRST = {"embeddings_scale": 14.6, "output_logits_scale": 0.22200000000000003, "width_scale": 0.1}
BTLM_FIRST: Json = {k: v for k, v in BTLM.items() if not k.startswith("mup_")} | _FIRST | {"scale_qk_dot_by_d": True}

# https://huggingface.co/MBZUAI-LLM/SlimPajama-DC/blob/main/config.json
SLIMPAJAMA_DC: Json = {
    "_name_or_path": "MBZUAI-LLM/SlimPajama-DC",
    "activation_function": "swiglu",
    "architectures": ["BTLMLMHeadModel"],
    "attn_pdrop": 0.0,
    "auto_map": {"AutoConfig": "configuration_btlm.BTLMConfig"},
    "bos_token_id": 50256,
    "embd_pdrop": 0.0,
    "embeddings_scale": 14.6,
    "eos_token_id": 0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "btlm",
    "n_embd": 2048,
    "n_head": 16,
    "n_inner": 5461,
    "n_layer": 24,
    "n_positions": 2048,
    "pad_token_id": 0,
    "position_embedding_type": "alibi",
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "scale_qk_dot_by_d": True,
    "transformers_version": "4.32.1",
    "use_cache": True,
    "vocab_size": 50277,
    "width_scale": 0.2775,
}

# https://huggingface.co/inceptionai/Jais-family-256m/blob/bd48d1ec64031e5b96991fdba5d7ef6ed9c32740/config_cb.json:
# 17 heads, which is no power of two
JAIS_256M: Json = {
    "vocab_size": 84992,
    "embd_pdrop": 0.0,
    "tie_word_embeddings": True,
    "position_embedding_type": "alibi",
    "n_positions": 2048,
    "rotary_dim": None,
    "alibi_scaling": None,
    "n_embd": 1088,
    "n_layer": 14,
    "resid_pdrop": 0.0,
    "layer_norm_epsilon": 1e-05,
    "n_head": 17,
    "scale_attn_weights": True,
    "attn_pdrop": 0.0,
    "scale_attn_by_inverse_layer_idx": False,
    "n_inner": 2912,
    "activation_function": "swiglu",
    "mup_embeddings_scale": 9.1705785388303,
    "mup_scale_qk_dot_by_d": True,
    "mup_output_alpha": 1.09518349815769,
    "mup_width_scale": 0.23529411764705882,
    "initializer_range": 0.02,
    "model_type": "btlm",
    "use_cache": True,
}

_SMALL: Json = {"vocab_size": 53, "n_layer": 2, "n_inner": 37, "n_positions": 32, "mup_width_scale": 0.5}

# The published ones made small. Three heads of which 4 of 10 numbers turn; six heads, no power of two.
SMALL_CRYSTAL: Json = CRYSTAL | _SMALL | {"n_embd": 30, "n_head": 3, "rotary_dim": 4}
SMALL_BTLM: Json = BTLM | _SMALL | {"n_embd": 24, "n_head": 6}
