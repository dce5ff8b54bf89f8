"""Qwen 3 (https://arxiv.org/abs/2505.09388): a norm over every head of queries and keys."""

from jaxllm.models.config import Attention, Model, QkNorm, RmsNorm, Site
from jaxllm.models.families import names
from jaxllm.models.families.qwen2 import upper_windows, write_windows
from jaxllm.models.families.rope import read_rope, write_rope
from jaxllm.models.families.shared import ffn_width, heads, no_dropout, sizes, swiglu, written
from jaxllm.models.families.table import Family, Fields, Json, Surroundings

_SITES: tuple[Site, ...] = ("q", "k", "v", "o")


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    no_dropout(fields, "attention_dropout")
    size = sizes(fields)
    biased = fields.only("attention_bias", False, True)
    model = Model(
        **size,
        attention=Attention(
            **heads(fields, kv_heads=32, head_width=128), biases=_SITES if biased else (), qk_norm=QkNorm(over="head")
        ),
        ffn=swiglu(fields),
        norm=RmsNorm(eps=fields.take("rms_norm_eps", float, 1e-6)),
        position=read_rope(fields),
        pattern=upper_windows(fields, size["layers"]),
    )
    fields.finish()
    return model


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    own = {
        "intermediate_size": ffn_width(model),
        "hidden_act": "silu",
        "attention_bias": bool(model.attention.biases),
    }
    return written(model, around) | own | write_windows(model) | write_rope(model.position)


FAMILY = Family(
    name="qwen3", model_type="qwen3", architecture="Qwen3ForCausalLM", read=read, write=write, maps=names.usual
)
