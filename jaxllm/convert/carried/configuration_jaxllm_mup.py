# SPDX-License-Identifier: Apache-2.0
"""Configurations of Crystal and BTLM for transformers 5. The fields are those of the published config.json files."""

from transformers import PreTrainedConfig


class MupConfig(PreTrainedConfig):
    """What both have.

    mup_embeddings_scale: factor on the rows of the embedding. mup_output_alpha * mup_width_scale: factor on the logits.
    mup_scale_qk_dot_by_d: products of queries and keys are divided by the width of a head, not by its square root.
    position_embedding_type: 'rotary', of the first rotary_dim numbers of every head, or 'alibi'.
    """

    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50257
    n_positions: int = 2048
    n_embd: int = 2048
    n_layer: int = 24
    n_head: int = 16
    n_inner: int = 5461
    activation_function: str = "swiglu"
    layer_norm_epsilon: float = 1e-5
    attn_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    scale_attn_weights: bool = True
    initializer_range: float = 0.02
    mup_embeddings_scale: float = 1.0
    mup_output_alpha: float = 1.0
    mup_width_scale: float = 1.0
    mup_scale_qk_dot_by_d: bool = False
    position_embedding_type: str = "alibi"
    rotary_dim: int | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
        if self.activation_function != "swiglu":
            raise ValueError(
                f"activation_function={self.activation_function!r} is not supported; supported is 'swiglu'"
            )
        if not self.scale_attn_weights or self.attn_pdrop or self.embd_pdrop or self.resid_pdrop:
            raise ValueError("unscaled attention and dropout are not supported")
        match self.position_embedding_type:
            case "alibi":
                pass
            case "rotary":
                if not self.rotary_dim or self.rotary_dim % 2 or self.rotary_dim > self.n_embd // self.n_head:
                    raise ValueError(f"rotary_dim={self.rotary_dim} is even and at most the width of a head")
            case other:
                raise ValueError(
                    f"position_embedding_type={other!r} is not supported; supported is 'rotary' or 'alibi'"
                )


class CrystalConfig(MupConfig):
    """Crystal: rotary embedding."""

    model_type = "jaxllm_crystal"


class BtlmConfig(MupConfig):
    """BTLM, SlimPajama-DC: ALiBi."""

    model_type = "jaxllm_btlm"
