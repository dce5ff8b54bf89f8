# SPDX-License-Identifier: Apache-2.0
"""Crystal and BTLM for transformers 5: GPT-2's layers with SwiGLU, muP's factors, and rotary embedding or ALiBi.

Names and shapes of tensors are those of the published checkpoints.
"""

import math

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.pytorch_utils import Conv1D
from transformers.utils.generic import can_return_tuple

from .configuration_jaxllm_mup import BtlmConfig, CrystalConfig, MupConfig


def alibi_slopes(heads: int) -> list[float]:
    """The slope of every head (https://arxiv.org/abs/2108.12409): a geometric series for a power of two heads, else
    that of the power below, filled up with every other one of the power above."""
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / below) for i in range(below)]
    return slopes + [2 ** (-4 * (i + 1) / below) for i in range(0, 2 * below, 2)][: heads - below]


def rotate(x: torch.Tensor, position_ids: torch.Tensor, width: int) -> torch.Tensor:
    """Turn the pairs (0, 1), (2, 3), ... of the first `width` numbers of every head. x: [batch, heads, length, K]."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angles = position_ids[:, None, :, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    even, odd = x[..., 0:width:2].float(), x[..., 1:width:2].float()
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((turned.to(x.dtype), x[..., width:]), dim=-1)


class MupAttention(nn.Module):
    """Every head has its own keys and values; q, k and v come from one matrix."""

    def __init__(self, config: MupConfig, layer: int):
        super().__init__()
        self.layer, self.heads, self.head_width = layer, config.n_head, config.n_embd // config.n_head
        self.scale = self.head_width ** (-1.0 if config.mup_scale_qk_dot_by_d else -0.5)
        self.rotary_dim = config.rotary_dim if config.position_embedding_type == "rotary" else 0
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x, position_ids, bias, cache):
        heads = (*x.shape[:2], self.heads, self.head_width)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        if self.rotary_dim:
            q, k = rotate(q, position_ids, self.rotary_dim), rotate(k, position_ids, self.rotary_dim)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return self.c_proj(out.transpose(1, 2).reshape(x.shape))


class MupMLP(nn.Module):
    """silu(c_fc2 x) * c_fc x: the gate is c_fc2."""

    def __init__(self, config: MupConfig):
        super().__init__()
        self.c_fc = Conv1D(config.n_inner, config.n_embd)
        self.c_fc2 = Conv1D(config.n_inner, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_inner)

    def forward(self, x):
        return self.c_proj(self.c_fc(x) * nn.functional.silu(self.c_fc2(x)))


class MupBlock(nn.Module):
    """One layer."""

    def __init__(self, config: MupConfig, layer: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = MupAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MupMLP(config)

    def forward(self, x, position_ids, bias, cache):
        x = x + self.attn(self.ln_1(x), position_ids, bias, cache)
        return x + self.mlp(self.ln_2(x))


class MupPreTrainedModel(PreTrainedModel):
    """Loading and initial values."""

    config_class = MupConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["MupBlock"]  # noqa: RUF012
    _supports_sdpa = True
    # Buffers of the published checkpoints; nothing was learned in them.
    _keys_to_ignore_on_load_unexpected = [r"\.attn\.(masked_)?bias$", r"relative_pe\.slopes$"]  # noqa: RUF012

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Conv1D):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)


class MupModel(MupPreTrainedModel):
    """Tokens -> hidden states after the last norm."""

    def __init__(self, config: MupConfig):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(MupBlock(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_hidden_states=None,
        **kwargs,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache(config=self.config)
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = seen + torch.arange(x.shape[1], device=x.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            allow_is_causal_skip=False,
        )
        bias = self._bias(mask, seen, x.dtype)
        x = x * self.config.mup_embeddings_scale
        kept = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = ()  # the input of every layer, and what comes out at the end
        for block in self.h:
            states += (x,) if kept else ()
            x = block(x, position_ids, bias, past_key_values)
        x = self.ln_f(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=(*states, x) if kept else None,
        )

    def _bias(self, mask: torch.Tensor, seen: int, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the scores, [batch, heads or 1, queries, keys]: minus slope * distance, and the mask."""
        if self.config.position_embedding_type != "alibi":
            return mask
        queries = seen + torch.arange(mask.shape[-2], device=mask.device)
        distance = queries[:, None] - torch.arange(mask.shape[-1], device=mask.device)
        slopes = torch.tensor(alibi_slopes(self.config.n_head), device=mask.device)
        bias = (-slopes[None, :, None, None] * distance).to(dtype)
        lowest = torch.finfo(dtype).min
        return bias.masked_fill(~mask, lowest) if mask.dtype == torch.bool else (bias + mask).clamp(min=lowest)


class MupForCausalLM(MupPreTrainedModel, GenerationMixin):
    """Tokens -> logits."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012

    def __init__(self, config: MupConfig):
        super().__init__(config)
        self.transformer = MupModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids=None, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.transformer(input_ids=input_ids, **kwargs)
        x = outputs.last_hidden_state
        kept = x[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else x[:, logits_to_keep]
        logits = self.lm_head(kept) * (self.config.mup_output_alpha * self.config.mup_width_scale)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


class CrystalModel(MupModel):
    """Crystal without its head."""

    config_class = CrystalConfig


class CrystalForCausalLM(MupForCausalLM):
    """Crystal."""

    config_class = CrystalConfig


class BtlmModel(MupModel):
    """BTLM, SlimPajama-DC, without its head."""

    config_class = BtlmConfig


class BtlmForCausalLM(MupForCausalLM):
    """BTLM, SlimPajama-DC."""

    config_class = BtlmConfig
